"""Retraining-based Data Shapley (Ghorbani and Zou 2019): truncated Monte Carlo over a pool of
subset trainings.

    value_i = mean over random orders of U(P_i + i) - U(P_i)

with U(S) the utility of the model trained on S, and U({}) that of the untrained model.

Every pair of orders has a training seed of its own, so that what training's randomness does is part
of the scatter between pairs and hence of the standard errors; within a pair all subsets share the
seed, which takes some of it out of the differences. The number of players decides: an order costs
up to n trainings, so a thousand trainings are one order of a thousand samples, and the marginal
contribution of one sample is lost in the noise of a training.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from inrun.baselines.pool import Pool
from inrun.baselines.registry import baseline, value_table
from inrun.baselines.runs import Retrainable, RetrainableRun
from inrun.shapley import Truncated, truncated


@dataclass(frozen=True)
class DataShapleyOptions:
    """Budget and truncation of the orders."""

    pool: str | None = None
    "Folder of the pool; null keeps it in memory."
    utility: str = "loss"
    "loss, accuracy or margin."
    trainings: int = 1000
    "Budget."
    tolerance: float = 0.05
    "Of the truncation, as a share of |U(all) - U(none)| averaged over three seeds; 0 for none."
    patience: int = 5
    "Places in a row within the tolerance before an order is cut."
    seed: int = 0
    "Of orders and trainings."


@baseline("data_shapley", DataShapleyOptions, needs=(Retrainable,))
def data_shapley(run: RetrainableRun, target: str, options: DataShapleyOptions) -> pa.Table:
    """Mean marginal contributions over random orders."""
    return value_table(run, estimate(Pool(run, options.pool), target, options).values)


def estimate(pool: Pool, target: str, options: DataShapleyOptions) -> Truncated:
    """Values in the order of the run's samples, with standard errors and the number of
    trainings.
    """
    seeds = 1_000_000 * options.seed

    def utilities(members: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return pool.outcomes(members, seeds + pairs).utility(target, options.utility)

    tolerance = 0.0
    if options.tolerance > 0:
        ends = utilities(
            np.repeat([np.zeros(pool.n, bool), np.ones(pool.n, bool)], 3, axis=0),
            np.tile(np.arange(3), 2),
        )
        tolerance = options.tolerance * abs(float(ends[3:].mean() - ends[:3].mean()))
    return truncated(
        utilities,
        pool.n,
        budget=options.trainings,
        tolerance=tolerance,
        patience=options.patience,
        seed=options.seed,
    )
