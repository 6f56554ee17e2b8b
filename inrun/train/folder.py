"""What a run folder is: the files that a run leaves, and what is in them.

    run.json          RunRecord: resolved config, digests of what the run reads
    chunks.parquet    which chunks are sampled from, if not all (`inrun.train.selection`)
    log.jsonl         lines of the log (`inrun.train.log`)
    chunks.jsonl      losses of the chunks that each step trained on, if wanted
    checkpoints/      `inrun.train.checkpoint`
    values/           the value store, with attribution

A folder is a run as soon as it has run.json. One process owns it from then on to its end, and in
others start and resume are refused (`inrun.owner`).
"""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from torch import nn

from inrun.attributor import Processes
from inrun.config import ConfigError
from inrun.data.corpus import Corpus
from inrun.files import read_json, sync, write_json
from inrun.owner import ABOUT, Owner, is_sign_of_owner
from inrun.store import STORE_FILE, ValueStore
from inrun.train import checkpoint
from inrun.train.config import RunConfig
from inrun.train.log import read_lines
from inrun.train.record import RunRecord, config_digest
from inrun.train.selection import ChunkSelection, read_chunks, write_chunks


class RunFolderError(RuntimeError):
    """The run's folder is taken or no run, or the run began with other data."""


class _Begun(RunFolderError):
    """Another process begins a run of the same name just now."""

    def __init__(self, held: str):
        super().__init__(f"a run of this name exists already: {held}")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: where its files are, and what they say.

    >>> RunFolder(Path("runs/demo")).log_file.as_posix()
    'runs/demo/log.jsonl'
    """

    path: Path
    """May not exist yet."""

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """Where the run of `config` is, or will be."""
        return cls(Path(config.runs) / config.name)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that is there. Raises RunFolderError."""
        folder = cls(Path(path))
        if not folder.is_run:
            name = folder.record_file.name
            runs = sorted(str(found.parent) for found in folder.path.parent.glob(f"*/{name}"))
            known = f"; runs beside it: {', '.join(runs[:8])}" if runs else ""
            raise RunFolderError(
                f"{path} is no run: it has no {name}. Next: give the folder of a run{known}"
            )
        return folder

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def chunks_file(self) -> Path:
        return self.path / "chunks.parquet"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def chunk_losses_file(self) -> Path:
        return self.path / "chunks.jsonl"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def values_folder(self) -> Path:
        return self.path / "values"

    @property
    def is_run(self) -> bool:
        """Whether a run began here."""
        return self.record_file.is_file()

    @property
    def has_values(self) -> bool:
        """Whether a value store was begun."""
        return (self.values_folder / STORE_FILE).is_file()

    def own(self, processes: Processes, until: ExitStack, new: bool = False) -> None:
        """The first process owns the folder for all, until `until` is closed.

        new: the folder is made, and goes away again unless it is a run by then. Raises
        RunFolderError while another process owns it, or if it is to be new and is not.
        """

        def take() -> None:
            if new:
                self.path.mkdir(parents=True, exist_ok=True)
            owner = Owner.take(self.path, _Begun if new else RunFolderError)
            until.callback(owner.release)
            if new:
                self.refuse_taken()  # another process may have been faster
                until.callback(self._clear)

        if new and processes.leads:
            until.callback(self._remove_empty)
        processes.first(take)

    def refuse_taken(self) -> None:
        """RunFolderError if there is anything here but what a start that was killed has left."""
        if self.path.exists() and not self._is_left_behind():
            raise RunFolderError(
                f"{self.path} exists already. Next: go on with it by resume={self.path}, choose "
                "another name=..., or delete the folder"
            )

    def _is_left_behind(self) -> bool:
        """Whether nothing is here but signs of an owner, and what it wrote before run.json."""
        if not self.path.is_dir():
            return False
        entries = list(self.path.iterdir())
        files = (self.chunks_file, self.log_file, self.chunk_losses_file)
        own = (self.record_file.name + ".", "wandb", *(file.name for file in files))
        begun = own if (self.path / ABOUT).exists() else ()
        return all(is_sign_of_owner(path) or path.name.startswith(begun) for path in entries)

    def _clear(self) -> None:
        """Remove what a start has written that came to nothing."""
        if self.path.is_dir() and not self.is_run:
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif not is_sign_of_owner(path):
                    path.unlink()

    def _remove_empty(self) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def create(self, record: RunRecord, chunks: ChunkSelection) -> None:
        """Write run.json, which makes the folder a run; this process owns it.

        chunks: copied where the config names a file of them, so that a resumed run needs no other.
        """
        if record.config.train.chunks:
            write_chunks(self.chunks_file, chunks.ids, chunks.weights, corpus=record.corpus_digest)
        write_json(self.record_file, record.to_json())
        sync(self.path.parent)

    def record(self) -> RunRecord:
        """What the run began with. Raises RunFolderError."""
        try:
            return RunRecord.from_json(read_json(self.record_file))
        except (OSError, KeyError, ValueError) as error:
            raise RunFolderError(
                f"{self.record_file} is damaged or of another version ({error}). Next: restore "
                "it, or start anew"
            ) from error

    @property
    def config_digest(self) -> str:
        """Of what its checkpoints depend on, as it stands in run.json."""
        return config_digest(read_json(self.record_file)["config"])

    def corpus_folder(self) -> Path:
        """The prepared corpus that the run began with, which may be gone.

        It is looked for where it was, then among the corpora that the config names from here.
        """
        record = self.record()
        place = Path(record.corpus)
        moved = Path(record.config.data_root) / "corpora" / place.name
        return moved if moved.is_dir() and not place.is_dir() else place

    def corpus(self, split: str = "train") -> Corpus:
        """A split of the corpus that the run began with."""
        return Corpus.open(self.corpus_folder(), split)

    def chunks(self, corpus: Corpus) -> ChunkSelection:
        """What the run samples of its corpus' train split.

        Raises RunFolderError if the copy in the folder is not what the run began with.
        """
        record = self.record()
        if not record.config.train.chunks:
            return ChunkSelection(np.arange(len(corpus), dtype=np.int64))
        chunks = read_chunks(self.chunks_file, corpus)
        if record.chunks["digest"] != chunks.digest:
            raise RunFolderError(
                f"{self.chunks_file} was altered since the run began. Next: restore it, or start "
                "a new run"
            )
        return chunks

    def checkpoints(self) -> list[Path]:
        """Folders of the whole checkpoints, oldest first."""
        return checkpoint.checkpoints(self.checkpoints_folder)

    def load_last(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        console: Console,
    ) -> dict[str, Any] | None:
        """Put the last checkpoint back and say so. Returns its state, None if there is none.

        One that has lost bits is set aside, which is said, and the one before is taken. Raises
        CheckpointError if that leaves none, or if one belongs elsewhere.
        """
        found = processes.gathered(processes.first(lambda: self._last_whole(console)))[0]
        if found is None:
            return None
        state = checkpoint.load(found, model, optimizer)
        console.print(f"going on from {found}", highlight=False, soft_wrap=True)
        return state

    def _last_whole(self, console: Console) -> Path | None:
        digest, damaged = self.config_digest, []
        for found in reversed(self.checkpoints()):
            try:
                checkpoint.check(found, digest)
            except checkpoint.DamagedError as error:
                damaged.append((found, error))
                continue
            for place, why in damaged:
                what = str(why).partition(". Next")[0]
                told = f"{what}. It is set aside as {checkpoint.set_aside(place).name}, and the "
                told += f"steps after {checkpoint.step_of(found)} are done again"
                console.print(told, style="bold red", markup=False, soft_wrap=True)
            return found
        if damaged:
            raise checkpoint.CheckpointError(
                f"{damaged[0][1]}. There is no whole one before it: with "
                f"{self.checkpoints_folder} deleted the run begins anew"
            )
        return None

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of `step` steps done."""
        return checkpoint.folder_of(self.checkpoints_folder, step)

    def values(self) -> ValueStore:
        """The values, opened for reading. Raises StoreError."""
        return ValueStore(self.values_folder)

    def log(self) -> list[dict[str, Any]]:
        """Rows of the log."""
        return read_lines(self.log_file)

    def chunk_losses(self) -> list[dict[str, Any]]:
        """For each step: step, ids of its chunks, losses (mean per token, nats) before the step.

        Raises ConfigError if the run was trained without `log.chunk_losses`.
        """
        if not self.chunk_losses_file.is_file():
            raise ConfigError(
                f"{self.path} has no {self.chunk_losses_file.name}; train with "
                "log.chunk_losses=true"
            )
        return read_lines(self.chunk_losses_file)


def mean_chunk_losses(folder: str | Path, first: int = 0) -> pa.Table:
    """A chunk's mean loss over the steps that trained on it, from step `first` on.

    Columns sample_id, value (nats per token), uses, by sample_id. `folder` is that of a run with
    `log.chunk_losses`; ConfigError if it was trained without.
    """
    rows = [row for row in RunFolder(Path(folder)).chunk_losses() if row["step"] >= first]
    ids, places = np.unique(np.concatenate([row["ids"] for row in rows]), return_inverse=True)
    uses = np.bincount(places)
    sums = np.bincount(places, np.concatenate([row["losses"] for row in rows]))
    return pa.table({"sample_id": ids, "value": sums / uses, "uses": uses})
