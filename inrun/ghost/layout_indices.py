"""Layouts through indices: rows that are picked take their owners along, rows that are written
bring theirs.
"""

from typing import Any

import torch
from torch import Tensor

from inrun.ghost.layout_moves import Moved, moves, of_places, probe
from inrun.ghost.layout_views import viewed
from inrun.rules.factors import SampleAxisError
from inrun.rules.layout import LOST, SHARED, Layout, Owners, at


@moves("__getitem__")
def indexed(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of ``x[index]``: a view where the index is one, the picked rows' owners otherwise."""
    x, layout, index = moved.leaves[0], moved.layouts[0], moved.args[1]
    if x is not moved.args[0] or layout.owners is None:
        return None
    items = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(item, (Tensor, list)) or hasattr(item, "__array__") for item in items):
        return viewed(moved, outputs)
    if layout.axis is None:
        return [layout]
    (out,) = outputs
    below = x.dim()  # axes below those that are indexed stay as they are
    if not any(item is None or item is Ellipsis for item in items):
        below = sum(_axes(item) for item in items)
    if layout.axis >= below:
        return [at(out.dim() - (x.dim() - layout.axis), layout.owners, layout.blank)]
    rows = probe(tuple(x.shape[:below]), layout.axis, x.device)[index]
    found = of_places(layout.owners.vector(x.device)[rows], moved.n)
    return [_of_one_order(moved, found)]


def _axes(item: Any) -> int:
    """How many axes one item of an index stands for."""
    return item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1


@moves("index_select")
def selected(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of rows picked along one axis."""
    x, layout = moved.leaves[0], moved.layouts[0]
    if layout.owners is None or layout.axis is None:
        return [layout] if layout.owners else None
    dim, index = moved.argument(1, "dim") % x.dim(), moved.argument(2, "index")
    if dim != layout.axis:
        return [layout]
    vector = layout.owners.vector(index.device)[index].cpu()
    return [_of_one_order(moved, at(dim, Owners.of(moved.n, vector), layout.blank))]


def _of_one_order(moved: Moved, found: Layout) -> Layout:
    """The layout of rows that were picked, refused where two orders could be meant.

    ``data[ids]`` inside the block makes the batch, in the order of the ids. Where `data` happens to
    have as many rows as the batch, it could as well be the batch itself, put into another order.
    """
    if not all(moved.outside) or found.axis != 0 or found.owners is None:
        return found
    owners = found.owners.vector()
    if len(owners) == moved.n and not torch.equal(owners, torch.arange(moved.n)):
        raise SampleAxisError(
            f"inside the batch an index picks {moved.n} rows of a tensor of shape "
            f"{tuple(moved.leaves[0].shape)} that comes from outside, which has {moved.n} rows "
            f"itself, as many as there are ids: it is not known whether the ids are in the order "
            "before or after the index. Pick the rows before `with attr.batch(ids)`, as x = "
            "data[ids]; a table of numbers that are no samples' must be a buffer of the model"
        )
    return found


@moves("gather", "take_along_dim")
def gathered(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of numbers picked along one axis, for each place on its own."""
    x, layout = moved.leaves[0], moved.layouts[0]
    dim, index = moved.argument(1, "dim"), moved.argument(2, "index")
    if not isinstance(dim, int):
        dim, index = moved.argument(2, "dim"), moved.argument(1, "indices")
    if layout.owners is None or layout.axis is None or not isinstance(dim, int):
        return None
    if dim % x.dim() != layout.axis:
        return [layout] if index.shape[layout.axis] == x.shape[layout.axis] else None
    return [of_places(layout.owners.vector(index.device)[index], moved.n)]


@moves("masked_select")
def masked(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of the numbers where a mask is true, in a row."""
    x, layout, mask = moved.leaves[0], moved.layouts[0], moved.leaves[1]
    if layout.owners is None or layout.axis is None:
        return [layout] if layout.owners else None
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    rows = probe(tuple(x.shape), layout.axis, x.device).expand(shape)
    return [of_places(layout.owners.vector(x.device)[rows[mask.expand(shape)]], moved.n)]


@moves("where", "nonzero", "argwhere")
def found(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of the places where a mask is true: each is in a row of the mask."""
    if len(moved.leaves) > 1:
        return None
    layout = moved.layouts[0]
    if layout.owners is None or layout.axis is None:
        return [layout] * len(outputs) if layout.owners else None
    tuples = moved.argument(1, "as_tuple", False) or moved.func is torch.where
    rows = outputs[layout.axis] if tuples else outputs[0][:, layout.axis]
    vector = layout.owners.vector(rows.device)[rows].cpu()
    return [at(0, Owners.of(moved.n, vector))] * len(outputs)


@moves("sort", "argsort", "topk", "msort")
def sorted_rows(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of numbers in another order along one axis."""
    x, layout = moved.leaves[0], moved.layouts[0]
    if layout.owners is None or layout.axis is None:
        return None
    name = getattr(moved.func, "__name__", "")
    places = {"topk": (2, -1), "msort": (9, 0)}
    place, default = places.get(name, (1, -1))
    dim = moved.kwargs.get("dim", moved.argument(place, "dim", default))
    if isinstance(dim, bool) or dim % x.dim() != layout.axis:
        return [layout] * len(outputs)
    if x.dim() > 1 or name == "msort":
        return [LOST] * len(outputs)
    vector = layout.owners.vector(x.device)[outputs[-1]].cpu()
    return [at(0, Owners.of(moved.n, vector))] * len(outputs)


# -- writing


@moves("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def rows_added(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of rows that are written along one axis: a row is then its source's."""
    x, dim, index = moved.leaves[0], moved.argument(1, "dim"), moved.argument(2, "index")
    source = moved.leaves[2] if len(moved.leaves) > 2 else None
    if source is None:
        return None
    dim = dim % x.dim()
    owner = _owners_of_rows(source, moved.layouts[2], dim)
    if owner is None:
        return None
    return _with(moved, dim, index.cpu(), owner)


@moves("scatter_add", "scatter_add_", "scatter", "scatter_", "scatter_reduce", "scatter_reduce_")
def scattered(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of numbers that are written along one axis, each to a place of its own."""
    x, dim, index = moved.leaves[0], moved.argument(1, "dim"), moved.argument(2, "index")
    if len(moved.leaves) < 3 or moved.leaves[2].shape != index.shape:
        return None
    dim = dim % x.dim()
    if moved.layouts[2].axis not in (None, dim):
        return None
    owner = _owners_of_rows(moved.leaves[2], moved.layouts[2], dim)
    if owner is None:
        return None
    shape = [index.shape[k] if k == dim else 1 for k in range(index.dim())]
    return _with(moved, dim, index.cpu().flatten(), owner.view(shape).expand(index.shape).flatten())


@moves("__setitem__", "index_put", "index_put_")
def written(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of ``x[index] = value``: the rows that are written are then the value's."""
    x, base, index, value = moved.leaves[0], moved.layouts[0], moved.args[1], moved.args[2]
    if not isinstance(value, Tensor):
        return [base]
    layout = moved.layouts[[leaf is value for leaf in moved.leaves].index(True)]
    axis = 0 if base.axis is None else base.axis
    if layout.owners is None:
        return None if base.owners is None else [base]
    if base.axis is None and x.dim() and x.shape[0] == 1 and x.dim() > 1:
        axis = 1
    rows = probe(tuple(x.shape), axis, x.device)[index]
    owner = layout.owners.vector(x.device)
    if layout.axis is not None:
        owner = owner.view([-1 if k == layout.axis else 1 for k in range(value.dim())])
    elif rows.dim() == 0:
        owner = owner[0]
    try:
        owner = owner.expand(rows.shape)
    except RuntimeError:  # the value's axis of samples is broadcast away: not the same rows
        return None
    return _with(moved, axis, rows.flatten().cpu(), owner.flatten().cpu())


def _owners_of_rows(source: Tensor, layout: Layout, axis: int) -> Tensor | None:
    """The owner of each row of what is written, None if `axis` does not tell."""
    if layout is SHARED:
        return torch.full((source.shape[axis],), -1)
    if layout.owners is None or layout.axis not in (None, axis):
        return None
    return layout.owners.vector().expand(source.shape[axis])


def _with(moved: Moved, axis: int, rows: Tensor, owner: Tensor) -> list[Layout]:
    """The layout of the tensor that is written to, once `rows` of its axis have these owners.

    A row that held data of one sample and is given another's has no owner: then nothing is known.
    """
    x, base = moved.leaves[0], moved.layouts[0]
    size = x.shape[axis]
    before = torch.full((size,), -1)
    if base.owners is not None and not base.blank:
        if base.axis not in (None, axis):
            return [base]
        before = base.owners.vector().expand(size).clone()
    ours = owner >= 0
    rows, owner = rows[ours] % max(size, 1), owner[ours]
    after = before.clone()
    after[rows] = owner
    mixed = (after[rows] != owner).any() | ((before >= 0) & (before != after)).any()
    if not bool(mixed):
        return [at(axis, Owners.of(moved.n, after))]
    if base.owners is not None and not base.blank:
        return [base]  # two have something to say: the larger one's word, for the audit to check
    # whatever was written: one row for each sample is taken for the samples' own
    return [at(0, Owners.regular(moved.n, size, 1)) if axis == 0 and size == moved.n else LOST]
