"""Value dynamics: shares, means and books against sums over the rows by hand; the command on a
model of seconds.
"""

from collections import defaultdict

import pyarrow.parquet as pq
import pytest

from experiments.dynamics import study as experiment
from experiments.frame import command
from inrun.store import ValueStore, ValueWriter, dynamics, ledger_over
from tests.support.store_example import METHODS, RUN, SAMPLES, ledger_row, terms, write_step
from tests.support.train_example import write_documents

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
        drops[place(step)] += ledger_row(step, "math", "path")["drop"]
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


def test_books_of_a_phase_are_the_sums_of_its_steps_and_balance(store):
    for method in METHODS:
        rows = ledger_over(store, BINS, "val", method).to_pylist()
        assert [(row["first_step"], row["last_step"], row["steps"]) for row in rows] == [
            (4, 8, 5),
            (9, 12, 4),
            (13, 16, 4),
        ]
        for row in rows:
            mine = [ledger_row(step, "val", method) for step in STEPS if place(step) == row["bin"]]
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
            row = ledger_row(step, "val", "path")
            writer.ledger({**row, **({"drift": None, "residual": None} if step == 3 else {})})
    with ValueStore(tmp_path / "values") as store:
        first, last = ledger_over(store, 2, "val", "path").to_pylist()
    assert first["drift"] is not None
    assert last["drift"] is last["residual"] is None
    assert last["drop"] == pytest.approx(sum(ledger_row(s, "val", "path")["drop"] for s in (2, 3)))


def test_the_command_leaves_tables_whose_books_balance_and_a_figure(tmp_path, monkeypatch, capsys):
    write_documents(tmp_path / "raw")
    small = [
        "data=files", f"data.path={tmp_path}/raw", "data.tokenizer=bytes", "data.block_size=32", "data.domains=[]", "data.name=small",
        "data.max_bytes_per_domain=0", "data.val_share=0.2", "model.vocab_size=320", "model.block_size=32", "model.n_layer=1", "model.n_head=2",
        "model.d_model=16", "train.steps=9", "train.batch_size=8", "train.eval_every=0", "train.eval_chunks=2", "train.device=cpu", "optim.warmup=2",
        "attribution.targets=[{name: law, domains: [FreeLaw], chunks: 3}, {name: code, "
"domains: [Github], chunks: 3}]", "bins=4",
        "seeds=[2]", f"runs={tmp_path}/runs", f"data_root={tmp_path}/data", "name=small", "record=true",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["experiments", *small])
    monkeypatch.setattr("experiments.artifacts.RESULTS", tmp_path / "results")
    command("dynamics", experiment.main)
    out = capsys.readouterr().out
    assert "## Target code" in out
    folder = tmp_path / "runs" / "small"
    phases = pq.read_table(folder / "phases.parquet").to_pylist()
    ledger = pq.read_table(folder / "books.parquet").to_pylist()
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
    for name in ("dynamics.png", "dynamics.svg", "dynamics.parquet", "books.md", "finished"):
        assert (folder / name).is_file()
    assert (tmp_path / "results" / "dynamics.csv").is_file()
