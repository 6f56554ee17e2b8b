"""Which implementation answers a call: the formula, plain PyTorch, or Triton.

    reference   one einsum per op, slow and obvious (inrun_kernels.reference)
    torch       plain PyTorch, tuned for the CPU, correct on every device
    triton      the kernels of inrun_kernels.jit: CUDA tensors, or any tensor under Triton's interpreter
    auto        triton for CUDA tensors where triton is installed and the dtype has tensor cores, else torch

The switch is one process-wide value and not a context variable: autograd runs the backward of CUDA
graphs on threads of its own, which would not see a context variable set by the caller.
"""

import functools
import importlib.util
import os
from collections.abc import Callable

import torch

CHOICES = ("auto", "reference", "torch", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_current = "auto"


class use:
    """Select the implementation of all ops: `use("torch")` from now on, `with use("torch"):` for a
    block.

    Raises ValueError for a name that is not one of `CHOICES`.
    """

    def __init__(self, choice: str):
        global _current
        if choice not in CHOICES:
            raise ValueError(f"kernels.use({choice!r}): choose one of {', '.join(CHOICES)}")
        self.choice, self.previous = choice, _current
        _current = choice

    def __enter__(self) -> "use":
        return self

    def __exit__(self, *exception) -> None:
        global _current
        _current = self.previous

    def __repr__(self) -> str:
        return f"kernels.use({self.choice!r})"


def has_triton() -> bool:
    """Whether triton can be imported; it is not imported by asking."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter is switched on (TRITON_INTERPRET=1 before triton was first
    imported).
    """
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def backend_for(*tensors: torch.Tensor) -> str:
    """ "reference", "torch" or "triton" for a call with these tensors, under the current switch.

    Raises RuntimeError if Triton was asked for and cannot run here, TypeError if it cannot take the
    dtype.
    """
    dtypes = {x.dtype for x in tensors if x.is_floating_point()}
    cuda = tensors[0].is_cuda
    if _current == "auto":
        return "triton" if cuda and dtypes <= set(TRITON_DTYPES) and has_triton() else "torch"
    if _current == "triton":
        if not has_triton():
            raise RuntimeError(
                'kernels.use("triton"): triton is not installed; install it or use "auto"'
            )
        if not cuda and not interpreted():
            raise RuntimeError(
                f'kernels.use("triton") with a tensor on {tensors[0].device}: Triton runs on '
                "CUDA tensors, or on "
                "the CPU under its interpreter (TRITON_INTERPRET=1 set before the first "
                'import); use "auto" or "torch"'
            )
        if not dtypes <= set(TRITON_DTYPES):
            raise TypeError(
                'kernels.use("triton") takes float16, bfloat16 and float32, not '
                f"{sorted(map(str, dtypes))}; "
                'use "auto" or "torch" for float64'
            )
    return _current


def accumulation_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 if any tensor is float64, else float32: the dtype of sums, dots and returned weight
    gradients.
    """
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def operator(name: str) -> Callable:
    """`torch.library.custom_op("inrun::name")` whose body runs with autocast off: sums stay in the
    dtype they say.
    """

    def register(body: Callable):
        @functools.wraps(body)
        def exact(*args, **kwargs):
            device = next(x.device for x in args if isinstance(x, torch.Tensor))
            with torch.autocast(device.type, enabled=False):
                return body(*args, **kwargs)

        return torch.library.custom_op(f"inrun::{name}", exact, mutates_args=())

    return register
