"""Optimizer, learning-rate schedule and clipping of a run.

To add an optimizer: a function `(groups, OptimConfig) -> torch.optim.Optimizer` under
`@optimizer("name")`, and its update rule in `inrun.updates`, without which its steps cannot be
valued.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from inrun.config import ConfigError
from inrun.models import decay_groups
from inrun.registry import Registry
from inrun.updates import Lion

OPTIMIZERS: Registry[str, Callable] = Registry("optimizer", error=ConfigError)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rate and clipping."""

    name: str = "adamw"
    """adamw, sgd, lion, or one registered from outside."""
    lr: float = 6e-4
    """Largest learning rate."""
    min_lr: float = 6e-5
    """Where a cosine takes it until `decay_steps`; it stays there."""
    warmup: int = 100
    """Steps over which it rises."""
    decay_steps: int = 0
    """0: the end of the run."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of adamw and lion."""
    momentum: float = 0.0
    """Of sgd."""
    weight_decay: float = 0.1
    """Of matrices and tables, not of vectors; decoupled from the gradient in adamw and lion."""
    clip: float = 1.0
    """Largest global norm of the gradient, 0 for none."""

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"optim.name={self.name!r}: choose one of {', '.join(sorted(OPTIMIZERS))}"
            )
        if not 0 <= self.min_lr <= self.lr or self.lr == 0:
            raise ConfigError(
                f"optim: lr={self.lr} and min_lr={self.min_lr} must satisfy 0 <= min_lr <= "
                "lr, 0 < lr"
            )
        if min(self.warmup, self.decay_steps, self.weight_decay, self.clip, self.momentum) < 0:
            raise ConfigError(
                "optim: warmup, decay_steps, momentum, weight_decay and clip must not be negative"
            )


def optimizer(name: str) -> Callable[[Callable], Callable]:
    """Decorator: this function makes the optimizer called `name` in a config."""
    return OPTIMIZERS.register(name)


@optimizer("adamw")
def _adamw(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


@optimizer("sgd")
def _sgd(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


@optimizer("lion")
def _lion(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    return Lion(groups, lr=config.lr, betas=config.betas)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    return OPTIMIZERS[config.name](decay_groups(model, config.weight_decay), config)


def state_bytes(make_model: Callable[[], nn.Module], config: OptimConfig) -> int:
    """Bytes of the optimizer's state once it has made a step.

    Model, gradients and step are made of tensors that have a shape and no content, so that any
    registered optimizer can be asked and nothing is allocated. Raises ConfigError for an optimizer
    whose step depends on what its tensors contain.
    """
    try:
        with FakeTensorMode():
            model = make_model()
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer = build_optimizer(model, config)
            optimizer.step()
    except DataDependentOutputException as error:
        raise ConfigError(
            f"optim.name={config.name}: the size of its state is not known without a real step "
            f"({error}); do without a dry run"
        ) from error
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in kept if isinstance(value, Tensor))


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step `step` (counted from 0) of a run of `steps`.

    Never 0, so that the first step moves the weights too.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    end = config.decay_steps or steps
    if step >= end:
        return config.min_lr
    along = (step - config.warmup) / max(end - config.warmup, 1)
    return config.min_lr + 0.5 * (1.0 + math.cos(math.pi * along)) * (config.lr - config.min_lr)


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients by one factor so that their global norm is at most `largest`.

    0 leaves them. Returns the norm before, 0-dim.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest > 0:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm
