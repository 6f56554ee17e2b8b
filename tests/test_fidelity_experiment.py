"""The fidelity experiment as a user types it, on a model of seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experiments.fidelity import FidelityConfig
from experiments.fidelity_probe import PROBES
from experiments.fidelity_report import report
from inrun.train import ConfigError
from tests.train_example import write_documents

ROOT = Path(__file__).parents[1]


def overrides(root: Path) -> list[str]:
    return [
        f"runs={root}/runs", f"data_root={root}/data", "data=files", f"data.path={root}/raw", "data.tokenizer=bytes",
        "data.block_size=24", "data.val_share=0.2", "model.vocab_size=320", "model.block_size=24", "model.n_layer=1", "model.n_head=2",
        "model.d_model=16", "train.device=cpu", "block=16", "players=4", "seeds=[3]", "steps=[6]", "train_optim.warmup=2",
    ]  # fmt: skip


def typed(*arguments: str, expect: int = 0) -> tuple[str, str]:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.fidelity", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("fidelity")
    write_documents(root / "raw")
    return root


def test_a_sweep_over_learning_rates_leaves_a_table_a_figure_and_a_report_each(root):
    before = set(ROOT.iterdir())
    out, err = typed("-m", "optim.lr=1e-3,1e-2", "name='lr-${optim.lr}'", *overrides(root))
    assert "## Values, one step of adamw" in out
    assert "[2/2] seed 3, step 6, adamw" in err
    assert not {path.name for path in set(ROOT.iterdir()) - before} & {"multirun.yaml", "multirun", "outputs"}
    assert err.count("training to step 6") == 1, "the second job uses the first one's training run"
    for lr in ("0.001", "0.01"):
        folder = root / "runs" / f"lr-{lr}"
        assert {"fidelity.parquet", "fidelity.csv", "samples.parquet", "fidelity.png", "fidelity.svg", "report.md"} <= {
            path.name for path in folder.iterdir()
        }
        rows = pq.read_table(folder / "fidelity.parquet").to_pylist()
        values = {(row["optimizer"], row["method"]): row for row in rows if row["quantity"] == "values"}
        assert set(values) == {(optimizer, m.name) for optimizer, methods in PROBES.items() for m in methods}
        assert all(row["lr"] == float(lr) and row["coalitions"] == 16 for row in rows)
        assert all(row["config_digest"] and row["git_revision"] for row in rows)
        assert values["sgd", "path_3"]["relative_rmse"] < values["sgd", "first_order"]["relative_rmse"]
        samples = pq.read_table(folder / "samples.parquet").to_pylist()
        truth = {s["player"]: s["truth"] for s in samples if s["optimizer"] == "sgd"}
        assert sum(truth.values()) == pytest.approx(values["sgd", "path_1"]["utility_of_all"], rel=1e-9)


@pytest.mark.slow
def test_sampled_truth_agrees_with_enumeration_within_its_standard_errors(root):
    one = ["optim.names=[sgd]", "optim.lr=1e-2", *overrides(root)]
    typed("name=enumerated", *one)
    out, _ = typed("name=sampled", "permutations=80", *one)
    assert "Truth sampled: largest standard error" in out
    tables = [pq.read_table(root / "runs" / name / "samples.parquet").to_pylist() for name in ("enumerated", "sampled")]
    exact, sampled = ([s for s in table if s["method"] == "path_1"] for table in tables)
    for a, b in zip(exact, sampled):
        assert a["value"] == b["value"]
        # ten blocks: five standard errors of Student's t with 9 degrees of freedom are a chance of 1 in 1300; the floor is rounding
        assert abs(a["truth"] - b["truth"]) <= 5 * b["standard_error"] + 1e-12


VALUES = {
    "scale": "x", "model": {}, "data": {}, "train": {}, "train_optim": {}, "optim": {"lr": 1e-3}, "seeds": [0], "steps": [1],
    "players": 3, "permutations": 0, "block": 8, "val_chunks": 1, "runs": "r", "data_root": "d",
}  # fmt: skip


def test_one_learning_rate_may_stand_for_a_list():
    assert FidelityConfig.from_mapping(VALUES).optim.lr == (1e-3,)
    assert FidelityConfig.from_mapping({**VALUES, "optim": {"lr": [1e-3, 1e-2]}}).optim.lr == (1e-3, 1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 0.0}}, "positive learning rates"),
        ({"optim": {"lr": 0.1, "names": ["adam"]}}, "choose from sgd, adamw"),
        ({"players": 13}, "more need permutations > 0"),
        ({"block": 5000}, "block=5000 must be 1 to data.block_size"),
        ({"seeds": []}, "must not be empty"),
        ({"player": 3}, "unknown key 'player'; known are scale"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        FidelityConfig.from_mapping({**VALUES, **change})


def test_the_report_gives_medians_over_seeds():
    row = {
        "train_steps": 1, "optimizer": "sgd", "lr": 0.1, "quantity": "values", "method": "path_1", "players": 4, "parameters": 10,
        "rmse": 1.0, "pearson": 0.9, "spearman": 0.8, "sum_gap": -0.5, "seconds_ratio": 2.0, "largest_standard_error": 0.0,
        "truth_spread": 1.0,
    }  # fmt: skip
    rows = [{**row, "seed": seed, "relative_rmse": error} for seed, error in enumerate((0.1, 0.2, 0.9))]
    line = next(line for line in report(rows).splitlines() if "path_1" in line)
    assert line == "| 0.1 | path_1 | 0.2 | 1 | 0.90000 | 0.800 | 50.00% | 2.00 |"
