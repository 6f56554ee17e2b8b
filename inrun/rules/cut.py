"""How a use is cut into samples: by the rule where they lie along axis 0, sample-major and equally
many; row by row where they do not; by a mask for each sample where rows are not independent either.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from inrun.rules.elementwise import elementwise
from inrun.rules.factors import Aligned, Dense, Factor
from inrun.rules.grouped import Owned, grouped
from inrun.rules.masked import masked
from inrun.rules.registry import (
    OPERATIONS,
    UNKNOWN,
    Call,
    Contribution,
    NoRule,
    argument_rule,
    find,
    general_rule,
)


def contribution(operation: Callable, call: Call) -> Contribution:
    """``form(n, b, leaves) -> Factor`` for the argument `call.where`, for any layouts of arguments
    and result.

    Raises:
        NoRule: nothing serves the operation.
    """
    if call.plain:
        return find(operation, call)
    entry, out = OPERATIONS.get(operation, UNKNOWN), call.out
    owners = out.owners
    assert owners is not None, "a use without a layout is refused before"
    if out.axis is None:
        alone = find(operation, call)
        return lambda n, b, leaves: grouped(alone(1, b, leaves), owners)
    by_mask = general_rule(masked, call)
    if any(leaf.is_complex() for leaf in call.leaves):
        return by_mask
    if entry.general is elementwise:
        return general_rule(_by_place, call)
    known = [layout for layout in call.layouts if layout.known]
    alike = all(layout.axis == out.axis and layout.owners is owners for layout in known)
    rule = argument_rule(operation, call, None)
    if rule is None or not alike or (out.axis > 0 and not entry.any_leading):
        return by_mask
    return _row_by_row(rule, by_mask, replace(call, leaves=[]))


def _row_by_row(rule: Contribution, otherwise: Contribution, call: Call) -> Contribution:
    """The rule for each row, with the rows' axis in front, and the rows put together by owner."""
    owners, axis = call.out.owners, call.out.axis
    assert owners is not None
    assert axis is not None

    def by_rows(n: int, b: Tensor, leaves: list[Tensor]) -> Factor:
        rows = [
            leaf.movedim(axis, 0) if layout.known else leaf
            for leaf, layout in zip(leaves, call.layouts)
        ]
        try:
            return grouped(rule(owners.size, b.movedim(axis, 0), rows), owners)
        except NoRule:  # not for these arguments
            return otherwise(n, b, leaves)

    return by_rows


def _by_place(n: int, b: Tensor, call: Call) -> Factor:
    """An elementwise operation, whose arguments meet as they are broadcast."""
    owners, axis = call.out.owners, call.out.axis
    assert owners is not None
    assert axis is not None
    shape = call.leaves[call.where].shape

    def front(x: Tensor) -> Tensor:
        return x.reshape((1,) * (b.dim() - x.dim()) + x.shape).movedim(axis, 0)

    moved = replace(call, leaves=[front(leaf) for leaf in call.leaves])
    factor = elementwise(owners.size, front(b), moved)
    if isinstance(factor, Aligned):
        own = axis - (b.dim() - len(shape))
        return Owned(factor.g.movedim(0, axis).reshape(shape), own, owners)
    assert isinstance(factor, Dense)
    g = owners.sums(factor.g)
    return Dense(g.movedim(1, axis + 1).reshape(g.shape[0], *shape))
