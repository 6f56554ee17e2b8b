"""Where the rows of a run go.

Each goes to all sinks; losses of chunks go to a file of their own.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from rich.console import Console

from inrun.attributor import Processes
from inrun.train.config import RunConfig
from inrun.train.folder import RunFolder
from inrun.train.log import JsonLines, Sink, Terminal, Wandb


class RunLog:
    """The logs of a run, gone on with from `step`: rows past it are dropped.

    The first of the run's processes writes, the others do not.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        step: int,
        console: Console,
        processes: Processes,
    ):
        self._processes = processes
        self._sinks: list[Sink] = []
        self._lines: list[JsonLines] = []
        self._chunk_losses: JsonLines | None = None
        if processes.leads:
            try:
                self._open(folder, config, step, console)
            except BaseException:
                self.close()
                raise

    def _open(self, folder: RunFolder, config: RunConfig, step: int, console: Console) -> None:
        lines = JsonLines(folder.log_file, "iter", step or -1)
        self._lines.append(lines)
        self._sinks.append(lines)
        if config.log.chunk_losses:
            self._chunk_losses = JsonLines(folder.chunk_losses_file, "step", step - 1)
            self._lines.append(self._chunk_losses)
        for file, written in zip((folder.log_file, folder.chunk_losses_file), self._lines):
            if written.torn:
                told = f"{file}: torn and left out: line {', '.join(map(str, written.torn))}"
                console.print(told, highlight=False, markup=False, soft_wrap=True)
        if config.log.wandb != "off":
            self._sinks.append(Wandb(config.log, folder.path, config.name, config.to_mapping()))
        self._sinks.append(Terminal(config.train.steps, step, console))

    def write(self, row: Mapping[str, Any]) -> None:
        """One row, to every sink."""
        for sink in self._sinks:
            sink.write(row)

    def write_chunk_losses(self, step: int, ids: Sequence[int], losses: Sequence[float]) -> None:
        """Losses of the chunks that `step` trains on, each process's own; all must call."""
        told = self._processes.gathered((list(ids), list(losses)))
        if self._chunk_losses:
            every_id, every_loss = (list(chain.from_iterable(column)) for column in zip(*told))
            self._chunk_losses.write({"step": step, "ids": every_id, "losses": every_loss})

    def sync(self) -> None:
        """Make durable what was written to files."""
        for lines in self._lines:
            lines.sync()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        if self._chunk_losses:
            self._chunk_losses.close()
