"""Empirical influence and memorization (Feldman and Zhang 2020): the difference that being trained
on a sample made, over random subsets.

    influence(i, z) = E[ output on z | i in S ] - E[ output on z | i not in S ]
    value_i         = mean of influence(i, z) over the target's z
    memorization(i) = influence(i, i)

Output is whether the model is right (the original), or minus the loss, or the margin. Subsets are
uniform of a fixed share (0.7 in the original; 0.5 here by default, so that datamodels use the same
trainings).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from inrun.baselines.outcomes import SAMPLES, Outcomes
from inrun.baselines.pool import Pool
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Retrainable, RetrainableRun
from inrun.baselines.subsets import coin_subsets, random_subsets


@dataclass(frozen=True)
class SubsetOptions:
    """Which subsets are trained on."""

    pool: str | None = None
    "Folder of the pool; null keeps it in memory."
    utility: str = "accuracy"
    "accuracy (the original's), loss or margin."
    trainings: int = 1000
    "Number of subsets."
    share: float = 0.5
    "Of the samples in each subset."
    seed: int = 0
    "Of subsets and trainings."


@baseline("empirical_influence", SubsetOptions, needs=(Retrainable,))
def empirical_influence(run: RetrainableRun, target: str, options: SubsetOptions) -> pa.Table:
    """Difference of the target's outcome between subsets with and without the sample."""
    outcomes = _trained(run, options)
    return value_table(run, difference(outcomes.members, outcomes.utility(target, options.utility)))


@baseline("memorization", SubsetOptions, needs=(Retrainable,))
def memorization(run: RetrainableRun, target: str, options: SubsetOptions) -> pa.Table:
    """Minus the memorization score, whatever the target: a sample that is got right only when it is
    trained on is called harmful.
    """
    outcomes = _trained(run, options)
    own = outcomes.outputs(SAMPLES, options.utility)
    inside, outside = outcomes.members, ~outcomes.members
    _both_kinds(outcomes.members)
    return value_table(
        run, (own * outside).sum(0) / outside.sum(0) - (own * inside).sum(0) / inside.sum(0)
    )


@dataclass(frozen=True)
class BanzhafOptions:
    """How many subsets are trained on."""

    pool: str | None = None
    "Folder of the pool; null keeps it in memory."
    utility: str = "loss"
    "loss, accuracy or margin."
    trainings: int = 1000
    "Number of subsets."
    seed: int = 0
    "Of subsets and trainings."


@baseline("data_banzhaf", BanzhafOptions, needs=(Retrainable,))
def data_banzhaf(run: RetrainableRun, target: str, options: BanzhafOptions) -> pa.Table:
    """Data Banzhaf (Wang and Jia 2023) by its maximum-sample-reuse estimator: the same difference
    over subsets that a coin draws.

    value_i = 2^-(n-1) sum_{S without i} U(S + i) - U(S)
    """
    pool = Pool(run, options.pool)
    outcomes = pool.outcomes(*coin_subsets(pool.n, options.trainings, options.seed))
    return value_table(run, difference(outcomes.members, outcomes.utility(target, options.utility)))


def difference(members: np.ndarray, utilities: np.ndarray) -> np.ndarray:
    """float64 [n]: mean of utilities [k] over the trainings with a sample, minus the mean over
    those without; members bool [k, n].
    """
    _both_kinds(members)
    inside = members.T.astype(np.float64)
    return inside @ utilities / inside.sum(1) - (1 - inside) @ utilities / (1 - inside).sum(1)


def _trained(run: RetrainableRun, options: SubsetOptions) -> Outcomes:
    pool = Pool(run, options.pool)
    return pool.outcomes(*random_subsets(pool.n, options.trainings, options.share, options.seed))


def _both_kinds(members: np.ndarray) -> None:
    constant = members.all(0) | ~members.any(0)
    if constant.any():
        raise BaselineError(
            f"{constant.sum()} samples are in all of the {len(members)} subsets or in none; "
            "more trainings, or a share nearer to one half"
        )
