"""A conformance suite is worth what it catches: 80 and more mistakes, put into our engine one by
one, must each fail a case by numbers alone.
"""

import pytest

from inrun.attributor import BalanceError
from inrun.conformance import Engine, Outcome, judge
from tests.support.conformance_truth import BY_NAME, expected
from tests.support.mutants import MUTANTS

UNCHECKED = Engine(balance=0)  # not checked: the suite must see it, not the engine itself


def is_killed(outcome: Outcome) -> bool:
    """Wrong numbers, or the books' own error; any other exception is a broken mutant, which proves
    nothing.
    """
    return outcome.status == "fail" or isinstance(outcome.raised, BalanceError)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant, monkeypatch):
    cases = [BY_NAME[name] for name in mutant.cases]
    true = [expected(name) for name in mutant.cases]
    mutant.apply(monkeypatch)
    outcomes = [judge(UNCHECKED, case, answer) for case, answer in zip(cases, true)]
    assert any(is_killed(outcome) for outcome in outcomes), outcomes


def test_names_are_unique_and_there_are_enough():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_unmutated_engine_passes_every_case_that_kills():
    names = dict.fromkeys(name for mutant in MUTANTS for name in mutant.cases)
    outcomes = [judge(UNCHECKED, BY_NAME[name], expected(name)) for name in names]
    assert [outcome for outcome in outcomes if outcome.status != "pass"] == []
