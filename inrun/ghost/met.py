"""What a backward passes through and no rule sees: autograd functions of one's own."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

#: those whose inside is seen: activation checkpointing runs it again; the project's own hand over
_SEEN_INSIDE = ("torch.utils.checkpoint", "inrun.", "inrun_kernels.")


def own_functions(given: Tensor | Iterable[Tensor]) -> set[str]:
    """Names of the `torch.autograd.Function`s on the way from these tensors to the leaves.

    Walks the whole graph: a microsecond a node.
    """
    roots = [given] if isinstance(given, Tensor) else given
    nodes = _nodes(root.grad_fn for root in roots if isinstance(root, Tensor))
    return {type(node).__name__.removesuffix("Backward") for node in nodes if _is_own(node)}


def _nodes(starts: Iterable[Any]) -> Iterator[Any]:
    waiting, known = [node for node in starts if node is not None], set()
    while waiting:
        node = waiting.pop()
        if node not in known:
            known.add(node)
            yield node
            waiting += [after for after, _ in node.next_functions if after is not None]


def _is_own(node: Any) -> bool:
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return False
    made_by = getattr(type(node), "_forward_cls", type(node)).__module__
    return not f"{made_by}.".startswith(_SEEN_INSIDE)
