"""A baseline that is written outside the package: registered, given options, scored, charged."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from inrun.baselines import (
    BASELINES,
    Featured,
    MissingCapabilityError,
    baseline,
    baseline_names,
    score,
    value_table,
)
from inrun.baselines.batches import forward
from inrun.config import ConfigError, fields_help, require
from tests.support.baseline_case import Classifier


@dataclass(frozen=True)
class NearnessOptions:
    """How near a sample lies to the target."""

    power: float = 2.0
    "Of the distance."

    def __post_init__(self):
        require("nearness", (self.power > 0, f"power={self.power} must be positive"))


@pytest.fixture(autouse=True)
def nearness():
    with BASELINES.restored():

        @baseline("nearness", NearnessOptions, needs=(Featured,))
        def nearness(run, target, options):
            model = run.model()
            x = forward(lambda ids: run.features(model, ids), run.sample_ids)
            with torch.no_grad():
                centre = run.target_features(model, target).mean(0)
            return value_table(run, -((x - centre).norm(dim=1) ** options.power))

        yield
    assert "nearness" not in baseline_names()


def test_an_own_baseline_is_scored_as_the_others():
    run = Classifier()
    scored = score(run, "val", "nearness", power=1.0)
    model = run.model()
    with torch.no_grad():
        x = run.features(model, run.sample_ids)
        centre = run.target_features(model, "val").mean(0)
    np.testing.assert_allclose(
        scored.values, -np.linalg.norm(x - centre, axis=1), rtol=1e-5, atol=1e-6
    )
    assert scored.options == {"power": 1.0}
    assert (scored.name, scored.target) == ("nearness", "val")
    assert scored.cost.trainings == 0
    assert scored.cost.cpu_seconds > 0


def test_its_options_are_strict_and_tell_what_they_are():
    run = Classifier()
    with pytest.raises(ConfigError, match="unknown key 'pwr'; known are power"):
        score(run, "val", "nearness", pwr=1.0)
    with pytest.raises(ConfigError, match=r"nearness: power=0.0 must be positive"):
        score(run, "val", "nearness", power=0.0)
    assert fields_help(NearnessOptions) == {"power": "Of the distance."}


def test_a_run_that_lacks_what_it_needs_is_refused():
    class Bare:
        sample_ids, targets, checkpoints = np.arange(3), ("val",), ()

        def model(self, checkpoint=-1): ...

        def losses(self, model, ids): ...

        def target_losses(self, model, target): ...

    with pytest.raises(MissingCapabilityError, match="'nearness' cannot score a Bare"):
        score(Bare(), "val", "nearness")


def test_its_name_is_taken_until_it_is_forgotten():
    with pytest.raises(ValueError, match=r"baseline 'nearness': one at .*test_own_baseline:\d+"):
        baseline("nearness")(lambda run, target, options: None)
