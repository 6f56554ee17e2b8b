"""Every config that is shipped, composed as its command does, goes through the strict dataclasses;
its model can be built, without memory for its weights.
"""

from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.classification.study import ClassificationConfig
from experiments.copyright.study import CopyrightConfig
from experiments.curation.study import CurationConfig
from experiments.dynamics.study import DynamicsConfig
from experiments.fidelity.study import FidelityConfig
from experiments.frame import CONFIGS, plain
from experiments.intervals.study import SparingConfig
from experiments.pretrain import ONLY_HERE
from experiments.retrieval.study import RetrievalConfig
from experiments.stability.study import StabilityConfig
from experiments.subset_trainings import PoolConfig
from experiments.throughput.study import BenchConfig
from inrun.config import build
from inrun.models import build as build_model
from inrun.train import RunConfig

SETTINGS = {
    "bench": BenchConfig,
    "throughput": BenchConfig,
    "classification": ClassificationConfig,
    "copyright": CopyrightConfig,
    "curation": CurationConfig,
    "dynamics": DynamicsConfig,
    "fidelity": FidelityConfig,
    "pool": PoolConfig,
    "retrieval": RetrievalConfig,
    "sparing": SparingConfig,
    "stability": StabilityConfig,
}
OPTIONS = [
    (name, file.stem) for name in SETTINGS for file in sorted(Path(CONFIGS, name).glob("*.yaml"))
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


def composed(name: str, overrides: list[str]) -> dict:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return plain(compose(name, overrides))


def test_every_group_of_an_experiment_has_a_dataclass_here():
    groups = {
        folder.name
        for folder in Path(CONFIGS).iterdir()
        if Path(CONFIGS, f"{folder.name}.yaml").is_file()
    }
    assert groups == set(SETTINGS)


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids="-".join)
def test_every_scale_of_every_experiment_is_accepted(name, option):
    given = composed(name, [f"{name}={option}"])
    settings = (
        FidelityConfig.from_mapping(given) if name == "fidelity" else build(SETTINGS[name], given)
    )
    assert is_dataclass(settings)
    if "name" in (model := getattr(settings, "model", {})):
        with torch.device("meta"):
            assert sum(p.numel() for p in build_model(**model).parameters()) > 0


@pytest.mark.parametrize("overrides", PRETRAIN, ids=lambda overrides: overrides[0])
def test_every_choice_of_pretraining_is_accepted(overrides):
    given = {
        key: value for key, value in composed("pretrain", overrides).items() if key not in ONLY_HERE
    }
    with torch.device("meta"):
        build_model(**RunConfig.from_mapping(given).model)
