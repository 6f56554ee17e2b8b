"""What a model returns, and a loss made of it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class CannotBuild(Exception):
    """The type is left out, and why."""


def own_loss(out: Any) -> Tensor:
    """The loss that the model computed from its labels."""
    loss = getattr(out, "loss", None)
    if not isinstance(loss, Tensor):
        raise CannotBuild("the model gives no loss")
    return loss.sum()


def of_outputs(out: Any, n: int, kept: list[int]) -> Tensor:
    """The mean over samples of a fixed quadratic function of each sample's outputs."""
    found, total = tensors(out), torch.zeros((), dtype=torch.float64)
    for k in kept:
        rows = found[k].double()
        rows = rows.reshape(n, -1) if rows.dim() and rows.shape[0] % n == 0 else rows.reshape(1, -1)
        weights = torch.cos(torch.arange(rows.shape[1], dtype=torch.float64))
        total = total + (rows * weights + 0.1 * rows.square()).mean()
    return total


def tensors(out: Any) -> list[Tensor]:
    """Floating tensors in a model's output, in its order."""
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    if isinstance(out, Mapping):
        return [t for key, value in out.items() if key != "loss" for t in tensors(value)]
    if isinstance(out, (list, tuple)):
        return [t for value in out for t in tensors(value)]
    return []


def differentiable(out: Any) -> list[int]:
    return [k for k, t in enumerate(tensors(out)) if t.requires_grad]


def in_rows(whole: Tensor, one: list[Tensor], k: int) -> bool:
    """Whether an output of all samples has theirs behind each other, by its shape."""
    if len(one) <= k or not one[k].dim() or not whole.dim():
        return False
    rows = len(one[k])
    return 0 < rows < len(whole) and len(whole) % rows == 0


def alike(whole: Tensor, each: list[list[Tensor]], k: int) -> bool:
    """Whether the parts of an output of all samples are the outputs of each, and differ."""
    n = len(each)
    if not whole.dim() or whole.shape[0] % n or any(not e[k].dim() for e in each):
        return False
    parts = whole.chunk(n)
    return (
        len(parts) == n
        and all(part.shape == e[k].shape for part, e in zip(parts, each))
        and all(torch.allclose(p, e[k], rtol=1e-4, atol=1e-5) for p, e in zip(parts, each))
        and not all(torch.equal(part, parts[0]) for part in parts)  # made of parameters alone
    )


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first(error)}"


def first(error: object) -> str:
    """The text on one line, not too long."""
    return re.sub(r"\s+", " ", str(error)).strip()[:300]
