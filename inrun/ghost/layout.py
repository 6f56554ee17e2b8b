"""Whose row is it: layouts that follow the tensors of a micro-batch from operation to operation.

A use of a parameter is cut into samples by the owner of each row, never by division. A tensor from
outside starts with a layout (`Layouts.enter`): samples along axis 0, or the owners that were
declared along the axis of their length. What an operation makes of it gets one by
`Layouts.follow`: exactly through movement (`inrun.ghost.layout_moves`), by a guess elsewhere (the
axis of the same place and length). A wrong guess is for the audit to find.

For an audit: ``tracker.layouts.of(tensor)`` gives the `Layout` of any tensor that the block has
seen or is given, and ``layout.axis``, ``layout.owners.vector()`` (int64, one sample per place along
the axis, -1 for nobody's) say where its samples are; ``layout.known`` is False for tensors without
samples (`SHARED`), and for those of which it is not known (`UNKNOWN` from outside, `LOST` by
computing).
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inrun.ghost import (  # each adds its operations
    layout_indices,  # noqa: F401
    layout_joins,  # noqa: F401
    layout_operations,  # noqa: F401
)
from inrun.ghost.arguments import tensors_of
from inrun.ghost.layout_moves import MOVEMENT, Form, Moved
from inrun.rules import OPERATIONS
from inrun.rules.factors import SampleAxisError
from inrun.rules.layout import LOST, SHARED, UNKNOWN, Layout, Owners, at
from inrun.rules.registry import UNKNOWN as UNKNOWN_OPERATION


class _Entry(weakref.ref):
    """A tensor's layout; forgets itself with the tensor."""

    __slots__ = ("key", "layout", "outside")
    key: int
    layout: Layout
    outside: bool


#: what ``x[index] = value`` calls
WRITE = torch.Tensor.__setitem__
#: how a movement fails that cannot be followed (other types, no elements): it is guessed then, and
#: the audit looks at the guess
UNFOLLOWED = (IndexError, ZeroDivisionError, RuntimeError, TypeError, ValueError)


class Layouts:
    """The layout of every tensor of a micro-batch, as far as it is known.

    Args:
        n: samples of the micro-batch; one sample has every row, so that nothing is followed.
        rows: the owner of each row [r], declared; None: samples along axis 0.

    Attributes:
        rows: how many rows were declared.
        found: a tensor from outside had the samples along one of its axes.
        found_rows: one had the length of the declared rows.
        entered: there was a tensor from outside that has axes at all.
    """

    def __init__(self, n: int, rows: Tensor | None = None):
        self.n = n
        self.single = n == 1
        self.plain = at(0, Owners.regular(n, n, 1))
        self.declared = None if rows is None else Owners.of(n, rows)
        self.rows = None if rows is None else len(rows)
        self.found = self.found_rows = self.entered = False
        self._known: dict[int, _Entry] = {}

    # -- what is known of a tensor

    def of(self, tensor: Tensor) -> Layout:
        """The tensor's layout; one that was never seen comes from outside."""
        entry = self._known.get(id(tensor))
        return self._enter(tensor) if entry is None else entry.layout

    def put(self, tensor: Tensor, layout: Layout) -> None:
        """Say what the tensor's layout is."""
        key = id(tensor)
        entry = self._known.get(key)
        if entry is None:
            entry = self._known[key] = _Entry(tensor, self._forget)
            entry.key = key
        entry.layout, entry.outside = layout, False

    def outside(self, tensor: Tensor) -> bool:
        """Whether no operation of the block has made the tensor of data."""
        entry = self._known.get(id(tensor))
        return entry is None or entry.outside

    def forget(self, tensor: Tensor) -> None:
        """Take the tensor for one that comes from outside."""
        self._known.pop(id(tensor), None)

    def _forget(self, entry: weakref.ref) -> None:
        assert isinstance(entry, _Entry)
        if self._known.get(entry.key) is entry:
            del self._known[entry.key]

    def _enter(self, tensor: Tensor) -> Layout:
        shape, n = tensor.shape, self.n
        self.entered |= len(shape) > 0
        if self.declared is not None:
            size = self.declared.size
            axis = next((axis for axis, length in enumerate(shape[:2]) if length == size), None)
            if axis is not None and (axis == 0 or shape[0] == 1 or size == n):
                self.found = self.found_rows = True
                return self._entered(tensor, at(axis, self.declared))
        if len(shape) and shape[0] == n:
            self.found = True
            return self._entered(tensor, self.plain)
        # one row for all: positions, a mask; or one number
        shared = not self.single and (not len(shape) or shape[0] == 1)
        return self._entered(tensor, SHARED if shared else self.plain if self.single else UNKNOWN)

    def _entered(self, tensor: Tensor, layout: Layout) -> Layout:
        self.put(tensor, layout)
        self._known[id(tensor)].outside = True
        return layout

    def unfound(self) -> str | None:
        """What is said where no tensor of the block had as many rows as there are samples."""
        if self.declared is not None and not self.found_rows:
            return (
                f"rows name the samples of {self.declared.size} rows, and no tensor from outside "
                f"the block has {self.declared.size} rows along axis 0 (or along axis 1 after an "
                "axis of 1). Give one place per row of the tensors that the model is called with"
            )
        if self.found or not self.entered:
            return None
        return (
            f"{self.n} ids were given, and no tensor in the batch has {self.n} rows along axis 0. "
            "Give one id per sample, in the order of axis 0, and keep the samples the leading axis "
            "(batch_first=True), or say whose each row is: attr.batch(ids, rows=...)"
        )

    # -- what an operation does to it

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The operation's result; what comes out has its layout."""
        leaves = tensors_of(args, kwargs)
        layouts = [self.of(leaf) for leaf in leaves]
        out = func(*args, **kwargs)
        if not all(layout is SHARED for layout in layouts):
            self.follow(func, args, kwargs, leaves, layouts, out)
        elif leaves or OPERATIONS.get(func, UNKNOWN_OPERATION).without_samples:
            for tensor in tensors_of((out,), {}):
                self.put(tensor, SHARED)
        return out

    def follow(
        self,
        func: Callable,
        args: tuple,
        kwargs: dict,
        leaves: list[Tensor],
        layouts: list[Layout],
        out: object,
    ) -> None:
        """Give what came out of an operation on data its layout."""
        writes = out is leaves[0] or func is WRITE
        if writes and layouts[0] is SHARED:
            self._unmark(leaves[0])
        if self.single:
            return
        lead = _lead(leaves, layouts)
        if lead is None:
            if any(layout is LOST for layout in layouts):
                for tensor in tensors_of((out,), {}):
                    self.put(tensor, LOST)
            return  # of tensors from outside alone: from outside itself
        moving = MOVEMENT.get(func)
        if moving is None and isinstance(out, Tensor):
            self.put(out, guess(out, lead, leaves, layouts))
            return
        outputs = [leaves[0]] if func is WRITE else tensors_of((out,), {})
        if not outputs:
            return
        found = None
        if moving is not None:
            outside = [self.outside(leaf) for leaf in leaves]
            moved = Moved(self.n, func, args, kwargs, leaves, layouts, lead, outside)
            found = _followed(moving, moved, outputs)
        for at_, tensor in enumerate(outputs):
            self.put(tensor, found[at_] if found else guess(tensor, lead, leaves, layouts))

    def _unmark(self, tensor: Tensor) -> None:
        """Data is written into a constant: it, and what it is a view of, hold data from now on."""
        for written in (tensor, tensor._base):
            if written is not None and self.of(written) is SHARED:
                self.forget(written)


def _followed(moving: Form, moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """What the form of the movement gives, None where it cannot follow it."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        try:
            return moving(moved, outputs)
        except SampleAxisError:  # a refusal of ours
            raise
        except UNFOLLOWED:
            return None


def _lead(leaves: list[Tensor], layouts: list[Layout]) -> int | None:
    """The leaf whose samples the result is taken to have: of those known, the one of most numbers,
    and one that holds data before one that does not yet.
    """
    best, most = None, (False, -1)
    for index, layout in enumerate(layouts):
        if layout.owners is not None:
            rank = (not layout.blank, leaves[index].numel())
            if rank > most:
                best, most = index, rank
    return best


def guess(out: Tensor, lead: int, leaves: list[Tensor], layouts: list[Layout]) -> Layout:
    """The layout of a result by place and length of the leading argument's axis of samples."""
    layout, shape = layouts[lead], leaves[lead].shape
    if out.shape == shape or layout.axis is None:
        return layout
    wider = any(leaf.dim() == out.dim() > len(shape) for leaf in leaves)
    axis = _axis(tuple(out.shape), tuple(shape), layout.axis, wider)
    if axis is None:
        return LOST
    assert layout.owners is not None
    return layout if axis == layout.axis else at(axis, layout.owners, layout.blank)


@functools.lru_cache(1 << 14)
def _axis(out: tuple[int, ...], shape: tuple[int, ...], k: int, broadcast: bool) -> int | None:
    """The axis of `out` that is axis k of `shape`.

    The same place if what stands before it is kept, the same place counted from the right, as
    broadcasting counts, or the only one of its length. `broadcast`: from the right comes first.
    """
    left = k if out[: k + 1] == shape[: k + 1] else None
    right: int | None = len(out) - len(shape) + k
    assert right is not None
    if not (0 <= right < len(out) and out[right] == shape[k]):
        right = None
    alike = [axis for axis, length in enumerate(out) if length == shape[k]]
    choices = [right, left] if broadcast else [left, right]
    choices.append(alike[0] if len(alike) == 1 else None)
    return next((axis for axis in choices if axis is not None), None)
