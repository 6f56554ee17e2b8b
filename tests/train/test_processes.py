"""A run of several processes is the run of one, and is interrupted and resumed like one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inrun.store import ValueStore
from inrun.train import ConfigError, Interrupted, Run, RunConfig, RunFolderError, loop
from tests.support.experiment_example import small
from tests.support.together import Died, together
from tests.support.train_example import lines, settings, tables, weights, write_documents
from tests.train.test_resume import assert_equal_runs

ROOT = Path(__file__).parents[2]
#: documents apart, so that the processes' chunks have different numbers of targets; two
#: micro-batches in each
CHANGES = {"model__dropout": 0.0, "train__micro_batch": 2, "train__separate_documents": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    write_documents(root / "raw")
    return root


def run(rank: int, values: dict, fate: str = "") -> tuple[int, int]:
    """Start or go on, in one of the processes; returns the signal that stopped it and the step it
    came to. fate: what becomes of the second process in step 6.
    """
    config = RunConfig.from_mapping(values)
    folder = Path(config.runs) / config.name
    going = Run.resume(folder) if (folder / "run.json").exists() else Run.start(config)
    clip, actions = loop.clip_gradients, {"killed": signal.SIGKILL, "told to stop": signal.SIGTERM}

    def fateful(*arguments):
        if fate and rank == 1 and going.step == 6:
            os.kill(os.getpid(), actions[fate])
        return clip(*arguments)

    loop.clip_gradients = fateful
    try:
        store = going.train()
    except Interrupted as stop:
        return stop.signum, going.step
    store.close()
    return 0, going.step


@pytest.fixture(scope="module")
def whole(root):
    """The folder of a run of two processes that nobody interrupts."""
    together(2, run, settings(root, "whole", **CHANGES))
    return root / "runs" / "whole"


@pytest.mark.parametrize("method", ["path", "second_order"])
def test_two_processes_leave_what_one_leaves(root, method):
    # SGD: Adam's first steps are signs, where rounding shows as a whole step
    changes = {
        **CHANGES,
        "optim": {
            "name": "sgd",
            "lr": 0.3,
            "min_lr": 0.03,
            "warmup": 3,
            "clip": 0.5,
            "momentum": 0.9,
        },
        "attribution__method": [{"kind": method}, {"kind": "first_order"}],
    }
    one = Run.start(RunConfig.from_mapping(settings(root, f"{method}-1", **changes)))
    one.train().close()
    together(2, run, settings(root, f"{method}-2", **changes))
    folder = root / "runs" / f"{method}-2"
    got, want = weights(folder), weights(one.folder)
    for name in want:
        assert torch.allclose(got[name], want[name], rtol=1e-4, atol=1e-6), name
    mine, theirs = tables(folder), tables(one.folder)
    assert mine["samples"] == theirs["samples"]
    for name in ("terms", "ledger", "steps"):
        assert len(mine[name]) == len(theirs[name])
        for row, expected in zip(mine[name], theirs[name]):
            for key, value in expected.items():
                if isinstance(value, float):
                    assert row[key] == pytest.approx(value, rel=2e-3, abs=2e-6), (name, key)
                else:
                    assert row[key] == value, (name, key)
    for row, expected in zip(lines(folder), lines(one.folder)):
        assert row == pytest.approx(expected, rel=2e-3, abs=2e-6)
    mine, theirs = lines(folder, "chunks.jsonl"), lines(one.folder, "chunks.jsonl")
    for row, expected in zip(mine, theirs):
        assert row["ids"] == expected["ids"]
        assert row["losses"] == pytest.approx(expected["losses"], rel=1e-4)


def test_one_of_two_processes_is_killed_and_the_run_goes_on_as_if_it_was_not(root, whole):
    values = settings(root, "killed", **CHANGES)
    with pytest.raises(Died):
        together(2, run, values, "killed")
    assert together(2, run, values) == [(0, 12), (0, 12)]
    assert_equal_runs(root / "runs" / "killed", whole)


def test_one_of_two_processes_is_told_to_stop_and_both_do_after_the_same_step(root, whole):
    values = settings(root, "stopped", **CHANGES)
    assert together(2, run, values, "told to stop") == [(signal.SIGTERM, 7), (signal.SIGTERM, 7)]
    assert together(2, run, values) == [(0, 12), (0, 12)]
    stopped = root / "runs" / "stopped"
    got, want = weights(stopped), weights(whole)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert tables(stopped) == tables(whole)


def refused(rank: int, values: dict) -> str:
    try:
        Run.start(RunConfig.from_mapping(values))
    except (ConfigError, RunFolderError) as error:
        return str(error)
    except Exception as error:
        return type(error).__name__


def test_what_several_processes_cannot_do_is_refused(root, whole):
    both = together(2, refused, settings(root, "dropout", **{**CHANGES, "model__dropout": 0.1}))
    assert all(text.startswith("2 processes: dropout") for text in both)
    both = together(2, refused, settings(root, "small", **{**CHANGES, "train__batch_size": 1}))
    assert all("cannot be dealt to 2 processes" in text for text in both)
    both = together(2, refused, settings(root, "whole", **CHANGES))
    assert "exists already" in both[0]
    assert both[1] == "ProcessError"


def test_torchrun_starts_the_command_and_one_process_speaks(root):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "experiments",
        "pretrain",
    ]
    overrides = [*small(root, "torchrun"), "attribution=path"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *overrides], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 8/8  train/loss") == 1
    assert done.stdout.count("val, path: loss fell by") == 1
    with ValueStore(root / "runs" / "torchrun" / "values") as store:
        assert len(store.sql("SELECT * FROM terms")) == 8 * 8
