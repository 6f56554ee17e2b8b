"""How a run ends that cannot go on: a message that says what is safe, and a run that resumes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inrun.store import StoreError
from inrun.train import (
    ConfigError,
    Interrupted,
    NonFiniteLossError,
    Run,
    RunFolderError,
    StorageError,
)
from tests.support.other_process import owned_elsewhere
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
    root = tmp_path_factory.mktemp("endings")
    write_documents(root / "raw")
    return root


@pytest.fixture(scope="module")
def whole(root):
    run = Run.start(config(root, "whole", log__every=1))
    run.train().close()
    return run.folder


def assert_as_whole(folder, whole):
    want, got = weights(whole), weights(folder)
    assert all(bool((got[name] == tensor).all()) for name, tensor in want.items())
    assert tables(folder) == tables(whole)
    assert lines(folder) == lines(whole)


# -- signals


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_closed_terminal_and_batch_system_stop_a_run_with_a_checkpoint(
    root, whole, name, monkeypatch
):
    number = signal.Signals[name]
    run = Run.start(config(root, f"signal-{name}", log__every=1))

    def twice():  # as a shell and the system may send it
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    in_step(monkeypatch, run, 5, twice)
    before = signal.signal(number, signal.SIG_DFL)  # the suite itself may run under nohup
    try:
        with pytest.raises(Interrupted, match=f"stopped by {name} after step 6"):
            run.train()
    finally:
        signal.signal(number, before)
    monkeypatch.undo()
    Run.resume(run.folder).train().close()
    assert_as_whole(run.folder, whole)


def test_what_is_ignored_stays_ignored(root, monkeypatch):
    """Under nohup a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Run.start(config(root, "nohup", train__steps=2))
        in_step(monkeypatch, run, 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
        run.train().close()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.step == 2


def test_stops_at_any_step_leave_ledger_and_log_of_a_whole_run(root, monkeypatch):
    """A target of several micro-batches: its loss with a gradient rounds otherwise."""
    methods = ["path", {"kind": "first_order", "update": "sgd"}]
    changes = {"log__every": 1, "attribution__method": methods}
    whole = Run.start(config(root, "never", **changes))
    whole.train().close()
    run, at = Run.start(config(root, "often", **changes)), {0, 2, 4, 6, 7, 10}
    while at:
        step = min(at)
        at.discard(step)
        in_step(monkeypatch, run, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run.train()
        monkeypatch.undo()
        run = Run.resume(run.folder)
        assert run.step == step + 1
    run.train().close()
    assert_as_whole(run.folder, whole.folder)


# -- places


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "no space is left on the disk"), (30, "read-only"), (122, "quota"), (5, "device")],
)
def test_place_that_lets_the_run_down_is_told_and_the_run_goes_on(
    root, whole, number, words, monkeypatch
):
    run = Run.start(config(root, f"place-{number}", log__every=1))

    def fail():
        raise OSError(number, os.strerror(number), "log.jsonl")

    in_step(monkeypatch, run, 9, fail)
    with pytest.raises(StorageError, match=rf"{words}.*up to step 8 is whole\. Next: .*resume="):
        run.train()
    monkeypatch.undo()
    Run.resume(run.folder).train().close()
    assert_as_whole(run.folder, whole)


def test_file_that_grows_too_large_is_told(root, tmp_path):
    """A limit of the system, in a process of its own: what safetensors says of it."""
    script = """
import json, resource, signal, sys
from experiments.frame import reported
from inrun.train import Run, RunConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with reported():
    run = Run.start(RunConfig.from_mapping(json.loads(sys.argv[1])))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    run.train()
"""
    given = json.dumps(settings(root, "large"))
    done = subprocess.run(
        [sys.executable, "-c", script, given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "StorageError: " in done.stderr
    assert "larger than the system lets it be" in done.stderr
    Run.resume(root / "runs" / "large").train().close()


def test_folder_that_is_deleted_under_a_run_is_told(root, monkeypatch):
    run = Run.start(config(root, "gone", attribution__method=[]))
    in_step(monkeypatch, run, 5, lambda: shutil.rmtree(run.folder))
    with pytest.raises(StorageError, match="the folder is not there any more"):
        run.train()


# -- starts that come to nothing


def test_wandb_without_a_key_names_the_way_and_leaves_the_name_free(root, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def refused(**options):
        (Path(options["dir"]) / "wandb").mkdir()
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(ConfigError, match=r"log\.wandb=online: No API key.*log\.wandb=offline"):
        Run.start(config(root, "unknown", log__wandb="online"))
    monkeypatch.undo()
    assert not (root / "runs" / "unknown").exists()
    Run.start(config(root, "unknown", train__steps=1)).train().close()


def test_resume_that_fails_lets_go_of_the_run_and_of_its_store(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "step-000000012")
    next((folder / "values" / "terms").glob("*.parquet")).write_bytes(b"")
    with pytest.raises(StoreError):
        Run.resume(folder)
    for place in (folder, folder / "values"):
        with owned_elsewhere(place):
            pass


def test_two_runs_of_one_name_at_once(root):
    with (
        owned_elsewhere(root / "runs" / "case") as other,
        pytest.raises(RunFolderError, match=f"exists already: .*held by process {other.pid}"),
    ):
        Run.start(config(root, "case"))


# -- divergence


@pytest.mark.parametrize("lr", [1e30, 1e12])
@pytest.mark.parametrize("method", ["first_order", "path", "second_order", None])
def test_run_that_diverges_ends_with_one_error_before_the_weights_move(root, method, lr):
    optim = {"lr": lr, "min_lr": 0.0, "warmup": 0, "clip": 0.0}
    run = Run.start(
        config(
            root,
            f"diverged-{method}-{lr}",
            optim={"name": "adamw", **optim},
            attribution__method=[method] if method else [],
            log__chunk_losses=False,
        )
    )
    before = {}

    def keep(*_):
        before.update({name: p.detach().clone() for name, p in run.model.named_parameters()})

    taken = run.optimizer.register_step_post_hook(keep)
    keep()
    with pytest.raises(NonFiniteLossError, match=r"step \d+: .*chunk.*weights were not touched"):
        run.train()
    taken.remove()
    for name, p in run.model.named_parameters():
        assert bool(((p == before[name]) | (p.isnan() & before[name].isnan())).all()), name


# -- a process that hangs


def test_silent_process_is_named_by_the_others(root, tmp_path):
    """torchrun of two, the second of which is stopped (SIGSTOP) in the midst of the run."""
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import json, os, signal
from pathlib import Path
from experiments.frame import reported
from inrun.train import Run, RunConfig, distributed, loop
distributed.NOTICE_S = 1.0
values = json.loads(Path({str(tmp_path / "settings.json")!r}).read_text())
with reported():
    run, clip = Run.start(RunConfig.from_mapping(values)), loop.clip_gradients
    def stopped(*arguments):
        if run.step == 5 and run.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return clip(*arguments)
    loop.clip_gradients = stopped
    run.train()
"""
    )
    values = settings(root, "hung", model__dropout=0.0, train__timeout=5)
    (tmp_path / "settings.json").write_text(json.dumps(values))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "ProcessError: rank 0: rank 1 of 2 is silent or has ended" in done.stderr
    assert "train.timeout=5 s" in done.stderr
    assert f"resume={root / 'runs' / 'hung'}" in done.stderr
    assert time.monotonic() - began < 200
