"""The stability study as a user types it, in seconds; its verdicts on values whose stability is
known.
"""

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.frame import run
from experiments.stability.study import StabilityConfig, Valuation, judged
from inrun.baselines.subsets import random_subsets
from inrun.config import build
from inrun.data.labelled import ProblemConfig, sample_problem
from inrun.train import ConfigError

SMALL = [
    "problem.train=24", "problem.validation=20", "problem.test=20", "problem.flipped=0.25",
    "recipe.epochs=2", "recipe.checkpoint_every=2",
    "recipe.moments_every=2", "in_run=[first_order_sgd]", "runs_averaged=[1,2]",
    "methods=[datamodels,leave_one_out,data_shapley]",
    "budgets=[20,60]", "repeats=2", "held_out=10",
]  # fmt: skip


def test_the_study_leaves_a_table_and_a_figure_and_trains_nothing_twice(capsys, tmp_path):
    # over 5 s: the trainings of two budgets, three methods, two repeats
    arguments = [f"runs={tmp_path}", "name=small", *SMALL]
    run("stability", arguments)
    first = capsys.readouterr()
    assert "| in_run_first_order_sgd | 2 |" in first.out
    rows = pq.read_table(tmp_path / "small" / "stability.parquet").to_pylist()
    assert {(row["method"], row["budget"]) for row in rows} == {
        ("in_run_first_order_sgd", 1), ("in_run_first_order_sgd", 2), ("datamodels", 20),
        ("datamodels", 60), ("leave_one_out", 60),
        ("data_shapley", 60),
    }  # fmt: skip
    for row in rows:
        assert -1 <= row["agreement"] <= 1
    cost = {(row["method"], row["budget"]): row["trainings"] for row in rows}
    # leave-one-out: two seeds of 25; Data Shapley: six ends for the tolerance, one pair of orders
    # untruncated
    assert [
        cost[key] for key in (("datamodels", 20), ("datamodels", 60), ("leave_one_out", 60))
    ] == [20, 60, 50]
    assert cost["data_shapley", 60] <= 6 + 2 * 24
    assert cost["in_run_first_order_sgd", 2] == pytest.approx(2 * cost["in_run_first_order_sgd", 1])
    assert {"stability.md", "stability.svg", "stability.png", "finished"} <= {
        p.name for p in (tmp_path / "small").iterdir()
    }
    before = sorted((tmp_path / "trained").rglob("part-*.npz"))
    run("stability", arguments)
    assert sorted((tmp_path / "trained").rglob("part-*.npz")) == before
    again = [
        line.split("|")[4:]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| data_shapley")
    ]
    assert [cells[2:] for cells in again] == [
        line.split("|")[4:][2:]
        for line in first.out.splitlines()
        if line.startswith("| data_shapley")
    ]


def test_equal_repeats_agree_and_perfect_values_find_everything():
    problem = sample_problem(ProblemConfig(train=40, validation=20, test=20, flipped=0.25), seed=0)
    subsets, _ = random_subsets(40, 30, 0.5)
    values = -problem.wrong.astype(float) + 0.01 * np.random.default_rng(0).normal(size=40)
    row = judged(
        Valuation("perfect", 1, np.stack([values, values]), 1.0, 0.0),
        problem,
        subsets,
        subsets @ values,
    )
    assert (row["agreement"], row["auroc"], row["lds"], row["auroc_sd"]) == pytest.approx(
        (1, 1, 1, 0)
    )
    row = judged(
        Valuation("opposite", 1, np.stack([values, -values]), 1.0, 0.0),
        problem,
        subsets,
        subsets @ values,
    )
    assert (row["agreement"], row["auroc"], row["lds"], row["order_nothing"]) == pytest.approx(
        (-1, 0.5, 0, 0)
    )
    nothing = Valuation("nothing", 1, np.stack([values, np.zeros(40), values]), 1.0, 0.0)
    row = judged(nothing, problem, subsets, subsets @ values)
    assert (row["agreement"], row["auroc"], row["lds"], row["order_nothing"]) == pytest.approx(
        (1 / 3, 2.5 / 3, 2 / 3, 1)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 1}, "two or more"),
        ({"methods": ["trak"]}, "must be among"),
        ({"budgets": [0]}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build(StabilityConfig, {"problem": {}, "recipe": {}, **change})
