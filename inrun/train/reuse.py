"""A training run that an experiment needs: trained now, gone on with, or found finished."""

from pathlib import Path

from rich.console import Console

from inrun.train.config import RunConfig
from inrun.train.folder import RunFolder, RunFolderError
from inrun.train.loop import Run
from inrun.train.selection import read_chunks

#: where things lie, which changes no result; `chunks` is compared by content
_PLACES = (("runs",), ("data_root",), ("train", "chunks"))


def train_or_reuse(config: RunConfig, console: Console | None = None) -> Path:
    """The folder of the finished run of `config`; what was done before is not done again.

    Raises RunFolderError if the folder holds a run of other settings or on other chunks, and what
    `Run.start`, `resume` and `train` raise.
    """
    folder = RunFolder.of(config)
    if not folder.is_run:
        return _finish(Run.start(config, console))
    record = folder.record()
    before, now = _settings(record.config), _settings(config)
    if differing := sorted(key for key, value in now.items() if before[key] != value):
        raise RunFolderError(
            f"{folder.path} holds a run with other {', '.join(differing)}. Next: another name, or "
            "delete it"
        )
    chunks = config.train.chunks
    if chunks and read_chunks(chunks).digest != record.chunks["digest"]:
        raise RunFolderError(
            f"{folder.path} was trained on other chunks than {chunks} lists. Next: delete it"
        )
    if folder.checkpoint(config.train.steps) in folder.checkpoints()[-1:]:
        return folder.path
    return _finish(Run.resume(folder.path, console))


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
