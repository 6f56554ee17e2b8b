"""What a method is: its options, its words about itself, and the registry that finds who computes
it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from inrun.config import build_kind, one_of, require
from inrun.registry import Registry

if TYPE_CHECKING:  # both import this module
    from inrun.methods.step import Step
    from inrun.methods.target import Target

#: ``(options, step, target) -> {parameter name: V}``
Directions = Callable[[Any, "Step", "Target"], dict[str, Tensor]]


class Kind(NamedTuple):
    """What is registered of a kind of methods."""

    options: type["Method"]
    directions: Directions


KINDS: Registry[str, Kind] = Registry("method")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to value samples. Choose a kind: `FirstOrder`, `SecondOrder`, `Path`, or your own.

    A kind is a subclass with its own options, registered with its function under ``@method``.

    Raises:
        ConfigError: an option has no such value, or two of them contradict each other.
    """

    kind: str = field(default="", init=False)
    update: Literal["auto", "sgd"] = "auto"
    "auto: the update that the optimizer makes; sgd: the paper's formula with lr, whatever it is"
    credit: Literal["immediate", "impulse"] = "immediate"
    """immediate: a sample's part in this step; impulse: the whole response that momentum will make
    of its gradient, at this step's direction"""
    name: str = ""
    "the method's column in the store; the kind by default"

    def __post_init__(self) -> None:
        require(
            f"method {self.kind}",
            one_of("update", self.update, ("auto", "sgd")),
            one_of("credit", self.credit, ("immediate", "impulse")),
            (
                self.update == "auto" or self.credit == "immediate",
                "update='sgd' with credit='impulse': the formula lr * gradient has no momentum "
                "that could answer later; leave out one of them",
            ),
        )
        if not self.name:
            object.__setattr__(self, "name", self.kind)

    @property
    def known_before(self) -> bool:
        """Whether the direction can be known before the training backward.

        Dots can then be taken while it runs, in the steps that do not wait.
        """
        return False

    @property
    def may_wait(self) -> bool:
        """Whether there are steps whose direction is known after the backward only."""
        return not self.known_before

    def waits(self, step: "Step", excess: float | None) -> bool:
        """Whether the direction of a step that begins is known after the backward only.

        Args:
            step: before the backward, without a gradient.
            excess: running mean of what the method said of its slopes by `Step.watch`; None before
                the first one.
        """
        return not self.known_before

    def watch(self, step: "Step", target: "Target") -> None:
        """Notes in a step that did not wait how far the slope that was known misstates it."""

    def check(self, step: "Step") -> None:
        """Raises where an update rule lacks what the method needs."""

    @property
    def needs_present_target(self) -> str:
        """Why a target's gradient of an earlier step cannot be used; empty if it can."""
        return ""

    def said(self) -> dict[str, Any]:
        """The options by name, as JSON can hold them; without the method's own name."""
        return {
            name: str(value) if value == math.inf else value
            for name, value in vars(self).items()
            if name != "name"
        }

    @classmethod
    def from_config(cls, value: Any, where: str = "method") -> "Method":
        """A method from its name, from a mapping with `kind` and options, or from itself."""
        return build_kind(
            Method, {name: kind.options for name, kind in KINDS.items()}, value, where
        )


def method(kind: str, options: type[Method]) -> Callable[[Directions], Directions]:
    """Decorator: this function computes the directions of methods of `kind`.

    Args:
        kind: its name in configs and, by default, in the store.
        options: frozen dataclass, a subclass of `Method`, whose `kind` is this one.

    Raises:
        RegisteredTwiceError: the name is taken.
    """

    def add(function: Directions) -> Directions:
        KINDS.add(kind, Kind(options, function), made_by=function)
        return function

    return add


def directions(what: Method, step: "Step", target: "Target") -> dict[str, Tensor]:
    """V of each parameter that the target's loss depends on.

    In the sign convention of `inrun.shapley.SIGN`: positive lowers the target's loss.

    Args:
        step: with the batch's gradient where the method waits for it (`Method.waits`).
    """
    V = KINDS[what.kind].directions(what, step, target)
    if what.credit == "impulse":
        V = {name: step.updates[name].impulse * v for name, v in V.items()}
    return V
