"""Every config that is shipped, composed as its command does, goes through the strict dataclasses;
its model can be built, without memory for its weights.
"""

from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch

from experiments.arguments import CONFIGS, composed
from experiments.frame import Study, commands, settings_of
from experiments.pretrain import settings_of as pretrain_settings
from inrun.models import build as build_model

COMMANDS = commands()
#: studies, and what has scales as they do
SCALED = sorted(name for name in COMMANDS if Path(CONFIGS, name).is_dir())
OPTIONS = [
    (name, file.stem) for name in SCALED for file in sorted(Path(CONFIGS, name).glob("*.yaml"))
]
# chunks of the large corpora are 1024 tokens long, more than a tiny model takes
BESIDE = {
    "model": [],
    "data": ["model=gpt2-124m"],
    "optim": [],
    "attribution": [],
    "experiment": [],
}
PRETRAIN = [
    [f"{group}={file.stem}", *beside]
    for group, beside in BESIDE.items()
    for file in sorted(Path(CONFIGS, group).glob("*.yaml"))
]


def test_every_study_has_scales_and_every_command_a_config():
    assert {name for name in COMMANDS if isinstance(COMMANDS[name], Study)} <= set(SCALED)
    assert all(Path(CONFIGS, f"{name}.yaml").is_file() for name in COMMANDS)


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids="-".join)
def test_every_scale_of_every_experiment_is_accepted(name, option):
    settings = settings_of(COMMANDS[name].settings, composed(name, [f"{name}={option}"]))
    assert is_dataclass(settings)
    if "name" in (model := getattr(settings, "model", {})):
        with torch.device("meta"):
            assert sum(p.numel() for p in build_model(**model).parameters()) > 0


@pytest.mark.parametrize("overrides", PRETRAIN, ids=lambda overrides: overrides[0])
def test_every_choice_of_pretraining_is_accepted(overrides):
    settings = pretrain_settings(composed("pretrain", overrides))
    with torch.device("meta"):
        build_model(**settings.model)
