"""Baselines that need no mathematics: a random order, and the sample's own loss."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from inrun.baselines.registry import TrainedRun, baseline, value_table

BATCH = 256  # samples per forward


@dataclass(frozen=True)
class RandomOptions:
    seed: int = 0


@baseline("random", RandomOptions)
def random(run: TrainedRun, target: str, options: RandomOptions) -> pa.Table:
    """Independent uniform values: what every method has to beat."""
    return value_table(run, np.random.default_rng(options.seed).random(len(run.sample_ids)))


@baseline("loss")
def loss(run: TrainedRun, target: str, options) -> pa.Table:
    """Minus the sample's loss under the final weights: a sample that the model cannot fit is called
    harmful, whatever the target.
    """
    model, ids = run.model(), run.sample_ids
    with torch.no_grad():
        parts = [run.losses(model, ids[k : k + BATCH]) for k in range(0, len(ids), BATCH)]
    return value_table(run, -torch.cat(parts))
