"""From the options of `inrun train` to a `RunConfig`: what the model decides is not asked again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from inrun import models
from inrun.config import ConfigError, fields_help
from inrun.data.config import DataConfig
from inrun.train import AttributionConfig, LogConfig, OptimConfig, RunConfig, TrainConfig

#: models by name, `FAMILY-PRESET`
MODELS = tuple(
    f"{name}-{preset}" for name, f in models.FAMILIES.items() for preset in f.module.PRESETS
)
#: parts of a run's settings, for `--set PART.KEY=VALUE`
PARTS = {
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "attribution": AttributionConfig,
    "log": LogConfig,
}
#: what is small trains on a CPU, with the learning rate of such models
SMALL = {"optim": {"lr": 1e-3, "min_lr": 1e-4, "warmup": 40}, "train": {"steps": 400}}


def run_config(
    path: str, model: str, method: str, given: Iterable[Mapping[str, Any]], changes: Iterable[str]
) -> RunConfig:
    """The settings of a run on the documents in `path`.

    Args:
        path: a file, a folder or a glob; "" for the offline corpus.
        model: one of `MODELS`; it decides the tokenizer and the block size.
        method: "" trains without values.
        given: further settings, nested as in `RunConfig`; later ones win.
        changes: "PART.KEY=VALUE", the value as in YAML; they win over all.

    Raises ConfigError.
    """
    if model not in MODELS:
        raise ConfigError(f"--model {model}: choose one of {', '.join(MODELS)}")
    family, preset = model.split("-", 1)
    shape = models.config(family, preset)
    stem = Path(path).name.split(".")[0].strip("*?") or "files"
    settings: dict[str, Any] = {
        "name": f"{stem if path else 'offline'}-{model}-{time.strftime('%Y-%m-%d-%H%M%S')}",
        "model": {"name": family, "preset": preset},
        "data": {"name": stem, "source": "files", "path": path}
        if path
        else {"name": "offline", "source": "offline", "max_bytes_per_domain": 1_000_000},
    }
    settings["data"] |= {"block_size": shape.block_size, "tokenizer": tokenizer_for(family, shape)}
    # dots in the backward itself: faster; the weights differ from other runs' by rounding
    settings["attribution"] = {"method": [method], "route": "fused"} if method else {}
    if preset == "tiny":
        settings = merged(settings, SMALL)
    for more in given:
        settings = merged(settings, more)
    for change in changes:
        settings = merged(settings, _nested(change))
    return RunConfig.from_mapping(settings)


def tokenizer_for(family: str, shape: models.Config) -> str:
    """The tokenizer whose ids the model's table has room for."""
    if shape.vocab_size < 50_257:
        return "gpt2-8k"
    return "pythia" if family == "pythia" else "gpt2"


def merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`more` over `settings`, key by key at every depth."""
    found = dict(settings)
    for key, value in more.items():
        old = found.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        found[key] = value
    return found


def from_file(path: Path) -> Mapping[str, Any]:
    """Settings in a YAML file. Raises ConfigError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"--config {path}: it holds no mapping of settings")
    return found


def settings_help() -> str:
    """Every setting that `--set` takes, a paragraph each."""
    lines = []
    for part, cls in PARTS.items():
        lines.append(f"{part}: {(cls.__doc__ or '').strip().splitlines()[0]}")
        lines += [f"  {part}.{name}: {text}" for name, text in fields_help(cls).items()]
    return "\n".join(lines)


def _nested(change: str) -> dict[str, Any]:
    """ "a.b=1" as {"a": {"b": 1}}."""
    keys, equals, value = change.partition("=")
    if not equals or not keys:
        raise ConfigError(f"--set {change}: write PART.KEY=VALUE, for example train.eval_every=50")
    try:
        found: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {change}: {error}") from error
    if isinstance(found, str):  # YAML 1.1 takes 1e-3 for a text
        with contextlib.suppress(ValueError):
            found = float(found)
    for key in reversed(keys.split(".")):
        found = {key: found}
    return found
