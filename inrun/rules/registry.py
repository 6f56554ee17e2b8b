"""One table of operations: each with its exact, fused and compiled form, and what it refuses."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from inrun.registry import RegisteredTwiceError
from inrun.rules.factors import Factor
from inrun.rules.layout import Layout

Contribution = Callable[[int, Tensor, list[Tensor]], Factor]


@dataclass
class Operation:
    """All that is known of one operation."""

    arguments: dict[str, Callable[..., Factor]] = field(default_factory=dict)
    """Exact forms by the argument's name, called as ``form(n, b, *the operation's arguments)``."""
    signatures: list[inspect.Signature] = field(default_factory=list)
    """How the operation may be called, one for each exact form."""
    general: "Callable[[int, Tensor, Call], Factor] | None" = None
    """The exact form of any argument, called as ``form(n, b, call)``."""
    fused: Callable[..., Any] | None = None
    """``form(tracker, *the operation's arguments)``: computes the operation in its stead."""
    same_bits: bool = False
    """The fused form trains to the same bits, so it is taken where ``fused=False`` too."""
    compiled: Callable[..., Any] | None = None
    """``form(probes, *the operation's arguments)``: the same for a model under torch.compile."""
    refusal: Callable[..., str | None] | None = None
    """Why a call mixes the samples, or None, from the operation's arguments."""
    out_of_place: Callable | None = None
    """The operation that this one does in place, where that has a rule."""
    keeps_nothing: bool = False
    """It writes in place, and its derivative does not need what it overwrites."""
    saves_output: bool = False
    """Its backward needs its own result, which may therefore not be marked as changed."""
    without_samples: bool = False
    """Its result holds no data of the batch although no tensor goes in."""
    likeness: bool = False
    """Of its tensors but the first it takes shape, dtype or device alone, no numbers."""
    places: bool = False
    """It writes rows into its first argument, at places whose numbers are no data of a sample."""
    offset: bool = False
    """Its derivative in each argument is a number: what it adds depends on no other argument."""
    any_leading: bool = False
    """Its exact forms take any axes before those that the operation works on as rows."""


#: operation -> what is known of it
OPERATIONS: dict[Callable, Operation] = {}

#: an operation that nothing is known of; its general form serves whatever has no other rule
UNKNOWN = Operation()


def known(operation: Callable) -> Operation:
    """The operation's entry in the table, a new one if it has none."""
    return OPERATIONS.setdefault(operation, Operation())


def _once(operation: Callable, form: str, before: Callable | None, now: Callable) -> None:
    """Refuse a second form of one kind; the same function again is none (a notebook's cell)."""
    if before is None or _source(before) == _source(now):
        return
    raise RegisteredTwiceError(
        f"two entries for the operation {getattr(operation, '__name__', operation)}, {form}: "
        f"{'.'.join(_source(before))} and {'.'.join(_source(now))}; remove one of them"
    )


def _source(function: Callable) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def rule(*operations: Callable, argument: str | None = None) -> Callable:
    """Decorator: the exact form for `argument` of these operations.

    Without `argument` it serves any argument that is a parameter, and is called as ``form(n, b,
    call)`` with a `Call`. As all decorators here it raises `RegisteredTwiceError` where another
    function has this place.
    """

    def add(function: Callable) -> Callable:
        for operation in operations:
            entry = known(operation)
            if argument is None:
                _once(operation, "rule for any argument", entry.general, function)
                entry.general = function
            else:
                before = entry.arguments.get(argument)
                _once(operation, f"rule for argument {argument!r}", before, function)
                entry.arguments[argument] = function
                signature = inspect.signature(function)
                own = list(signature.parameters.values())[2:]
                entry.signatures.append(signature.replace(parameters=own))
        return function

    return add


def whatever(function: Callable[..., Factor]) -> Callable[..., Factor]:
    """Decorator: the exact form of any argument of any operation that has no rule of its own."""
    _once(whatever, "rule for whatever operation", UNKNOWN.general, function)
    UNKNOWN.general = function
    return function


def fused(*operations: Callable, same_bits: bool = False) -> Callable:
    """Decorator: a form that computes the operation and takes the dots in its own backward.

    It is called as ``form(tracker, *the operation's arguments)`` with a `protocols.Tracker`, and
    returns the operation's output, or None to leave this call to the exact form. `same_bits`: it is
    used where nobody asked for fused forms, too.
    """

    def add(function: Callable) -> Callable:
        for operation in operations:
            entry = known(operation)
            _once(operation, "fused form", entry.fused, function)
            entry.fused, entry.same_bits = function, same_bits
        return function

    return add


def compiled(*operations: Callable) -> Callable:
    """Decorator: a form in which dots leave a compiled graph as the gradients of probes.

    It is called as ``form(probes, *the operation's arguments)`` with `protocols.Probes` while
    torch.compile traces, and returns the operation's output, or None to leave the call as it is.
    """

    def add(function: Callable) -> Callable:
        for operation in operations:
            entry = known(operation)
            _once(operation, "compiled form", entry.compiled, function)
            entry.compiled = function
        return function

    return add


def refuse(*operations: Callable) -> Callable:
    """Decorator: the function gets the operation's arguments and returns why no per-sample gradient
    exists, or None if one does.
    """

    def add(function: Callable) -> Callable:
        for operation in operations:
            entry = known(operation)
            _once(operation, "refusal", entry.refusal, function)
            entry.refusal = function
        return function

    return add


def in_place(operation: Callable, like: Callable | None = None) -> None:
    """Say that `operation` needs no overwritten value later, and does in place what `like` does."""
    known(operation).keeps_nothing = True
    known(operation).out_of_place = like


def saves_output(*operations: Callable) -> None:
    """Say that the backwards of these operations need their own results."""
    for operation in operations:
        known(operation).saves_output = True


def without_samples(*operations: Callable) -> None:
    """Say that these operations make tensors without data of the batch out of no tensor."""
    for operation in operations:
        known(operation).without_samples = True


def likeness(*operations: Callable) -> None:
    """Say that these operations take shape, dtype or device of their other tensors, no numbers."""
    for operation in operations:
        known(operation).likeness = True


def places(*operations: Callable) -> None:
    """Say that these operations write rows into their first argument at places that are given."""
    for operation in operations:
        known(operation).places = True


def offsets(*operations: Callable) -> None:
    """Say that these operations add or subtract their arguments."""
    for operation in operations:
        known(operation).offset = True


def any_leading(*operations: Callable) -> None:
    """Say that the exact forms of these operations treat every axis before the operation's own as
    rows, so that the samples' axis may be moved to the front.
    """
    for operation in operations:
        known(operation).any_leading = True


@dataclass
class Call:
    """One operation as it was called, for rules that serve many operations."""

    operation: Callable
    """What was called."""
    leaves: list[Tensor]
    """The tensors among the arguments, in order."""
    where: int
    """Index of the leaf whose gradient is asked for."""
    shared: set[int]
    """Indices of leaves without a sample axis."""
    rebuild: Callable[[list], tuple[tuple, dict]]
    """(args, kwargs) with other tensors in the leaves' places."""
    layouts: list[Layout]
    """Where each leaf's samples are."""
    out: Layout
    """Where the result's samples are, and those of its gradient b."""

    @property
    def plain(self) -> bool:
        """Whether samples lie along axis 0 everywhere, sample-major and equally many."""
        return self.out.plain and all(x.plain for x in self.layouts if x.known)

    def __call__(self, leaves: list) -> Any:
        args, kwargs = self.rebuild(leaves)
        return self.operation(*args, **kwargs)


class NoRule(LookupError):
    """The operation has no rule for this argument."""


def find(operation: Callable, call: Call) -> Contribution:
    """``contribution(n, b, leaves) -> Factor`` for the argument `call.where`.

    The operation's general form, or that of the argument, or the form of whatever has none. Rules
    of single arguments are for real numbers.

    Raises:
        NoRule: nothing serves the operation.
    """
    entry = OPERATIONS.get(operation, UNKNOWN)
    whatever = None if UNKNOWN.general is None else general_rule(UNKNOWN.general, call)
    if any(leaf.is_complex() for leaf in call.leaves) and whatever is not None:
        return whatever
    if entry.general is not None:
        return general_rule(entry.general, call)
    found = argument_rule(operation, call, whatever) or whatever
    if found is None:
        raise NoRule
    return found


def general_rule(form: Callable[..., Factor], call: Call) -> Contribution:
    """A form of any argument for this call; it holds none of the call's tensors alive."""
    bare = replace(call, leaves=[])
    return lambda n, b, leaves: form(n, b, replace(bare, leaves=leaves))


def argument_rule(
    operation: Callable, call: Call, otherwise: Contribution | None
) -> Contribution | None:
    """The exact form of the argument `call.where`, None if it has none.

    Where the form says NoRule to the other arguments of the call, it is `otherwise`.
    """
    # bound in the tensors' stead, to see which name each of them has
    entry, places = OPERATIONS.get(operation, UNKNOWN), [object() for _ in call.leaves]
    args, kwargs = call.rebuild(places)
    for signature in entry.signatures:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError:
            continue
        for name, value in bound.items():
            if value is places[call.where] and name in entry.arguments:
                return _with_arguments(entry.arguments[name], call.rebuild, otherwise)
    return None


def _with_arguments(
    form: Callable[..., Factor], rebuild: Callable, otherwise: Contribution | None
) -> Contribution:
    def contribution(n: int, b: Tensor, leaves: list[Tensor]) -> Factor:
        args, kwargs = rebuild(leaves)
        try:
            return form(n, b, *args, **kwargs)
        except NoRule:  # not for these arguments
            if otherwise is None:
                raise
            return otherwise(n, b, leaves)

    return contribution
