"""One sample per micro-batch: what a backward adds to `.grad` is that sample's gradient.

No rule for any operation is asked for, so every model is valued that torch can train: recurrent
layers, autograd functions of one's own, experts, complex weights, random functions of a weight. The
training is not touched: a hook of each parameter looks at what is about to be added to its `.grad`,
and a second one, after it has been added, takes it. What `torch.autograd.grad` computes inside the
block is looked at as well, is never added, and so counts for nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.ghost.buffers import GradientBuffers
from inrun.ghost.origin import Parameter
from inrun.ghost.tape import StreamingDots, Tape
from inrun.rules.factors import Dense


class WholeRouteError(RuntimeError):
    """A micro-batch that route='whole' cannot value: of several samples, or past its memory."""


class WholeGradients:
    """Context around forward and backward of a micro-batch of one sample; what a recorder is told
    are the parameters' gradients themselves.

    Mixed into a recorder, by `WholeDots` and `WholeTape`.

    Attributes:
        watched: name -> tracked parameter.
    """

    watched: Mapping[str, Tensor]

    def __enter__(self) -> None:
        self._coming: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        for name, p in self.watched.items():
            if p.requires_grad:
                self._handles.append(p.register_hook(self._look(name)))
                self._handles.append(p.register_post_accumulate_grad_hook(self._take(name)))

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._coming = {}

    def _look(self, name: str):
        def look(gradient: Tensor) -> None:
            self._coming[name] = gradient.detach()

        return look

    def _take(self, name: str):
        def take(parameter: Tensor) -> None:
            self.add(name, self._coming.pop(name))

        return take

    def add_all(self, gradients: Sequence[Tensor | None]) -> None:
        """The gradients of a second run, in the order of `watched`."""
        for name, gradient in zip(self.watched, gradients, strict=True):
            if gradient is not None:
                self.add(name, gradient.detach())

    def add(self, name: str, gradient: Tensor) -> None:
        """One more part of the sample's gradient with respect to a parameter."""
        raise NotImplementedError


class WholeDots(WholeGradients, StreamingDots):
    """Takes ``<g, V_k>`` as the gradients come; keeps nothing.

    Args:
        watched: name -> tracked parameter.
        directions: name -> V [k, *shape].
    """

    def __init__(self, watched: Mapping[str, Tensor], directions: Mapping[str, Tensor]):
        super().__init__(directions, 1)
        self.watched = watched

    def add(self, name: str, gradient: Tensor) -> None:
        with torch.no_grad():
            self.sink("backward", *_factor(name, self.watched[name], _plain(gradient)))


class WholeTape(WholeGradients, Tape):
    """Keeps the sample's gradient until directions are known, as long as `memory` lasts.

    Attributes:
        spilled: it did not; nothing of this micro-batch is kept.
    """

    def __init__(self, watched: Mapping[str, Tensor], memory: GradientBuffers):
        super().__init__(1, memory=memory)
        self.watched, self.spilled = watched, False
        self._kept: dict[str, Tensor] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        if self.spilled:
            return
        gradient = _plain(gradient)
        if name in self._kept:
            self._kept[name].add_(gradient)
            return
        kept = self.memory.take(tuple(gradient.shape), gradient)
        if kept is None:
            self.spilled = True
            self.entries, self._kept = [], {}
            return
        self._kept[name] = kept.copy_(gradient)
        self.sink("backward", *_factor(name, self.watched[name], kept))


class _Complex(Parameter):
    """A complex parameter, as pairs of real numbers."""

    def jvp(self, root: str, V: Tensor) -> Tensor:
        return torch.view_as_real(V)

    def vjp(self, root: str, g: Tensor) -> Tensor:
        return torch.view_as_complex(g)


def _factor(name: str, parameter: Tensor, gradient: Tensor) -> tuple[Parameter, Dense]:
    if gradient.is_complex():
        return _Complex(name, parameter), Dense(torch.view_as_real(gradient)[None])
    return Parameter(name, parameter), Dense(gradient[None])


def _plain(gradient: Tensor) -> Tensor:
    """The gradient with all its numbers: that of a sparse table is written out."""
    return gradient.to_dense() if gradient.layout != torch.strided else gradient
