"""Where the values of a run go, and the rows that a step leaves there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from inrun.attributor.ids import Numbering
from inrun.attributor.processes import Processes
from inrun.attributor.result import StepResult
from inrun.config import require
from inrun.methods import Method
from inrun.store import ValueStore, ValueWriter


@dataclass(frozen=True)
class Recording:
    """A value store that a run writes.

    >>> Recording("runs/demo/values", flush_every=50).flush_every
    50
    """

    path: str | Path
    "folder of the store"
    samples: pa.Table | None = None
    """what is known of the samples (`sample_id`, domain, ...); copied into the store. `sample_id`
    are what `batch` is given, integers or names"""
    about: Mapping[str, Any] | None = None
    "entries for the store's store.json: config, corpus_digest, git_revision"
    flush_every: int = 200
    "steps between flushes; a kill loses the rows since the last one"

    def __post_init__(self) -> None:
        require(
            "store", (self.flush_every >= 1, f"flush_every={self.flush_every}: choose 1 or more")
        )


#: columns of a step's row, where nothing else is known
_UNKNOWN = ("clip", "loss", "seconds", "tokens", "samples", "stateless", "audited")


class Recorder:
    """Writes a run's rows into its store, opened when the first row or a resumed state comes.

    Args:
        recording: where; None writes nothing.
        about: what the run says of itself: targets, methods, options.
    """

    def __init__(self, recording: Recording | None, about: Mapping[str, Any], processes: Processes):
        self.recording, self.processes = recording, processes
        self.about = {**about, **((recording.about if recording else None) or {})}
        self.writer: ValueWriter | None = None
        self.numbering = Numbering(processes)
        self._annotations: dict[str, float | int | None] = {}

    def open(self, resume_at: int | None = None) -> None:
        """Make the store, or go on with one at a step: what came after it is dropped.

        Raises:
            StoreError: the folder already holds a store and no step is given, or it holds none.
        """
        if self.recording is None or self.writer is not None:
            return
        recording, rank = self.recording, self.processes.rank
        said = (rank, recording.flush_every, self.processes.size)

        def writer() -> ValueWriter:
            if resume_at is None:
                return ValueWriter(recording.path, self.about, *said)
            return ValueWriter.resume(recording.path, self.about, resume_at, *said)

        self.writer = self.processes.one_by_one(writer)
        if resume_at is not None:
            self._load_names(self.writer.path)
        if recording.samples is not None:
            samples = self.numbering.numbered(recording.samples)
            if self.processes.leads:
                self.writer.samples(samples)

    def _load_names(self, path: Path) -> None:
        """The numbers that names have in the store."""
        with ValueStore(path) as store:
            rows = store.names()
        self.numbering.load(rows["id"].to_pylist(), rows["sample_id"].to_pylist())
        self.numbering.kept(self.numbering.known)

    @property
    def for_all(self) -> ValueWriter | None:
        """The writer, where this process writes what is said of all samples."""
        return self.writer if self.processes.leads else None

    def annotate(self, columns: Mapping[str, float | int | None]) -> None:
        """Columns for the row of the coming step."""
        self._annotations.update(columns)

    def write(self, result: StepResult, methods: tuple[Method, ...], lr: float, n: int) -> None:
        """The rows of a step: its values, and what is said of the step itself.

        Args:
            lr: learning rate of the first parameter group.
            n: samples of the step, over all processes.
        """
        if not self.writer:
            return
        ids = self.numbering.numbers(result.ids)
        if names := self.numbering.to_keep(result.ids):
            self.writer.names(result.step, [self.numbering.known[name] for name in names], names)
        for target in dict.fromkeys(target for _, target in result.values):
            columns = {m.name: result.values[m.name, target].cpu().numpy() for m in methods}
            self.writer.terms(result.step, ids, target, columns)
            for m in methods:
                if (m.name, target) in result.tokens:
                    parts = result.tokens[m.name, target]
                    rows = [row for part in parts for row in part.cpu().numpy()]
                    self.writer.tokens(result.step, ids, target, m.name, rows)
        if not self.processes.leads:
            return
        self._step(
            step=result.step,
            lr=lr,
            clip=result.clip,
            samples=n,
            audited=result.audited,
            stateless=result.stateless,
            excess=max(result.excess.values(), key=abs, default=None),
            frozen=float(bool(result.frozen)) if result.excess else None,
            valued=1.0,
        )

    def pass_over(self, step: int, lr: float, excess: Mapping[str, float]) -> None:
        """The row of a step whose samples have no values (`Route.late_directions`)."""
        if self.for_all:
            worst = max(excess.values(), key=abs, default=None)
            self._step(step=step, lr=lr, excess=worst, frozen=0.0, valued=0.0)

    def _step(self, **known: float | int | None) -> None:
        columns = dict.fromkeys(_UNKNOWN)
        assert self.writer is not None, "a row has a store to go to"
        self.writer.steps({**columns, **known, **self._annotations})
        self._annotations = {}

    def flush(self) -> None:
        """Make all rows durable, those of all processes."""
        if self.writer:
            self.writer.flush()
            self.processes.wait()

    def close(self, together: bool = True) -> None:
        """Flush and close; `together`: all processes do."""
        if self.writer:
            self.writer.close()
            if together:
                self.processes.wait()

    def read(self) -> ValueStore | None:
        """The store, opened for reading."""
        return ValueStore(self.writer.path) if self.writer else None
