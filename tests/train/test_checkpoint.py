"""A checkpoint is taken as it was written, or not at all.

Lost bits: the one before is used, and that is said. What belongs elsewhere is refused.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from inrun.train import CheckpointError, Run
from tests.support.train_example import config, lines, tables, weights, write_documents


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    write_documents(root / "raw")
    changes = {"train__steps": 6, "train__checkpoint_every": 2, "train__keep": 3}
    run = Run.start(config(root, "run", **changes))
    run.train().close()
    return run.folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run, whose last checkpoint is to be spoilt."""
    return shutil.copytree(trained, tmp_path / "run")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) * 7 // 10] ^= 64
    file.write_bytes(content)


LOST = {
    "a bit of the weights": lambda last: flip(last / "model.safetensors"),
    "a bit of the optimizer's state": lambda last: flip(last / "optimizer.safetensors"),
    "the end of the weights": lambda last: cut(last / "model.safetensors"),
    "all of state.json": lambda last: (last / "state.json").write_bytes(b""),
    "a file": lambda last: (last / "optimizer.safetensors").unlink(),
    "all files": lambda last: [file.unlink() for file in last.iterdir()],
}


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_checkpoint_before_is_used_and_that_is_said(trained, folder, lose, capsys):
    lose(folder / "checkpoints" / "step-000000006")
    run = Run.resume(folder)
    assert run.step == 4
    told = capsys.readouterr().err
    assert "step-000000006 is damaged (" in told
    assert "step-000000006.damaged, and the steps after 4 are done again" in told
    run.train().close()
    want, got = weights(trained), weights(folder)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert tables(folder) == tables(trained)
    assert lines(folder) == lines(trained)
    assert not list((folder / "checkpoints").glob("*.damaged"))


def test_run_without_a_whole_checkpoint_is_not_begun_anew_by_itself(folder):
    for place in (folder / "checkpoints").iterdir():
        flip(place / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-000000006 is damaged.*no whole one before it"):
        Run.resume(folder)
    assert len(list((folder / "checkpoints").iterdir())) == 3


def rewrite(keep):
    def act(last):
        tensors = load_file(last / "optimizer.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if keep(name)}
        save_file(kept, last / "optimizer.safetensors")

    return act


def state(**changes):
    def act(last):
        now = json.loads((last / "state.json").read_text())
        (last / "state.json").write_text(json.dumps({**now, **changes}))

    return act


ELSEWHERE = {
    "another step": state(step=4),
    "a step to come": state(step=9),
    "a step in words": state(step="6"),
    "no attribution": state(attribution=None),
    "nothing": lambda last: (last / "state.json").write_text("{}"),
    "a list": lambda last: (last / "state.json").write_text("[]"),
    "an older format": state(format=1),
    "no optimizer state": rewrite(lambda name: name.startswith("rng")),
    "half of it": rewrite(lambda name: "ln" not in name),
    "the folder before under its name": lambda last: (
        shutil.rmtree(last),
        shutil.copytree(last.with_name("step-000000004"), last),
    ),
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_belongs_elsewhere_is_refused(folder, change):
    last = folder / "checkpoints" / "step-000000006"
    change(last)
    with pytest.raises(
        CheckpointError, match=r"(another run|this version reads 2)\. Next:"
    ) as told:
        Run.resume(folder)
    assert last.is_dir()
    assert "damaged" not in str(told.value)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("optim", "lr", 0.1), ("train", "batch_size", 4), ("optim", "name", "sgd")],
)
def test_config_that_was_edited_is_refused(folder, part, key, value):
    record = json.loads((folder / "run.json").read_text())
    record["config"][part][key] = value
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"another config than run\.json has now"):
        Run.resume(folder)


def test_how_long_and_how_often_may_be_edited(folder):
    record = json.loads((folder / "run.json").read_text())
    record["config"]["train"] |= {"steps": 8, "checkpoint_every": 4, "keep": 1}
    (folder / "run.json").write_text(json.dumps(record))
    run = Run.resume(folder)
    assert run.step == 6
    run.train().close()
    assert [path.name for path in run.files.checkpoints()] == ["step-000000008"]
