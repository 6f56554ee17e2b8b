"""The table of operations that only move numbers, through which layouts are followed exactly.

Each form gets the operation as it was carried out and gives a layout for each of its outputs, or
None where it has none to give.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.rules.layout import LOST, Layout, Owners, at, whole


class Moved(NamedTuple):
    """An operation that was carried out, with the layouts of the tensors that went in."""

    n: int
    func: Callable
    args: tuple
    kwargs: dict
    leaves: list[Tensor]
    layouts: list[Layout]
    lead: int
    """index of the leaf that has most to say of the result's samples"""
    outside: list[bool]
    """which leaves no operation of the block has made of data"""

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Form = Callable[[Moved, list[Tensor]], list[Layout] | None]

#: operation -> how layouts go through it
MOVEMENT: dict[Callable, Form] = {}


def moves(*names: str) -> Callable[[Form], Form]:
    """Decorator: the form of torch's functions and tensors' methods of these names."""

    def add(form: Form) -> Form:
        for name in names:
            for space in (torch, torch.Tensor, torch.nn.functional):
                function = getattr(space, name, None)
                if name in ("T", "mT", "H", "mH") and function is not None:
                    function = function.__get__ if space is torch.Tensor else None
                if function is not None:
                    MOVEMENT[function] = form
        return form

    return add


def probe(shape: tuple[int, ...], axis: int, device: Any = "cpu") -> Tensor:
    """Row numbers along `axis`, the same ones for all other indices: a view of a few numbers."""
    strides = [int(k == axis) for k in range(len(shape))]
    return torch.arange(max(shape[axis], 1), device=device).as_strided(shape, strides)


def of_places(owner: Tensor, n: int) -> Layout:
    """The layout of a tensor whose every place has an owner: the axis that alone decides them."""
    for axis in range(owner.dim()):
        rows = owner.movedim(axis, 0).reshape(owner.shape[axis], -1)
        if rows.numel() == 0 or bool((rows == rows[:, :1]).all()):
            first = rows[:, 0] if rows.shape[1] else rows.new_zeros(0)
            return at(axis, Owners.of(n, first.cpu().clone()))
    return LOST if owner.dim() else whole(n, int(owner))
