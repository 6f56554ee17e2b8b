"""`train` and `resume`: a run with values, on documents of one's own or on the offline corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inrun.command.options import Run
from inrun.command.shown import Printer

if TYPE_CHECKING:
    from inrun.train import Run as Training

Documents = Annotated[
    str,
    typer.Argument(
        help="a file, folder or glob of .jsonl, .json or .parquet; left out: the offline corpus, "
        "from package archives",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(train)
    app.command()(resume)


def train(
    documents: Documents = "",
    model: Annotated[
        str, typer.Option(help="FAMILY-PRESET, as gpt2-tiny or gpt2-124m")
    ] = "gpt2-tiny",
    steps: Annotated[int | None, typer.Option(min=1, help="optimizer steps")] = None,
    method: Annotated[str, typer.Option(help="how chunks are valued; none: not at all")] = "path",
    name: Annotated[str | None, typer.Option("-n", "--name", help="of the run's folder")] = None,
    runs: Annotated[Path, typer.Option(help="where runs lie")] = Path("runs"),
    data_root: Annotated[Path, typer.Option(help="where corpora and archives lie")] = Path("data"),
    config: Annotated[Path | None, typer.Option(help="a YAML file of further settings")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="PART.KEY=VALUE, any setting; see --settings")
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="list them, and stop")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="read first documents, estimate, train nothing")
    ] = False,
) -> None:
    """Train a language model, and value every chunk it is trained on."""
    from inrun.command.settings import from_file, run_config, settings_help

    if settings:
        typer.echo(settings_help())
        return
    given: list[Mapping[str, Any]] = [{"runs": str(runs), "data_root": str(data_root)}]
    given += [from_file(config)] if config else []
    given += [{"name": name}] if name else []
    given += [{"train": {"steps": steps}}] if steps else []
    chosen = run_config(documents, model, "" if method == "none" else method, given, change or ())
    if dry_run:
        from inrun.command.trial import looked_at

        Printer().fields(looked_at(chosen), f"run {chosen.name}, nothing is trained")
        return
    from inrun.train import Run as Training

    _finished(Training.start(chosen))


def resume(run: Run) -> None:
    """Go on with a run that was stopped, from its last checkpoint."""
    from inrun.train import Run as Training

    _finished(Training.resume(run))


def _finished(run: Training) -> None:
    store = run.train()
    if not run.processes.leads:
        return
    printer = Printer()
    printer.fields({"run": str(run.folder), "steps": run.step}, "done")
    if store is not None:
        store.close()
        printer.hint(f"inrun bottom {run.folder}")
