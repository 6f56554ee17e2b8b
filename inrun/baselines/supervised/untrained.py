"""A recipe on a problem that was not run: all that a pool of subset trainings needs, as they all
begin at the beginning.
"""

import numpy as np
from torch import Tensor

from inrun.baselines.supervised.fits import ClassificationFit, Fit, RegressionFit
from inrun.baselines.supervised.recipe import Data, Recipe
from inrun.baselines.supervised.run import SupervisedRun
from inrun.data.labelled import LabelledProblem


class _Untrained(SupervisedRun):
    def __init__(self, data: Data, recipe: Recipe):
        Fit.__init__(self, data, recipe, np.arange(len(data.problem.train)), (), _no_weights)
        self.cache = None


class _UntrainedClassification(ClassificationFit, _Untrained):
    pass


class _UntrainedRegression(RegressionFit, _Untrained):
    pass


def untrained(problem: LabelledProblem, recipe: Recipe, data: Data | None = None) -> SupervisedRun:
    """Can `retrain` and `train_subsets`, and has the digest of a finished run of the recipe; has no
    checkpoints, values or history.
    """
    cls = _UntrainedClassification if problem.classes else _UntrainedRegression
    return cls(data or Data(problem, recipe.device), recipe)


def _no_weights(checkpoint: int) -> dict[str, Tensor]:
    raise ValueError("this recipe was not run: it has no weights")
