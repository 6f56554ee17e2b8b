"""How a supervised model is trained: the network, Adam, the falling learning rate, the order of the
samples. One function, whatever is done with the epochs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun.baselines.runs import Ids
from inrun.data.labelled import LabelledPart, LabelledProblem
from inrun.models.small import MLP, ConvNet
from inrun.train.precision import Precision


@dataclass(frozen=True)
class NetworkConfig:
    """Which network."""

    name: str = "conv"
    "conv (GroupNorm), mlp, or resnet18 (frozen BatchNorm statistics)."
    width: int = 8
    "Of conv and mlp."
    pretrained: str = "microsoft/resnet-18"
    "Of resnet18, a hub name or a folder."

    def __post_init__(self):
        if self.name not in ("conv", "mlp", "resnet18"):
            raise ValueError(f"name={self.name!r}: choose conv, mlp or resnet18")

    @property
    def normalisation(self) -> str:
        """What stands in for BatchNorm, which has no per-sample gradients: recorded with every
        result.
        """
        return {
            "conv": "GroupNorm",
            "mlp": "none",
            "resnet18": "BatchNorm, ImageNet statistics frozen",
        }[self.name]


@dataclass(frozen=True)
class Recipe:
    """Training as in appendix E.6 of the paper: Adam, learning rate x 0.1 every 10 of 50 epochs,
    batches of 64.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    "What is trained."
    lr: float = 1e-3
    "Of the first epochs."
    weight_decay: float = 1e-4
    "Of Adam, added to the gradient."
    label_smoothing: float = 0.1
    "Of a classification's training loss; validation and test losses have none."
    epochs: int = 50
    "Passes over the training samples."
    batch: int = 64
    "Samples in a step."
    drop_every: int = 10
    "Epochs between falls of the learning rate."
    drop: float = 0.1
    "The learning rate is multiplied by this."
    checkpoint_every: int = 1
    "Epochs between the checkpoints that a run keeps."
    moments_every: int = 10
    "Epochs between those of them that keep Adam's state too."
    device: str = "auto"
    "auto (CUDA where there is one), cpu or cuda."

    def __post_init__(self):
        if min(self.epochs, self.batch, self.drop_every, self.checkpoint_every) < 1:
            raise ValueError("epochs, batch, drop_every and checkpoint_every must be 1 or more")
        if self.epochs % self.checkpoint_every or self.moments_every % self.checkpoint_every:
            raise ValueError(
                "epochs and moments_every must be multiples of checkpoint_every, so that the "
                "last epoch has a checkpoint"
            )

    def lr_of(self, epoch: int) -> float:
        """epoch: from 0."""
        return self.lr * self.drop ** (epoch // self.drop_every)


class Data:
    """The parts of a problem as tensors on the device."""

    def __init__(self, problem: LabelledProblem, device: str):
        self.problem, self.device = problem, Precision.choose(device, "fp32").device
        self.train = self._tensors(problem.train)
        self.targets = {
            "val": self._tensors(problem.validation),
            "test": self._tensors(problem.test),
        }

    def _tensors(self, part: LabelledPart) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.x).to(self.device), torch.from_numpy(part.y).to(self.device)

    def rows(self, ids: Ids) -> np.ndarray:
        """Positions of sample ids in the training part. Raises KeyError for an id that is not
        there.
        """
        known, wanted = self.problem.train.ids, np.asarray(ids, np.int64)
        rows = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        if (strange := wanted[known[rows] != wanted]).size:
            raise KeyError(f"{strange.size} ids are no training samples, first {strange[0]}")
        return rows


def network(config: NetworkConfig, problem: LabelledProblem) -> nn.Module:
    """A new network for the problem's shapes, with weights from torch's random state, in eval
    mode.
    """
    outputs = problem.classes or 1
    if config.name == "mlp":
        return MLP(int(np.prod(problem.train.x.shape[1:])), outputs, config.width).eval()
    if problem.train.x.ndim != 4:
        raise ValueError(
            f"network {config.name!r} is for images, and {problem.name} has rows; choose mlp"
        )
    if config.name == "conv":
        return ConvNet(
            problem.train.x.shape[1], problem.train.x.shape[-1], outputs, config.width
        ).eval()
    from inrun.integrations.resnet import ResNet18  # transformers, an extra

    return ResNet18(outputs, config.pretrained).eval()


def sample_losses(outputs: Tensor, y: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """[n]: cross-entropy, or the squared error in a regression."""
    if classes:
        return F.cross_entropy(outputs, y, reduction="none", label_smoothing=label_smoothing)
    return (outputs[:, 0] - y) ** 2


Attribution = Callable[
    [nn.Module, torch.optim.Optimizer], Callable[[np.ndarray], AbstractContextManager]
]


def fit(
    data: Data,
    rows: np.ndarray,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[int, nn.Module, torch.optim.Optimizer], None] | None = None,
    attribution: Attribution | None = None,
) -> nn.Module:
    """Train on these rows of the training part, from the start.

    Args:
        seed: of the new weights and of the order.
        after_epoch: (epochs done, model, optimizer); also before the first one, with 0.
        attribution: (model, optimizer) -> a context manager for each batch, given its sample ids.

    The random state of the process is left as it was. The order of a subset is that of its own
    permutation.
    """
    (x, y), ids = data.train, data.problem.train.ids
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(recipe.network, data.problem).to(data.device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    around = attribution(model, optimizer) if attribution else lambda ids: nullcontext()
    order = np.random.default_rng([seed, 2])
    if after_epoch:
        after_epoch(0, model, optimizer)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.lr_of(epoch)
        shuffled = order.permutation(rows)
        for start in range(0, len(rows), recipe.batch):
            batch = shuffled[start : start + recipe.batch]
            at = torch.from_numpy(batch).to(data.device)
            inputs, labels = x[at], y[at]
            with around(ids[batch]):
                losses = sample_losses(
                    model(inputs), labels, data.problem.classes, recipe.label_smoothing
                )
                losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if after_epoch:
            after_epoch(epoch + 1, model, optimizer)
    return model
