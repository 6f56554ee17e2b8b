"""A recipe on a problem that was not run: all that a pool of subset trainings needs, as they all
begin at the beginning.
"""

import numpy as np

from inrun.baselines.supervised.recipe import Data, Recipe
from inrun.baselines.supervised.run import Classes, Fit, Numbers, SupervisedRun
from inrun.data.labelled import Problem


class _Untrained(SupervisedRun):
    def __init__(self, data: Data, recipe: Recipe):
        Fit.__init__(self, data, recipe, np.arange(len(data.problem.train)), (), None)
        self.cache = None


class _UntrainedClassification(Classes, _Untrained):
    pass


class _UntrainedRegression(Numbers, _Untrained):
    pass


def untrained(problem: Problem, recipe: Recipe, data: Data | None = None) -> SupervisedRun:
    """Can `retrain` and `train_subsets`, and has the digest of a finished run of the recipe; has no
    checkpoints, values or history.
    """
    cls = _UntrainedClassification if problem.classes else _UntrainedRegression
    return cls(data or Data(problem, recipe.device), recipe)
