"""Which tensors of a recorded micro-batch hold the samples' data, and how these are changed.

Numbers are multiplied by 1 + 0.3 noise where they enter. Token ids are moved by one position within
their sample, and only on their way to a table: labels, masks and lengths stay as they are, so that
the divisor of a mean does not move.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, islice
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.ghost.audit_calls import RecordedCall, Recording

#: rows of the first argument are picked by the others
_PICKS = {torch.Tensor.__getitem__, torch.Tensor.index_select, torch.index_select}
#: rows of a table are picked by the first argument
_LOOKUPS = {F.embedding, F.embedding_bag}
#: what cuts samples out of a data set, or puts them together
_GATHERS = _PICKS | {
    torch.Tensor.to,
    torch.Tensor.float,
    torch.Tensor.double,
    torch.Tensor.long,
    torch.Tensor.cuda,
    torch.stack,
    torch.cat,
    torch.concat,
    torch._C._nn.pad_sequence,
}
#: arguments that hold one number per class: (function, its name)
_PER_CLASS = {
    F.cross_entropy: "weight",
    F.nll_loss: "weight",
    F.multi_margin_loss: "weight",
    F.binary_cross_entropy_with_logits: "pos_weight",
}
#: counts along an axis: positions from a mask, not ids
_COUNTS = {torch.cumsum, torch.Tensor.cumsum}
_HUGE = 1e4


def subsets(n: int, groups: int | None = None) -> Tensor:
    """Which samples each test changes: bool [m, n].

    Each of `groups` groups (None: each sample) has its own half of the tests, m as small as that
    allows. So for every ordered pair of groups some test changes the first and not the second.

    >>> subsets(4).int().tolist()
    [[1, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]]
    """
    groups = min(n, groups or n)
    m = next(m for m in range(1, 2 * groups + 1) if comb(m, m // 2) >= groups)
    codes = torch.zeros(groups, m, dtype=torch.bool)
    for code, tests in zip(codes, islice(combinations(range(m), m // 2), groups)):
        code[list(tests)] = True
    if groups == n:
        return codes.T
    # groups of samples that stand neither together nor at equal distances
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return codes[order % groups].T


class RowOwners:
    """Whose the rows of a tensor from outside are.

    Args:
        n: samples, one row each along axis 0.
        rows: beside that, the sample 0..n-1 of each row [r] along an axis of this length: axis 0,
            or axis 1 where axis 0 has length 1.
    """

    def __init__(self, n: int, rows: Tensor | None = None):
        self.n, self.rows = n, None if rows is None else rows.cpu()

    def of(self, shape: tuple[int, ...]) -> tuple[int, Tensor] | None:
        """(axis, the sample of each place along it); None: such a tensor has no samples."""
        if self.rows is not None:
            for axis, length in enumerate(shape[:2]):
                if length == len(self.rows) and (axis == 0 or shape[0] == 1 or length == self.n):
                    return axis, self.rows
        return (0, torch.arange(self.n)) if shape and shape[0] == self.n else None


@dataclass
class BatchData:
    """Where the samples' data enter a recorded micro-batch.

    Attributes:
        floats, ids: numbers of the tensors that are changed.
        free: numbers of tensors without data: parameters, constants, and what is made of them.
        loose: those of tensors from outside that have no row per sample.
        carriers: numbers of tensors that carry ids to a table.
        lookups: calls that take ids from them.
    """

    recording: Recording
    owners: RowOwners
    all_of_it: bool = False
    """change also what is converted from integers, such as pixels, and ids that look like a mask;
    exchange ids between samples"""
    floats: set[int] = field(default_factory=set)
    ids: set[int] = field(default_factory=set)
    free: set[int] = field(default_factory=set)
    loose: set[int] = field(default_factory=set)
    carriers: set[int] = field(default_factory=set)
    lookups: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        entries = self._entries()
        tensors = self.recording.tensors
        self.floats |= {e for e in entries if not tensors[e].discrete}
        for at, index in self._indices():
            self._follow(index, at, {e for e in entries if tensors[e].discrete})

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors that are changed."""
        tensors = self.recording.tensors
        return list(
            dict.fromkeys(tensors[number].shape for number in sorted(self.floats | self.ids))
        )

    def _has_rows(self, number: int) -> bool:
        return self.owners.of(self.recording.tensors[number].shape) is not None

    def _entries(self) -> set[int]:
        """Tensors with a row per sample that come from outside, or are made of such without."""
        tensors = self.recording.tensors
        per_class = {number for call in self.recording.calls for number in _per_class(call)}
        entries: set[int] = set()
        for number, tensor in enumerate(tensors):
            if tensor.parameter or tensor.constant:
                self.free.add(number)
            elif tensor.maker is None:
                mine = self._has_rows(number) and number not in per_class
                (entries if mine else self.loose).add(number)
        for call in self.recording.calls:
            self._pass_on(call, entries)
        return entries

    def _pass_on(self, call: RecordedCall, entries: set[int]) -> None:
        """What a call's results hold."""
        tensors, free, loose = self.recording.tensors, self.free, self.loose
        given = set(call.arguments)
        fresh = [r for r in call.results if r not in given]
        if given <= free:
            free.update(fresh)
            return
        source = set(call.arguments[:1]) if call.function in _PICKS else given
        if source <= loose | free and source & loose:
            rows = [r for r in fresh if call.function in _GATHERS and self._has_rows(r)]
            entries.update(rows)
            if given <= loose | free:
                loose.update(set(fresh) - set(rows))
        if self.all_of_it and all(tensors[a].discrete or a in free for a in given):
            made = (r for r in fresh if not (tensors[r].discrete or tensors[r].requires_grad))
            entries.update(filter(self._has_rows, made))

    def _indices(self) -> Iterator[tuple[int, int]]:
        """(number of a call, number of a tensor of indices into its table without data)."""
        tensors = self.recording.tensors
        for at, call in enumerate(self.recording.calls):
            given = call.arguments
            source = self.free if call.function in _PICKS else self.free | self.loose
            a_table = call.function in _LOOKUPS and any(a in source for a in given[1:])
            if a_table or call.function is F.one_hot:
                yield at, given[0]
            elif call.function in _PICKS and given[0] in source and not tensors[given[0]].discrete:
                yield from ((at, a) for a in given[1:] if tensors[a].discrete)

    def _follow(self, index: int, at: int, entries: set[int]) -> None:
        """From indices back to the ids that they are made of."""
        tensors, calls = self.recording.tensors, self.recording.calls
        seen: set[int] = set()
        ways = [index]
        found, makers = False, set[int]()
        while ways:
            number = ways.pop()
            tensor = tensors[number]
            if number in seen or number in self.free or not self._may_be_ids(number):
                continue
            seen.add(number)
            if number in entries:
                self.ids.add(number)
                found = True
            elif tensor.maker is not None and calls[tensor.maker].function not in _COUNTS:
                made = [tensor.maker, *self._writers(number)]
                makers.update(made)
                ways += [a for call in made for a in calls[call].arguments if tensors[a].discrete]
        if found:
            self.carriers |= seen
            self.lookups |= {at, *makers}

    def _writers(self, number: int) -> list[int]:
        """The calls that write into a tensor in place."""
        if not self.recording.tensors[number].written:
            return []
        calls = enumerate(self.recording.calls)
        maker = self.recording.tensors[number].maker
        return [
            at
            for at, call in calls
            if call.arguments[:1] == (number,)
            and at != maker
            and (not call.results or call.results == (number,))
        ]

    def _may_be_ids(self, number: int) -> bool:
        """Not a mask: neither true and false, nor a tensor from outside of zeros and ones."""
        tensor = self.recording.tensors[number]
        if tensor.dtype == torch.bool:
            return False
        return self.all_of_it or tensor.outside is None or bool((tensor.outside > 1).any())


def _per_class(call: RecordedCall) -> list[int]:
    """Numbers of the arguments that hold one number per class."""
    name = _PER_CLASS.get(call.function)
    if name is None:
        return []
    args, kwargs = call.rebuild([_Place(number) for number in call.arguments])
    given = inspect.signature(call.function).bind(*args, **kwargs).arguments.get(name)
    return [given.number] if isinstance(given, _Place) else []


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor."""

    number: int


def changed_numbers(x: Tensor, owners: RowOwners, samples: Tensor, seed: int) -> Tensor:
    """x times 1 + 0.3 noise in the rows of some samples (bool [n]).

    Zeros (padding) and huge numbers (masks) stay.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    mine = _rows_of(x, owners, samples) & (x.abs() < _HUGE)
    return torch.where(mine, x * (1.0 + 0.3 * noise).to(x.real.dtype), x)


def changed_ids(ids: Tensor, owners: RowOwners, samples: Tensor, exchange: bool) -> Tensor:
    """Ids of some samples (bool [n]), moved by one position within the sample.

    Where that changes nothing (one id for each sample), and with `exchange`, those of another row;
    and where all rows are alike, the ids below these.
    """
    found = owners.of(tuple(ids.shape))
    assert found is not None, "ids that are changed have rows"
    axis, owner = found
    other = ids if exchange else _rolled(ids, axis, owner, owners.n)
    for shift in range(1, len(owner)):
        same = _alike(other, ids, axis)
        if not same.any():
            break
        other = torch.where(same, ids.roll(shift, axis), other)
    other = torch.where(_alike(other, ids, axis), (ids - 1).clamp(min=0), other)
    return torch.where(_rows_of(ids, owners, samples), other, ids)


def _rolled(ids: Tensor, axis: int, owner: Tensor, n: int) -> Tensor:
    """Ids moved by one position within each sample."""
    if ids.dim() > axis + 1 and len(owner) == n:  # positions lie along the later axes
        return ids.flatten(axis + 1).roll(1, axis + 1).view_as(ids)
    place = torch.arange(len(owner))
    for sample in range(n):
        own = (owner == sample).nonzero().flatten()
        place[own] = own.roll(1)
    return ids.index_select(axis, place.to(ids.device))


def _alike(x: Tensor, y: Tensor, axis: int) -> Tensor:
    """Which places along an axis are equal in both, to be broadcast against them."""
    same = (x == y).movedim(axis, 0).reshape(x.shape[axis], -1).all(1)
    return same.view(-1, *(1,) * (x.dim() - 1 - axis))


def _rows_of(x: Tensor, owners: RowOwners, samples: Tensor) -> Tensor:
    """Which places of x belong to some samples (bool [n]), to be broadcast against x."""
    found = owners.of(tuple(x.shape))
    assert found is not None, "what is changed has rows"
    axis, owner = found
    mine = torch.where(owner >= 0, samples[owner.clamp(min=0)], torch.tensor(False))
    return mine.to(x.device).view(-1, *(1,) * (x.dim() - 1 - axis))
