"""Arguments and options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="folder of a run, or of a value store")]
Target = Annotated[str | None, typer.Option(help="one target; all of them if it is left out")]
Method = Annotated[str | None, typer.Option(help="the run's first if it is left out")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a row, for programs")]
Count = Annotated[int, typer.Option("-k", "--count", min=1, help="how many")]
Where = Annotated[str | None, typer.Option("--where", help="COLUMN=VALUE of the samples")]
