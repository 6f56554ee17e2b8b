"""The pool's command as a user types it: shards, resuming, and the same trainings that a baseline
asks for.
"""

import pytest

from experiments import subset_trainings as pool
from experiments.frame import run
from experiments.subset_trainings import Design, PoolConfig
from inrun.baselines import score
from inrun.baselines.supervised import NetworkConfig, Recipe, untrained
from inrun.config import build
from inrun.data.labelled import ProblemConfig, sample_problem
from inrun.train import ConfigError

PROBLEM = {"source": "digits", "train": 60, "validation": 20, "test": 20}
SMALL = [
    *(f"problem.{key}={value}" for key, value in PROBLEM.items()), "recipe.epochs=2",
    "recipe.moments_every=2", "recipe.network.name=mlp",
    "plan=[{kind: random, count: 12}, {kind: coin, count: 14}, {kind: leave_one_out, count: 1}]",
]  # fmt: skip


@pytest.fixture
def typed(capsys, tmp_path):
    def call(*arguments):
        run("pool", [*arguments, f"runs={tmp_path}", *SMALL])
        return capsys.readouterr()

    return call


def test_shards_share_the_plan_out_and_a_baseline_finds_it_trained(typed, tmp_path):
    out, err = typed("-m", "shard=0,1,2", "shards=3")
    assert [line.split(": ")[1] for line in err.splitlines() if "to do" in line] == [
        "29 trainings, 29 to do",
        "29 trainings, 29 to do",
        "29 trainings, 29 to do",
    ]
    assert ": 87 trainings, 29 of them in this shard" in out
    assert "87 trainings, 0 to do" in typed().err
    recipe = Recipe(network=NetworkConfig("mlp"), epochs=2, moments_every=2)
    run = untrained(sample_problem(ProblemConfig(**PROBLEM), seed=0), recipe)
    folder = pool.folder(tmp_path, run)
    before = sorted(folder.iterdir())
    for name, options in (
        ("memorization", {"trainings": 12}),
        ("data_banzhaf", {"trainings": 14}),
        ("leave_one_out", {}),
    ):
        assert score(run, "val", name, pool=str(folder), **options).cost.trainings == options.get(
            "trainings", 61
        )
    assert sorted(folder.iterdir()) == before, "nothing had to be trained"


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigError, match="0 to shards - 1 = 1"):
        build(PoolConfig, {"shard": 2, "shards": 2})
    with pytest.raises(ConfigError, match="choose random, coin or leave_one_out"):
        Design(kind="halves").requests(10)
