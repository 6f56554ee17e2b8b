"""A training run inside an experiment: trained once, gone on with where it was killed, and found finished the next time."""

from pathlib import Path

from rich.console import Console

from inrun.train import Run, RunConfig


def finished_run(config: RunConfig, console: Console) -> Path:
    """The folder of the run, trained to its end."""
    folder = Path(config.runs) / config.name
    if any((folder / "checkpoints").glob(f"step-{config.train.steps:09d}")):
        return folder
    with Run.resume(folder, console) if folder.exists() else Run.start(config, console) as run:
        if (store := run.train()) is not None:
            store.close()
    return folder
