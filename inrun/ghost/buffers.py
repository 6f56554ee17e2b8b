"""Memory for per-sample weight gradients, up to a budget."""

import math

import torch
from torch import Tensor

_Key = tuple[tuple[int, ...], torch.dtype, torch.device]


class GradientBuffers:
    """Buffers for per-sample weight gradients, used again step after step: fresh memory of that
    size costs more than what is written to it.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int = 0):
        self.budget = budget
        self._used = 0
        self._idle: dict[_Key, list[Tensor]] = {}
        self._busy: dict[_Key, list[Tensor]] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """An uninitialised buffer, or None if the budget is spent."""
        key = (shape, like.dtype, like.device)
        if self._idle.get(key):
            buffer = self._idle[key].pop()
        else:
            size = math.prod(shape) * like.dtype.itemsize
            if self._used + size > self.budget:
                return None
            self._used += size
            buffer = like.new_empty(shape)
        self._busy.setdefault(key, []).append(buffer)
        return buffer

    def release(self) -> None:
        """The step is over: all buffers may be used again; those of shapes that were not asked for
        are given up.
        """
        self._idle, self._busy = self._busy, {}
        self._used = sum(buffer.nbytes for buffers in self._idle.values() for buffer in buffers)
