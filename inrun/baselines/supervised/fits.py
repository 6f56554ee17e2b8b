"""A trained model and its data: what can be asked of every supervised run, retrained ones too."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from inrun.baselines.runs import Checkpoint, Ids
from inrun.baselines.supervised.recipe import Data, Recipe, network, sample_losses


class Fit:
    """A trained model and its data: what every supervised run is, the retrained ones too (those
    kept their last weights only).
    """

    targets = ("val", "test")

    def __init__(
        self,
        data: Data,
        recipe: Recipe,
        rows: np.ndarray,
        checkpoints: Sequence[Checkpoint],
        weights: Callable[[int], dict[str, Tensor]],
    ):
        self.data, self.problem, self.recipe = data, data.problem, recipe
        self.sample_ids: np.ndarray = data.problem.train.ids[np.sort(rows)]
        self.checkpoints = tuple(checkpoints)
        self._weights = weights  # checkpoint number -> state dict

    def model(self, checkpoint: int = -1) -> nn.Module:
        state = self._weights(range(len(self.checkpoints))[checkpoint])
        with torch.random.fork_rng(devices=[]):
            model = network(self.recipe.network, self.problem)
        model.load_state_dict(state)
        return model.to(self.data.device)

    def losses(self, model: nn.Module, ids: Ids) -> Tensor:
        x, y = self.train_part(ids)
        return sample_losses(model(x), y, self.problem.classes, self.recipe.label_smoothing)

    def target_losses(self, model: nn.Module, target: str) -> Tensor:
        x, y = self.data.targets[target]
        return sample_losses(model(x), y, self.problem.classes)

    def features(self, model: nn.Module, ids: Ids) -> Tensor:
        return features_of(model, self.train_part(ids)[0])

    def target_features(self, model: nn.Module, target: str) -> Tensor:
        return features_of(model, self.data.targets[target][0])

    @torch.no_grad()
    def quality(self, target: str, checkpoint: int = -1) -> float:
        """Accuracy, or in a regression the coefficient of determination R^2: 1 is perfect, 0 what
        the target's mean scores.
        """
        x, y = self.data.targets[target]
        out = self.model(checkpoint)(x)
        if self.problem.classes:
            return float((out.argmax(1) == y).double().mean())
        return 1 - float(((out[:, 0] - y) ** 2).mean() / y.var(correction=0))

    def train_part(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and labels or numbers [n] of training samples."""
        at = torch.from_numpy(self.data.rows(ids)).to(self.data.device)
        return self.data.train[0][at], self.data.train[1][at]


class ClassificationFit(Fit):
    """A trained classifier."""

    def labels(self, ids: Ids) -> Tensor:
        return self.train_part(ids)[1]

    def logits(self, model: nn.Module, ids: Ids) -> Tensor:
        return model(self.train_part(ids)[0])

    def target_labels(self, target: str) -> Tensor:
        return self.data.targets[target][1]

    def target_logits(self, model: nn.Module, target: str) -> Tensor:
        return model(self.data.targets[target][0])


class RegressionFit(Fit):
    """A trained regression."""

    def numbers(self, ids: Ids) -> Tensor:
        return self.train_part(ids)[1]

    def predictions(self, model: nn.Module, ids: Ids) -> Tensor:
        return model(self.train_part(ids)[0])[:, 0]

    def target_numbers(self, target: str) -> Tensor:
        return self.data.targets[target][1]

    def target_predictions(self, model: nn.Module, target: str) -> Tensor:
        return model(self.data.targets[target][0])[:, 0]


def features_of(model: nn.Module, x: Tensor) -> Tensor:
    """What enters the last layer of a network of `recipe.network`: [n, d]."""
    return cast(Callable[[Tensor], Tensor], model.features)(x)
