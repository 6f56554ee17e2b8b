"""What the forms of an operation see of whoever calls them: an origin, a sink, a tracker, probes.

The rules stand below `inrun.ghost`, so they name what they need of it here. Axes: n samples, k
directions.
"""

from typing import Protocol, Self

import torch
from torch import Tensor

from inrun.rules.factors import Factor


class Origin(Protocol):
    """Where a tensor without samples came from: a parameter, or a function of parameters."""

    roots: tuple[str, ...]
    """Names of the parameters that the tensor depends on."""
    value: Tensor
    """The tensor itself."""
    dtype: torch.dtype
    """The coarsest one of the tensor and of those that it was made of."""

    def jvp(self, root: str, V: Tensor) -> Tensor:
        """Directions V [k, *root's shape] of one parameter as directions [k, *own shape]."""
        raise NotImplementedError

    def vjp(self, root: str, g: Tensor) -> Tensor:
        """A gradient of this tensor as one of the parameter `root`: the transpose of `jvp`."""
        raise NotImplementedError


class Sink(Protocol):
    """Where a fused form hands over what it found of a use, in one of three ways.

    Dots, where `directions_for` knows the directions; per-sample gradients in a `buffer`, where
    there is room; a factor otherwise.
    """

    n: int
    """Samples of the micro-batch."""

    def sink(self, operation: str, origin: Origin, factor: Factor) -> None:
        """Take one use: where the argument came from, and its per-sample gradients."""

    def directions_for(self, origin: Origin) -> Tensor | None:
        """V [k, *shape] of a parameter whose dots may be taken at once, else None."""

    def take_dots(self, origin: Origin, dots: Tensor, dtype: torch.dtype) -> None:
        """Add dots [k, n] with `directions_for(origin)`, formed from numbers of this dtype."""

    def buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """Uninitialised memory [n, *shape] for per-sample gradients, None where there is none."""


class Tracker(Protocol):
    """What a fused form may ask about the tensors it was called with.

    As a context (`with tracker:`) it sees the operations inside one by one.
    """

    @property
    def recorder(self) -> Sink:
        """Takes what the backward finds."""

    def origin(self, tensor: Tensor) -> Origin | None:
        """Where the tensor came from, None if no tracked parameter is in it."""

    def parameter(self, tensor: Tensor) -> Origin | None:
        """The same for a tensor that is a tracked parameter itself, None for every other."""

    def plain(self, tensor: Tensor) -> bool:
        """Whether the tensor has samples along axis 0, sample-major and equally many."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception) -> None: ...


class Probes(Protocol):
    """What a compiled form may ask about a parameter."""

    n: int
    """Samples of the micro-batch."""

    def of(self, parameter: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Its directions V [k, *shape] and probe, zeros [k, n] whose gradient is to be <g_n, V_k>.

        None for a tensor that is not valued.
        """
