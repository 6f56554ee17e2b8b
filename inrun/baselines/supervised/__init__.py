"""Classification and regression runs on which baselines are compared (paper, appendix E.6)."""

from inrun.baselines.supervised.fits import ClassificationFit, Fit, RegressionFit
from inrun.baselines.supervised.recipe import Data, NetworkConfig, Recipe, fit, network
from inrun.baselines.supervised.run import ClassificationRun, RegressionRun, SupervisedRun
from inrun.baselines.supervised.training import METHODS, train_run
from inrun.baselines.supervised.untrained import untrained

__all__ = [
    "METHODS",
    "ClassificationFit",
    "ClassificationRun",
    "Data",
    "Fit",
    "NetworkConfig",
    "Recipe",
    "RegressionFit",
    "RegressionRun",
    "SupervisedRun",
    "fit",
    "network",
    "train_run",
    "untrained",
]
