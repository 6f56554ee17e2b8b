"""Oracles and tolerances of tests/kernels: float64 autograd, one sample at a time."""

import math

import torch
from torch import Tensor

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def narrow(dtype: torch.dtype) -> torch.dtype | None:
    """The dtype products are rounded to on the way, where it is not the accumulation dtype."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The accumulation dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(
    length: int, *, dtype: torch.dtype = torch.float32, rounded: torch.dtype | None = None
) -> float:
    """Relative RMS error of sums of `length` products of random sign, accumulated in `dtype`.

    After j of L terms a partial sum is of size sqrt(j), its rounding u sqrt(j) / sqrt(3); the root
    of the sum of squares, relative to the sum's own sqrt(L), is u sqrt(L / 6). Allowed: u sqrt(L),
    2.4 times that. Where an operand or an intermediate is rounded to a narrower dtype on the way
    (`rounded`), that dtype's unit roundoff comes on top.
    """
    return UNIT_ROUNDOFF[dtype] * math.sqrt(length) + (UNIT_ROUNDOFF[rounded] if rounded else 0.0)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative RMS error; shapes must agree and nothing may be NaN."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert not actual.isnan().any()
    return ((actual.double() - expected).norm() / expected.norm()).item()


def per_sample_gradients(a: Tensor, b: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Gradients [n,o,i] of a linear layer's weight by float64 autograd, a loop over samples.

    a [p,i], b [p,o].
    """
    weight = torch.zeros(b.shape[1], a.shape[1], dtype=torch.float64, requires_grad=True)
    gradients = []
    for first, last in spans:
        y = torch.nn.functional.linear(a[first:last].double(), weight)
        gradients.append(torch.autograd.grad(y, weight, b[first:last].double())[0])
    return torch.stack(gradients)


def tokens_as_samples(*tensors: Tensor) -> list[Tensor]:
    """[n,t,d] as [n*t,1,d]: every token a sample of its own."""
    return [x.flatten(0, 1)[:, None] for x in tensors]


def uniform(n: int, t: int) -> list[tuple[int, int]]:
    """Spans of n samples of t packed tokens."""
    return [(s * t, s * t + t) for s in range(n)]


def operands(
    n: int, t: int, i: int, o: int, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """a [n,t,i], b [n,t,o] in dtype, V [k,o,i] in float32 (float64 for float64)."""
    a, b = torch.randn(n, t, i).to(dtype), torch.randn(n, t, o).to(dtype)
    return a, b, torch.randn(k, o, i).to(wide(dtype))
