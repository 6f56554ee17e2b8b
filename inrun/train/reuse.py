"""A training run that an experiment needs: trained now, gone on with, or found finished."""

import json
from pathlib import Path

from rich.console import Console

from inrun.train.checkpoint import checkpoints
from inrun.train.config import RunConfig
from inrun.train.loop import RUN_FILE, Run, RunFolderError
from inrun.train.selection import read_chunks

#: where things lie, which changes no result; `chunks` is compared by content
_PLACES = (("runs",), ("data_root",), ("train", "chunks"))


def train_or_reuse(config: RunConfig, console: Console | None = None) -> Path:
    """The folder of the finished run of `config`; what was done before is not done again.

    Raises RunFolderError if the folder holds a run of other settings or on other chunks, and what
    `Run.start`, `resume` and `train` raise.
    """
    folder = Path(config.runs) / config.name
    if not (folder / RUN_FILE).is_file():
        return _finish(Run.start(config, console))
    about = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    before = RunConfig.from_mapping(about["config"])
    if _settings(before) != _settings(config):
        differing = sorted(
            key for key, value in _settings(config).items() if _settings(before)[key] != value
        )
        raise RunFolderError(
            f"{folder} holds a run with other {', '.join(differing)}. Next: another name, or "
            "delete it"
        )
    if (
        config.train.chunks
        and read_chunks(config.train.chunks, 2**62).digest != about["chunks"]["digest"]
    ):
        raise RunFolderError(
            f"{folder} was trained on other chunks than {config.train.chunks} lists. Next: "
            "delete it"
        )
    done = checkpoints(folder / "checkpoints")
    if done and done[-1].name == f"step-{config.train.steps:09d}":
        return folder
    return _finish(Run.resume(folder, console))


def _finish(run: Run) -> Path:
    store = run.train()
    if store is not None:
        store.close()
    return run.folder


def _settings(config: RunConfig) -> dict:
    values = config.to_mapping()
    for *groups, key in _PLACES:
        part = values
        for group in groups:
            part = part[group]
        del part[key]
    return values
