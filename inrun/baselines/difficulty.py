"""How hard a sample was to learn: forgetting events, EL2N, and distance to the prototype of its
class. None of them looks at the target.

A hard sample is rich or wrong, and these scores cannot tell which. As published they are for
pruning clean data, and keep what is hard (`prefer="hard"`: hard = high value); to find wrong labels
one prefers what is easy.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from inrun.baselines.batches import forward
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Classified, Featured, LabelledRun, Watched, WatchedRun


@dataclass(frozen=True)
class DifficultyOptions:
    """What is worth more."""

    prefer: str = "hard"
    "hard (as published) or easy."

    def __post_init__(self):
        if self.prefer not in ("hard", "easy"):
            raise ValueError(f"prefer={self.prefer!r}: choose hard or easy")

    def value(self, difficulty: np.ndarray) -> np.ndarray:
        return difficulty if self.prefer == "hard" else -difficulty


@dataclass(frozen=True)
class EL2NOptions(DifficultyOptions):
    """When the error is taken."""

    epoch: int = 10
    "After how many epochs (Paul et al.: early, 10 to 20 of 200)."


@baseline("forgetting", DifficultyOptions, needs=(Watched,))
def forgetting(run: WatchedRun, target: str, options: DifficultyOptions) -> pa.Table:
    """Toneva et al. 2019: how often the sample was right after one epoch and wrong after the next;
    one that never was right counts as the number of epochs.
    """
    epochs, correct = _by_epoch(run, "correct")
    correct = correct[epochs > 0]
    events = (correct[:-1] & ~correct[1:]).sum(0)
    return value_table(
        run, options.value(np.where(correct.any(0), events, len(correct)).astype(np.float64))
    )


@baseline("el2n", EL2NOptions, needs=(Watched,))
def el2n(run: WatchedRun, target: str, options: EL2NOptions) -> pa.Table:
    """Paul et al. 2021: Euclidean norm of softmax minus one-hot label, early in training (they
    average over ten runs; this is one).
    """
    epochs, error = _by_epoch(run, "error_norm")
    if options.epoch not in epochs:
        raise BaselineError(
            f"el2n: epoch {options.epoch} is not in the run's history, which has "
            f"{epochs.min()} to {epochs.max()}"
        )
    return value_table(run, options.value(error[epochs == options.epoch][0]))


@baseline("prototypes", DifficultyOptions, needs=(Featured, Classified))
def prototypes(run: LabelledRun, target: str, options: DifficultyOptions) -> pa.Table:
    """Supervised prototypes (Sorscher et al. 2022): cosine distance to the mean feature of the
    sample's class, final weights.
    """
    model, ids = run.model(), np.asarray(run.sample_ids)
    x = forward(lambda part: run.features(model, part), ids).double()
    labels = run.labels(ids)
    distance = torch.empty(len(ids), dtype=torch.float64, device=x.device)
    for label in labels.unique():
        own = labels == label
        distance[own] = 1 - torch.cosine_similarity(x[own], x[own].mean(0, keepdim=True))
    return value_table(run, options.value(distance.cpu().numpy()))


def _by_epoch(run: WatchedRun, column: str) -> tuple[np.ndarray, np.ndarray]:
    """epochs [e] ascending, and the column [e, n] in the order of the run's samples."""
    table = run.history().sort_by([("epoch", "ascending"), ("sample_id", "ascending")])
    epochs = np.unique(table["epoch"].to_numpy())
    ids = np.sort(np.asarray(run.sample_ids))
    if not np.array_equal(table["sample_id"].to_numpy(), np.tile(ids, len(epochs))):
        raise BaselineError("the run's history does not have every sample once in every epoch")
    values = table[column].to_numpy(zero_copy_only=False).reshape(len(epochs), len(ids))
    return epochs, values[:, np.searchsorted(ids, run.sample_ids)]
