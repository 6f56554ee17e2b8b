"""First order: ``V = (du/dG)^T grad L(w - u(0))``, the utility's slope where nobody takes part.

For SGD without momentum that is the paper's ``eta grad L(w)`` (Wang et al. 2025, equation of
section 4.1). Momentum and decay move the weights also without a sample, and a sample acts where
they leave them. For an adaptive optimizer du/dG is the slope with its state frozen before the step,
which is known before the backward, or the secant along the step.

The frozen slope leaves out that the state answers to the gradient: for AdamW's second moment, which
early on is of the gradient's own size, that is most of it. Each step tells by how much, and steps
are valued as by one node of `Path` until that is little.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from inrun.config import one_of, require
from inrun.methods.base import Method, method
from inrun.methods.path import along
from inrun.methods.step import Step
from inrun.methods.target import Target
from inrun.updates import Update

#: `Step.nobody` where all parameters take part, as they are taken to before the backward
EVERYBODY = ("w - u(0)", True)


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Method):
    """``<g_i, V>`` with the target's gradient at w - u(0), through the optimizer's update.

    >>> FirstOrder(update="sgd").may_wait
    False
    """

    kind: str = field(default="first_order", init=False)
    state: Literal["previous", "current"] = "previous"
    """previous: the slope of the optimizer's state before the step, known before the backward;
    current: the secant ``(u(G) - u(0)) / G`` of the step that is taken, known after it: what
    `path` is without the loss's curvature"""
    largest_excess: float = 0.2
    """of state="previous": steps are valued as by `path` while the running mean of the share by
    which the frozen slope misstates their sum is this or more, and in the optimizer's first three
    steps; inf: the frozen slope from the first step on, however wrong"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "method first_order",
            one_of("state", self.state, ("previous", "current")),
            (
                self.update == "auto" or self.state == "previous",
                "state='current' with update='sgd': the formula lr * gradient has no state; leave "
                "out state, or say update='auto'",
            ),
            (
                self.largest_excess > 0,
                f"largest_excess={self.largest_excess}: give a positive share, or inf; for steps "
                "that are all valued as by path say method='path'",
            ),
            (
                self.largest_excess == 0.2 or (self.update, self.state) == ("auto", "previous"),
                "largest_excess is of the slope frozen before the step: leave out update='sgd' or "
                "state='current', or largest_excess",
            ),
        )

    @property
    def known_before(self) -> bool:
        return self.state == "previous"

    @property
    def may_wait(self) -> bool:
        frozen = self.update == "sgd" or math.isinf(self.largest_excess)
        return not (self.known_before and frozen)

    def waits(self, step: Step, excess: float | None) -> bool:
        rules = step.updates.values()
        if not self.may_wait or (self.known_before and all(rule.affine for rule in rules)):
            return False
        if not self.known_before or excess is None or any(rule.young for rule in rules):
            return True
        return excess >= self.largest_excess

    def watch(self, step: Step, target: Target) -> None:
        affine = all(rule.affine for rule in step.updates.values())
        if self.update == "auto" and self.known_before and not affine:
            used = target.kept(EVERYBODY)
            gradient = at_nobody(self, step, target) if used is None else used
            step.watch(self, target.name, gradient)

    def check(self, step: Step) -> None:
        if self.update == "auto" and self.known_before:
            for rule in step.updates.values():
                if type(rule).frozen_slope is Update.frozen_slope:
                    rule.frozen_slope()  # says what is missing


@method("first_order", FirstOrder)
def first_order(what: FirstOrder, step: Step, target: Target) -> dict[str, Tensor]:
    if what.state == "current":
        return step.pulled_back(what, at_nobody(what, step, target))
    if step.gradient:  # a step that waits
        return along(what, 1, step, target, seen=partial(step.watch, what, target.name))
    gradient = at_nobody(what, step, target)
    return {name: step.frozen(what, name, g) for name, g in gradient.items()}


def at_nobody(what: Method, step: Step, target: Target) -> dict[str, Tensor]:
    """The target's gradient at the weights that the step leaves without a sample."""
    moved = None if what.update == "sgd" else step.without_samples()
    if moved is None:
        return target.gradient()
    return target.gradient(at=lambda: moved, key=step.nobody, keep=True)
