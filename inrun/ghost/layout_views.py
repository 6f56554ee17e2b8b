"""Layouts through new shapes, views and sums over axes.

Views are followed by running the function on a *probe*: row numbers along the axis of the samples,
with strides of 0 elsewhere, so that it takes no memory and needs no rule per function. Reshapes are
arithmetic of flat places.
"""

import functools
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from inrun.ghost.layout_moves import Moved, moves, probe
from inrun.rules.layout import LOST, Layout, Owners, at, whole

# -- new shapes


@moves(
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "ravel",
    "view_as",
    "reshape_as",
    "squeeze",
    "unsqueeze",
)
def reshaped(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of a new shape for the same numbers in the same order."""
    x, layout, (out,) = moved.leaves[0], moved.layouts[0], outputs
    if layout.axis is None or layout.owners is None:
        return [layout] if layout.owners else None
    if x.numel() != out.numel():
        return None
    return [of_shape(layout, tuple(x.shape), tuple(out.shape))]


def of_shape(layout: Layout, before: tuple[int, ...], after: tuple[int, ...]) -> Layout:
    """The layout of a tensor that was reshaped, LOST if no axis has the samples to itself."""
    owners, axis = layout.owners, layout.axis
    assert owners is not None
    assert axis is not None
    if owners.inner is not None:
        found = _regular_axis(before, after, axis, owners.inner, owners.n)
        if found is None:
            return LOST
        if after[found[0]] != owners.size or found[1] != owners.inner:
            owners = Owners.regular(owners.n, after[found[0]], found[1])
        return at(found[0], owners, layout.blank)
    below, length = prod(before[axis + 1 :]), before[axis]
    for k, size in enumerate(after):
        stride = prod(after[k + 1 :])
        if (
            stride <= below
            and below % max(stride, 1) == 0
            and stride * size % (length * below) == 0
        ):
            if stride == below and size == length:
                return at(k, owners, layout.blank)
            vector = owners.vector().repeat_interleave(below // stride)
            vector = vector.repeat(size * stride // (length * below))
            return at(k, Owners.of(owners.n, vector), layout.blank)
        if stride >= below and size > 1 and stride % below == 0:
            inside = stride // below
            if length % (size * inside) == 0:
                vector = owners.vector().view(-1, size, inside)
                if bool((vector == vector[:1, :, :1]).all()):
                    return at(k, Owners.of(owners.n, vector[0, :, 0].clone()), layout.blank)
    return LOST


@functools.lru_cache(1 << 14)
def _regular_axis(
    before: tuple[int, ...], after: tuple[int, ...], axis: int, inner: int, n: int
) -> tuple[int, int] | None:
    """(axis, inner) of ``after``: a place p of the flat tensor belongs to ``(p // period) % n``."""
    period = inner * prod(before[axis + 1 :])
    stride = 1
    for k in range(len(after) - 1, -1, -1):
        whole_axis = stride * after[k]
        if stride and period % stride == 0 and whole_axis and whole_axis % (n * period) == 0:
            return k, period // stride
        stride = whole_axis
    return None


# -- views


@moves(
    "transpose",
    "permute",
    "movedim",
    "moveaxis",
    "swapaxes",
    "swapdims",
    "t",
    "T",
    "mT",
    "H",
    "mH",
    "expand",
    "expand_as",
    "broadcast_to",
    "select",
    "narrow",
    "split",
    "chunk",
    "unbind",
    "tensor_split",
    "hsplit",
    "vsplit",
    "dsplit",
    "split_with_sizes",
    "unfold",
    "diagonal",
    "__iter__",
)
def viewed(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of views: the function is run on row numbers."""
    x, layout = moved.leaves[0], moved.layouts[0]
    if layout.owners is None or x is not moved.args[0]:
        return None
    if layout.axis is None:
        return [layout] * len(outputs)
    key = (_frozen(moved.args[1:]), _frozen(tuple(moved.kwargs.items())))
    found = _probed(moved.func, tuple(x.shape), layout.axis, key, moved)
    return None if found is None else [_of_rows(layout, rows) for rows in found]


class _Rows(NamedTuple):
    """Rows start, start + step, ... along an axis of a view; without an axis the row `start`."""

    axis: int | None
    start: int
    step: int
    size: int


#: (function, shape, axis, arguments) -> the rows of each output
_VIEWS: dict[tuple, list[_Rows | None] | None] = {}


def _probed(
    func: Callable, shape: tuple[int, ...], axis: int, key: tuple, moved: Moved
) -> list[_Rows | None] | None:
    whole_key = (func, shape, axis, key)
    if whole_key not in _VIEWS:
        if len(_VIEWS) > 1 << 14:
            _VIEWS.clear()
        out = func(probe(shape, axis), *moved.args[1:], **moved.kwargs)
        views = (out,) if isinstance(out, Tensor) else tuple(out)
        _VIEWS[whole_key] = [_rows_of(view) for view in views]
    return _VIEWS[whole_key]


def _rows_of(view: Tensor) -> _Rows | None:
    axes = [k for k in range(view.dim()) if view.stride(k) and view.shape[k] != 1]
    if len(axes) > 1:
        return None
    if not axes:
        return _Rows(None, int(view.storage_offset()), 0, 1)
    (axis,) = axes
    return _Rows(axis, int(view.storage_offset()), view.stride(axis), view.shape[axis])


def _of_rows(layout: Layout, rows: _Rows | None) -> Layout:
    owners = layout.owners
    assert owners is not None
    if rows is None:
        return LOST
    if rows.axis is None:
        return whole(owners.n, int(owners.vector()[rows.start]))
    if rows.start == 0 and rows.step == 1 and rows.size == owners.size:
        return layout if rows.axis == layout.axis else at(rows.axis, owners, layout.blank)
    stop = rows.start + rows.step * rows.size
    vector = owners.vector()[rows.start : stop : rows.step]
    return at(rows.axis, Owners.of(owners.n, vector.clone()), layout.blank)


def _frozen(value: Any) -> Any:
    """The value as a key of a dictionary."""
    if isinstance(value, slice):
        return "slice", value.start, value.stop, value.step
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, Tensor):
        return tuple(value.shape)  # `expand_as` and its like look at the shape alone
    return value


# -- reductions


@moves(
    *("sum", "nansum", "mean", "nanmean", "prod", "amax", "amin", "max", "min", "std", "var"),
    *("norm", "logsumexp", "any", "all", "argmax", "argmin", "median", "std_mean", "var_mean"),
    *("count_nonzero", "quantile", "mode", "kthvalue", "aminmax"),
)
def reduced(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of sums over axes: another axis moves up, that of the samples is lost."""
    x, layout = moved.leaves[0], moved.layouts[0]
    if len(moved.leaves) > 1 or layout.owners is None:
        return None
    if layout.axis is None:
        return [layout] * len(outputs)
    name = getattr(moved.func, "__name__", "")
    place = 2 if name in ("norm", "quantile", "kthvalue") else 1
    dims = moved.argument(place, "dim", moved.kwargs.get("axis"))
    if isinstance(dims, bool):
        dims = None
    over = set(range(x.dim())) if dims is None else {d % x.dim() for d in _ints(dims)}
    if layout.axis in over:
        return [LOST] * len(outputs)
    above = 0 if outputs[0].dim() == x.dim() else sum(d < layout.axis for d in over)
    return [at(layout.axis - above, layout.owners)] * len(outputs)


def _ints(dims: Any) -> tuple[int, ...]:
    return (dims,) if isinstance(dims, int) else tuple(dims)
