"""What all commands of `python -m experiments` share: a registry, and the life of a study.

    @study("dynamics", DynamicsConfig, report, shown="ledger", recorded={"dynamics": "phases"})
    def measure(settings, out, console):      # leaves its rows: out.table("phases", rows)
        ...

    @command("pretrain", RunConfig)           # anything that is not measured once and shown
    def main(given, console):
        ...

A study is measured once for each config, in the folder of that config. `report(out, settings)`
makes tables, text and figures from the rows alone, so that `--recompute-report` measures nothing.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

import experiments
from experiments.arguments import refuse_unquoted, with_config
from experiments.artifacts import Outputs, place_of
from inrun.command.errors import ended
from inrun.config import ConfigError, build
from inrun.data.prepare import DataConfig
from inrun.registry import Registry
from inrun.train import (
    AttributionConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

RECOMPUTE = "--recompute-report"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Where a study lies, and whether it goes into the committed results."""

    runs: str
    """its folder is runs/NAME"""
    name: str | None = None
    """null: a digest of the settings, so that the same settings go on in the same folder"""
    data_root: str = "data"
    """where corpora and archives are kept"""
    record: bool = False
    """also put the rows into experiments/results"""
    scale: str = ""
    """cpu or paper, as it stands in the rows"""

    def identity(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings that tell one folder of the study from another; `given`: as composed."""
        return given


@dataclass(frozen=True, kw_only=True)
class LanguageStudy(StudyConfig):
    """A study that trains language models, with the parts of `inrun.train.RunConfig`."""

    model: dict[str, Any]
    """name, preset, and what differs from the preset"""
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    attribution: AttributionConfig

    def run_config(self, folder: Path, name: str, **changes: Any) -> RunConfig:
        """A run of the study in `folder`; changes: other or further fields of `RunConfig`."""
        own = {
            key: getattr(self, key)
            for key in ("model", "data", "optim", "train", "attribution", "data_root")
        }
        return RunConfig(name=name, runs=str(folder), **{**own, **changes})


@dataclass(frozen=True, kw_only=True)
class Command:
    """One word after `python -m experiments`; its config is configs/NAME.yaml."""

    name: str
    settings: type
    function: Callable[..., None]
    spelling: Callable[[Sequence[str]], list[str]] = list
    doc: str = ""

    @property
    def about(self) -> str:
        """Its own text, or the docstring of its module."""
        return (self.doc or sys.modules[self.function.__module__].__doc__ or "").strip()

    def act(self, given: dict[str, Any], recompute: bool = False) -> None:
        """Do what the config says."""
        if recompute:
            raise ConfigError(f"{self.name} keeps no rows; {RECOMPUTE} is for studies")
        self.function(given, Console(stderr=True))


@dataclass(frozen=True, kw_only=True)
class Study(Command):
    """A command that measures once, and reports from the rows it has left."""

    report: Callable[[Outputs, Any], None]
    shown: str
    recorded: Mapping[str, str] = field(default_factory=dict)

    def act(self, given: dict[str, Any], recompute: bool = False) -> None:
        """Measure what is not measured yet, report, record if asked to, print a table."""
        console = Console(stderr=True)
        settings = settings_of(self.settings, given)
        about = settings.identity(given)
        folder = place_of(settings.runs, about, settings.name)
        if recompute and not (folder / "finished").is_file():
            raise ConfigError(f"{folder} is not measured to its end; leave {RECOMPUTE} out")
        out = Outputs.open(settings.runs, about, settings.name)
        if out.finished and not recompute:
            console.print("finished before", highlight=False)
        else:
            if not recompute:
                self.function(settings, out, console)
            self.report(out, settings)
        if not out.finished:
            out.finish()
        for name, table in self.recorded.items() if settings.record else ():
            out.record(name, out.rows(table))
        print((out.folder / f"{self.shown}.md").read_text(encoding="utf-8"))
        console.print(f"done: {out.folder}", highlight=False, soft_wrap=True)


#: what `python -m experiments` knows
COMMANDS: Registry[str, Command] = Registry("experiment", ConfigError)


def command(name: str, settings: type, **options: Any) -> Callable:
    """Decorator: `function(given, console)` is what `python -m experiments NAME` does.

    Args:
        name: of the command and of its config.
        settings: the dataclass that says what the config's keys mean.
        options: further fields of `Command`.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        entry = Command(name=name, settings=settings, function=function, **options)
        COMMANDS.add(name, entry, made_by=function)
        return function

    return add


def study(
    name: str,
    settings: type[StudyConfig],
    report: Callable[[Outputs, Any], None],
    shown: str = "",
    recorded: Mapping[str, str] | None = None,
    **options: Any,
) -> Callable:
    """Decorator: `measure(settings, out, console)` leaves the rows of the study in `out`.

    Args:
        name: of the command, of its config, and of the table where nothing else is said.
        settings: a subclass of `StudyConfig`.
        report: makes text, derived tables and figures from the rows in `out`.
        shown: the table whose markdown is printed at the end.
        recorded: name of a committed CSV -> table whose rows it gets.
        options: further fields of `Command`.
    """
    shown = shown or name

    def add(measure: Callable[..., None]) -> Callable[..., None]:
        entry = Study(
            name=name,
            settings=settings,
            function=measure,
            report=report,
            shown=shown,
            recorded=recorded or {name: shown},
            **options,
        )
        COMMANDS.add(name, entry, made_by=measure)
        return measure

    return add


def commands() -> dict[str, Command]:
    """All commands: those of any module of this package, and those registered elsewhere."""
    for found in pkgutil.walk_packages(experiments.__path__, "experiments."):
        if found.name != "experiments.__main__":
            importlib.import_module(found.name)
    return dict(sorted(COMMANDS.items()))


def run(name: str, arguments: Sequence[str]) -> None:
    """The command `name` with the rest of the command line; status 0 only if it succeeded."""
    found = COMMANDS[name]
    recompute = RECOMPUTE in arguments
    rest = found.spelling([argument for argument in arguments if argument != RECOMPUTE])
    with reported():
        refuse_unquoted(rest)

    def task(given: dict[str, Any]) -> None:
        with reported():
            found.act(given, recompute)

    with_config(name, rest, task)


def settings_of(cls: type, given: Mapping[str, Any]) -> Any:
    """`cls` from a config, strictly; by its own `from_mapping` if it has one."""
    own = getattr(cls, "from_mapping", None)
    return own(given) if own else build(cls, given)


@contextmanager
def reported() -> Iterator[None]:
    """Expected errors become one message on stderr and exit status 1.

    A signal that stopped the run is 128 + its number, as a shell has it.
    """
    try:
        yield
    except Exception as error:
        ended(error)
