"""The numbers of a report, beside a plain loop over the rows of the store."""

import itertools

import numpy as np
import pytest

from inrun.report.charts import course, groups, ledger_course, waterfall, waterfall_rows
from inrun.report.facts import BINS, agreement, group_column, target_facts
from inrun.report.page import heat_table
from inrun.report.texts import cards, pieces_of
from tests.report.conftest import DOMAINS, HOSTILE, SAMPLES, TARGETS


@pytest.fixture(scope="module")
def facts(values):
    return target_facts(values, "code", "path", "domain")


@pytest.fixture(scope="module")
def by_sample(values):
    """sample -> [(step, value, value over the root mean square of its step)], by a loop."""
    rows = values.sql(
        "SELECT step, sample_id, CAST(path AS DOUBLE) AS value FROM terms WHERE target = 'code'"
    ).to_pylist()
    found = {}
    for step in {row["step"] for row in rows}:
        here = [row for row in rows if row["step"] == step]
        size = np.sqrt(np.mean([row["value"] ** 2 for row in here]))
        for row in here:
            found.setdefault(row["sample_id"], []).append((step, row["value"], row["value"] / size))
    return found


def test_groups_are_means_over_chunks(facts, by_sample):
    assert group_column_names(facts) == set(DOMAINS)
    for row in facts.by_group:
        own = [uses for i, uses in by_sample.items() if DOMAINS[i % 3] == row["group"]]
        within = [np.mean([use[2] for use in uses]) for uses in own]
        sums = [sum(use[1] for use in uses) for uses in own]
        assert row["chunks"] == len(own)
        assert row["within"] == pytest.approx(np.mean(within), rel=1e-12)
        assert row["error"] == pytest.approx(np.std(within, ddof=1) / np.sqrt(len(own)), rel=1e-9)
        assert row["value"] == pytest.approx(sum(sums), rel=1e-12)
        assert row["negative"] == np.mean([s < 0 for s in sums])
    assert sum(row["share"] for row in facts.by_group) == pytest.approx(1, rel=1e-12)


def group_column_names(facts):
    return {row["group"] for row in facts.by_group}


def test_the_waterfall_adds_up_to_the_drop(facts, values):
    bars = waterfall_rows(facts)
    assert bars[0]["from"] == 0
    for before, after in itertools.pairwise(bars):
        assert after["from"] == before["to"]
    assert bars[-1]["to"] == pytest.approx(values.ledger("code", "path").drop, rel=1e-12)
    first, last = facts.losses
    assert first - last == pytest.approx(values.ledger("code", "path").drop, rel=1e-12)


def test_courses_cover_the_run_and_keep_every_use(facts, by_sample):
    assert sum(row["uses"] for row in facts.course) == sum(map(len, by_sample.values()))
    assert {row["first_step"] for row in facts.course} >= {0, 11}
    assert len(facts.ledger_course) <= BINS


def test_what_leaves_is_the_lowest(facts, by_sample):
    within = {i: np.mean([use[2] for use in uses]) for i, uses in by_sample.items()}
    order = sorted(within, key=lambda i: (within[i], i))
    assert facts.dropped
    for row in facts.dropped:
        lowest = order[: row["chunks"]]
        assert row["chunks"] == int(row["share"] * len(order))
        assert row["threshold"] == pytest.approx(within[lowest[-1]], rel=1e-12)
        total = sum(use[1] for i in lowest for use in by_sample[i])
        assert row["value"] == pytest.approx(total, rel=1e-9)


def test_the_largest_step_is_the_largest(facts, by_sample):
    sizes = {}
    for uses in by_sample.values():
        for step, value, _ in uses:
            sizes[step] = sizes.get(step, 0.0) + abs(value)
    step, share = facts.largest_step
    assert step == max(sizes, key=sizes.get)
    assert share == pytest.approx(sizes[step] / sum(sizes.values()), rel=1e-12)


def test_charts_have_their_data_and_one_scale_of_colours(facts):
    for make in (waterfall, groups, course, ledger_course):
        spec = make(facts)
        assert spec["$schema"].startswith("https://vega.github.io/schema/vega-lite/")


def test_heat_is_scaled_by_target(values):
    every = [target_facts(values, name, "path", "domain") for name in TARGETS]
    cells = list(zip(*(row["cells"] for row in heat_table(every))))
    for column in cells:
        assert max(abs(cell["colour"]) for cell in column) == 1


def test_methods_are_compared_by_ranks(values):
    from scipy.stats import spearmanr

    (pair,) = agreement(values, "code")
    x, y = (values.values("code", m)["value"].to_numpy() for m in ("path", "first_order"))
    assert pair["spearman"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_cards_hold_best_worst_and_random(values, by_sample):
    shown = cards(values, "path", None, count=4)
    ids = {card["id"] for card in shown}
    within = {i: np.mean([use[2] for use in uses]) for i, uses in by_sample.items()}
    order = sorted(within, key=lambda i: (within[i], i))
    assert ids >= {*order[:4], *order[-4:]}
    assert sum(card["random"] for card in shown) == 4
    best = next(card for card in shown if card["id"] == order[-1])
    assert best["values"]["code"]["rank"] == 1
    assert best["values"]["code"]["samples"] == len(by_sample)
    assert best["values"]["code"]["within"] == pytest.approx(within[order[-1]], rel=1e-12)
    assert set(best["values"]) == set(TARGETS)
    assert {card["text"] for card in cards(values, "path", None, SAMPLES)} >= {HOSTILE}


def test_no_column_tells_chunks_apart_where_there_is_none(values):
    assert group_column(values) == "domain"
    whole = target_facts(values, "code", "path", None)
    assert [row["group"] for row in whole.by_group] == ["all"]


def test_pieces_are_whole_characters():
    def decode(ids):
        return bytes(ids).decode("utf-8", "replace")

    tokens = list("a\U0001f600é".encode())
    pieces, ends = pieces_of(tokens, decode)
    assert pieces == ["a", "\U0001f600", "é"]
    assert ends == [1, 5, 7]
    assert "".join(pieces_of(tokens[:3], decode)[0]) == decode(tokens[:1]) + decode(tokens[1:3])
