"""How good a model is (`loss`) and how good values are (`metrics`)."""

from inrun.evaluate.loss import ChunkSource, EvalBatch, Losses, chunk_batches, evaluate
from inrun.evaluate.metrics import Interval, auroc, bootstrap, pearson, recall_at_k, relative_rmse, spearman

__all__ = [
    "ChunkSource",
    "EvalBatch",
    "Interval",
    "Losses",
    "auroc",
    "bootstrap",
    "chunk_batches",
    "evaluate",
    "pearson",
    "recall_at_k",
    "relative_rmse",
    "spearman",
]
