"""The classification study as a user types it, in seconds, and its rows against figures computed
from the runs it left.
"""

import csv
import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from transformers import ResNetConfig, ResNetModel

from experiments.classification.settings import ClassificationConfig
from experiments.classification.tasks import within
from inrun.baselines import score
from inrun.config import build
from inrun.data.labelled import ProblemConfig, sample_problem
from inrun.store import ValueStore
from tests.support.cifar_example import write_cifar10

CONFIGS = Path(__file__).parents[2] / "configs" / "classification"
SMALL = [
    "problem.train=60", "problem.validation=20", "problem.test=30", "recipe.network.width=4",
    "recipe.epochs=5", "recipe.drop_every=3", "recipe.moments_every=1", "recipe.device=cpu",
    "trainings=12", "held_out=6", "keep=[0.5]", "seeds=[3,4]", "repeats=2", "record=true",
    "methods=[in_run_path,in_run_first_sgd,knn_shapley,less,datamodels,random]",
    "options.datamodels.penalty=ridge",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("classification")


@pytest.fixture(scope="module")
def call(root, typed):
    """The command, with some more settings."""

    def run(*arguments: str) -> None:
        places = [f"runs={root}/runs", f"pools={root}/pools"]
        typed("classification", [*SMALL, *places, *arguments], root / "results")

    return run


@pytest.fixture(scope="module")
def study(root, call):
    """The finished study. Over 5 s: trainings of two seeds and a repeat, for all tests below."""
    call("name=study", "data=digits")
    return root / "runs" / "study"


@pytest.fixture(scope="module")
def rows(study):
    return pq.read_table(study / "classification.parquet").to_pylist()


def of(rows, task, method, quantity, seed, share=None):
    (row,) = [
        r
        for r in rows
        if (r["task"], r["method"], r["quantity"], r["seed"], r["share"])
        == (task, method, quantity, seed, share)
    ]
    return row["value"]


def problem_and_run(root, seed, training=None):
    problem = sample_problem(ProblemConfig(train=60, validation=20, test=30), seed)
    for about in (root / "runs" / "trained").glob("*/training-*/run.json"):
        identity = json.loads(about.read_text())["identity"]
        if identity["problem"] == problem.digest() and identity["seed"] == (
            seed if training is None else training
        ):
            return problem, about.parent
    raise AssertionError(f"no run of seed {seed}")


def values(folder, method):
    with ValueStore(folder / "values") as store:
        table = store.values("val", method)
    return table["value"].to_numpy()  # by sample_id, as problems list their samples


def test_detection_is_the_auroc_of_minus_the_values_of_the_run(root, rows):
    for seed in (3, 4):
        problem, folder = problem_and_run(root, seed)
        expected = roc_auc_score(problem.wrong, -values(folder, "path"))
        assert of(rows, "detection", "in_run_path", "auroc", seed) == pytest.approx(expected)
        lowest = np.argsort(values(folder, "path"))[:12]
        assert of(rows, "detection", "in_run_path", "found", seed, 0.2) == pytest.approx(
            problem.wrong[lowest].sum() / 6
        )


def test_ranks_within_labels_know_nothing_of_what_a_label_has_in_common(root, rows):
    values, labels = np.array([5.0, 7.0, 6.0, 105.0, 106.0, 105.0]), np.array([0, 0, 0, 1, 1, 1])
    assert within(values, labels) == pytest.approx([1 / 6, 5 / 6, 3 / 6, 2 / 6, 5 / 6, 2 / 6])
    untied = within(np.zeros(4), np.array([0, 1, 0, 1]), "ordinal")
    assert (
        sorted(untied[[0, 2]]) == sorted(untied[[1, 3]]) == [1 / 4, 3 / 4]
    )  # half of them are half of each label
    problem, folder = problem_and_run(root, 3)
    # a wrong and a right sample: how often has the wrong one the lower rank among its label's
    # samples
    pairs = []
    ranks = values_by_label(problem, folder)
    for bad in ranks[problem.wrong]:
        pairs += [(bad < good) + 0.5 * (bad == good) for good in ranks[~problem.wrong]]
    assert of(rows, "detection within labels", "in_run_path", "auroc", 3) == pytest.approx(
        np.mean(pairs)
    )


def values_by_label(problem, folder):
    path = values(folder, "path")
    below = [
        sum(path[problem.train.y == y] < v) + 0.5 * sum(path[problem.train.y == y] == v)
        for v, y in zip(path, problem.train.y)
    ]
    return np.array(below) / np.bincount(problem.train.y)[problem.train.y]


def test_selection_is_the_accuracy_of_a_training_on_the_best_half(root, rows):
    from inrun.baselines.supervised import train_run

    _, folder = problem_and_run(root, 3)
    problem = sample_problem(ProblemConfig(train=60, validation=20, test=30), 3)
    settings = json.loads((root / "runs" / "study" / "config.json").read_text())
    recipe = build(
        ClassificationConfig, {k: v for k, v in settings.items() if k != "baselines"}
    ).recipe
    run = train_run(problem, recipe, 3, folder)
    best = problem.train.ids[np.sort(np.argsort(-values(folder, "path"))[:30])]
    # stacked trainings sum in another order: a sample at the border may fall on the other side
    assert of(rows, "selection", "in_run_path", "quality", 3, 0.5) == pytest.approx(
        run.retrain(best, 3).quality("test"), abs=1 / 30 + 1e-9
    )
    assert of(rows, "selection", "everything", "quality", 3, 1.0) == pytest.approx(
        run.quality("test"), abs=1 / 30 + 1e-9
    )


def test_stability_is_the_rank_correlation_of_two_trainings_of_the_same_data(root, rows):
    first, second = (values(problem_and_run(root, 3, training)[1], "path") for training in (3, 4))
    assert of(rows, "stability", "in_run_path", "spearman", 0) == pytest.approx(
        spearmanr(first, second).statistic
    )


def test_every_method_has_its_costs_and_retraining_methods_their_trainings(rows):
    for seed in (3, 4):
        assert of(rows, "cost", "datamodels", "trainings", seed) == 12
        assert of(rows, "cost", "in_run_path", "trainings", seed) == 0
        assert of(rows, "cost", "less", "cpu_seconds", seed) > 0


def test_report_has_a_table_per_task_with_the_papers_numbers_and_results_are_recorded(
    root, study, rows
):
    text = (study / "classification.md").read_text()
    assert "| KNN-Shapley | 0.76 (0.018) |" in text
    assert "0.342 / 0.465 / 0.534 / 0.559" in text  # datamodels, table 5
    assert "conv, normalisation: GroupNorm" in text
    assert (study / "classification.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (study / "classification.svg").read_text()
    with (root / "results" / "classification.csv").open() as file:
        recorded = list(csv.DictReader(file))
    assert {row["data"] for row in recorded} == {"digits"}
    (found,) = [
        row
        for row in recorded
        if (row["task"], row["method"], row["quantity"]) == ("detection", "less", "auroc")
    ]
    both = [of(rows, "detection", "less", "auroc", seed) for seed in (3, 4)]
    assert float(found["mean"]) == pytest.approx(np.mean(both))
    assert float(found["std"]) == pytest.approx(abs(both[0] - both[1]) / 2**0.5)
    assert all(row["revision"] and row["config_digest"] for row in recorded)


def test_a_second_call_trains_and_scores_nothing(study, call, monkeypatch, rows):
    def never(*args, **kwargs):
        raise AssertionError("trained again")

    for name in (
        "inrun.baselines.supervised.run.fit",
        "inrun.baselines.supervised.run.train_subsets",
        "experiments.classification.scores.score",
    ):
        monkeypatch.setattr(name, never)
    call("name=study", "data=digits")
    assert pq.read_table(study / "classification.parquet").to_pylist() == rows


def test_values_that_are_all_equal_correlate_with_nothing(root, call, monkeypatch):
    def constant(run, target, name, **options):
        scored = score(run, target, "random", seed=options.get("seed", 0))
        flat = scored.table.set_column(1, "value", [np.zeros(len(scored.table))])
        return dataclasses.replace(scored, table=flat if name == "trak" else scored.table)

    monkeypatch.setattr("experiments.classification.scores.score", constant)
    only = [
        "methods=[trak_1,leave_one_out,random]",
        "recipe.epochs=1",
        "seeds=[0]",
        "recipe.network.width=8",
    ]
    call("name=flat", "data=diabetes", *only)
    rows = pq.read_table(root / "runs" / "flat" / "classification.parquet").to_pylist()
    for task in ("lds", "loo", "stability"):
        assert of(rows, task, "trak_1", "spearman", 0) == 0
        assert task == "loo" or of(rows, task, "random", "spearman", 0) != 0
    assert of(rows, "detection", "trak_1", "auroc", 0) == 0.5


def test_regressions_are_judged_by_r_squared(root, call):
    only = "methods=[in_run_second_sgd,trak_1,random]"
    call(
        "name=line",
        "data=diabetes",
        only,
        "problem.flipped=0.2",
        "seeds=[0]",
        "repeats=1",
        "held_out=0",
        "recipe.epochs=2",
        "recipe.network.width=8",
        "options={}",
    )
    rows = pq.read_table(root / "runs" / "line" / "classification.parquet").to_pylist()
    assert -2 < of(rows, "selection", "everything", "quality", 0, 1.0) < 1
    assert "R^2 on the test part" in (root / "runs" / "line" / "classification.md").read_text()


def test_the_papers_setting_runs_from_local_copies_of_data_and_weights(root, call, monkeypatch):
    # over 5 s: a residual network, valued along every step, and ten trainings of it
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    write_cifar10(root / "cifar10", 60)
    small = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    ResNetModel(small).save_pretrained(root / "resnet")
    places = [f"problem.path={root}/cifar10", f"recipe.network.pretrained={root}/resnet"]
    methods = (
        "methods=[in_run_second_sgd,in_run_path,knn_shapley,less,trak_1,influence_cg,datamodels]"
    )
    sizes = [
        "problem.train=30",
        "problem.validation=10",
        "problem.test=20",
        "recipe.epochs=1",
        "seeds=[0]",
        "repeats=1",
        "held_out=0",
    ]
    options = [
        "trainings=10",
        "options.less.projection=32",
        "options.less.checkpoints=1",
        "options.influence_cg.damping=1.0",
    ]
    call("name=cifar", "scale=paper", *places, methods, *sizes, *options)
    text = (root / "runs" / "cifar" / "classification.md").read_text()
    assert "resnet18, normalisation: BatchNorm, ImageNet statistics frozen" in text
