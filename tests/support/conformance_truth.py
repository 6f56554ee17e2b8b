"""The oracle's answers, computed once for all tests that need them (before any mutant is at
work).
"""

from functools import cache

from inrun.conformance import CASES
from inrun.conformance.run import answers

BY_NAME = {case.name: case for case in CASES}


@cache
def expected(name: str):
    return answers(BY_NAME[name])
