"""Which implementation answers a call: the formula, plain PyTorch, or Triton.

    reference   one einsum per op, slow and obvious (inrun_kernels.reference)
    torch       plain PyTorch, tuned for the CPU, correct on every device
    triton      the kernels of inrun_kernels.jit: CUDA tensors, or any under Triton's interpreter
    auto        triton for CUDA tensors if it is installed and takes the dtype, else torch

The switch is one process-wide value and not a context variable: autograd runs the backward of CUDA
graphs on threads of its own, which would not see a context variable set by the caller.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

CHOICES = ("auto", "reference", "torch", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_current = "auto"


class use:
    """Selects the implementation of all ops, from now on or for a block.

    `use("torch")` is a call, `with use("torch"):` a context. Raises ValueError for a name that is
    not one of `CHOICES`.
    """

    def __init__(self, choice: str):
        global _current
        if choice not in CHOICES:
            raise ValueError(f"inrun_kernels.use({choice!r}): choose one of {', '.join(CHOICES)}")
        self.choice, self.previous = choice, _current
        _current = choice

    def __enter__(self) -> "use":
        return self

    def __exit__(self, *exception) -> None:
        global _current
        _current = self.previous

    def __repr__(self) -> str:
        return f"inrun_kernels.use({self.choice!r})"


def has_triton() -> bool:
    """Whether triton can be imported; it is not imported by asking."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter is on: TRITON_INTERPRET=1 before triton was first imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def backend_for(*tensors: Tensor) -> str:
    """The implementation of a call with these tensors: "reference", "torch" or "triton".

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
                'inrun_kernels.use("triton"): triton is not installed; install it or use "auto"'
            )
        if not cuda and not interpreted():
            raise RuntimeError(
                f'inrun_kernels.use("triton") with a tensor on {tensors[0].device}: Triton runs on '
                "CUDA tensors, or on the CPU under its interpreter (TRITON_INTERPRET=1 set before "
                'the first import); use "auto" or "torch"'
            )
        if not dtypes <= set(TRITON_DTYPES):
            raise TypeError(
                'inrun_kernels.use("triton") takes float16, bfloat16 and float32, not '
                f'{sorted(map(str, dtypes))}; use "auto" or "torch" for float64'
            )
    return _current


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums, dots and weight gradients: float64 if any tensor is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def operator(name: str) -> Callable:
    """A decorator: `torch.library.custom_op("inrun::name")` whose body runs with autocast off.

    Sums stay in the dtype that the operation states.
    """

    def register(body: Callable):
        @functools.wraps(body)
        def exact(*args, **kwargs):
            device = next(x.device for x in args if isinstance(x, Tensor))
            with torch.autocast(device.type, enabled=False):
                return body(*args, **kwargs)

        return torch.library.custom_op(f"inrun::{name}", exact, mutates_args=())

    return register


def read_together(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """0-dim tensors by name as floats, with one wait for the device instead of one for each.

    Reading a number waits until everything that was asked of the device is done.
    """
    if not numbers:
        return {}
    first = next(iter(numbers.values()))
    wide = [x.to(first.device, torch.float64) for x in numbers.values()]
    return dict(zip(numbers, torch.stack(wide).tolist()))
