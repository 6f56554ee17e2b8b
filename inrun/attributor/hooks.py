"""Hooks on the optimizers' steps: before the weights move, and when all that were valued have."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class StepError(RuntimeError):
    """The optimizer's step is not, or cannot be, the one that was valued."""


class StepHooks:
    """Calls `before` at the first of the optimizers' steps, and `after` when they are all taken.

    Args:
        optimizers: those that step together.
        before: values the step; returns ids of the optimizers that must step before the values
            are those of a step that was taken. Empty: nothing was valued.
        after: they have.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        before: Callable[[], set[int]],
        after: Callable[[], None],
    ):
        self._before, self._after = before, after
        self.awaited: set[int] = set()
        self._closed = False
        self._handles = [o.register_step_pre_hook(self._pre) for o in optimizers]
        self._handles += [o.register_step_post_hook(self._post) for o in optimizers]

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Around a micro-batch: no step is taken in here."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    def _pre(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            raise StepError(
                "optimizer.step(closure) evaluates the loss after values were taken, so they would "
                "be those of another gradient. Call the closure yourself inside `with "
                "attr.batch(ids)`, then optimizer.step() without it (in Lightning: "
                "automatic_optimization = False)"
            )
        if self._closed:
            raise StepError(
                "optimizer.step() was called inside `with attr.batch(...)`, before the samples' "
                "values are known. Step after the block; an optimizer that steps in the backward "
                "(post-accumulate-grad hooks) cannot be valued"
            )
        if not self.awaited:
            with torch.no_grad():
                self.awaited = self._before()

    def _post(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        if id(optimizer) in self.awaited:
            self.awaited.discard(id(optimizer))
            if not self.awaited:
                self._after()

    def refusal(self) -> str:
        """What is said where an optimizer did not step that was valued."""
        return (
            f"{len(self.awaited)} of the optimizers did not take the step that was valued, so that "
            "parameters did not move as their values say; nothing of this step was stored. Give "
            "the Attributor the optimizers that step together, and each other group an Attributor "
            "of its own"
        )

    def remove(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()
