"""The demo's report against the store of its run; its own arithmetic; the log's files."""

import json

import numpy as np
import pytest

from experiments.demo.report import chance_spread, within_step
from inrun.evaluate import auroc
from inrun.store import ValueStore
from inrun.train.log import JsonLines, read_lines


def test_rank_within_a_step_knows_nothing_of_other_steps():
    scores = np.array([5.0, -1.0, 100.0, 300.0, 200.0, 7.0])
    step = np.array([0, 0, 1, 1, 1, 2])
    assert within_step(scores, step).tolist() == [1.0, 0.0, 0.0, 1.0, 0.5, 0.5]
    assert within_step(scores * 1e-6, step).tolist() == within_step(scores, step).tolist()


def test_log_drops_what_is_past_the_checkpoint_and_a_line_that_a_kill_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"iter": k}) + "\n" for k in range(5)) + '{"iter": 5, "tra')
    assert [row["iter"] for row in read_lines(path)] == [0, 1, 2, 3, 4]
    lines = JsonLines(path, "iter", last=2)
    lines.write({"iter": 3, "again": True})
    lines.close()
    assert read_lines(path) == [{"iter": 0}, {"iter": 1}, {"iter": 2}, {"iter": 3, "again": True}]


def test_spread_of_chance_is_that_of_random_scores():
    random, positives, negatives = np.random.default_rng(0), 30, 100
    noise = np.arange(positives + negatives) < positives
    areas = [auroc(random.random(len(noise)), noise) for _ in range(2000)]
    # a standard deviation over 2000 samples has a standard error of 1 / sqrt(4000), 1.6 %; four of
    # them
    assert np.std(areas) == pytest.approx(chance_spread(positives, negatives), rel=0.065)
    assert chance_spread(0, 5) is None


def test_demo_reports_what_the_store_holds(small_run):
    written = (small_run / "summary.md").read_text()
    out = (small_run / "printed.txt").read_text()
    with ValueStore(small_run / "values") as store:
        rows = store.sql(
            "SELECT t.*, s.kind FROM terms t JOIN samples s USING (sample_id)"
        ).to_pylist()
        best = store.top(1, "law").to_pylist()[0]
    for target in ("law", "code"):
        values = [(row["path"], row["kind"] != "clean") for row in rows if row["target"] == target]
        bad, good = ([v for v, noise in values if noise is which] for which in (True, False))
        assert bad
        assert good
        # the probability that noise has the smaller value of a random pair, ties half
        wins = sum((b < g) + 0.5 * (b == g) for b in bad for g in good) / (len(bad) * len(good))
        section = written.split(f"## Target {target}")[1]
        assert f"by -value {wins:.3f}" in section
        assert f"{wins:.3f}" in out
    assert f"| {best['value']:+.2e} | {best['domain']} |" in written
    assert (small_run / "domains.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (small_run / "domains.svg").read_text()
