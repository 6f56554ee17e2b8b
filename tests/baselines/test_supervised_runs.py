"""Supervised runs: the recipe against a plain loop, what a run's folder keeps, and training
again.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inrun.baselines import (
    Adaptive,
    Classified,
    Featured,
    Regressed,
    Retrainable,
    TrainedRun,
    Valued,
    Watched,
    score,
)
from inrun.baselines.supervised import Data, NetworkConfig, Recipe, fit, network, train_run
from inrun.data.labelled import ProblemConfig, sample_problem

RECIPE = Recipe(network=NetworkConfig(width=4), epochs=4, drop_every=2, moments_every=2)


@pytest.fixture(scope="module")
def problem():
    return sample_problem(ProblemConfig(train=100, validation=40, test=50), seed=0)


@pytest.fixture(scope="module")
def folder(problem, tmp_path_factory):
    place = tmp_path_factory.mktemp("supervised")
    train_run(problem, RECIPE, 0, place / "run", place / "cache")
    return place


@pytest.fixture
def run(problem, folder):
    return train_run(problem, RECIPE, 0, folder / "run", folder / "cache")


def test_training_is_adam_with_decay_smoothing_and_a_falling_rate(problem):
    found = fit(Data(problem, "cpu"), np.arange(100), RECIPE, seed=5).state_dict()
    torch.manual_seed(5)
    model = network(RECIPE.network, problem)
    order = np.random.default_rng([5, 2])
    first = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    second = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    t = 0
    for epoch in range(4):
        shuffled = order.permutation(100)
        for rows in (shuffled[:64], shuffled[64:]):
            p = model(torch.from_numpy(problem.train.x[rows])).log_softmax(1)
            y = F.one_hot(torch.from_numpy(problem.train.y[rows]), 10) * 0.9 + 0.01
            grads = torch.autograd.grad(-(y * p).sum(1).mean(), list(model.parameters()))
            t += 1
            with torch.no_grad():
                for (name, w), g in zip(model.named_parameters(), grads):
                    g = g + 1e-4 * w
                    first[name] = 0.9 * first[name] + 0.1 * g
                    second[name] = 0.999 * second[name] + 0.001 * g * g
                    rate = 1e-3 if epoch < 2 else 1e-4
                    w -= (
                        rate
                        * first[name]
                        / (1 - 0.9**t)
                        / ((second[name] / (1 - 0.999**t)).sqrt() + 1e-8)
                    )
    for name, w in model.named_parameters():
        # Adam divides by sqrt(v): rounding of a tiny gradient is amplified, at most to a share of 8
        # steps of 1e-3
        assert torch.allclose(found[name], w, rtol=0, atol=2e-5), name


def test_a_run_has_every_capability_that_it_names(run):
    for capability in (TrainedRun, Featured, Classified, Retrainable, Valued, Watched, Adaptive):
        assert isinstance(run, capability)


def test_values_measured_in_the_run_leave_its_weights_as_they_are(run, problem):
    plain = fit(Data(problem, "cpu"), np.arange(100), RECIPE, seed=0).state_dict()
    assert all((plain[name] == w).all() for name, w in run.model().state_dict().items())


def test_values_of_one_step_of_the_sgd_formula_are_lr_times_gradient_dots(problem, tmp_path):
    recipe = Recipe(network=NetworkConfig(width=4), epochs=1, batch=100, checkpoint_every=1)
    run = train_run(problem, recipe, 2, tmp_path / "run")
    torch.manual_seed(2)
    model = network(recipe.network, problem)
    parameters = list(model.parameters())
    towards = torch.autograd.grad(run.target_losses(model, "val").mean(), parameters)
    value = dict(zip(*run.values("first_order_sgd", "val").to_pydict().values()))
    for id in run.sample_ids[::20]:
        g = torch.autograd.grad(run.losses(model, [id])[0], parameters)
        dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(g, towards))
        assert value[id] == pytest.approx(1e-3 / 100 * dot, rel=1e-4, abs=1e-9)


def test_checkpoints_moments_and_history_are_those_of_the_epochs(run, problem):
    assert [c.step for c in run.checkpoints] == [2, 4, 6, 8]
    assert [c.lr for c in run.checkpoints] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    history = run.history()
    assert history["epoch"].unique().to_pylist() == [0, 1, 2, 3, 4]
    for epoch, checkpoint in ((1, 0), (4, -1)):
        rows = history.filter(np.asarray(history["epoch"]) == epoch)
        p = run.logits(run.model(checkpoint), rows["sample_id"].to_pylist()).softmax(1)
        y = run.labels(rows["sample_id"].to_pylist())
        assert rows["correct"].to_pylist() == (p.argmax(1) == y).tolist()
        error = p.detach().clone()
        error[torch.arange(100), y] -= 1
        assert np.allclose(rows["error_norm"], error.square().sum(1).sqrt(), rtol=1e-5)
    assert (run.moments(-1).second["head.weight"] >= 0).all()
    with pytest.raises(
        ValueError, match=r"checkpoint 0 kept no Adam state; checkpoints \[1, 3\] did"
    ):
        run.moments(0)


def test_retraining_on_everything_with_the_runs_seed_gives_the_runs_weights(run):
    again = run.retrain(run.sample_ids, seed=0)
    assert all(
        (w == again.model().state_dict()[name]).all()
        for name, w in run.model().state_dict().items()
    )
    assert again.quality("test") == run.quality("test")
    with pytest.raises(ValueError, match="each id only once"):
        run.retrain([run.sample_ids[0]] * 2, seed=0)
    with pytest.raises(KeyError, match="no training samples"):
        run.retrain([10**6], seed=0)


def test_retraining_on_a_subset_sees_nothing_of_the_rest(run, problem):
    ids = run.sample_ids[::2]
    small = run.retrain(ids, seed=7)
    assert (small.sample_ids == ids).all()
    poisoned = sample_problem(ProblemConfig(train=100, validation=40, test=50), seed=0)
    poisoned.train.x[1::2] = float("nan")
    other = fit(Data(poisoned, "cpu"), np.arange(0, 100, 2), RECIPE, seed=7)
    assert all(
        (w == small.model().state_dict()[name]).all() for name, w in other.state_dict().items()
    )


def test_a_training_that_is_cached_is_not_repeated_but_charged(run, folder, monkeypatch):
    ids = run.sample_ids[:60]
    fresh = run.retrain(ids, seed=1).model().state_dict()
    monkeypatch.setattr("inrun.baselines.supervised.run.fit", None)  # would raise
    cached = run.retrain(ids[::-1], seed=1).model().state_dict()
    assert all((w == cached[name]).all() for name, w in fresh.items())
    with pytest.raises(TypeError):
        run.retrain(ids, seed=2)


def test_retraining_on_nothing_gives_the_untrained_model(run, problem):
    torch.manual_seed(3)
    fresh = network(RECIPE.network, problem).state_dict()
    empty = run.retrain([], seed=3)
    assert all((w == fresh[name]).all() for name, w in empty.model().state_dict().items())
    assert empty.sample_ids.shape == (0,)


def test_a_folder_of_another_run_is_refused(folder, problem):
    with pytest.raises(ValueError, match="another recipe"):
        train_run(problem, Recipe(epochs=2, moments_every=2), 0, folder / "run")


def test_a_folder_that_was_not_finished_is_trained_again(problem, tmp_path):
    recipe = Recipe(network=NetworkConfig(width=4), epochs=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights-000.safetensors").write_bytes(b"half")
    run = train_run(problem, recipe, 0, tmp_path / "run", methods=())
    assert json.loads((run.folder / "run.json").read_text())["identity"]["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_regression_is_trained_on_squared_errors_and_has_no_classes(tmp_path):
    problem = sample_problem(
        ProblemConfig(source="diabetes", train=250, validation=92, test=100), seed=0
    )
    recipe = Recipe(
        network=NetworkConfig(name="mlp"), epochs=4, batch=16, drop_every=2, moments_every=2
    )
    run = train_run(problem, recipe, 0, tmp_path / "run", methods=())
    assert not isinstance(run, Classified)
    assert not isinstance(run, Watched)
    assert isinstance(run, Regressed)
    assert isinstance(run.retrain(run.sample_ids[:20], seed=1), Regressed)
    model = run.model()
    out = model(torch.from_numpy(problem.validation.x))[:, 0]
    assert torch.allclose(
        run.target_losses(model, "val"), (out - torch.from_numpy(problem.validation.y)) ** 2
    )
    y = problem.test.y.astype(np.float64)
    rest = float(run.target_losses(model, "test").detach().double().mean())
    assert run.quality("test") == pytest.approx(1 - rest / y.var(), rel=1e-5)
    assert np.isfinite(score(run, "val", "loss").values).all()
