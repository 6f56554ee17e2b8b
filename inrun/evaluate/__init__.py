"""How good a model is (`loss`), how good values are (`metrics`), and what a real step's coalitions were worth (`step_game`)."""

from inrun.evaluate.loss import ChunkSource, EvalBatch, Losses, chunk_batches, evaluate
from inrun.evaluate.metrics import Interval, auroc, bootstrap, pearson, recall_at_k, relative_rmse, spearman
from inrun.evaluate.step_game import StepGame

__all__ = [
    "ChunkSource",
    "EvalBatch",
    "Interval",
    "Losses",
    "StepGame",
    "auroc",
    "bootstrap",
    "chunk_batches",
    "evaluate",
    "pearson",
    "recall_at_k",
    "relative_rmse",
    "spearman",
]
