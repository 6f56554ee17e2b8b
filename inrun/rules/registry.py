"""Finds the rule of an operation's argument."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

_BY_ARGUMENT: dict[tuple[Callable, str], Callable] = {}
_SIGNATURES: dict[Callable, list[inspect.Signature]] = {}
_ANY_ARGUMENT: dict[Callable, Callable] = {}
_REFUSED: dict[Callable, Callable[..., str | None]] = {}


def rule(*operations: Callable, argument: str | None = None) -> Callable:
    """Decorator: the rule for `argument` of these operations, or for any argument that is a
    parameter if none is named.

    A rule without `argument` is called as ``rule(n, b, call)`` with a `Call`.
    """

    def add(function: Callable) -> Callable:
        for operation in operations:
            if argument is None:
                _ANY_ARGUMENT[operation] = function
            else:
                _BY_ARGUMENT[operation, argument] = function
                signature = inspect.signature(function)
                own = list(signature.parameters.values())[2:]
                _SIGNATURES.setdefault(operation, []).append(signature.replace(parameters=own))
        return function

    return add


def refuse(*operations: Callable) -> Callable:
    """Decorator: the function gets the operation's arguments and returns why no per-sample gradient
    exists, or None if one does.
    """

    def add(function: Callable) -> Callable:
        _REFUSED.update(dict.fromkeys(operations, function))
        return function

    return add


def refusal(operation: Callable, args: tuple, kwargs: dict) -> str | None:
    """Why the operation mixes samples and cannot be attributed, or None."""
    check = _REFUSED.get(operation)
    return check(*args, **kwargs) if check else None


@dataclass
class Call:
    """One operation as it was called, for rules that serve many operations.

    `leaves` are the tensors among the arguments, in order; `where` indexes the one whose gradient
    is asked for; `rebuild(leaves)` gives (args, kwargs) with other tensors in their places;
    `shared` are the indices of leaves without a sample axis.
    """

    operation: Callable
    leaves: list
    where: int
    shared: set[int]
    rebuild: Callable

    def __call__(self, leaves: list):
        args, kwargs = self.rebuild(leaves)
        return self.operation(*args, **kwargs)


class NoRule(LookupError):
    """The operation has no rule for this argument."""


def find(operation: Callable, call: Call) -> Callable:
    """``contribution(n, b, leaves) -> Factor`` for the argument `call.where`.

    Raises:
        NoRule: nothing is registered for the operation and argument.
    """
    general = _ANY_ARGUMENT.get(operation)
    if general is not None:
        return lambda n, b, leaves: general(
            n, b, Call(operation, leaves, call.where, call.shared, call.rebuild)
        )
    places = [
        object() for _ in call.leaves
    ]  # bound in the tensors' stead, to see which name each of them has
    args, kwargs = call.rebuild(places)
    for signature in _SIGNATURES.get(operation, ()):
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError:
            continue
        for name, value in bound.items():
            if value is places[call.where] and (operation, name) in _BY_ARGUMENT:
                return _with_arguments(_BY_ARGUMENT[operation, name], call.rebuild)
    raise NoRule


def _with_arguments(by_argument: Callable, rebuild: Callable) -> Callable:
    def contribution(n, b, leaves):
        args, kwargs = rebuild(leaves)
        return by_argument(n, b, *args, **kwargs)

    return contribution
