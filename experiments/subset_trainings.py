"""Trainings for a pool, before anybody asks for them: `python -m experiments.subset_trainings`.
Several processes, or machines with one file system, take a shard each.

    python -m experiments.subset_trainings                                               the whole plan, here
    python -m experiments.subset_trainings -m shard=0,1,2,3 shards=4 launcher=joblib     four processes (extra `sweep`)
    python -m experiments.subset_trainings -m 'shard=range(32)' shards=32 launcher=slurm thirty-two Slurm jobs

The plan names designs of subsets. Methods that then ask the pool for one of them (`pool=FOLDER`)
find it trained. A killed process goes on where it was.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from experiments.frame import command, plain
from inrun.baselines.leave_one_out import requests as leave_one_out
from inrun.baselines.pool import Pool
from inrun.baselines.subsets import coin_subsets, random_subsets
from inrun.baselines.supervised import Recipe, untrained
from inrun.config import build
from inrun.data.labelled import ProblemConfig, sample_problem
from inrun.train import ConfigError


@dataclass(frozen=True)
class Design:
    """Subsets to train on. kind: random (of a fixed share: datamodels, empirical influence,
    memorization) | coin (Banzhaf) | leave_one_out. count: trainings; for leave_one_out, seeds of n
    + 1 trainings each. share: of random. seed: of subsets and trainings."""

    kind: str = "random"
    count: int = 1000
    share: float = 0.5
    seed: int = 0

    def requests(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        if self.kind == "random":
            return random_subsets(n, self.count, self.share, self.seed)
        if self.kind == "coin":
            return coin_subsets(n, self.count, self.seed)
        if self.kind == "leave_one_out":
            return leave_one_out(n, self.count, self.seed)
        raise ConfigError(f"plan: kind={self.kind!r}; choose random, coin or leave_one_out")


@dataclass(frozen=True)
class PoolConfig:
    """problem_seed: which samples are drawn and whose labels are wrong. plan: what to train. shard,
    shards: this process's share, 0 to shards - 1. runs: the pool lies in a folder of its recipe's
    digest below."""

    problem: ProblemConfig = field(default_factory=ProblemConfig)
    problem_seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    plan: tuple[Design, ...] = (Design(),)
    shard: int = 0
    shards: int = 1
    runs: str = "runs/pool"
    data_root: str = "data"
    scale: str = "cpu"

    def __post_init__(self):
        if not 0 <= self.shard < self.shards:
            raise ConfigError(f"shard={self.shard} must be 0 to shards - 1 = {self.shards - 1}")


def main(config: DictConfig) -> None:
    settings = build(PoolConfig, plain(config))
    console = Console(stderr=True)
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
    began, last = time.monotonic(), time.monotonic()

    def progress(done: int, todo: int) -> None:
        nonlocal last
        if done == todo or time.monotonic() - last > 20:
            last = time.monotonic()
            left = (last - began) / done * (todo - done)
            console.print(
                f"{where}{done}/{todo}, {left:.0f} s left", highlight=False, soft_wrap=True
            )

    outcomes = pool.outcomes(members, seeds, progress)
    print(
        f"{pool.folder}: {len(pool)} trainings, {len(outcomes)} of them in this shard; "
        f"{outcomes.cpu_seconds.mean():.3g} CPU seconds each; "
        + ", ".join(
            f"{target} loss {-outcomes.utility(target).mean():.3f}" for target in run.targets
        )
    )


def folder(runs: str | Path, run) -> Path:
    """Where the pool of a recipe lies."""
    return Path(runs) / run.digest[:12]


if __name__ == "__main__":
    command("pool", main)
