"""Large buffers on a CPU, used again.

The C library maps a buffer of more than 32 MB anew at each allocation, and the system zeroes its pages one by one as they are first touched: 1.8 us for 4 KiB, as much as
reading it twice more from memory. One step of GPT-2 asks for a gigabyte of such buffers (logits, weight gradients of the token table, directions). `empty` gives a buffer out
again as soon as the last tensor in it is gone. A GPU's allocator does this by itself; there, and for small buffers, `empty` is `torch.empty`.

A tensor made here owns its storage like any other, and is safe to return from an operation: what is recycled is the memory below, when nobody can see it any more.
"""

import math
import sys
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: buffers below this size are left to the C library, which keeps them
SMALLEST = 8 << 20
#: a buffer that nobody asked for during as many requests is given back to the system
PATIENCE = 256
#: a cache line, so that vector instructions never straddle two
ALIGNMENT = 64


class Recycler:
    """Buffers by use: one that no tensor holds any more is free. Safe under threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._buffers: list[np.ndarray] = []
        self._last_use: list[int] = []
        self._requests = 0

    def take(self, size: int) -> np.ndarray:
        """At least `size` uninitialised bytes, uint8; busy for as long as a view of them lives."""
        with self._lock:
            self._requests += 1
            free = [at for at in range(len(self._buffers)) if _idle(self._buffers, at)]
            # not more than twice as large: a small request must not hold a large buffer
            fitting = [at for at in free if size <= self._buffers[at].nbytes - ALIGNMENT <= 2 * size]
            if fitting:
                at = min(fitting, key=lambda at: self._buffers[at].nbytes)
            else:
                self._give_back([at for at in free if self._requests - self._last_use[at] > PATIENCE])
                self._buffers.append(np.empty(size + ALIGNMENT, dtype=np.uint8))
                self._last_use.append(0)
                at = len(self._buffers) - 1
            self._last_use[at] = self._requests
            start = -self._buffers[at].ctypes.data % ALIGNMENT
            return self._buffers[at][start : start + size]

    def _give_back(self, indices: list[int]) -> None:
        for at in reversed(indices):
            del self._buffers[at], self._last_use[at]


def _idle(buffers: list[np.ndarray], at: int) -> bool:
    """Whether only the list refers to the buffer; a view counts as long as it lives."""
    return sys.getrefcount(buffers[at]) == 2


_RECYCLER = Recycler()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty(shape, dtype=dtype, device=device)`, in recycled memory if it is large and on a CPU."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device=device)
    # not a view of another tensor: autograd adds into a gradient in place only if nothing else refers to its storage
    memory = torch.from_numpy(_RECYCLER.take(size)).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(memory, 0, tuple(shape))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype; x itself where it has it already."""
    return x if x.dtype == dtype else empty(x.shape, dtype, x.device).copy_(x)


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x times a number, in the dtype of x."""
    return torch.mul(x, factor.to(x.dtype), out=empty(x.shape, x.dtype, x.device))
