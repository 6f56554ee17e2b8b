"""Layouts through tensors that are put together, repeated, or put in another order."""

import torch
from torch import Tensor

from inrun.ghost.layout_moves import Moved, moves, of_places, probe
from inrun.ghost.layout_views import of_shape
from inrun.rules.layout import LOST, SHARED, Layout, Owners, at


@moves("cat", "concat", "concatenate")
def concatenated(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of tensors one after the other: along the samples' axis their owners follow each other."""
    (out,) = outputs
    dim = moved.argument(1, "dim", moved.kwargs.get("axis", 0)) % max(out.dim(), 1)
    parts = [(x, y) for x, y in zip(moved.leaves, moved.layouts) if x.numel() or x.dim() > 1]
    lead = moved.layouts[moved.lead]
    if lead.axis is not None and lead.axis != dim:
        return [lead]
    return [
        _one_after_the_other([_owners_along(*part, dim, moved.n) for part in parts], dim, moved.n)
    ]


def _one_after_the_other(vectors: list[Tensor | None], axis: int, n: int) -> Layout:
    known = [vector for vector in vectors if vector is not None]
    return at(axis, Owners.of(n, torch.cat(known))) if len(known) == len(vectors) else LOST


def _owners_along(x: Tensor, layout: Layout, axis: int, n: int) -> Tensor | None:
    """The owner of each place along an axis; -1 where no sample is in the tensor."""
    if layout is SHARED:
        return torch.full((x.shape[axis],), -1)
    if layout.owners is None or layout.axis not in (None, axis):
        return None
    return layout.owners.vector().expand(x.shape[axis])


@moves("stack")
def stacked(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of tensors along a new axis: each sample's own tensors become rows."""
    (out,), lead = outputs, moved.layouts[moved.lead]
    dim = moved.argument(1, "dim", 0) % out.dim()
    assert lead.owners is not None
    if lead.axis is not None:
        return [at(lead.axis + (dim <= lead.axis), lead.owners)]
    vectors = [_owners_along(x[None], y, 0, moved.n) for x, y in zip(moved.leaves, moved.layouts)]
    return [_one_after_the_other(vectors, dim, moved.n)]


@moves("repeat", "tile")
def repeated(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of a tensor several times: so are its owners."""
    x, layout, (out,) = moved.leaves[0], moved.layouts[0], outputs
    if layout.owners is None or layout.axis is None or x.numel() == 0:
        return [layout] if layout.owners else None
    axis = layout.axis + out.dim() - x.dim()
    times = out.shape[axis] // x.shape[layout.axis]
    vector = layout.owners.vector().repeat(times)
    owners = layout.owners if times == 1 else Owners.of(moved.n, vector)
    return [at(axis, owners, layout.blank)]


@moves("repeat_interleave")
def interleaved(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of each row several times."""
    x, layout, (out,) = moved.leaves[0], moved.layouts[0], outputs
    dim = moved.argument(2, "dim")
    if layout.owners is None or layout.axis is None:
        return [layout] if layout.owners else None
    if dim is None:
        layout = of_shape(layout, tuple(x.shape), (x.numel(),))
        dim = 0
        if layout.owners is None:
            return [LOST]
    if dim % out.dim() != layout.axis:
        return [layout]
    times = moved.argument(1, "repeats")
    times = times.cpu() if isinstance(times, Tensor) else times
    assert layout.owners is not None
    assert layout.axis is not None
    vector = layout.owners.vector().repeat_interleave(times)
    return [at(layout.axis, Owners.of(moved.n, vector), layout.blank)]


@moves("flip", "roll", "rot90", "fliplr", "flipud")
def reordered(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of rows in another order: the function is run on row numbers, written out."""
    x, layout = moved.leaves[0], moved.layouts[0]
    if layout.owners is None or layout.axis is None:
        return None
    rows = moved.func(probe(tuple(x.shape), layout.axis), *moved.args[1:], **moved.kwargs)
    return [of_places(layout.owners.vector()[rows], moved.n)]
