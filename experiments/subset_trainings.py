"""Train small networks on subsets of data, for retraining-based baselines.

Several processes, or machines with one file system, take a shard each. The plan names designs of
subsets. Methods that then ask the pool for one of them (`pool=FOLDER`) find it trained.

  python -m experiments pool                                                  the whole plan, here
  python -m experiments pool -m shard=0,1,2,3 shards=4 launcher=joblib        four processes
  python -m experiments pool -m 'shard=range(32)' shards=32 launcher=slurm    32 Slurm jobs;
                                                    hydra.launcher.partition=... and others
  python -m experiments pool 'plan=[{kind: leave_one_out, count: 3}]'         another plan
  python -m experiments pool scale=paper                                      CIFAR-10: needs a GPU

A killed process goes on where it was; finished trainings are found in the pool. Launchers come with
the extra `sweep`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.frame import command
from inrun.baselines.leave_one_out import requests as leave_one_out
from inrun.baselines.pool import Pool, Recognizable
from inrun.baselines.subsets import coin_subsets, random_subsets
from inrun.baselines.supervised import Recipe, untrained
from inrun.config import ConfigError, build, require
from inrun.data.labelled import ProblemConfig, sample_problem
from inrun.progress import live_line

SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class Design:
    """Subsets to train on."""

    kind: str = "random"
    """random (of a fixed share: datamodels, empirical influence, memorization), coin (Banzhaf),
    leave_one_out"""
    count: int = 1000
    """trainings; for leave_one_out, seeds of n + 1 trainings each"""
    share: float = 0.5
    """of the samples, where kind is random"""
    seed: int = 0
    """of subsets and trainings"""

    def requests(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Members bool [trainings, n] and seeds [trainings]."""
        if self.kind == "random":
            return random_subsets(n, self.count, self.share, self.seed)
        if self.kind == "coin":
            return coin_subsets(n, self.count, self.seed)
        if self.kind == "leave_one_out":
            return leave_one_out(n, self.count, self.seed)
        raise ConfigError(f"plan: kind={self.kind!r}; choose random, coin or leave_one_out")


@dataclass(frozen=True)
class PoolConfig:
    """What is trained, and which part of it here."""

    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """the data, and how many labels are wrong"""
    problem_seed: int = 0
    """which samples are chosen and whose labels are wrong"""
    recipe: Recipe = field(default_factory=Recipe)
    """network and training"""
    plan: tuple[Design, ...] = (Design(),)
    """what to train"""
    shard: int = 0
    """this process's share, 0 to shards - 1"""
    shards: int = 1
    """how many shares there are"""
    runs: str = "runs/pool"
    """the pool lies in a folder of its recipe's digest below"""
    data_root: str = "data"
    """where corpora and archives are kept"""
    scale: str = "cpu"
    """cpu or paper"""

    def __post_init__(self):
        last = self.shards - 1
        require(
            "pool",
            (0 <= self.shard <= last, f"shard={self.shard} must be 0 to shards - 1 = {last}"),
        )


@command("pool", PoolConfig)
def fill(given: dict[str, Any], console: Console) -> None:
    """Train what is missing of this process's share."""
    settings = build(PoolConfig, given)
    run = untrained(
        sample_problem(settings.problem, settings.problem_seed, settings.data_root), settings.recipe
    )
    pool = Pool(run, folder(settings.runs, run))
    designs = [design.requests(pool.n) for design in settings.plan]
    members, seeds = (
        np.concatenate([design[k] for design in designs])[settings.shard :: settings.shards]
        for k in (0, 1)
    )
    missing = pool.missing(members, seeds)
    where = f"shard {settings.shard + 1} of {settings.shards}: "
    console.print(
        f"{where}{len(seeds)} trainings, {int(missing.sum())} to do",
        highlight=False,
        soft_wrap=True,
    )
    began = time.monotonic()
    with live_line(console, where, SECONDS_BETWEEN_LINES) as shown:

        def progress(done: int, todo: int) -> None:
            left = (time.monotonic() - began) / done * (todo - done)
            shown(f"{where}{done}/{todo}, {left:.0f} s left")

        outcomes = pool.outcomes(members, seeds, progress)
    print(
        f"{pool.folder}: {len(pool)} trainings, {len(outcomes)} of them in this shard; "
        f"{outcomes.cpu_seconds.mean():.3g} CPU seconds each; "
        + ", ".join(
            f"{target} loss {-outcomes.utility(target).mean():.3f}" for target in run.targets
        )
    )


def folder(runs: str | Path, run: Recognizable) -> Path:
    """Where the pool of a recipe lies."""
    return Path(runs) / run.digest[:12]
