"""Runs as baselines see them: what every finished run can tell, and what only some can.

A run is anything that satisfies `TrainedRun`. What only some runs have (features, labels, texts, a
way to train again, values measured in the run) is a small protocol of its own; a baseline names
those that it needs (`inrun.baselines.registry`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

#: sample ids, in any order
Ids: TypeAlias = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Checkpoint:
    """Weights that a run kept."""

    step: int
    "Optimizer steps done."
    lr: float
    "The learning rate of the step that led there."


@dataclass(frozen=True)
class AdamMoments:
    """Adam's state at a checkpoint, not bias-corrected."""

    first: dict[str, Tensor]
    "Parameter name -> first moment."
    second: dict[str, Tensor]
    "Parameter name -> second moment."
    betas: tuple[float, float]
    "Decay of both."
    eps: float
    "Added to the root of the second moment."


@runtime_checkable
class TrainedRun(Protocol):
    """A finished training run that can be asked about its samples."""

    @property
    def sample_ids(self) -> np.ndarray:
        """int64 [n]: the training samples, in the order in which tables list them."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the validation losses."""

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """In the order of training; the last one holds the final weights."""

    def model(self, checkpoint: int = -1) -> nn.Module:
        """A fresh module with the weights of `checkpoints[checkpoint]`, in eval mode, parameters
        that were trained requiring gradients.
        """

    def losses(self, model: nn.Module, ids: Ids) -> Tensor:
        """[len(ids)]: each sample's own training loss (nothing divided by a batch size),
        differentiable in the parameters of `model`.
        """

    def target_losses(self, model: nn.Module, target: str) -> Tensor:
        """[m]: the loss of each sample of the target, differentiable; the target's loss is their
        mean.
        """


@runtime_checkable
class Featured(Protocol):
    """features(model, ids), target_features(model, target): vectors in which distance means
    something.
    """

    def features(self, model: nn.Module, ids: Ids) -> Tensor:
        """[len(ids), d]: what goes into the last linear layer."""

    def target_features(self, model: nn.Module, target: str) -> Tensor:
        """[m, d]"""


@runtime_checkable
class Classified(Protocol):
    """labels(ids), logits(model, ids), target_labels(target), target_logits(model, target): a
    classification run.
    """

    def labels(self, ids: Ids) -> Tensor:
        """int64 [len(ids)]: the labels that were trained on, flipped ones included."""

    def logits(self, model: nn.Module, ids: Ids) -> Tensor:
        """[len(ids), classes]"""

    def target_labels(self, target: str) -> Tensor:
        """int64 [m]"""

    def target_logits(self, model: nn.Module, target: str) -> Tensor:
        """[m, classes]"""


@runtime_checkable
class Regressed(Protocol):
    """numbers(ids), predictions(model, ids), target_numbers(target), target_predictions(model,
    target): a regression run on squared errors.
    """

    def numbers(self, ids: Ids) -> Tensor:
        """[len(ids)]: what was trained on, wrong ones included; the training loss is (prediction -
        number)^2.
        """

    def predictions(self, model: nn.Module, ids: Ids) -> Tensor:
        """[len(ids)]"""

    def target_numbers(self, target: str) -> Tensor:
        """[m]"""

    def target_predictions(self, model: nn.Module, target: str) -> Tensor:
        """[m]"""


@runtime_checkable
class Textual(Protocol):
    """texts(ids), target_texts(target): a run on text."""

    def texts(self, ids: Ids) -> list[str]:
        """One text per sample."""

    def target_texts(self, target: str) -> list[str]:
        """One text per sample of the target."""


@runtime_checkable
class Retrainable(Protocol):
    """retrain(ids, seed): the same recipe on other samples."""

    def retrain(self, ids: Ids, seed: int) -> TrainedRun:
        """Train from the start on these of the run's samples (none: the untrained model),
        everything else as in the run; `seed` draws the order (and the initial weights, where they
        are random). Calls `record_training` once."""


@runtime_checkable
class Valued(Protocol):
    """values(method, target): values that an Attributor measured while the run trained."""

    def values(self, method: str, target: str) -> pa.Table:
        """sample_id, value, summed over the run's steps; `method` as it is named in the store."""


@runtime_checkable
class Watched(Protocol):
    """history(): what each sample did at the end of each epoch."""

    def history(self) -> pa.Table:
        """epoch int64 (from 0 before training), sample_id int64, correct bool, error_norm float64
        (Euclidean norm of softmax minus one-hot label).
        """


@runtime_checkable
class Adaptive(Protocol):
    """moments(checkpoint): the Adam state beside the weights."""

    def moments(self, checkpoint: int = -1) -> AdamMoments:
        """As it stood at that checkpoint."""


# -- a run with several of these, as baselines take it


class FeaturedRun(TrainedRun, Featured, Protocol):
    """With features."""


class LabelledRun(FeaturedRun, Classified, Protocol):
    """With features and classes."""


class TextualRun(TrainedRun, Textual, Protocol):
    """With texts."""


@runtime_checkable
class RetrainableRun(TrainedRun, Retrainable, Protocol):
    """That can be trained again."""


class ValuedRun(TrainedRun, Valued, Protocol):
    """With values of its own."""


class WatchedRun(TrainedRun, Watched, Protocol):
    """With a history."""


class AdaptiveRun(TrainedRun, Adaptive, Protocol):
    """With Adam's state."""
