"""Which sample owns each row of a tensor.

The samples of a micro-batch lie along one axis of a tensor: one row each, several rows that stand
together (heads, frames, tokens folded into the axis), several that do not (two halves of pairs), or
rows of any order and number (nodes of graphs, packed documents, routed tokens).
"""

import functools
import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Owners:
    """The owner of each place along an axis: a sample 0..n-1, or -1 for a place that is nobody's.

    Regular owners are ``(j // inner) % n`` and know it without a vector. Plain ones are regular and
    go through the samples once: sample-major, equally many rows each.
    """

    __slots__ = ("_sorted", "_vectors", "inner", "n", "plain", "size")

    def __init__(self, n: int, size: int, inner: int | None, vector: Tensor | None = None):
        self.n, self.size, self.inner = n, size, inner
        self.plain = inner is not None and size == n * inner
        self._vectors: dict[torch.device, Tensor] = {}
        if vector is not None:
            self._vectors[vector.device] = vector
        self._sorted: dict[torch.device, tuple[Tensor, list[int]]] = {}

    @staticmethod
    @functools.lru_cache(4096)
    def regular(n: int, size: int, inner: int) -> "Owners":
        """Owners ``(j // inner) % n`` of `size` places; size is a multiple of n * inner."""
        return Owners(n, size, inner)

    @staticmethod
    def of(n: int, vector: Tensor) -> "Owners":
        """Owners from a vector of samples, -1 for nobody; regular where the vector is.

        Places that are nobody's take the sample that a regular order gives them, if the others are
        in that order.
        """
        size, known = vector.shape[0], vector >= 0
        if size == 0 or size % n or not bool(known.any()):
            return Owners(n, size, None, vector)
        complete = bool(known.all())
        changes = (vector[1:] != vector[:-1]).nonzero()
        first = int(changes[0]) + 1 if complete and len(changes) else size // n
        for inner in dict.fromkeys((first, size // n)):
            if size % (n * inner) == 0:
                regular = Owners.regular(n, size, inner)
                if torch.equal(regular.vector(vector.device)[known], vector[known]):
                    return regular if complete else Owners(n, size, inner, vector)
        return Owners(n, size, None, vector)

    def vector(self, device: torch.device | str = "cpu") -> Tensor:
        """The owner of each place, int64 [size]."""
        device = torch.device(device)
        found = self._vectors.get(device)
        if found is None:
            if self._vectors:
                found = next(iter(self._vectors.values())).to(device)
            else:
                assert self.inner is not None, "owners without a vector are regular"
                places = torch.arange(self.size, device=device)
                found = torch.div(places, self.inner, rounding_mode="floor") % self.n
            self._vectors[device] = found
        return found

    def sorted(self, device: torch.device) -> tuple[Tensor, list[int]]:
        """(places in the order of their samples, offsets [n + 1]): sample i has ``order[a:b]``.

        A place that is nobody's is not among them, unless regular owners give it a sample.
        """
        found = self._sorted.get(device)
        if found is None:
            owner = self.vector(device)
            if self.inner is not None and len(owner):
                owner = Owners.regular(self.n, self.size, self.inner).vector(device)
            counts = torch.bincount(owner + 1, minlength=self.n + 1).tolist()
            offsets = [0]
            for count in counts[1:]:
                offsets.append(offsets[-1] + count)
            order = torch.argsort(owner, stable=True)[counts[0] :]
            found = self._sorted[device] = order, offsets
        return found

    def rows(self, i: int, device: torch.device) -> Tensor:
        """The places of sample i, rising."""
        order, offsets = self.sorted(device)
        return order[offsets[i] : offsets[i + 1]]

    def sums(self, x: Tensor) -> Tensor:
        """Each sample's rows of x [size, ...] added up: [n, ...], the same bits at every call."""
        if self.plain:
            return x.reshape(self.n, -1, *x.shape[1:]).sum(1)
        order, offsets = self.sorted(x.device)
        x = x.index_select(0, order)
        return torch.stack([x[a:b].sum(0) for a, b in itertools.pairwise(offsets)])


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the samples of a tensor are.

    ``axis`` None with owners: the whole tensor is one sample's. Without owners it says only what
    the tensor is: `SHARED`, `UNKNOWN` or `LOST`.
    """

    axis: int | None
    owners: Owners | None
    blank: bool = False
    """Made in the form of another tensor, and nothing was written into it yet."""
    plain: bool = field(init=False)
    """Samples along axis 0, sample-major and equally many: what every rule takes as it is."""

    def __post_init__(self) -> None:
        plain = self.axis == 0 and self.owners is not None and self.owners.plain
        object.__setattr__(self, "plain", plain)

    @property
    def known(self) -> bool:
        """Whether each row's owner is known."""
        return self.owners is not None


#: no data of any sample: buffers, frozen parameters, what is made of them
SHARED = Layout(None, None)
#: from outside the block, and no axis of it is the samples'
UNKNOWN = Layout(None, None)
#: computed from data in a way that no axis of it is the samples' any more
LOST = Layout(None, None)


def at(axis: int | None, owners: Owners, blank: bool = False) -> Layout:
    """The layout with these owners along `axis`; one object for equal regular ones."""
    interned = owners is Owners.regular(owners.n, owners.size, owners.inner) if owners.inner else 0
    return _at(axis, owners, blank) if interned else Layout(axis, owners, blank)


@functools.lru_cache(8192)
def _at(axis: int | None, owners: Owners, blank: bool) -> Layout:
    return Layout(axis, owners, blank)


def whole(n: int, i: int) -> Layout:
    """The layout of a tensor that is sample i's alone; nobody's is `SHARED`."""
    return _whole(n, i) if i >= 0 else SHARED


@functools.lru_cache(4096)
def _whole(n: int, i: int) -> Layout:
    return Layout(None, Owners(n, 1, None, torch.tensor([i])))
