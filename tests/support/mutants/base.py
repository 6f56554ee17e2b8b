"""What a mutant is, and the ways to put one mistake into the engine."""

from collections.abc import Callable
from dataclasses import dataclass

from inrun.rules import OPERATIONS
from tests.support.mutants.points import POINTS


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what the engine does wrong, in words.
        cases: names of conformance cases; at least one of them must fail.
        apply: patches the engine with pytest's monkeypatch.
        seen: where the mistake has been made in public, if it has.
    """

    name: str
    cases: tuple[str, ...]
    apply: Callable
    seen: str = ""


MUTANTS: list[Mutant] = []


def mutant(name: str, *cases: str, seen: str = ""):
    """Decorator: this function applies the mutant."""

    def add(apply):
        MUTANTS.append(Mutant(name, cases, apply, seen))
        return apply

    return add


def exchange_rule(patch, operation, argument, function) -> None:
    """The exact form of an operation's argument becomes `function`."""
    arguments = OPERATIONS[operation].arguments
    assert argument in arguments
    patch.setitem(arguments, argument, function)


def exchange(patch, point, new) -> None:
    """What stands at a point of `POINTS` becomes `new`."""
    patch.setattr(*POINTS[point], new)


def wrap(patch, point, around) -> None:
    """What stands at a point of `POINTS` becomes ``around(original, *args, **kwargs)``."""
    owner, name = POINTS[point]
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))
