"""What the experiments' command lines share: strict configs from Hydra's, and how a failure ends
the process.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from inrun.attributor import BalanceError, NonFiniteError, ProcessError
from inrun.data.errors import DataError
from inrun.store import StoreError
from inrun.train import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteLossError,
    RunFolderError,
)
from inrun.train.precision import PrecisionError

#: what a user can act on from the message alone; anything else keeps its traceback
EXPECTED = (
    ConfigError, PrecisionError, RunFolderError, CheckpointError, NonFiniteLossError, DataError, StoreError, BalanceError, NonFiniteError, ProcessError
)  # fmt: skip

CONFIGS = str(Path(__file__).parents[1] / "configs")


def command(config_name: str, main: Callable[[DictConfig], None]) -> None:
    """Run `main` with the config composed from the command line; the process ends with 0 only if it
    succeeded.

    `scale=cpu` and `scale=paper` choose configs/<config_name>/cpu.yaml and paper.yaml, in every
    experiment that has them.
    """
    sys.argv[1:] = permissive(scaled(sys.argv[1:], config_name))
    hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)(_ending(main))()


def scaled(arguments: Sequence[str], config_name: str) -> list[str]:
    """`scale=X` is the option X of the config group that has the experiment's name."""
    prefixes = ("scale=", "+scale=")
    return [
        f"{config_name}={a.partition('=')[2]}" if a.startswith(prefixes) else a for a in arguments
    ]


def permissive(arguments: Sequence[str]) -> list[str]:
    """`a.b=c` becomes `++a.b=c`: Hydra then takes keys that no YAML file lists, and the strict
    dataclasses, whose errors name the known keys, judge them.
    """
    plain = [
        not a.startswith(("+", "~", "-", "hydra.")) and "." in a.partition("=")[0] and "=" in a
        for a in arguments
    ]
    return [f"++{a}" if dotted else a for a, dotted in zip(arguments, plain)]


def plain(config: DictConfig, without: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved config as plain values, without some top-level keys."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return {key: value for key, value in values.items() if key not in without}


def _ending(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    def ended(config: DictConfig) -> None:
        with reported():
            main(config)

    return ended


@contextmanager
def reported() -> Iterator[None]:
    """Expected errors become one message on stderr and exit status 1; a signal that stopped the run
    128 + its number, as a shell has it.
    """
    console = Console(stderr=True)
    try:
        yield
    except Interrupted as stop:
        console.print(str(stop), style="yellow", markup=False, highlight=False, soft_wrap=True)
        sys.exit(128 + stop.signum)
    except EXPECTED as error:
        console.print(
            f"{type(error).__name__}: {error}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
