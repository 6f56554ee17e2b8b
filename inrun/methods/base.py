"""What is to be computed, in words, and the registry that finds who computes it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from inrun.registry import Registry

KINDS: Registry[str, Callable] = Registry("method")


def method(kind: str) -> Callable[[Callable], Callable]:
    """Decorator: this function computes the directions of methods of `kind`."""
    return KINDS.register(kind)


@dataclass(frozen=True)
class Method:
    """One way to value samples.

    Attributes:
        kind: "first_order" | "second_order" (Wang et al. 2025, section 4) | "path" (Aumann-Shapley
            value along the step that the optimizer takes).
        update: "auto" values the optimizer's own update; "sgd" is the paper's formula with lr,
            whatever the optimizer.
        state: for first_order with update="auto": "previous" freezes the optimizer's state before
            the step (the direction is known before the backward), "current" takes the secant
            ``(u(G) - u(0)) / G`` (known after it).
        nodes: number of points along the step at which path evaluates the target's gradient.
        quadrature: "midpoint" | "gauss" (Gauss-Legendre), where along the step those points lie.
        credit: "immediate" gives a sample its part in this step; "impulse" the whole response that
            momentum will make of its gradient, at this step's direction.
        tolerance: for path, the largest share of what the step did to the loss, drift apart, by
            which the values' sum may miss it: where it is missed by more, the nodes are tripled as
            long as that helps. Costs two evaluations of the target's loss at every step, and None
            asks for none.
        name: the method's column in the store; the kind by default.
    """

    kind: str = "first_order"
    update: str = "auto"
    state: str = "previous"
    nodes: int = 1
    quadrature: str = "midpoint"
    credit: str = "immediate"
    tolerance: float | None = None
    name: str = ""

    def __post_init__(self):
        _one_of("method", self.kind, KINDS)
        _one_of("update", self.update, ("auto", "sgd"))
        _one_of("state", self.state, ("previous", "current"))
        _one_of("quadrature", self.quadrature, ("midpoint", "gauss"))
        _one_of("credit", self.credit, ("immediate", "impulse"))
        if self.nodes < 1:
            raise ValueError(f"nodes must be 1 or more, not {self.nodes}")
        if self.tolerance is not None and not (self.kind == "path" and self.tolerance > 0):
            raise ValueError(
                f"tolerance={self.tolerance} with method {self.kind!r}: a positive share, "
                "for 'path' only"
            )
        if not self.name:
            object.__setattr__(self, "name", self.kind)

    @property
    def known_before(self) -> bool:
        """Whether the direction is known before the training backward, so that dots can be taken
        while it runs.
        """
        return self.kind == "first_order" and (self.update == "sgd" or self.state == "previous")


def directions(what: Method, step, target) -> dict[str, Tensor]:
    """V of each parameter that the target's loss depends on, in the sign convention of
    `inrun.shapley.SIGN`.

    Args:
        step: a `Step`; with the batch's gradient unless ``what.known_before``.
        target: a `Target`.
    """
    V = KINDS[what.kind](what, step, target)
    if what.credit == "impulse" and what.update == "auto":
        V = {name: step.updates[name].impulse * v for name, v in V.items()}
    return V


def _one_of(what: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(f"{what}={value!r}: choose one of {', '.join(map(repr, choices))}")
