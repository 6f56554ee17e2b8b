"""Datamodels (Ilyas et al. 2022): a linear model of the outcome of training, over which samples
were trained on.

    min over (b, v) of   mean_k ( U_k - b - sum_{i in S_k} v_i )^2 + penalty(v)

with S_k uniform subsets of a fixed share; value_i = v_i.

The original regresses one margin per target sample with a lasso each; a value for a whole target is
the sum over it, and with a ridge penalty (or none) that is the regression of the mean margin, which
is what is done here, for the lasso too. The penalty's strength is chosen by cross-validation.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, RidgeCV

from inrun.baselines.pool import Pool
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Retrainable, RetrainableRun
from inrun.baselines.subsets import random_subsets

RIDGE_STRENGTHS = np.logspace(-2, 6, 33)  # of the summed squared error; members are 0 or 1
FOLDS = 5


@dataclass(frozen=True)
class DatamodelsOptions:
    """Which subsets are trained on, and how the linear model is fitted."""

    pool: str | None = None
    "Folder of the pool; null keeps it in memory."
    utility: str = "margin"
    "margin (the original's), loss or accuracy."
    trainings: int = 1000
    "Number of subsets."
    share: float = 0.5
    "Of the samples in each subset."
    penalty: str = "lasso"
    "lasso (the original's) or ridge."
    seed: int = 0
    "Of subsets and trainings."


@baseline("datamodels", DatamodelsOptions, needs=(Retrainable,))
def datamodels(run: RetrainableRun, target: str, options: DatamodelsOptions) -> pa.Table:
    """Coefficients of the linear model."""
    pool = Pool(run, options.pool)
    outcomes = pool.outcomes(
        *random_subsets(pool.n, options.trainings, options.share, options.seed)
    )
    return value_table(
        run, fit(outcomes.members, outcomes.utility(target, options.utility), options.penalty)
    )


def fit(members: np.ndarray, utilities: np.ndarray, penalty: str = "lasso") -> np.ndarray:
    """Coefficients float64 [n] of the regression of utilities [k] on members bool [k, n]."""
    if len(utilities) < 2 * FOLDS:
        raise BaselineError(
            f"{len(utilities)} trainings are too few for {FOLDS}-fold cross-validation; at "
            f"least {2 * FOLDS}"
        )
    spread = utilities.std()
    if spread == 0:
        raise BaselineError(
            f"all {len(utilities)} trainings have the utility {utilities[0]}: nothing to regress"
        )
    scaled = (
        utilities - utilities.mean()
    ) / spread  # the solvers' tolerances and the grid of strengths are for a spread of 1
    if penalty == "ridge":
        model = RidgeCV(RIDGE_STRENGTHS).fit(members.astype(np.float64), scaled)
    elif penalty == "lasso":
        with warnings.catch_warnings():
            # the smallest strengths of a path may stop early; cross-validation seldom chooses them,
            # and the duality gap is 1e-3 of the spread
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LassoCV(alphas=50, cv=FOLDS, tol=1e-3).fit(members.astype(np.float64), scaled)
    else:
        raise BaselineError(f"penalty={penalty!r}; choose lasso or ridge")
    return model.coef_ * spread
