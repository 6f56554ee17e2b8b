"""The processes that take every step together: data parallel training.

Each process has samples of its own; weights, optimizer state and, at the end of the backward,
gradients are the same bits in all of them. A sample's share in the mean gradient is its share in
its own process's gradient divided by the number of processes. With one process nothing here does
anything.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class ProcessError(RuntimeError):
    """Another process failed in what all of them do together."""


class Processes:
    """A group of processes, or this one alone (group=None).

    Args:
        group: those that train together, where you average `.grad` over them yourself (at the end
            of the last micro-batch's block) instead of by DistributedDataParallel, which tells.
        share_targets: each process's closure gives its part of a target's loss, and the parts are
            added up. False: each evaluates the whole.

    Attributes:
        rank, size: this process's place, and how many there are.
        quietly: a context in which a forward of the wrapped model announces no exchange of
            gradients.

    >>> alone = Processes()
    >>> alone.size, alone.leads
    (1, True)
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, share_targets: bool = False):
        self.group, self.share_targets = group, share_targets
        self.quietly: Callable[[], AbstractContextManager] = nullcontext
        self.rank, self.size = 0, 1
        if group is not None:
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # small facts are exchanged where that makes no process wait for its device
        backends = "" if group is None else dist.get_backend_config(group)
        self._device = torch.device(
            "cuda" if group is not None and "gloo" not in backends else "cpu"
        )

    @classmethod
    def of(cls, model: nn.Module, given: "Processes | None") -> "tuple[nn.Module, Processes]":
        """The model itself and its processes: those of a DistributedDataParallel, or the given.

        Raises:
            ValueError: the wrapped model has another group than the one that is given.
        """
        if not isinstance(model, DistributedDataParallel):
            return model, given or cls()
        if given and given.group not in (None, model.process_group):
            raise ValueError(
                "processes=Processes(group, ...): the DistributedDataParallel has another group; "
                "leave the group out, it is found from the model"
            )
        found = cls(model.process_group, bool(given and given.share_targets))
        found.quietly = model.no_sync
        return model.module, found

    @property
    def leads(self) -> bool:
        """This one speaks and writes for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def total(self, fact: Tensor) -> Tensor:
        """The sum over the processes, the same bits in each; a small tensor comes back where it
        was.
        """
        return fact if self.alone else self.sums([fact.to(self._device)])[0].to(fact.device)

    def sums(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Sums over the processes of tensors that all of them give in the same order; the given
        ones are not written to.
        """
        if self.alone:
            return list(tensors)
        return self._add_up(
            [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        )

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor's mean over the processes, in place."""
        if self.alone:
            return
        torch._foreach_div_(self._add_up(list(tensors)), self.size)

    def _add_up(self, tensors: list[Tensor]) -> list[Tensor]:
        for waiting in [
            dist.all_reduce(tensor, group=self.group, async_op=True) for tensor in tensors
        ]:
            waiting.wait()
        return tensors

    def gathered(self, thing: Any) -> list[Any]:
        """What every process gave, by rank."""
        if self.alone:
            return [thing]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing, group=self.group)
        return found

    def wait(self) -> None:
        """Until all have come here."""
        if not self.alone:
            self.total(torch.zeros(()))

    def first(self, act: Callable[[], T]) -> T | None:
        """`act` in the first process, while the others wait; None in them.

        Raises:
            ProcessError: in the others, if it failed in the first.
        """
        if self.alone:
            return act()
        if self.rank:
            if self.total(torch.zeros(())):
                raise ProcessError("the first process failed; its message says why")
            return None
        try:
            found = act()
        except BaseException:
            self.total(torch.ones(()))
            raise
        self.total(torch.zeros(()))
        return found

    def one_by_one(self, act: Callable[[], T]) -> T:
        """`act` in the first process, and when it is done there in the others, unless it failed."""
        found = self.first(act)
        return found if found is not None and not self.rank else act()
