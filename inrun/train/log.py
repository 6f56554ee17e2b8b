"""What a run says while it goes on: JSONL always, a progress display, wandb if wanted.

`log.jsonl` has one object per line. `iter` counts the optimizer steps done. Keys are nanoGPT's, and
ours for values:

    train/loss  lr  grad_norm          of the last step; grad_norm before clipping
    tokens_per_second  mfu             since the last line; mfu only where the device's peak is
                                       known (`metrics.PEAK_FLOPS`)
    val/loss  val/loss/<domain>        nats per token on the evaluation chunks, in lines of
                                       evaluations; test/... with eval_split=test
    value/sum/<target>                 sum of the last step's values, by the first method
    value/pos_frac/<target>            share of its samples with a positive value
    value/entropy/<target>             entropy of |value| over the samples / log n: 1 = evenly
                                       spread, 0 = all in one sample
    value/residual/<target>            residual of the last step whose ledger row is complete:
                                       drop - drift - sum of values

`chunks.jsonl`, if wanted, has for every step (counted from 0) the ids of its chunks and their mean
token losses before the step.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from inrun.config import ConfigError, one_of, require
from inrun.files import write_text

WANDB_MODES = ("off", "offline", "online")


@dataclass(frozen=True)
class LogConfig:
    """What a run tells, and where."""

    every: int = 10
    """Steps between lines."""
    wandb: str = "off"
    """off, offline (written beside the run, uploaded by `wandb sync`), online."""
    project: str = "inrun"
    """Its name at wandb."""
    chunk_losses: bool = False
    """Also write the loss of every chunk at the step it was trained on, to chunks.jsonl."""

    def __post_init__(self):
        require(
            "log",
            (self.every >= 1, f"every={self.every} must be 1 or more"),
            one_of("wandb", self.wandb, WANDB_MODES),
        )


class Sink(Protocol):
    """Where rows go. `write` must not wait for a network."""

    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends rows to a file.

    On resume, rows whose `key` is past `last` are dropped first, so that the file tells one run.
    So are lines that a full disk or a power cut has torn.

    Attributes:
        torn: numbers of the torn lines, from 1.
    """

    def __init__(self, path: Path, key: str, last: int | None = None):
        self.torn: list[int] = []
        if last is not None and path.exists():
            lines = _lines(path)
            self.torn = [k for k, (_, row) in enumerate(lines, 1) if row is None]
            kept = [line for line, row in lines if row is not None and row[key] <= last]
            write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make durable what was written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Terminal:
    """A live bar on a terminal, a line for each row otherwise.

    A terminal that goes away (it was closed, the connection broke) ends no run.
    """

    def __init__(self, steps: int, done: int, console: Console):
        self._console = console
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[row]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("training", total=steps, completed=done, row="")
            self._bar.start()
        self._steps = steps

    def write(self, row: Mapping[str, Any]) -> None:
        shown = "  ".join(f"{key} {_short(row[key])}" for key in _SHOWN if key in row)
        with suppress(OSError):
            self._show(row, shown)

    def _show(self, row: Mapping[str, Any], shown: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=row["iter"], row=shown)
        else:
            self._console.print(
                f"step {row['iter']}/{self._steps}  {shown}", highlight=False, soft_wrap=True
            )

    def close(self) -> None:
        if self._bar:
            with suppress(OSError):
                self._bar.stop()


class Wandb:
    """Weights & Biases, offline unless asked.

    Online, a server that does not answer is given up after some seconds.
    """

    def __init__(self, config: LogConfig, folder: Path, name: str, about: Mapping[str, Any]):
        import wandb

        try:
            self._run = wandb.init(
                project=config.project,
                name=name,
                dir=folder,
                mode=cast(Any, config.wandb),
                config=dict(about),
                settings=wandb.Settings(init_timeout=20, silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"log.wandb={config.wandb}: {str(error).strip().rstrip('.')}. Next: `wandb login`, "
                "or log.wandb=offline, whose files `wandb sync` uploads later"
            ) from error

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log(dict(row), step=row["iter"])

    def close(self) -> None:
        self._run.finish()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that a kill cut off is left out.

    Raises ConfigError that names a line in its midst that is torn.
    """
    lines = _lines(path)
    torn = [k for k, (_, row) in enumerate(lines, 1) if row is None and k < len(lines)]
    if torn:
        raise ConfigError(
            f"{path}: line {torn[0]} is torn. Next: delete it, or resume the run, which leaves it "
            "out"
        )
    return [row for _, row in lines if row is not None]


_SHOWN = ("train/loss", "val/loss", "test/loss", "lr", "tokens_per_second")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """The lines of a JSONL file, with the row that each is; None for one that is torn."""
    content = path.read_bytes().decode("utf-8", errors="replace")
    *whole, rest = content.split("\n")
    return [(line + "\n", _row(line)) for line in whole] + ([(rest, None)] if rest else [])


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
