"""What every kernel module shares: a launch as data, bfloat16, a device's size."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.backend import interpreted

UPCAST = tl.constexpr(interpreted())
"""Widen half-precision operands first: the interpreter multiplies bfloat16's bit patterns."""

INTERPRETER_SLOTS = 4


Arguments = dict[str, Tensor | int | float | None]
Constants = dict[str, int | bool | str]


@dataclass(frozen=True)
class Launch:
    """One kernel launch, as data.

    `run` launches it, inrun_kernels.aot compiles exactly this for a named architecture.
    """

    kernel: Any  # what triton.jit makes, which is not typed
    """The kernel."""
    grid: tuple[int, ...]
    """Programs along each axis."""
    arguments: Arguments
    """What the kernel is called with."""
    constants: Constants
    """What the kernel is compiled for."""
    warps: int = 4
    """Warps of a program."""
    stages: int = 3
    """Stages of the software pipeline."""

    def run(self) -> None:
        self.kernel[self.grid](
            **self.arguments, **self.constants, num_warps=self.warps, num_stages=self.stages
        )


@triton.jit
def operand(x):
    """x as it enters arithmetic: unchanged on a GPU, float32 under the interpreter."""
    if UPCAST:
        return x.to(tl.float32)
    return x


def architecture(device: torch.device) -> int:
    """Compute capability as in sm_80; 80 where there is no GPU to ask."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def slots(device: torch.device) -> int:
    """Programs that run at once at one per multiprocessor."""
    if device.type != "cuda":
        return INTERPRETER_SLOTS
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits_for(tiles: int, units: int, device: torch.device) -> int:
    """How many parts to cut `units` of work into, so that tiles * parts fill the device.

    The longest program's work is ceil(units / parts) units in each of ceil(tiles * parts / slots)
    waves; ties go to fewer parts, which write fewer partial sums.
    """
    width = slots(device)
    return min(
        range(1, units + 1),
        key=lambda parts: (-(-tiles * parts // width) * -(-units // parts), parts),
    )


def aligned(x: Tensor) -> Tensor:
    """x [p,d] with rows that start on multiples of 16 elements; a padded copy if need be.

    Copies into shared memory need it: a kernel that loads two bytes at a time neither pipelines nor
    keeps its registers.
    """
    if x.stride(0) % 16 == 0 and x.stride(1) == 1 and x.data_ptr() % 16 == 0:
        return x
    padded = x.new_zeros(x.shape[0], -(-x.shape[1] // 16) * 16)[:, : x.shape[1]]
    return padded.copy_(x)


def readable(x: Tensor) -> int:
    """Columns of x [p,d] that a kernel may read: d, or d rounded up to 16.

    The latter where that stays in the row's own stride: a limit that is a multiple of 16 keeps
    loads 16 bytes wide. What lies in such padding is not defined: a kernel may read it, and must
    not let it into a result.
    """
    width = -(-x.shape[1] // 16) * 16
    end = x.storage_offset() + (x.shape[0] - 1) * x.stride(0) + width
    inside = width <= x.stride(0) and end * x.itemsize <= x.untyped_storage().nbytes()
    return width if inside else x.shape[1]


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: "ieee" or "tf32".

    As torch.set_float32_matmul_precision says ("highest": IEEE, else tf32).
    """
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"
