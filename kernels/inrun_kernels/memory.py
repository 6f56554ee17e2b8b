"""Large buffers on a CPU, used again.

The C library maps a buffer of more than 32 MB anew at each allocation, and the system zeroes its
pages one by one as they are first touched: 1.8 us for 4 KiB, more than reading them twice. One step
of GPT-2 asks for a gigabyte of such buffers (logits, weight gradients of the token table,
directions). `empty` gives a buffer out again as soon as the last tensor in it is gone. A GPU's
allocator does this by itself; there, and for small buffers, `empty` is `torch.empty`.

A tensor made here owns its storage like any other, and is safe to return from an operation: what is
recycled is the memory below, when nobody can see it any more.
"""

import math
import mmap
import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST = 8 << 20
"""Buffers below this size are left to the C library, which keeps them."""
PATIENCE = 256
"""A buffer that nobody asked for during as many requests is given back to the system."""


class Recycler:
    """Buffers by use: one that no tensor holds any more is free. Safe under threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._buffers: list[mmap.mmap] = []
        self._last_use: list[int] = []
        self._requests = 0

    def take(self, size: int) -> mmap.mmap:
        """At least `size` uninitialised bytes; busy for as long as a tensor refers to them."""
        with self._lock:
            self._requests += 1
            idle = self._idle()
            # not more than twice as large: a small request must not hold a large buffer
            fitting = [at for at in idle if size <= len(self._buffers[at]) <= 2 * size]
            if not fitting:
                self._give_back(
                    [at for at in idle if self._requests - self._last_use[at] > PATIENCE]
                )
                self._buffers.append(_mapped(size))
                self._last_use.append(0)
                fitting = [len(self._buffers) - 1]
            at = min(fitting, key=lambda at: len(self._buffers[at]))
            self._last_use[at] = self._requests
            return self._buffers[at]

    def release(self) -> None:
        """Give all idle buffers back."""
        with self._lock:
            self._give_back(self._idle())

    def sizes(self) -> list[int]:
        """Bytes of the buffers that it holds, idle or not."""
        with self._lock:
            return [len(buffer) for buffer in self._buffers]

    def _idle(self) -> list[int]:
        # only the list and getrefcount's argument refer to an idle buffer
        return [at for at in range(len(self._buffers)) if sys.getrefcount(self._buffers[at]) == 2]

    def _give_back(self, indices: list[int]) -> None:
        for at in reversed(indices):
            del self._buffers[at], self._last_use[at]


def _mapped(size: int) -> mmap.mmap:
    """Private memory, in large pages where the system has them."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


RECYCLER = Recycler()
"""The one that `empty` asks."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`, in recycled memory if it is large and on a CPU."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = torch.frombuffer(RECYCLER.take(size), dtype=torch.uint8).untyped_storage()
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return torch.empty(0, dtype=dtype).set_(memory, 0, tuple(shape), strides)


def release() -> None:
    """Give the memory that no tensor uses at present back to the system."""
    RECYCLER.release()


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype; x itself where it has it already."""
    return x if x.dtype == dtype else empty(x.shape, dtype, x.device).copy_(x)


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x times a number, in the dtype of x."""
    return torch.mul(x, factor.to(x.dtype), out=empty(x.shape, x.dtype, x.device))


def difference(x: Tensor, y: Tensor) -> Tensor:
    """x - y of two tensors of one shape and dtype."""
    return torch.sub(x, y, out=empty(x.shape, x.dtype, x.device))
