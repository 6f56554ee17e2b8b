"""Value dynamics: shares, means and ledgers against sums over the rows by hand; the command on a
model of seconds.
"""

from collections import defaultdict

import pyarrow.parquet as pq
import pytest

from inrun.store import ValueStore, ValueWriter, dynamics, ledger_over
from tests.support.experiment_example import CORPUS, MODEL, places
from tests.support.store_example import METHODS, RUN, SAMPLES, ledger_row, terms, write_step

STEPS, BINS = range(4, 17), 3  # 13 steps: bins of 5, 4, 4


def place(step):
    return (step - 4) * BINS // 13


@pytest.fixture
def store(tmp_path):
    with ValueWriter(tmp_path / "values", RUN) as writer:
        writer.samples(SAMPLES)
        for step in STEPS:
            write_step(writer, step)
    with ValueStore(tmp_path / "values") as opened:
        yield opened


def test_shares_means_and_values_per_drop_are_those_of_the_rows(store):
    domain = dict(zip(SAMPLES["sample_id"].to_pylist(), SAMPLES["domain"].to_pylist()))
    sums, uses, drops = defaultdict(float), defaultdict(int), defaultdict(float)
    for step in STEPS:
        ids, values = terms(step)
        for i, value in zip(ids.tolist(), values["math"]["path"].tolist()):
            sums[place(step), domain[i]] += value
            uses[place(step), domain[i]] += 1
        drops[place(step)] += ledger_row(step, "math", "path", ranks=1)["drop"]
    rows = dynamics(store, "domain", BINS, "math", "path").to_pylist()
    assert [(row["bin"], row["group"]) for row in rows] == sorted(sums)
    for row in rows:
        key = (row["bin"], row["group"])
        assert row["value"] == pytest.approx(sums[key], rel=1e-12)
        assert (row["uses"], row["mean"]) == (
            uses[key],
            pytest.approx(sums[key] / uses[key], rel=1e-12),
        )
        total = sum(value for (at, _), value in sums.items() if at == row["bin"] and value > 0)
        assert row["share"] == (
            pytest.approx(sums[key] / total, rel=1e-12) if sums[key] > 0 else None
        )
        drop = drops[row["bin"]]
        assert row["per_drop"] == (pytest.approx(sums[key] / drop, rel=1e-9) if drop > 0 else None)
    assert {row["share"] is None for row in rows} == {True, False}
    assert [(row["first_step"], row["last_step"]) for row in rows if row["group"] == "wiki"] == [
        (4, 8),
        (9, 12),
        (13, 16),
    ]


def test_the_ledger_of_a_phase_is_the_sum_of_its_steps_and_balances(store):
    for method in METHODS:
        rows = ledger_over(store, BINS, "val", method).to_pylist()
        assert [(row["first_step"], row["last_step"], row["steps"]) for row in rows] == [
            (4, 8, 5),
            (9, 12, 4),
            (13, 16, 4),
        ]
        for row in rows:
            mine = [
                ledger_row(step, "val", method, ranks=1)
                for step in STEPS
                if place(step) == row["bin"]
            ]
            for key in ("drop", "drift", "values", "residual"):
                assert row[key] == pytest.approx(sum(r[key] for r in mine), rel=1e-12, abs=1e-12)
            assert row["drop"] == pytest.approx(
                row["drift"] + row["values"] + row["residual"], abs=1e-12
            )
            assert row["loss_after"] == mine[-1]["loss_after"]


def test_a_drift_that_was_not_measured_at_every_step_is_not_summed(tmp_path):
    with ValueWriter(tmp_path / "values", RUN) as writer:
        for step in range(4):
            ids, values = terms(step)
            writer.terms(step, ids, "val", values["val"])
            row = ledger_row(step, "val", "path", ranks=1)
            writer.ledger({**row, **({"drift": None, "residual": None} if step == 3 else {})})
    with ValueStore(tmp_path / "values") as store:
        first, last = ledger_over(store, 2, "val", "path").to_pylist()
    assert first["drift"] is not None
    assert last["drift"] is last["residual"] is None
    assert last["drop"] == pytest.approx(
        sum(ledger_row(s, "val", "path", ranks=1)["drop"] for s in (2, 3))
    )


def test_the_command_leaves_tables_whose_ledgers_balance_and_a_figure(
    shared, typed, tmp_path, capsys
):
    targets = (
        "[{name: law, domains: [FreeLaw], chunks: 3}, {name: code, domains: [Github], chunks: 3}]"
    )
    small = [
        *places(shared, tmp_path / "runs"), *CORPUS, *MODEL, f"attribution.targets={targets}",
        "bins=4",
        "train.steps=9", "train.batch_size=8", "train.eval_every=0", "optim.warmup=2", "seeds=[2]",
        "name=small", "record=true",
    ]  # fmt: skip
    typed("dynamics", small, tmp_path / "results")
    out = capsys.readouterr().out
    assert "## Target code" in out
    folder = tmp_path / "runs" / "small"
    phases = pq.read_table(folder / "phases.parquet").to_pylist()
    ledger = pq.read_table(folder / "ledger.parquet").to_pylist()
    assert [(row["target"], row["phase"]) for row in ledger] == [
        (t, p) for t in ("law", "code") for p in ("early", "middle", "late")
    ]
    for row in ledger:
        mine = [
            r["value"] for r in phases if (r["target"], r["phase"]) == (row["target"], row["phase"])
        ]
        assert row["values"] == pytest.approx(
            sum(mine), rel=1e-5
        )  # the ledger is float64, rows are float32
    for name in ("dynamics.png", "dynamics.svg", "dynamics.parquet", "ledger.md", "finished"):
        assert (folder / name).is_file()
    assert (tmp_path / "results" / "dynamics.csv").is_file()
    assert (tmp_path / "results" / "dynamics-ledger.csv").is_file()

    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in ("dynamics.png", "dynamics.svg", "ledger.md"):
        (folder / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.dynamics.study.train_or_reuse", None)
        typed("dynamics", [*small, "--recompute-report"], tmp_path / "results")
    assert {path: path.read_bytes() for path in before} == before
