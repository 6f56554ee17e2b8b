"""One operation as it was called, to be run again on other tensors: with the same random draws, and
never on the caller's own tensors in place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from inrun.ghost.arguments import rebuilder, tensors_of
from inrun.rules.factors import wide
from inrun.rules.registry import UNKNOWN, Operation

_IN_PLACE = {
    "__iadd__",
    "__isub__",
    "__imul__",
    "__idiv__",
    "__itruediv__",
    "__ifloordiv__",
    "__imod__",
    "__ipow__",
    "__iand__",
    "__ior__",
    "__ixor__",
    "__setitem__",
}


def writes_first(operation: Callable) -> bool:
    """Whether the operation changes its first argument, by its name: ``add_``, ``__iadd__``."""
    name = getattr(operation, "__name__", "")
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def out_of_place(operation: Callable) -> Callable:
    """The same on a copy of the first argument; returns the copy where it returned nothing."""

    def on_a_copy(first: Tensor, *args, **kwargs) -> Any:
        first = first.clone(memory_format=torch.contiguous_format)
        out = operation(first, *args, **kwargs)
        return first if out is None else out

    on_a_copy.__name__ = getattr(operation, "__name__", str(operation))
    return on_a_copy


def blank(x: Tensor) -> Tensor:
    """A tensor of the same shape, dtype and device that takes no memory, of zeros."""
    return x.new_zeros(()).expand(x.shape)


class Draws:
    """Which random numbers an operation drew, to draw them again.

    Args:
        tensors: the operation's tensors; the generators of their devices are looked at now.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        devices = {tensor.device for tensor in tensors}
        self._cuda = sorted(device.index or 0 for device in devices if device.type == "cuda")
        self._state = self._now()
        self.any = False

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]

    def finished(self) -> None:
        """The operation has run: note whether it drew."""
        pairs = zip(self._state, self._now())
        self.any = any(a.numpy().tobytes() != b.numpy().tobytes() for a, b in pairs)
        if not self.any:
            self._state = []

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Inside, the operation draws the same numbers; afterwards the generators are as before."""
        if not self.any:
            yield
            return
        with torch.random.fork_rng(self._cuda):
            torch.set_rng_state(self._state[0])
            for device, state in zip(self._cuda, self._state[1:]):
                torch.cuda.set_rng_state(state, device)
            yield


class Again:
    """An operation with its arguments, which may be called with other tensors in their places.

    Args:
        operation, args, kwargs: as they were called.
        draws: what the operation drew.

    Attributes:
        leaves: the tensors among the arguments, detached, as they were before the operation.
    """

    def __init__(self, operation: Callable, args: tuple, kwargs: dict, draws: Draws):
        self.operation, self.draws = operation, draws
        self.leaves = [leaf.detach() for leaf in tensors_of(args, kwargs)]
        self._call = operation
        if writes_first(operation):
            self.leaves[0] = self.leaves[0].clone()
            self._call = out_of_place(operation)
        self._rebuild = rebuilder(args, kwargs)

    def __call__(self, leaves: list[Tensor]) -> list[Tensor]:
        """The tensors that come out, with `leaves` in the place of the operation's own."""
        args, kwargs = self._rebuild(leaves)
        with self.draws.repeated(), _no_autocast(leaves):
            return tensors_of((self._call(*args, **kwargs),), {})

    def wide(self) -> list[Tensor]:
        """`leaves` in the dtype that dots are accumulated in, where that changes no draw.

        Under autocast they may be of several dtypes, which the operation alone would not take.
        """
        leaves = [x.contiguous() if _overlaps(x) else x for x in self.leaves]
        if self.draws.any:
            return leaves
        return [wide(x) if x.is_floating_point() else x for x in leaves]


def _overlaps(x: Tensor) -> bool:
    """Whether several places are one number, as in an expanded tensor; it takes no tangent."""
    return any(not stride and size > 1 for stride, size in zip(x.stride(), x.shape))


class Called:
    """An operation on parameters and data, about to be called, as a rule may call it again.

    Args:
        func: the operation; leaves: its tensors.

    Attributes:
        operation: the same out of place and, where it drew random numbers, with the same ones.
        before: what it is about to overwrite, None where that is nothing; a `blank` where nobody
            needs the numbers later.
    """

    def __init__(self, func: Callable, entry: Operation, leaves: list[Tensor]):
        self.func, self.entry = func, entry
        self.operation, self.before = func, None
        if writes_first(func):
            self.before = blank(leaves[0]) if entry.keeps_nothing else leaves[0].clone()
            self.operation = entry.out_of_place or out_of_place(func)
        self._version, self._overwrote, self._several = leaves[0]._version, False, False
        # operations with a rule of their own draw nothing, but for fused attention
        may_draw = entry is UNKNOWN or entry.saves_output
        self._draws = Draws(leaves) if may_draw else None

    def finished(self, leaves: list[Tensor]) -> None:
        """The operation has run."""
        self._overwrote = leaves[0]._version != self._version
        if self._draws is not None:
            self._draws.finished()
            if self._draws.any:
                self.operation = Repeated(self.operation, self._draws)

    def part(self, index: int) -> Callable:
        """The operation that gives one of several outputs."""
        self._several, operation = True, self.operation

        def part_of(*args, **kwargs) -> Tensor:
            return operation(*args, **kwargs)[index]

        part_of.__name__ = getattr(self.func, "__name__", str(self.func))
        return part_of

    def unfit(self, out: Tensor, alone: bool) -> str | None:
        """Why no gradient can be taken of `out`, None if one can; `alone`: no sample's number."""
        if alone and not self.entry.offset:
            return "gives one number for the whole batch; add up after it (reduction='none')"
        if self._overwrote and self.before is None:
            return "overwrites its input; use the out-of-place form"
        if self.before is not None and self.copied(out):
            return "overwrites what its backward needs; use the out-of-place form"
        return None

    def copied(self, out: Tensor) -> bool:
        """Whether the backward needs `out` as it is, or shares it with another output."""
        saves = self.entry.saves_output or (self.entry is UNKNOWN and _saves_its_result(out))
        return saves or self._several


class Repeated:
    """An operation that draws the numbers that it drew the first time."""

    drew = True

    def __init__(self, operation: Callable, draws: Draws):
        self.operation, self.draws = operation, draws
        self.__name__ = getattr(operation, "__name__", str(operation))

    def __call__(self, *args, **kwargs) -> Any:
        with self.draws.repeated():
            return self.operation(*args, **kwargs)


def _saves_its_result(out: Tensor) -> bool:
    """Whether the backward of what gave `out` needs `out` itself, as that of exp and pow does."""
    saved = ("_saved_result", "_saved_out")
    return any(name.startswith(saved) for name in dir(out.grad_fn))


@contextmanager
def _no_autocast(tensors: Iterable[Tensor]) -> Iterator[None]:
    kind = next((x.device.type for x in tensors if x.device.type != "meta"), "cpu")
    if not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, enabled=False):
        yield
