"""Checks of shapes at the public border, and the two layouts of a batch.

[n,t,...], and packed [p,...] with offsets.
"""

from itertools import pairwise

import torch
from torch import Tensor


def check_pair(op: str, a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None) -> None:
    """Raise ValueError or TypeError unless a, b and V fit.

    a [n,t,i], b [n,t,o] (or packed with offsets [n+1]) and V [k,o,i].
    """
    rank = 3 if offsets is None else 2
    layout = "[n,t,i] and [n,t,o]" if offsets is None else "[p,i] and [p,o] (packed, with offsets)"
    if a.ndim != rank or b.ndim != rank or a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"{op}: a {list(a.shape)} and b {list(b.shape)} must be {layout} with equal "
            "leading axes"
        )
    check_directions(op, V, (b.shape[-1], a.shape[-1]), "[k,o,i]")
    check_floating(op, a, b, V)
    if offsets is not None:
        check_offsets(op, offsets)


def check_directions(op: str, V: Tensor, weight: tuple[int, ...], axes: str) -> None:
    """Raise ValueError unless V is a stack of at least one weight-shaped direction."""
    if V.ndim != len(weight) + 1 or tuple(V.shape[1:]) != tuple(weight) or V.shape[0] == 0:
        raise ValueError(
            f"{op}: V {list(V.shape)} must be {axes}, one or more directions of the weight's shape "
            f"{list(weight)}; a single direction is V.unsqueeze(0)"
        )


def check_floating(op: str, *tensors: Tensor) -> None:
    """Raise TypeError for a tensor that is not of a floating-point dtype."""
    for x in tensors:
        if not x.is_floating_point():
            raise TypeError(
                f"{op}: expected floating-point tensors, got {x.dtype} of shape {list(x.shape)}"
            )


def check_offsets(op: str, offsets: Tensor) -> None:
    """Raise unless offsets is an integer vector of n+1 >= 2 cumulative lengths.

    Their values are checked by `bounds`.
    """
    if offsets.ndim != 1 or offsets.numel() < 2 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{op}: offsets {list(offsets.shape)} {offsets.dtype} must be an int32 or int64 vector "
            "[n+1] of cumulative lengths: sample n is rows offsets[n]:offsets[n+1]"
        )


def bounds(op: str, tokens: int, samples: int, offsets: Tensor | None) -> list[tuple[int, int]]:
    """(first, last+1) packed token of every sample.

    Raises ValueError unless offsets partition `tokens`.
    """
    if offsets is None:
        length = tokens // samples if samples else 0
        return [(n * length, (n + 1) * length) for n in range(samples)]
    edges = offsets.tolist()
    if edges[0] != 0 or edges[-1] != tokens or any(e < s for s, e in pairwise(edges)):
        raise ValueError(
            f"{op}: offsets {edges} must rise from 0 to the number of packed tokens, {tokens}"
        )
    return list(pairwise(edges))


def pack(x: Tensor) -> Tensor:
    """[n,t,d] or [p,d] as [p,d], with unit stride in the last axis.

    A copy only where the layout asks for one.
    """
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def check_probe(op: str, probe: Tensor, directions: int, samples: int) -> None:
    """Raise ValueError unless probe is [k,n]."""
    if tuple(probe.shape) != (directions, samples):
        raise ValueError(
            f"{op}: probe {list(probe.shape)} must be zeros [k,n] = [{directions}, {samples}]: one "
            "slot per direction and sample"
        )
