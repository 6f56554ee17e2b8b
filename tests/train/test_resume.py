"""A run that is killed and resumed leaves the same bits as one that never was: weights, optimizer,
value tables, logs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inrun.train import CheckpointError, Interrupted, Run, RunFolderError, checkpoint
from tests.support.train_example import (
    config,
    in_step,
    lines,
    settings,
    tables,
    weights,
    write_documents,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    write_documents(root / "raw")
    return root


@pytest.fixture(scope="module")
def whole(root):
    """The folder of the run that nobody interrupts."""
    run = Run.start(config(root, "whole"))
    run.train().close()
    return run.folder


def assert_equal_runs(folder: Path, reference: Path) -> None:
    got, want = weights(folder), weights(reference)
    assert got.keys() == want.keys()
    assert [name for name in want if not torch.equal(got[name], want[name])] == []
    mine, theirs = tables(folder), tables(reference)
    for name in theirs:
        assert mine[name] == theirs[name], name
    assert len(theirs["terms"]) == 12 * 8 * 2
    assert lines(folder) == lines(reference)
    assert lines(folder, "chunks.jsonl") == lines(reference, "chunks.jsonl")


def train_and_die(root: Path, name: str, place: str, count: int) -> None:
    path = root / f"{name}.json"
    path.write_text(json.dumps(settings(root, name)))
    command = [sys.executable, "-m", "tests.support.killed_run", str(path), place, str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_two_runs_with_one_seed_are_equal_bit_for_bit(root, whole):
    run = Run.start(config(root, "again"))
    run.train().close()
    assert_equal_runs(run.folder, whole)


# first kill, second kill: before the first checkpoint; half way through writing one; before a part
# of the store gets its name; after a checkpoint is whole, before the ones too many are deleted
KILLS = {
    "early-and-in-a-checkpoint": [
        ("torch.optim:AdamW.step", 3),
        ("inrun.train.checkpoint:_random_states", 2),
    ],
    "in-the-store-and-in-a-step": [
        ("inrun.files:publish", 10),
        ("inrun.train.loop:clip_gradients", 7),
    ],
}


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS.keys())
def test_run_killed_twice_and_resumed_equals_a_whole_one(root, whole, kills, request):
    name = request.node.callspec.id
    for place, count in kills:
        train_and_die(root, name, place, count)
    run = Run.resume(root / "runs" / name)
    assert run.step < 12
    run.train().close()
    assert_equal_runs(run.folder, whole)


class Crash(Exception):
    """Nothing that the trainer knows."""


@pytest.mark.parametrize("at", [1, 5, 8, 11])
def test_run_that_crashed_in_the_middle_of_a_step_resumes_to_the_same_bits(
    root, whole, at, monkeypatch
):
    def crash():
        raise Crash

    run = Run.start(config(root, f"crash-{at}"))
    in_step(monkeypatch, run, at, crash)
    with pytest.raises(Crash):
        run.train()
    monkeypatch.undo()
    again = Run.resume(run.folder)
    assert again.step == at // 4 * 4
    again.train().close()
    assert_equal_runs(run.folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_writes_a_checkpoint_and_says_how_to_go_on(root, whole, number, monkeypatch):
    before = signal.getsignal(number)
    run = Run.start(config(root, f"signal-{number}"))
    in_step(monkeypatch, run, 5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"after step 6 of 12.*resume={run.folder}") as stop:
        run.train()
    assert stop.value.signum == number
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    again = Run.resume(run.folder)
    assert again.step == 6
    again.train().close()
    assert_equal_runs(run.folder, whole)


def test_finished_run_is_resumed_without_a_step(root, whole):
    before = weights(whole), tables(whole), lines(whole)
    Run.resume(whole).train().close()
    after = weights(whole), tables(whole), lines(whole)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


def test_only_the_last_checkpoints_are_kept(whole):
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [
        "step-000000008",
        "step-000000012",
    ]


def test_no_checkpoint_holds_a_pickle(whole):
    names = {path.name for path in (whole / "checkpoints").rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_moved_run_goes_on_where_it_is_now(root, tmp_path, monkeypatch):
    run = Run.start(config(root, "moved", train__steps=4, train__checkpoint_every=2))
    run.train().close()
    place = tmp_path / "elsewhere"
    run.folder.rename(place)
    again = Run.resume(place)
    assert (again.folder, again.step) == (place, 4)
    again.train().close()


def test_checkpoint_of_another_model_is_refused(root, whole):
    run = Run.start(config(root, "wider", model__d_model=64, train__steps=1))
    run.train().close()
    source = whole / "checkpoints" / "step-000000012"
    shutil.copytree(source, run.folder / "checkpoints" / "step-000000012")
    with pytest.raises(CheckpointError, match=r"belongs to another model: it differs in .*weight"):
        checkpoint.load(source, run.model, run.optimizer)
    with pytest.raises(CheckpointError, match=r"made with another config than run\.json has now"):
        Run.resume(run.folder)


def test_folder_that_is_no_run_cannot_be_resumed(root, whole, tmp_path):
    with pytest.raises(RunFolderError, match=r"is no run: it has no run\.json.*runs beside it: "):
        Run.resume(whole.parent / "nothing")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="damaged"):
        Run.resume(tmp_path)


def test_run_folder_that_exists_is_not_written_to(root, whole):
    before = sorted(path.name for path in whole.rglob("*"))
    with pytest.raises(
        RunFolderError, match=r"exists already\. Next: go on with it by resume=.*whole"
    ):
        Run.start(config(root, "whole"))
    assert sorted(path.name for path in whole.rglob("*")) == before


def test_run_does_not_go_on_with_another_corpus(root, tmp_path):
    write_documents(tmp_path / "raw", seed=1)
    run = Run.start(config(tmp_path, "mine", train__steps=1))
    run.train().close()
    write_documents(tmp_path / "raw", seed=2)
    other = Run.start(config(tmp_path, "other", train__steps=1))
    other.close()
    own = run.files.corpus_folder()
    shutil.rmtree(own)
    shutil.copytree(other.files.corpus_folder(), own)
    with pytest.raises(RunFolderError, match="began with another corpus"):
        Run.resume(run.folder)
    shutil.rmtree(own)
    with pytest.raises(RunFolderError, match="began with another corpus"):
        Run.resume(run.folder)


def test_run_owns_its_corpus(root, tmp_path, monkeypatch):
    """It goes on without the texts, with other texts in their place, and from another folder."""
    write_documents(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    places = {"runs": "runs", "data_root": "data", "data__path": "raw"}
    changes = {"train__steps": 4, "train__checkpoint_every": 2}
    run = Run.start(config(tmp_path, "mine", **places, **changes))
    run.train().close()
    shutil.rmtree(run.files.checkpoint(4))
    write_documents(tmp_path / "raw", seed=7)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = Run.resume(Path("../runs/mine"))
    assert again.step == 2
    assert again.corpus.whole_digest == run.corpus.whole_digest
    again.train().close()
    shutil.rmtree(tmp_path / "raw")
    shutil.rmtree(again.files.checkpoint(4))
    Run.resume(Path("../runs/mine")).train().close()
