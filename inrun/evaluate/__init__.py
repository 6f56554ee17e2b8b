"""How good a model is, how good values are, and what a real step's coalitions were worth.

A model: `loss`, `curves`. Values: `metrics`, `datamodelling`. A step: `step_game`.
"""

from inrun.evaluate.curves import iterations_to
from inrun.evaluate.datamodelling import (
    agreement,
    leave_one_out_correlation,
    linear_datamodelling_interval,
    linear_datamodelling_score,
)
from inrun.evaluate.loss import Losses, evaluate, evaluating
from inrun.evaluate.metrics import (
    Interval,
    auroc,
    bootstrap,
    detection_curve,
    pearson,
    recall_at_k,
    relative_rmse,
    spearman,
)
from inrun.evaluate.step_game import StepGame

__all__ = [
    "Interval",
    "Losses",
    "StepGame",
    "agreement",
    "auroc",
    "bootstrap",
    "detection_curve",
    "evaluate",
    "evaluating",
    "iterations_to",
    "leave_one_out_correlation",
    "linear_datamodelling_interval",
    "linear_datamodelling_score",
    "pearson",
    "recall_at_k",
    "relative_rmse",
    "spearman",
]
