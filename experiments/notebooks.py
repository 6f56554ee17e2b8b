"""A small run with values, and the notebooks executed on it.

Under a minute on one core. The executed notebooks are left in runs/notebooks/executed; those of
the repository keep no outputs.

  python -m experiments notebooks
  INRUN_RUN=runs/NAME jupyter lab notebooks      on a run of your own
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import inrun
from experiments.copyright.originals import TextsConfig
from experiments.copyright.texts import Texts, write_texts
from experiments.frame import command
from inrun.config import ConfigError, build
from inrun.data.prepare import DataConfig
from inrun.files import write_file
from inrun.methods import FirstOrder
from inrun.train import (
    AttributionConfig,
    OptimConfig,
    RunConfig,
    TargetConfig,
    TrainConfig,
    train_or_reuse,
)

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SECONDS_PER_CELL = 120


@dataclass(frozen=True)
class NotebooksConfig:
    """The run, and what its targets are."""

    name: str
    """its folder is runs/NAME"""
    texts: TextsConfig
    """originals, and what they are hidden among"""
    level: str
    """the rewritten texts that are targets"""
    domains: tuple[str, ...]
    """domains of the corpus that are targets as well, with a few chunks of the val split"""
    model: dict[str, Any]
    """name, preset, and what differs from the preset"""
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig
    runs: str
    data_root: str
    seed: int = 0
    """of weights and order"""


@command("notebooks", NotebooksConfig)
def notebooks(given: dict[str, Any], console: Console) -> None:
    """Train the run, execute the notebooks."""
    settings = build(NotebooksConfig, given)
    folder = Path(settings.runs).resolve() / settings.name
    texts = write_texts(settings.texts, settings.data, settings.data_root, folder / "texts")
    run = train_or_reuse(run_config(settings, texts, folder), console)
    for path in executed(run, folder / "executed"):
        console.print(f"executed: {path}", highlight=False, soft_wrap=True)


def run_config(settings: NotebooksConfig, texts: Texts, folder: Path) -> RunConfig:
    """The run: first order and path, towards domains and towards rewritten texts."""
    if settings.level not in texts.levels:
        raise ConfigError(f"level={settings.level!r}: the texts have {', '.join(texts.levels)}")
    path = str(texts.variants(settings.level))
    targets = [TargetConfig(name, domains=(name,), chunks=4) for name in settings.domains]
    targets += [
        TargetConfig(o.name, domains=(o.name,), chunks=1, path=path) for o in texts.originals
    ]
    return RunConfig(
        name="run",
        model=settings.model,
        data=dataclasses.replace(settings.data, path=str(texts.training)),
        optim=settings.optim,
        train=settings.train,
        attribution=AttributionConfig(
            method=(FirstOrder(), inrun.Path()), targets=tuple(targets), route="fused"
        ),
        runs=str(folder),
        data_root=str(Path(settings.data_root).resolve()),
        seed=settings.seed,
    )


def executed(run: Path, folder: Path) -> Iterator[Path]:
    """Every notebook with its outputs for this run, in `folder`.

    Raises nbclient's CellExecutionError, which shows the cell that failed.
    """
    import nbformat
    from nbclient import NotebookClient

    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(source, as_version=4)
        with _environment(INRUN_RUN=str(run)):
            NotebookClient(
                notebook, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": str(NOTEBOOKS)}}
            ).execute()
        path = folder / source.name
        write_file(path, functools.partial(nbformat.write, notebook))
        yield path


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """For the kernel, a process of its own that inherits it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
