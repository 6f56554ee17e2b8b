"""Runs for tests of retraining and pools (tests/baselines) that are trained again in no time.

A ridge regression in closed form, and softmax regression on scikit-learn's digits by plain gradient
descent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from inrun.baselines import Checkpoint, record_training


@dataclass
class _Run:
    x: Tensor
    y: Tensor
    target_x: Tensor
    target_y: Tensor
    trainings: list = field(default_factory=list)  # (ids, seed) of every retraining, to count them
    digest: str = "example"
    targets: tuple[str, ...] = ("val",)
    checkpoints: tuple[Checkpoint, ...] = (Checkpoint(0, 0.0),)

    @property
    def sample_ids(self) -> np.ndarray:
        return np.arange(100, 100 + len(self.x))

    def rows(self, ids: Sequence[int]) -> Tensor:
        return torch.as_tensor(np.asarray(ids, dtype=np.int64) - 100)

    def model(self, checkpoint: int = -1) -> nn.Module:
        return self._model

    def retrain(self, ids: Sequence[int], seed: int) -> "_Run":
        self.trainings.append((tuple(ids), seed))
        record_training()
        again = type(self)(self.x, self.y, self.target_x, self.target_y)
        again._model = self.fit(self.rows(ids), seed)
        return again


class RidgeRun(_Run):
    """w = (X'X + I)^-1 X'y in float64, squared errors; U(no sample) is w = 0. Nothing is random."""

    STRENGTH = 1.0

    def fit(self, rows: Tensor, seed: int) -> nn.Module:
        model = nn.Linear(self.x.shape[1], 1, bias=False, dtype=torch.float64)
        x, y = self.x[rows], self.y[rows]
        weights = torch.linalg.solve(
            x.T @ x + self.STRENGTH * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y
        )
        model.weight.data.copy_(weights)
        return model

    def losses(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        rows = self.rows(ids)
        return (model(self.x[rows])[:, 0] - self.y[rows]) ** 2

    def target_losses(self, model: nn.Module, target: str) -> Tensor:
        return (model(self.target_x)[:, 0] - self.target_y) ** 2


class DigitsRun(_Run):
    """Softmax regression, full-batch gradient descent from small random weights that `seed`
    draws.
    """

    STEPS = 30

    def fit(self, rows: Tensor, seed: int) -> nn.Module:
        model = nn.Linear(64, 10)
        model.weight.data = 0.01 * torch.randn(
            10, 64, generator=torch.Generator().manual_seed(seed)
        )
        model.bias.data.zero_()
        if len(rows):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(self.STEPS):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(self.x[rows]), self.y[rows]).backward()
                optimizer.step()
        return model.eval()

    def labels(self, ids: Sequence[int]) -> Tensor:
        return self.y[self.rows(ids)]

    def logits(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        return model(self.x[self.rows(ids)])

    def target_labels(self, target: str) -> Tensor:
        return self.target_y

    def target_logits(self, model: nn.Module, target: str) -> Tensor:
        return model(self.target_x)

    def losses(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        return nn.functional.cross_entropy(
            self.logits(model, ids), self.labels(ids), reduction="none"
        )

    def target_losses(self, model: nn.Module, target: str) -> Tensor:
        return nn.functional.cross_entropy(
            self.target_logits(model, target), self.target_y, reduction="none"
        )


def ridge_run(n: int = 6, d: int = 3, m: int = 5, seed: int = 0) -> RidgeRun:
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(n + m, d, generator=dice, dtype=torch.float64)
    y = x @ torch.randn(d, generator=dice, dtype=torch.float64) + torch.randn(
        n + m, generator=dice, dtype=torch.float64
    )
    return RidgeRun(x[:n], y[:n], x[n:], y[n:])


def digits_run(
    n: int = 40, m: int = 50, flipped: int = 0, classes: int = 10, seed: int = 0
) -> DigitsRun:
    """Digits below `classes`; the first `flipped` training labels are wrong."""
    data = load_digits()
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(data.target < classes))[: n + m]
    x = torch.tensor(data.data[chosen] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[chosen])
    y[:flipped] = (y[:flipped] + 1) % classes
    return DigitsRun(x[:n], y[:n], x[n:], y[n:])
