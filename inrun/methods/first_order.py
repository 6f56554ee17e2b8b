"""First order: ``V = (du/dG)^T grad L(w)``.

For SGD this is the paper's ``eta grad L(w)`` (Wang et al. 2025, equation of section 4.1). For an
adaptive optimizer the slope of the update is taken with the state frozen before the step
("previous"), or as the secant along the step ("current").
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from inrun.config import one_of, require
from inrun.methods.base import Method, method
from inrun.methods.step import Step
from inrun.methods.target import Target


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Method):
    """``<g_i, V>`` with the target's gradient at w, pulled back through the optimizer's update.

    >>> FirstOrder(state="current").known_before
    False
    """

    kind: str = field(default="first_order", init=False)
    state: Literal["previous", "current"] = "previous"
    """previous: the slope of the optimizer's state before the step, known before the backward;
    current: the secant ``(u(G) - u(0)) / G`` of the step that is taken, known after it"""

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
        )

    @property
    def known_before(self) -> bool:
        return self.state == "previous"

    @property
    def takes_gradient_here(self) -> bool:
        return True


@method("first_order", FirstOrder)
def first_order(what: FirstOrder, step: Step, target: Target) -> dict[str, Tensor]:
    gradient = target.gradient()
    if what.known_before:
        return {name: step.frozen(what, name, g) for name, g in gradient.items()}
    return {
        name: step.pull_back(what, name, g) for name, g in gradient.items() if name in step.gradient
    }
