"""The contract of baselines: what is registered, refused, checked and charged."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from torch import nn

from inrun.baselines import (
    BaselineError,
    Checkpoint,
    Classified,
    Featured,
    MissingCapabilityError,
    baseline,
    baseline_names,
    get_baseline,
    record_training,
    score,
    value_table,
)
from inrun.baselines.registry import BASELINES
from inrun.config import ConfigError, build, fields_help

CONFIGS = Path(__file__).parents[2] / "configs" / "baseline"


class Line:
    """y = w x by least squares: the smallest run that satisfies the contract and nothing beyond
    it.
    """

    sample_ids = np.array([7, 3, 9])
    targets = ("val",)
    checkpoints = (Checkpoint(step=5, lr=0.1),)
    x = torch.tensor([1.0, 2.0, 3.0])
    y = torch.tensor([1.0, 2.5, 2.0])

    def model(self, checkpoint=-1):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 0.8)
        return model.eval()

    def losses(self, model, ids):
        rows = [list(self.sample_ids).index(i) for i in ids]
        return (model(self.x[rows, None])[:, 0] - self.y[rows]) ** 2

    def target_losses(self, model, target):
        return (model(torch.ones(2, 1))[:, 0] - 1) ** 2


@pytest.fixture
def registry():
    with BASELINES.restored():
        yield


def test_loss_baseline_is_minus_the_loss_in_the_order_of_the_run():
    scored = score(Line(), "val", "loss")
    assert scored.table["sample_id"].to_pylist() == [7, 3, 9]
    assert scored.values == pytest.approx(
        [-((0.8 - 1) ** 2), -((1.6 - 2.5) ** 2), -((2.4 - 2) ** 2)], rel=1e-6
    )


def test_random_baseline_depends_on_its_seed_only():
    one, same, other = (score(Line(), "val", "random", seed=s).values for s in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_missing_capability_is_named_with_its_methods(registry):
    @baseline("needy", needs=(Featured, Classified))
    def needy(run, target, options):
        raise AssertionError("must not be reached")

    with pytest.raises(
        MissingCapabilityError, match=r"needy.*Line.*Featured \(features.*Classified \(labels"
    ):
        score(Line(), "val", "needy")


def test_unknown_baseline_target_and_option_are_refused():
    with pytest.raises(BaselineError, match=r"no baseline 'lss'; known are .*loss"):
        score(Line(), "val", "lss")
    with pytest.raises(BaselineError, match="no target 'test'; this run has val"):
        score(Line(), "test", "loss")
    with pytest.raises(ConfigError, match="unknown key 'sead'; known are seed"):
        score(Line(), "val", "random", sead=1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"sample_id": [7, 3, 9], "score": [1.0, 2.0, 3.0]}), "must return"),
        (pa.table({"sample_id": [3, 7, 9], "value": [1.0, 2.0, 3.0]}), "another order"),
        (
            pa.table({"sample_id": [7, 3, 9], "value": [1.0, float("nan"), 3.0]}),
            "first for sample 3",
        ),
        ([1.0, 2.0, 3.0], "got list"),
    ],
)
def test_tables_that_break_the_contract_are_refused(registry, table, message):
    baseline("broken")(lambda run, target, options: table)
    with pytest.raises(BaselineError, match=message):
        score(Line(), "val", "broken")


def test_cost_counts_trainings_here_and_elsewhere_and_the_memory_that_was_touched(registry):
    @baseline("costly")
    def costly(run, target, options):
        held = np.ones(8_000_000)  # 64 MB, touched
        record_training()
        record_training(cpu_seconds=100.0, wall_seconds=50.0, count=3)
        return value_table(run, held[:3])

    cost = score(Line(), "val", "costly").cost
    assert cost.trainings == 4
    assert 100 < cost.cpu_seconds < 105
    assert 50 < cost.wall_seconds < 55
    assert cost.peak_bytes is None or 60e6 < cost.peak_bytes < 200e6
    assert score(Line(), "val", "loss").cost.trainings == 0


def test_two_baselines_of_one_name_are_refused(registry):
    @dataclass(frozen=True)
    class Options:
        k: int = 1

    with pytest.raises(ValueError, match=r"baseline 'loss': one at inrun.baselines.simple:\d+"):
        baseline("loss", Options)(lambda run, target, options: None)


def test_every_baseline_has_a_config_that_builds_its_options_and_no_config_lacks_a_baseline():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    assert {values["name"] for values in files.values()} == set(baseline_names())
    for values in files.values():
        chosen = get_baseline(values.pop("name"))
        assert build(chosen.options, values)  # strict: unknown keys are errors


def test_every_option_of_every_baseline_has_its_text():
    for name in baseline_names():
        options = get_baseline(name).options
        assert set(fields_help(options)) == {field.name for field in fields(options)}, name
