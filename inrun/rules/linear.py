"""Linear maps: torch's linear, ``x @ w``, and addmm as Hugging Face's Conv1D calls it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.rules.factors import Dense, Factor, Outer, token_rows, wide
from inrun.rules.registry import NoRule, rule


@rule(F.linear, argument="weight")
def linear_weight(
    n: int, b: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Factor:
    # under autocast the product saw the input in b's dtype
    return Outer(token_rows(input, n).to(b.dtype), token_rows(b, n), tuple(weight.shape))


@rule(F.linear, argument="bias")
def linear_bias(n: int, b: Tensor, input: Tensor, weight: Tensor, bias: Tensor) -> Factor:
    return Dense(wide(token_rows(b, n)).sum(1))


@rule(torch.addmm, torch.Tensor.addmm, argument="mat2")
def addmm_weight(
    n: int, b: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1
) -> Factor:
    # mat2 is [i, o]: its gradient is a^T b, so the two change places
    return Outer(alpha * token_rows(b, n), token_rows(mat1, n).to(b.dtype), tuple(mat2.shape))


@rule(torch.addmm, torch.Tensor.addmm, argument="input")
def addmm_bias(
    n: int, b: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1
) -> Factor:
    if input.dim() != 1:
        raise NoRule
    return Dense(beta * wide(token_rows(b, n)).sum(1))


_MATMUL = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


@rule(*_MATMUL, argument="other")
def matmul_right(n: int, b: Tensor, input: Tensor, other: Tensor) -> Factor:
    if other.dim() != 2 or input.dim() < 2:
        raise NoRule
    return Outer(token_rows(b, n), token_rows(input, n).to(b.dtype), tuple(other.shape))


@rule(torch.mm, torch.Tensor.mm, argument="mat2")
def mm_right(n: int, b: Tensor, input: Tensor, mat2: Tensor) -> Factor:
    return matmul_right(n, b, input, mat2)
