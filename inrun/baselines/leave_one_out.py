"""Leave-one-out: what the model loses when it is trained again without a sample.

    value_i = mean over seeds of U(all) - U(all without i)

n + 1 trainings a seed. Both sides of a difference share the seed. One sample's effect is far
smaller than what another order of batches does, so that the values of one seed are mostly noise;
more seeds average it out as 1 / sqrt(seeds).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from inrun.baselines.pool import Pool
from inrun.baselines.registry import baseline, value_table
from inrun.baselines.runs import Retrainable, RetrainableRun
from inrun.baselines.subsets import training_seeds


@dataclass(frozen=True)
class LeaveOneOutOptions:
    """How many trainings average the noise out."""

    pool: str | None = None
    "Folder of the pool; null keeps it in memory."
    utility: str = "loss"
    "loss, accuracy or margin."
    seeds: int = 1
    "Trainings of every subset."
    seed: int = 0
    "Of the first training."


@baseline("leave_one_out", LeaveOneOutOptions, needs=(Retrainable,))
def leave_one_out(run: RetrainableRun, target: str, options: LeaveOneOutOptions) -> pa.Table:
    """Mean over seeds of what is lost without the sample."""
    return value_table(run, differences(Pool(run, options.pool), target, options).mean(0))


def differences(pool: Pool, target: str, options: LeaveOneOutOptions) -> np.ndarray:
    """float64 [seeds, n]: U(all) - U(all without i) for each seed."""
    outcomes = pool.outcomes(*requests(pool.n, options.seeds, options.seed))
    utilities = outcomes.utility(target, options.utility).reshape(options.seeds, pool.n + 1)
    return utilities[:, :1] - utilities[:, 1:]


def requests(n: int, seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [seeds (n + 1), n], int64 [seeds (n + 1)]: for each training seed all samples, then all
    without each.
    """
    subsets = np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)])
    return np.tile(subsets, (seeds, 1)), np.repeat(training_seeds(seeds, seed), n + 1)
