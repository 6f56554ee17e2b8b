"""The contract of an update rule, and the registry that finds the rule of an optimizer."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from inrun.registry import Registry
from inrun_kernels.backend import read_together

E = TypeVar("E")


class UnknownOptimizerError(TypeError):
    """The optimizer has no registered update rule."""


class NoFrozenSlopeError(TypeError):
    """The update rule has no slope that is known before the gradient (Lion's sign, Muon's
    orthogonalisation).
    """


class Update:
    """One parameter's update rule at one moment. `weight` and `state` are views of the live
    tensors: use it before the step, or `freeze` it.

    Attributes:
        elementwise: every element of u(G) depends on the same element of G only.
        lr: the learning rate of the parameter's group; u is proportional to it.
        impulse: total response of the weights to one gradient over all later steps, divided by the
            response at this step (momentum: 1/(1-mu); Adam: 1/(1-b1); 1 without momentum). The
            factor between the two `credit` rules.
    """

    elementwise = True
    #: every element needs the coalition-smoothed slope, not only those without state (Lion: the
    #: update is a sign everywhere)
    rough_everywhere = False
    #: du/dG is one number, whatever the gradient and the state: the frozen slope is exact
    affine = False
    #: too few gradients are in the state for a slope that is known before this one
    young = False

    def __init__(self, weight: Tensor, state: dict, group: dict):
        self.weight = weight.detach()
        self.lr = float(group["lr"])
        self.impulse = 1.0

    def __call__(self, g: Tensor) -> Tensor:
        """u(g) with g of the parameter's shape; the result is what the optimizer would subtract
        from the weight.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The elementwise tensors (weight and state) by attribute name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Update":
        """A copy of this rule with `function` applied to the weight and to every state tensor."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self))
        vars(copy).update({name: function(value) for name, value in self.tensors().items()})
        return copy

    def freeze(self) -> "Update":
        """A copy that survives the optimizer's step."""
        return self.map_tensors(torch.clone)

    def zero(self) -> Tensor:
        """u(0): what the optimizer does without any sample (momentum, weight decay)."""
        return self(torch.zeros_like(self.weight))

    def secant(self, g: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
        """``(u(hi g) - u(lo g)) / g`` elementwise, 0 where g is 0 (the direction is irrelevant
        there).

        This default differences in float64; rules with a closed form override it.
        """
        if not self.elementwise:
            raise TypeError(
                f"{type(self).__name__} is not elementwise and has no secant; use `vjp`"
            )
        wide = self.map_tensors(torch.Tensor.double)
        g64 = g.double()
        difference = wide(hi * g64) - wide(lo * g64)
        return torch.where(g64 == 0, 0.0, difference / g64).to(g.dtype)

    def vjp(self, g: Tensor, cotangent: Tensor) -> Tensor:
        """``J(g)^T cotangent`` with ``J = du/dG``, through autograd; any rule that is written in
        differentiable operations has it.
        """
        with torch.enable_grad():
            at = g.detach().clone().requires_grad_()
            (out,) = torch.autograd.grad(self(at), at, cotangent)
        return out

    def stateless(self) -> Tensor | None:
        """Boolean mask of the elements whose update is a kink or a jump at this step (no second
        moment yet), or None if there are none.
        """
        return None

    @property
    def warming_up(self) -> bool:
        """The state has seen so few gradients that elements of it may not outweigh the noise of one
        batch: `noise_dominated` tells which.
        """
        return False

    def noise_dominated(self, q: Tensor) -> Tensor:
        """Boolean mask of the elements where the batch's own noise, q = sum over samples of the
        squared per-sample gradient, outweighs the state.
        """
        return torch.zeros_like(q, dtype=torch.bool)

    def frozen_slope(self) -> Tensor:
        """du/dG with the state frozen as it was before the step; 0 at elements without state.
        Broadcastable to the weight.
        """
        raise NoFrozenSlopeError(
            f"{type(self).__name__} has no slope with its state frozen; use method='path', "
            "or first_order with state='current'"
        )


RULES: Registry[type, Callable[..., Update]] = Registry(
    "update rule for the optimizer",
    error=UnknownOptimizerError,
    hint="Write a subclass of inrun.updates.Update with __call__(g) = the change it makes, "
    "decorate it with @inrun.updates.register({key}), or use update='sgd' for the paper's formula "
    "lr * gradient.",
)


def register(optimizer_class: type) -> Callable[[E], E]:
    """Class decorator: this `Update` is the rule of `optimizer_class` and of its subclasses."""
    return RULES.register(optimizer_class)


def snapshot(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict) -> Update:
    """The update rule of `parameter` as the optimizer stands now.

    Raises:
        UnknownOptimizerError: no rule for this class of optimizer; the message says how to add one.
    """
    return snapshots({"": (optimizer, parameter, group)})[""]


def rule_of(optimizer: type[torch.optim.Optimizer]) -> Callable[..., Update]:
    """The rule of a class of optimizers, or of the one that it takes its step from.

    Raises:
        UnknownOptimizerError: there is none, or the class has a step of its own.
    """
    rule = RULES.for_class(optimizer)
    registered: Any = next(base for base in optimizer.__mro__ if base in RULES)
    if inspect.unwrap(optimizer.step) is not inspect.unwrap(registered.step):
        raise UnknownOptimizerError(
            f"{optimizer.__name__} has a step of its own, which may differ from that of "
            f"{registered.__name__}, so no update rule is inherited. If it makes the same update, "
            f"say so: inrun.updates.register({optimizer.__name__})({rule.__name__}); otherwise "
            "register a rule for it"
        )
    return rule


def snapshots(owned: Mapping[str, tuple[torch.optim.Optimizer, Tensor, dict]]) -> dict[str, Update]:
    """`snapshot` of (optimizer, parameter, its group) by name; where step counts live on the
    device, they are waited for once.
    """
    states = {
        name: optimizer.state.get(parameter, {})
        for name, (optimizer, parameter, _) in owned.items()
    }
    steps = read_together(
        {
            name: state["step"]
            for name, state in states.items()
            if torch.is_tensor(state.get("step"))
        }
    )
    rules = {type(optimizer): rule_of(type(optimizer)) for optimizer, _, _ in owned.values()}
    return {
        name: rules[type(optimizer)](
            parameter, {**states[name], **({"step": steps[name]} if name in steps else {})}, group
        )
        for name, (optimizer, parameter, group) in owned.items()
    }
