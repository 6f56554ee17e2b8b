"""Which tile the kernels of inrun_kernels.jit.wgrad_dots are compiled for, case by case."""

from typing import NamedTuple

import torch

from inrun_kernels.jit.common import precision


class Config(NamedTuple):
    """A shipped way to compile the kernels."""

    BO: int
    """Rows of a program's tile of the weight."""
    BI: int
    """Columns of that tile."""
    BT: int
    """Tokens of a step."""
    slices: int
    """Column slices in which a direction's tile is read."""
    warps: int
    """Warps of a program."""
    stages: int
    """Stages of the software pipeline."""
    resident: bool = False
    """Whether the one direction's tile stays in registers."""


def config_for(
    arch: int, dtype: torch.dtype, o: int, i: int, directions: int, ragged: bool
) -> Config:
    """The shipped tile: the largest that compiles without a spill for this case.

    inrun_kernels.aot checks them all. Rows of V whose length is no multiple of 16 cost address
    registers, hence the smaller tiles there.
    """
    even_rows = i % 16 == 0
    if dtype == torch.float32:
        if not even_rows or precision(dtype) == "tf32":
            return Config(64, 64, 32, 2, 8, 2)
        return Config(32, 32, 32, 1, 4, 2) if ragged else Config(64, 32, 16, 1, 4, 3)
    if not even_rows:
        return Config(64, 64, 64, 1, 8, 3)
    if ragged:
        return Config(128, 64, 32, 2, 8, 4)
    if directions == 1:
        even = o % 128 == 0 and i % 128 == 0
        return Config(128 if arch >= 90 and even else 64, 128, 64, 1, 8, 3, resident=True)
    return Config(128, 128, 32, 4, 8, 4) if arch >= 90 else Config(128, 128, 32, 8, 8, 3)
