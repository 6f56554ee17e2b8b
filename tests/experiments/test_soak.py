"""The soak, short: a trial of each kind, and the figures of a small store."""

import random

import pytest

from experiments.soak import report
from experiments.soak.store import WORK, figures
from experiments.soak.trials import TRIALS, Soak, run_trial


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    return Soak(tmp_path_factory.mktemp("soak"), random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_trial_holds(soak, name):
    ended, fault = run_trial(soak, name, 0)
    assert fault == ""
    assert ended != "fault"


def test_small_store_has_a_figure_for_each_question(tmp_path):
    rows = figures(tmp_path / "store", 5000)
    assert [row["work"] for row in rows] == list(WORK)
    assert all(row["seconds"] > 0 and 0 < row["peak_gib"] < 3 for row in rows)


def test_tables_of_the_page_are_those_of_the_committed_rows():
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.with_tables(page, report.tables()) == page
