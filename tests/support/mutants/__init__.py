"""Our engine with one mistake each, for the conformance suite to find: used by
tests/engine/test_conformance_mutants.py.

A mutant patches one function of the engine, at one of the places in `points`. Its `cases` are a few
that have to catch it (any one will do); the numbers alone must, with the balance unchecked. Axes: n
train samples, m validation samples, t tokens, i in, o out, k directions.
"""

from tests.support.mutants import (  # each adds its mutants
    directions,  # noqa: F401
    layers,  # noqa: F401
    steps,  # noqa: F401
    targets,  # noqa: F401
    updates,  # noqa: F401
    uses,  # noqa: F401
)
from tests.support.mutants.base import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
