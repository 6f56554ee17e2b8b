"""Language models as plain modules: `build("gpt2", "124m", block_size=512)`.

A family is a module with a config dataclass, presets, and conversion from and to Hugging Face's
state dicts. To add one, write such a module and `FAMILIES.add(name, Family(...))`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from inrun.config import refuse_unknown
from inrun.models import gpt2, pythia
from inrun.models.gpt2 import GPT2, GPT2Config
from inrun.models.language_model import (
    IGNORED_TARGET,
    Config,
    LanguageModel,
    decay_groups,
    flops_per_token,
    padded_vocab,
)
from inrun.models.pythia import Pythia, PythiaConfig
from inrun.registry import Registry

__all__ = [
    "FAMILIES",
    "GPT2",
    "IGNORED_TARGET",
    "Config",
    "Family",
    "GPT2Config",
    "LanguageModel",
    "Pythia",
    "PythiaConfig",
    "build",
    "build_from",
    "config",
    "decay_groups",
    "flops_per_token",
    "from_hf",
    "padded_vocab",
    "parameter_bytes",
    "to_hf",
]


@dataclass(frozen=True)
class Family:
    """A row of the registry: `module` has PRESETS, build, from_hf and to_hf."""

    config_type: type[Config]
    model_type: type[LanguageModel]
    module: ModuleType


FAMILIES: Registry[str, Family] = Registry("model")
FAMILIES.add("gpt2", Family(GPT2Config, GPT2, gpt2))
FAMILIES.add("pythia", Family(PythiaConfig, Pythia, pythia))


def config(name: str, preset: str, **overrides) -> Config:
    """The config of a preset with some fields replaced.

    Unknown names raise ValueError that lists the known ones.
    """
    family = FAMILIES[name]
    presets = family.module.PRESETS
    if preset not in presets:
        raise ValueError(f"{name} has no preset {preset!r}; known: {sorted(presets)}")
    refuse_unknown(family.config_type, overrides, name)
    return replace(presets[preset], **overrides)


def build(name: str, preset: str, **overrides) -> LanguageModel:
    """A freshly initialised model: `build("gpt2", "tiny", bias=False)`.

    Its weights are from torch's global generator.
    """
    return build_from(config(name, preset, **overrides))


def build_from(config: Config) -> LanguageModel:
    """A freshly initialised model of the family that the config belongs to."""
    return _family(config).module.build(config)


def from_hf(state_dict: Mapping[str, Tensor], config: Config) -> LanguageModel:
    """A model with the weights of a Hugging Face state dict, in their dtype and on their device."""
    return _family(config).module.from_hf(state_dict, config)


def to_hf(model: LanguageModel) -> dict[str, Tensor]:
    """The state dict of the matching Hugging Face causal language model."""
    return _family(model.config).module.to_hf(model)


def parameter_bytes(config: Config, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the weights alone. Training with AdamW holds about four times that: gradients and
    two moments.
    """
    with torch.device("meta"):
        count = build_from(config).num_parameters()
    return count * dtype.itemsize


def _family(config: Config) -> Family:
    for family in FAMILIES.values():
        if type(config) is family.config_type:
            return family
    known = [family.config_type.__name__ for family in FAMILIES.values()]
    raise ValueError(f"no model for a config of type {type(config).__name__}; known: {known}")
