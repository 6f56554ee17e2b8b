"""The curation study as a user types it, on a model of seconds, and its rows against counts by
hand.
"""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.curation.report import summary
from experiments.curation.rows import kind_rows, run_row, score_row
from experiments.curation.settings import CurationConfig
from inrun.store import ValueStore
from inrun.train import ConfigError, mean_chunk_losses
from tests.support.experiment_example import CORPUS, MODEL, places

SMALL = [
    *CORPUS, *MODEL, "train.steps=8", "train.batch_size=8", "train.eval_every=2",
    "train.eval_chunks=4",
    "train.eval_domains=[FreeLaw]", "train.checkpoint_every=4", "optim.warmup=2", "optim.lr=0.02",
    "foreign=[Github]", "seeds=[3]", "online={start: 4, since: 0, every: 2, method: path}",
    "since=0.0",
    "attribution.targets=[{name: law, domains: [FreeLaw], chunks: 4}]", "shares=[0.5]",
    "attribution.method=[{kind: path}, {kind: first_order, update: sgd, name: paper}]",
    "influence={samples: 32, max_side: 128}",
]  # fmt: skip
ARMS = [
    "full",
    "path",
    "paper",
    "high_loss",
    "low_loss",
    "influence",
    "random",
    "path-50",
    "random-50",
    "clean",
    "online",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("curation")


@pytest.fixture(scope="module")
def call(shared, root, typed):
    """The command, with some more settings."""

    def run(*arguments: str) -> None:
        typed("curation", [*SMALL, *places(shared, root / "runs"), *arguments], root / "results")

    return run


@pytest.fixture(scope="module")
def study(root, call):
    call("name=study")
    return root / "runs" / "study"


@pytest.fixture(scope="module")
def runs(root, study):
    """The folder of the training runs."""
    (found,) = (root / "runs" / "trained").iterdir()
    return found


def test_study_trains_every_arm_on_what_its_values_kept(study, runs):
    rows = pq.read_table(study / "curation.parquet").to_pylist()
    assert [row["arm"] for row in rows] == ARMS
    by_arm = {row["arm"]: row for row in rows}
    total = by_arm["full"]["chunks"]
    with ValueStore(runs / "seed-3-full" / "values") as store:
        for method in ("path", "paper"):
            sums = store.sql(
                f"SELECT sample_id, avg(v / size) AS value FROM (SELECT sample_id, {method} "
                f"AS v, sqrt(avg({method} * CAST({method} AS DOUBLE)) OVER "
                "(PARTITION BY step)) AS size FROM terms) GROUP BY sample_id"
            ).to_pydict()
            if method == "path":
                path_means = sums
            negative = {i for i, value in zip(sums["sample_id"], sums["value"]) if value < 0}
            assert 0 < len(negative) < total or method == "paper"
            assert by_arm[method]["chunks"] == total - len(negative)
            kept = pq.read_table(runs / f"seed-3-{method}" / "chunks.parquet")[
                "sample_id"
            ].to_pylist()
            assert kept == sorted(set(range(total)) - negative)
            used = set(mean_chunk_losses(runs / "seed-3-full")["sample_id"].to_pylist())
            assert negative <= used
    assert {
        by_arm[arm]["chunks"] for arm in ("path", "random", "high_loss", "low_loss", "influence")
    } == {by_arm["path"]["chunks"]}
    # every second one of those that were measured
    assert {by_arm[arm]["chunks"] for arm in ("path-50", "random-50")} == {
        total - round(len(used) / 2)
    }
    half = pq.read_table(runs / "seed-3-path-50" / "chunks.parquet")["sample_id"].to_pylist()
    values = {i: value for i, value in zip(*(path_means[key] for key in ("sample_id", "value")))}
    assert max(values[i] for i in used - set(half)) <= min(values[i] for i in used & set(half))
    for name in ("curation.md", "curation.png", "curation.svg", "kinds.parquet", "finished"):
        assert (study / name).is_file()


def test_finished_training_runs_are_not_repeated_and_results_can_be_recorded(
    root, study, runs, call, capsys
):
    trained = sorted(runs.glob("*/checkpoints/*/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in trained]
    table = pq.read_table(study / "curation.parquet")
    call("name=study", "record=true")
    assert "| random |" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in trained] == before
    assert pq.read_table(study / "curation.parquet") == table
    with (root / "results" / "curation.csv").open(encoding="utf-8") as file:
        recorded = list(csv.DictReader(file))
    assert [row["arm"] for row in recorded] == ARMS
    assert all(row["config_digest"] and row["revision"] for row in recorded)


def test_online_run_uses_nothing_that_its_last_decision_left_out(runs):
    folder = runs / "seed-3-online"
    assert (
        json.loads((folder / "run.json").read_text())["config"]["attribution"]["method"][0]["name"]
        == "path"
    )
    with ValueStore(folder / "values") as store:
        for decision, last in ((4, 5), (6, 7)):
            values = store.means(before=decision, unit="step").to_pydict()
            bad = {i for i, value in zip(values["sample_id"], values["value"]) if value < 0}
            used = store.sql(
                f"SELECT sample_id FROM terms WHERE step BETWEEN {decision} AND {last}"
            )["sample_id"].to_pylist()
            assert bad
            assert not bad & set(used)


LABELS = np.array(["useful"] * 4 + ["foreign"] * 2 + ["numbers"] * 3 + ["useful"])
DOMAINS = np.array(["law"] * 4 + ["french"] * 2 + ["law"] * 3 + ["code"])
SCORE = np.array([5.0, 4, 3, -1, 2, -2, -3, -4, 1, np.nan])


def test_scores_are_judged_by_pairs_counted_by_hand():
    found = score_row(SCORE, np.array([3, 5, 6, 7]), LABELS)
    noise, useful, foreign = SCORE[6:9], SCORE[:4], SCORE[4:6]

    def pairs(bad, good):
        return np.mean([[b < g for g in good] for b in bad])

    assert found["auroc_noise"] == pytest.approx(pairs(noise, [*useful, *foreign]))
    assert found["auroc_foreign"] == pytest.approx(pairs(foreign, useful))
    assert found["auroc_unwanted"] == pytest.approx(pairs([*noise, *foreign], useful))
    assert found["precision"] == 3 / 4
    assert found["recall"] == 3 / 5


def test_kinds_tell_what_was_dropped_of_each():
    rows = {
        row["kind"]: row
        for row in kind_rows(1, "path", SCORE, np.array([3, 5, 6, 7]), LABELS, DOMAINS)
    }
    assert {kind: row["dropped"] for kind, row in rows.items()} == {
        "foreign": 1 / 2, "numbers": 2 / 3, "useful": 1 / 5, "useful: law": 1 / 4,
        "useful: code": 0,
    }  # fmt: skip
    assert rows["numbers"]["score"] == -2
    assert rows["numbers"]["auroc"] == pytest.approx(11 / 12)
    assert rows["useful: code"]["score"] is None


def test_iterations_are_counted_to_the_full_runs_last_loss():
    full = (np.array([0, 10, 20]), np.array([5.0, 4, 3]))
    row = run_row(
        0, "path", (np.array([0, 10, 20]), np.array([5.0, 3.5, 2.5])), full, np.arange(3), 12
    )
    assert (row["iterations"], row["fewer"], row["chunks"], row["dropped_share"]) == (
        15,
        0.25,
        9,
        0.25,
    )
    never = run_row(
        1, "path", (np.array([0, 10, 20]), np.array([5.0, 4, 3.5])), full, np.arange(3), 12
    )
    assert never["iterations"] is never["fewer"] is None
    assert "never in 1 of 2" in summary([row, never], [], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controls": ["chance"]}, "controls must be among"),
        ({"retrain": ["second_order"]}, "retrain must be among the methods"),
        ({"attribution": {"method": []}}, "values are needed"),
        ({"controls": ["online"]}, "online needs online.start"),
        ({"since": 1.0}, "share of the run"),
        ({"shares": [50.0]}, "each between 0 and 1"),
    ],
)
def test_studies_that_cannot_be_meant_are_refused(change, message):
    values = {
        "model": {},
        "data": {},
        "optim": {},
        "train": {},
        "attribution": {"method": [{"kind": "path"}]},
        "controls": [],
    }
    with pytest.raises(ConfigError, match=message):
        CurationConfig(**{**_built(values), **_built(change)})


def _built(values: dict) -> dict:
    """The parts as `build` would give them."""
    from inrun.config import build
    from inrun.train import AttributionConfig

    parts = {"attribution": AttributionConfig}
    return {
        key: build(parts[key], value)
        if key in parts
        else tuple(value)
        if isinstance(value, list)
        else value
        for key, value in values.items()
    }
