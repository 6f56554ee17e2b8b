"""The fidelity experiment as a user types it, on a model of seconds."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from experiments.arguments import composed as config_of
from experiments.artifacts import Outputs
from experiments.fidelity import study as fidelity
from experiments.fidelity.probe import PROBES, compare
from experiments.fidelity.report import claim, report_text
from experiments.fidelity.study import FidelityConfig, measured
from inrun.train import ConfigError

ROOT = Path(__file__).parents[2]


def overrides(root: Path) -> list[str]:
    return [
        f"runs={root}/runs", f"data_root={root}/data", "data=files", f"data.path={root}/raw",
        "data.tokenizer=bytes",
        "data.block_size=24", "data.val_share=0.2", "model.vocab_size=320", "model.block_size=24",
        "model.n_layer=1", "model.n_head=2",
        "model.d_model=16", "train.device=cpu", "block=16", "players=4", "seeds=[3]", "steps=[6]",
        "train.steps=6",
        "train.checkpoint_every=3", "train_optim.warmup=2",
    ]  # fmt: skip


def typed(*arguments: str, expect: int = 0) -> tuple[str, str]:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "fidelity", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    """Runs of its own, on the documents of all tests."""
    root = tmp_path_factory.mktemp("fidelity")
    for name in ("raw", "data"):
        (root / name).symlink_to(shared / name)
    return root


def test_a_sweep_over_learning_rates_leaves_tables_figures_and_a_report_each(root):
    # over 5 s: a process of its own, as a user starts it; two rates, two optimizers, all coalitions
    before = set(ROOT.iterdir())
    out, err = typed("-m", "optim.lr=1e-3,1e-2", "name='lr-${optim.lr}'", *overrides(root))
    assert "## One step of adamw" in out
    assert "[2/2] seed 3, step 6, adamw" in err
    assert not {path.name for path in set(ROOT.iterdir()) - before} & {
        "multirun.yaml",
        "multirun",
        "outputs",
    }
    assert err.count("training to step 6") == 1, "the second job uses the first one's training run"
    for lr in ("0.001", "0.01"):
        folder = root / "runs" / f"lr-{lr}"
        tables = {
            f"{name}.{kind}"
            for name in ("fidelity", "samples", "coalitions")
            for kind in ("parquet", "md")
        }
        figures = {f"{name}.{kind}" for name in ("fidelity", "utility") for kind in ("svg", "png")}
        assert tables | figures | {"config.json", "finished"} <= {
            path.name for path in folder.iterdir()
        }
        rows = pq.read_table(folder / "fidelity.parquet").to_pylist()
        values = {
            (row["optimizer"], row["method"]): row for row in rows if row["quantity"] == "values"
        }
        assert set(values) == {
            (optimizer, m.name) for optimizer in ("sgd", "adamw") for m in PROBES[optimizer]
        }
        assert all(row["lr"] == float(lr) and row["coalitions"] == 16 for row in rows)
        assert (
            values["sgd", "path_3"]["relative_rmse"] < values["sgd", "first_order"]["relative_rmse"]
        )
        samples = pq.read_table(folder / "samples.parquet").to_pylist()
        truth = {s["player"]: s["truth"] for s in samples if s["optimizer"] == "sgd"}
        assert sum(truth.values()) == pytest.approx(
            values["sgd", "path_1"]["utility_of_all"], rel=1e-9
        )
        coalitions = pq.read_table(folder / "coalitions.parquet").to_pylist()
        by_members = {c["coalition"]: c for c in coalitions if c["optimizer"] == "sgd"}
        assert len(by_members) == 16
        assert by_members["1111"]["utility"] == values["sgd", "path_1"]["utility_of_all"]
        found = {
            s["player"]: s["value"]
            for s in samples
            if (s["optimizer"], s["method"]) == ("sgd", "path_1")
        }
        assert by_members["0110"]["path_1"] == pytest.approx(found[1] + found[2], rel=1e-12)


def test_a_killed_study_goes_on_and_a_finished_one_is_not_repeated(root, tmp_path, monkeypatch):
    one = {"name": "resumed", "optim": {"names": ["sgd", "adamw"], "lr": [1e-3, 1e-2]}}
    settings = composed(root, one)
    out = Outputs.open(settings.runs, dataclasses.asdict(settings), settings.name)
    console = Console(quiet=True)

    def killed(study, optimizer, lr, *rest):
        if (optimizer, lr) == ("adamw", 1e-2):
            raise KeyboardInterrupt
        computed.append((optimizer, lr))
        return compare(study, optimizer, lr, *rest)

    computed: list[tuple[str, float]] = []
    monkeypatch.setattr(fidelity, "compare", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(settings, out.folder, console)
    assert computed == [("sgd", 1e-3), ("sgd", 1e-2), ("adamw", 1e-3)]
    monkeypatch.setattr(fidelity, "compare", compare)
    computed.clear()
    first = measured(settings, out.folder, console)
    monkeypatch.setattr(fidelity, "compare", None)
    assert measured(settings, out.folder, console) == first, "everything is read"
    assert {(row["optimizer"], row["lr"]) for row in first[0]} == {
        (o, lr) for o in ("sgd", "adamw") for lr in (1e-3, 1e-2)
    }


@pytest.mark.slow
def test_sampled_truth_agrees_with_enumeration_within_its_standard_errors(root):
    one = ["optim.names=[sgd]", "optim.lr=1e-2", *overrides(root)]
    typed("name=enumerated", *one)
    out, _ = typed("name=sampled", "permutations=80", *one)
    assert "Truth sampled: largest standard error" in out
    tables = [
        pq.read_table(root / "runs" / name / "samples.parquet").to_pylist()
        for name in ("enumerated", "sampled")
    ]
    exact, sampled = ([s for s in table if s["method"] == "path_1"] for table in tables)
    for a, b in zip(exact, sampled):
        assert a["value"] == b["value"]
        # ten blocks: five standard errors of Student's t with 9 degrees of freedom are a chance of
        # 1 in 1300; the floor is rounding
        assert abs(a["truth"] - b["truth"]) <= 5 * b["standard_error"] + 1e-12


VALUES = {
    "scale": "x", "model": {}, "data": {}, "train": {"steps": 9, "checkpoint_every": 2},
    "train_optim": {}, "optim": {"lr": 1e-3}, "seeds": [0], "steps": [2],
    "players": 3, "permutations": 0, "block": 8, "val_chunks": 1, "runs": "r", "data_root": "d",
}  # fmt: skip


def composed(root: Path, change: dict) -> FidelityConfig:
    """The settings of `overrides`, changed."""
    found = config_of("fidelity", overrides(root))
    return FidelityConfig.from_mapping({**found, **change})


def test_one_learning_rate_may_stand_for_a_list():
    assert FidelityConfig.from_mapping(VALUES).optim.lr == (1e-3,)
    assert FidelityConfig.from_mapping({**VALUES, "optim": {"lr": [1e-3, 1e-2]}}).optim.lr == (
        1e-3,
        1e-2,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 0.0}}, "positive learning rates"),
        ({"optim": {"lr": 0.1, "names": ["adam"]}}, "choose from sgd, adamw"),
        ({"players": 13}, "more need permutations > 0"),
        ({"block": 5000}, "block=5000 must be 1 to data.block_size"),
        ({"seeds": []}, "must not be empty"),
        ({"steps": [2, 3, 9]}, r"steps=\[3\]: checkpoints are left every 2 steps up to 9"),
        ({"steps": [10]}, r"steps=\[10\]: checkpoints"),
        ({"optim": {"lr": 0.1, "names": ["lion"]}}, "lion needs a training with that optimizer"),
        ({"player": 3}, "unknown key 'player'; known are runs"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        FidelityConfig.from_mapping({**VALUES, **change})


ROW = {
    "train_steps": 1, "optimizer": "sgd", "lr": 0.1, "quantity": "values", "method": "path_1",
    "model": "gpt2", "players": 4, "block": 8,
    "parameters": 10, "rmse": 1.0, "pearson": 0.9, "spearman": 0.8, "sum_gap": -0.5,
    "cost_ratio": 2.0, "largest_standard_error": 0.0,
    "truth_spread": 1.0,
}  # fmt: skip


def test_the_report_gives_medians_over_seeds_and_the_worst_order():
    rows = [
        {**ROW, "method": method, "seed": seed, "relative_rmse": error, "spearman": order}
        for method in ("first_order", "path_1")
        for seed, (error, order) in enumerate(((0.1, 1.0), (0.2, 0.8), (0.9, 0.5)))
    ]
    text = report_text(rows)
    assert "| 0.1 | path_1 | 0.2 | 1 | 0.90000 | 0.800 | 0.500 | 50.00% | 2.00 |" in text
    assert "Truth enumerated: exact" in text
    assert "Truth sampled: largest standard error 0.3 of the spread" in report_text(
        [{**row, "largest_standard_error": 0.3} for row in rows]
    )


def test_the_claim_is_asked_where_first_order_is_usable_and_judged_by_the_median():
    orders = {
        (1e-3, "first_order"): (0.9, 0.85, 0.1), (1e-3, "path_1"): (1.0, 0.995, 0.9),
        (1e-2, "first_order"): (0.9, 0.85, 0.8), (1e-2, "path_1"): (1.0, 0.98, 0.9),
        (1e-1, "first_order"): (0.9, 0.80, 0.1), (1e-1, "path_1"): (1.0, 1.0, 1.0),
    }  # fmt: skip
    rows = [
        {**ROW, "lr": lr, "method": method, "seed": seed, "spearman": order, "relative_rmse": 0.1}
        for (lr, method), found in orders.items()
        for seed, order in enumerate(found)
    ]
    assert [
        (c["first_order"], c["path"], c["worst"], c["true_order"]) for c in claim(rows, "sgd")
    ] == [
        (0.85, 0.995, 0.9, 2),
        (0.85, 0.98, 0.9, 1),
        (0.80, 1.0, 1.0, 3),
    ]
    verdicts = [
        line.split("|")[-2].strip() for line in report_text(rows).splitlines() if "of 3 |" in line
    ]
    assert verdicts == ["yes", "no", "not asked"]
