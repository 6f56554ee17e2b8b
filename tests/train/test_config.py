"""Configs are strict: what cannot be meant is refused by name."""

import json

import pytest

from inrun.config import build
from inrun.train import (
    AttributionConfig,
    ConfigError,
    OptimConfig,
    RunConfig,
    TargetConfig,
)
from tests.support.train_example import config


def test_config_goes_to_json_and_back(tmp_path):
    given = config(tmp_path)
    assert RunConfig.from_mapping(json.loads(json.dumps(given.to_mapping()))) == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optim__learning_rate": 1.0},
            r"config\.optim: unknown key 'learning_rate'; known are name, lr, min_lr, warmup",
        ),
        (
            {"nonsense": 1},
            r"config: unknown key 'nonsense'; known are name, model, data, optim, train",
        ),
        ({"model__n_layers": 3}, "unknown key 'n_layers'; known are .*n_layer"),
        ({"model": {"preset": "tiny"}}, "model: name must be given"),
        ({"data__blocksize": 3}, r"config\.data: unknown key 'blocksize'"),
        (
            {"attribution__method": [{"kind": "third_order"}]},
            r"config\.attribution\.method\[0\].*third_order.*choose one of",
        ),
        ({"attribution__targets": [{"name": "a"}, {"name": "a"}]}, "distinct names"),
        ({"attribution__targets": [{"chunks": 2}]}, r"targets\[0\]: name must be given"),
        ({"train__steps": "many"}, r"config\.train\.steps = 'many': expected int"),
        ({"train__steps": True}, r"config\.train\.steps = True: expected int"),
        ({"train__precision": "fp8"}, "choose one of auto, fp32, bf16"),
        ({"optim__name": "muon"}, "optim.name='muon': choose one of adamw, lion, sgd"),
        ({"optim__min_lr": 1.0}, "0 <= min_lr <= lr"),
        ({"data__block_size": 64}, r"data\.block_size=64 is more than model\.block_size=32"),
        ({"train__compile": True}, "what runs inside torch.compile is not seen.*attribution=off"),
        ({"log__wandb": "yes"}, "choose one of off, offline, online"),
        ({"name": "a/b"}, "must be the name of a folder"),
    ],
)
def test_config_that_cannot_be_meant_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_integers_are_fine_floats_and_lists_fine_tuples():
    built = build(OptimConfig, {"lr": 1, "min_lr": 0, "betas": [0, 0.5]})
    assert (built.lr, built.betas) == (1.0, (0.0, 0.5))
    assert type(built.lr) is float
    with pytest.raises(ConfigError, match="expected 2 entries"):
        build(OptimConfig, {"betas": [0.9]})


def test_attribution_without_methods_is_off():
    assert not AttributionConfig().on
    assert AttributionConfig(method=(), targets=()).on is False
    assert TargetConfig("val").chunks == 16
