"""Stacked trainings against one training after the other."""

import numpy as np
import pytest
import torch

from inrun.baselines import score
from inrun.baselines.outcomes import SAMPLES
from inrun.baselines.pool import Pool
from inrun.baselines.retrain import train_one_by_one
from inrun.baselines.subsets import random_subsets
from inrun.baselines.supervised import Data, NetworkConfig, Recipe, train_run, untrained
from inrun.baselines.supervised.stacked import train_subsets
from inrun.data.labelled import ProblemConfig, sample_problem


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def doubled(problem) -> Data:
    """The problem's data in float64, so that rounding stays small in a training of several
    steps.
    """
    data = Data(problem, "cpu")

    def wide(part):
        return tuple(t.double() if t.is_floating_point() else t for t in part)

    data.train, data.targets = (
        wide(data.train),
        {name: wide(part) for name, part in data.targets.items()},
    )
    return data


@pytest.mark.parametrize(
    ("source", "network"), [("digits", "conv"), ("digits", "mlp"), ("diabetes", "mlp")]
)
def test_a_stack_is_trained_as_each_of_its_members_would_be(float64, source, network):
    problem = sample_problem(ProblemConfig(source=source, train=90, validation=20, test=30), seed=0)
    recipe = Recipe(
        network=NetworkConfig(network, width=4), epochs=3, batch=16, drop_every=2, lr=1e-2
    )
    data = doubled(problem)
    members, seeds = random_subsets(90, 4, 0.5, seed=1)
    members = np.concatenate(
        [
            members,
            np.zeros((1, 90), bool),
            np.ones((1, 90), bool),
            ~np.eye(90, dtype=bool)[:2],
            members[:1],
        ]
    )
    seeds = np.append(seeds, [3, 4, 4, 4, 9])
    members[1, np.flatnonzero(members[1])[:3]] = False  # another size, the same number of steps
    together = train_subsets(data, recipe, members, seeds)
    alone = train_one_by_one(untrained(problem, recipe, data), members, seeds)
    for key in (SAMPLES, "val", "test"):
        # kept in float32; the trainings themselves differ by float64 rounding, which 18 steps
        # multiply by far less than 1e6
        np.testing.assert_allclose(together.losses[key], alone.losses[key], rtol=1e-6, atol=1e-7)
        if problem.classes:
            np.testing.assert_allclose(
                together.margins[key], alone.margins[key], rtol=1e-6, atol=1e-6
            )
            np.testing.assert_array_equal(together.correct[key], alone.correct[key])
    assert set(together.margins) == set(alone.margins)
    assert (together.members == members).all()
    assert (together.seeds == seeds).all()
    assert np.ptp(together.losses["val"].mean(1)) > 1e-3, "the trainings differ"


def test_a_run_is_trained_in_stacks_kept_in_a_pool_and_scored_from_it(tmp_path):
    problem = sample_problem(ProblemConfig(train=60, validation=30, test=30, flipped=0.2), seed=0)
    recipe = Recipe(network=NetworkConfig("mlp", width=8), epochs=5, batch=16, moments_every=5)
    run = train_run(problem, recipe, 0, tmp_path / "run")
    folder = str(tmp_path / "pool")
    scored = score(run, "val", "data_shapley", pool=folder, trainings=60, tolerance=0.1)
    assert scored.cost.trainings >= 60
    again = score(run, "val", "data_shapley", pool=folder, trainings=60, tolerance=0.1)
    assert again.values.tolist() == scored.values.tolist()
    assert again.cost.trainings == scored.cost.trainings
    assert score(run, "val", "memorization", pool=folder, trainings=30).cost.trainings == 30
    pool = Pool(untrained(problem, recipe), folder)  # the recipe is enough to open the same pool
    assert not pool.missing(*random_subsets(60, 30, 0.5)).any()
