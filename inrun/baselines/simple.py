"""Baselines that need no mathematics: a random order, and the sample's own loss."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from inrun.baselines.batches import forward
from inrun.baselines.registry import baseline, value_table
from inrun.baselines.runs import TrainedRun


@dataclass(frozen=True)
class RandomOptions:
    """Which random values."""

    seed: int = 0
    "Of the values."


@baseline("random", RandomOptions)
def random(run: TrainedRun, target: str, options: RandomOptions) -> pa.Table:
    """Independent uniform values: what every method has to beat."""
    return value_table(run, np.random.default_rng(options.seed).random(len(run.sample_ids)))


@baseline("loss")
def loss(run: TrainedRun, target: str, options) -> pa.Table:
    """Minus the sample's loss under the final weights: a sample that the model cannot fit is called
    harmful, whatever the target.
    """
    model = run.model()
    return value_table(run, -forward(lambda part: run.losses(model, part), run.sample_ids))
