"""Elementwise arithmetic on large tensors, a piece at a time.

An update rule is a dozen elementwise operations; over a whole language model each of them would
read and write memory as often as the weights are large. On a CPU the operations of one piece stay
in cache. On a GPU a piece is the whole tensor.
"""

from collections.abc import Callable
from operator import itemgetter

import torch
from torch import Tensor

from inrun.updates.base import Update
from inrun_kernels import memory

#: elements of a piece: its float32 temporaries stay in the last-level cache, and a piece is long
#: enough for several threads
PIECE = 1 << 18


def blockwise(function: Callable[..., Tensor], rule: Update, *tensors: Tensor) -> Tensor:
    """``function(rule, *tensors)`` for a function that treats every element alone.

    Args:
        function: returns a tensor that broadcasts to the shape of its tensor arguments.
        rule: an elementwise rule whose tensors have the shape of `tensors`.
    """
    first = tensors[0]
    whole = [*tensors, *rule.tensors().values()]
    if (
        first.is_cuda
        or first.numel() <= PIECE
        or not all(t.is_contiguous() and t.shape == first.shape for t in whole)
    ):
        return function(rule, *tensors).expand_as(first)
    flat_rule, flat = (
        rule.map_tensors(torch.Tensor.flatten),
        [tensor.flatten() for tensor in tensors],
    )
    out = memory.empty(flat[0].shape, flat[0].dtype, flat[0].device)
    for start in range(0, out.numel(), PIECE):
        piece = slice(start, start + PIECE)
        cut = itemgetter(piece)
        out[piece] = function(flat_rule.map_tensors(cut), *map(cut, flat))
    return out.view_as(first)
