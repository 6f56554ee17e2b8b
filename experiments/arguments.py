"""From a command line to a config: the only module that talks to Hydra.

A study's config is `configs/NAME.yaml` with the groups that it names. What is the same for every
command (where Hydra writes, what it logs) stands here, not in the YAML files.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from inrun import models
from inrun.command.settings import tokenizer_for
from inrun.config import ConfigError

CONFIGS = str(Path(__file__).parents[1] / "configs")
#: Hydra makes no folders of its own, changes to none, and logs nothing
HYDRA = (
    "hydra.run.dir=.",
    "hydra.sweep.dir=${runs}",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)

# in configs/data/files.yaml: the tokenizer of one's own documents follows from the model
OmegaConf.register_new_resolver(
    "tokenizer_of",
    lambda name, preset, vocabulary: tokenizer_for(
        name, models.config(name, preset, vocab_size=vocabulary)
    ),
    replace=True,
)


def with_config(
    name: str, arguments: Sequence[str], task: Callable[[dict[str, Any]], None]
) -> None:
    """Call `task` with the config that the arguments ask for; with `-m`, once for each job."""

    def run(config: DictConfig) -> None:
        task(plain(config))

    main = hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)(run)
    before = sys.argv
    sys.argv = [f"experiments {name}", *spelled(name, arguments)]  # where Hydra looks
    try:
        main()
    finally:
        sys.argv = before


def composed(name: str, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The config that the arguments ask for, as plain values."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return plain(compose(name, overrides=permissive(scaled(arguments, name))))


def given_settings() -> list[str]:
    """What the command line of the running command sets, as it was typed."""
    return [override.lstrip("+") for override in HydraConfig.get().overrides.task]


def spelled(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them, with the settings that every command has.

    They stand before the first KEY=VALUE: Hydra wants these together.
    """
    typed = permissive(scaled(arguments, name))
    keys = {argument.partition("=")[0] for argument in typed}
    ours = [setting for setting in HYDRA if setting.partition("=")[0] not in keys]
    first = next((k for k, a in enumerate(typed) if "=" in a and a[0] != "-"), len(typed))
    return [*typed[:first], *ours, *typed[first:]]


def scaled(arguments: Sequence[str], name: str) -> list[str]:
    """`scale=X` is option X of the group of the study's name; `launcher=X` is of every study."""
    spelling = {"scale": name, "+scale": name, "launcher": "+launcher"}
    found = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        found.append(f"{spelling.get(key, key)}{equals}{value}")
    return found


def refuse_unquoted(arguments: Sequence[str]) -> None:
    """ConfigError for a value that Hydra's grammar does not read, with the way to write it.

    That is a path with `=`, parentheses, brackets, letters like é.
    """
    parser = OverridesParser.create()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key.startswith("-"):
            continue
        try:
            parser.parse_overrides([argument])
        except OverrideParseException as error:
            inner = value.strip("'\"").replace("'", r"\'")
            raise ConfigError(
                f"{argument}: Hydra cannot read this value. Next: quote it twice, for the shell "
                f"and for Hydra: \"{key}='{inner}'\""
            ) from error


def permissive(arguments: Sequence[str]) -> list[str]:
    """`a.b=c` becomes `++a.b=c`.

    Hydra then takes keys that no YAML file lists, and the strict dataclasses, whose errors name the
    known keys, judge them.
    """

    def dotted(argument: str) -> bool:
        key, equals, _ = argument.partition("=")
        return bool(equals) and "." in key and not key.startswith(("+", "~", "-", "hydra."))

    return [f"++{argument}" if dotted(argument) else argument for argument in arguments]


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain values."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def groups(name: str) -> dict[str, list[str]]:
    """Config group -> its options, of the groups that configs/NAME.yaml names."""
    raw = OmegaConf.to_container(OmegaConf.load(Path(CONFIGS, f"{name}.yaml")), resolve=False)
    found: dict[str, list[str]] = {}
    for entry in raw.get("defaults", []) if isinstance(raw, dict) else ():
        if isinstance(entry, str):
            found |= groups(entry) if entry != "_self_" else {}
            continue
        for group in entry:
            group = str(group).removeprefix("override ")
            files = sorted(Path(CONFIGS, group.partition("@")[0]).glob("*.yaml"))
            found[group] = [file.stem for file in files]
    return found
