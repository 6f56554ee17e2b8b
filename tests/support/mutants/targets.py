"""Mistakes on the validation side."""

import contextlib

import torch

from inrun.conformance.problem import take
from inrun.ghost import Tape, UseTracker
from inrun.methods.target import Target
from inrun.rules.factors import Outer
from tests.support.mutants.base import exchange, mutant, wrap


def _separately_summed(patch, applies) -> None:
    """The target's gradient of a linear map as (sum_m b)^T (sum_m a), where
    ``applies(operation)``.
    """

    def gradient(original, self, at=None):
        found = dict(original(self, at))
        model_batch = Tape(3)  # the targets of these cases have three samples
        operations: list[str] = []
        sink = model_batch.sink
        model_batch.sink = lambda operation, origin, factor: (
            operations.append(operation),
            sink(operation, origin, factor),
        )
        with (
            torch.enable_grad(),
            UseTracker(self.parameters, self.untouched.buffers.values(), model_batch),
        ):
            loss = self.closure()
        torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        for operation, (origin, factor) in zip(operations, model_batch.entries):
            if isinstance(factor, Outer) and applies(operation):
                found[origin.roots[0]] = (factor.b.sum(0).T @ factor.a.sum(0)).reshape(factor.shape)
        return found

    wrap(patch, "Target.gradient", gradient)


@mutant(
    "the validation batch is summed before the product, Linear",
    "linear, many tokens",
    "linear, few tokens",
    seen="GhostSuite, issue 8",
)
def _(patch):
    _separately_summed(patch, lambda operation: operation == "linear")


@mutant(
    "the validation batch is summed before the product, Conv1D",
    "Conv1D",
    "Conv1D, many tokens",
    seen="GhostSuite, issue 8",
)
def _(patch):
    _separately_summed(patch, lambda operation: operation == "addmm")


@mutant("only the first validation sample counts", "three targets", "linear, few tokens")
def _(patch):
    wrap(
        patch,
        "Problem.target_loss",
        lambda original, self, model, batch: original(self, model, take(batch, 0, 1)),
    )


@mutant("targets get each other's directions", "three targets")
def _(patch):
    wrap(
        patch,
        "DirectionStack.stacked",
        lambda original, self, found, count: original(self, reversed(list(found)), count),
    )


@mutant("a target's gradient is kept from the first step on", "3 x 2", "schedule")
def _(patch):
    exchange(patch, "Target.forget", lambda self: None)


@mutant(
    "a target is evaluated under the weights after the step",
    "game: SGD, second order",
    "second order",
)
def _(patch):
    def gradient_and_hvp(original, self, direction):
        _, hvp = original(self, direction)
        after = {name: self.parameters[name].detach() - 2 * d for name, d in direction.items()}
        return self.gradient(lambda: after), hvp

    wrap(patch, "Target.gradient_and_hvp", gradient_and_hvp)


@mutant(
    "a target's gradient is left in .grad",
    "linear, few tokens",
    seen="a re-implementation that trains on the validation point",
)
def _(patch):
    def gradient(original, self, at=None, key=None):
        found = original(self, at, key)
        for name, g in found.items():
            p = self.parameters[name]
            p.grad = g.clone() if p.grad is None else p.grad + g
        return found

    wrap(patch, "Target.gradient", gradient)


@mutant("a target draws from the training's random numbers", "random targets")
def _(patch):
    exchange(patch, "torch.random.fork_rng", lambda devices=(): contextlib.nullcontext())


@mutant("a target's forward stays in the buffers", "writes to buffers")
def _(patch):
    def init(original, self, *args):
        original(self, *args)
        self.untouched.buffers = {}

    original = Target.__init__
    exchange(patch, "Target.__init__", lambda self, *args: init(original, self, *args))


@mutant("moved weights are put back by adding", "path", "1 x 6")
def _(patch):
    def gradient(original, self, at=None, key=None):
        found = original(self, at, key)
        if at is not None:
            with torch.no_grad():
                for name, w in at().items():
                    change = self.parameters[name] - w
                    self.parameters[name].sub_(change).add_(change)
        return found

    wrap(patch, "Target.gradient", gradient)
