"""The benchmark: what it computes from what it measures, and that it runs small."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.throughput.bench import SIZES, Bench
from experiments.throughput.cases import CASES
from experiments.throughput.report import short_table, table
from experiments.throughput.study import BenchConfig, Plan, rows_of
from inrun.config import build
from inrun.train import ConfigError

ROOT = Path(__file__).parents[2]
#: an optional package; a C++ compiler and a minute (`tests/test_attributor.py` traces a compiled
#: model without one)
SLOW_TO_START = {"opacus", "regular_compiled", "first_order_compiled"}


@pytest.mark.parametrize("name", sorted(set(CASES) - SLOW_TO_START))
def test_every_case_takes_training_steps_that_move_the_weights(name):
    bench = Bench("tiny-4+16" if "16_targets" in name or "4_targets" in name else "tiny", "fp32")
    before = bench.model.head_weight.detach().clone()
    step = bench.step(name)
    step()
    step()
    assert not before.equal(bench.model.head_weight)


def test_ratios_are_taken_within_a_round():
    plan = Plan("tiny", "fp32", 3, ("regular", "regular_train_only", "path"))
    times = {
        "regular": [1.0, 4.0, 2.0],
        "regular_train_only": [0.5, 2.0, 1.0],
        "path": [2.0, 4.0, 8.0],
    }
    row = rows_of(plan, times, {"path": 77})[2]
    assert (row["ratio_min"], row["ratio"], row["ratio_max"]) == (0.25, 0.5, 1.0)
    assert (row["ratio_to_train_only"], row["ratio_to_stock"], row["peak_mib"]) == (0.25, None, 77)
    assert row["tokens_per_second"] == SIZES["tiny"].n * SIZES["tiny"].t / 4.0
    assert "0.250 / **0.500** / 1.000" in table([row])


def test_unknown_cases_and_sizes_name_the_known_ones():
    with pytest.raises(ConfigError, match="frist_order; cases: regular"):
        build(
            BenchConfig,
            {
                "plans": [
                    {"size": "small", "precision": "fp32", "rounds": 1, "cases": ["frist_order"]}
                ]
            },
            "",
        )
    with pytest.raises(ConfigError, match="sizes: tiny"):
        Plan("smal", "fp32", 1, ())


def test_the_page_on_performance_shows_what_was_measured():
    with (ROOT / "experiments/results/bench.csv").open(newline="") as file:
        assert short_table(list(csv.DictReader(file))) in (ROOT / "docs/performance.md").read_text()


@pytest.mark.slow
def test_bench_writes_its_tables_and_a_second_call_measures_nothing(tmp_path):
    plans = (
        "plans=[{size: tiny, precision: fp32, rounds: 1, memory: [first_order], cases: "
        "[first_order]}]"
    )
    arguments = [sys.executable, "-m", "experiments", "bench", plans, f"runs={tmp_path}"]
    done = [
        subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert "round 1 of 1" in done[0].stderr
    assert "round" not in done[1].stderr
    (folder,) = tmp_path.iterdir()
    assert {p.suffix for p in folder.glob("bench.*")} == {".parquet", ".md", ".svg", ".png"}
    rows = json.loads((folder / "tiny-fp32.json").read_text())
    assert set(json.loads((folder / "tiny-fp32.memory.json").read_text())) == {"first_order"}
    assert [row["case"] for row in rows] == ["regular", "first_order"]
    assert rows[1]["peak_mib"] is None or rows[1]["peak_mib"] > 50
