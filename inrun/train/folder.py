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

import dataclasses
import json
import subprocess
from collections.abc import Mapping
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
from inrun.files import read_json, write_json
from inrun.owner import ABOUT, Owner, is_sign_of_owner
from inrun.store import STORE_FILE, ValueStore
from inrun.train import checkpoint
from inrun.train.config import RunConfig
from inrun.train.log import read_lines
from inrun.train.selection import ChunkSelection, read_chunks, write_chunks

FORMAT = 1


class RunFolderError(RuntimeError):
    """The run's folder is taken or no run, or the run began with other data."""


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json: what a run began with."""

    config: RunConfig
    """Resolved."""
    corpus: str
    """Folder of the prepared corpus."""
    corpus_digest: str
    """Of its train split."""
    targets: dict[str, str]
    """Target -> digest of what its loss is taken on."""
    evaluation: str | None
    """Digest of the evaluation chunks; None: a run of before it was noted."""
    chunks: dict[str, Any]
    """count and digest of the chunks that are sampled from."""
    parameters: int
    """Numbers that are trained."""
    precision: dict[str, str]
    """device, autocast."""
    git_revision: str | None = None
    """Of this package, None where it is in no working tree."""

    def to_json(self) -> dict[str, Any]:
        """As in the file: JSON values only."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(
            json.dumps({"format": FORMAT, **values, "config": self.config.to_mapping()})
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunRecord":
        """The record in a file's content. Raises KeyError or ValueError if it is none."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        names = {field.name for field in dataclasses.fields(cls)}
        names -= {"config", "targets", "evaluation"}
        return cls(
            config=RunConfig.from_mapping(values["config"]),
            # before, only targets on documents of one's own were noted
            targets=values.get("targets", values.get("own_targets", {})),
            evaluation=values.get("evaluation"),
            **{name: values[name] for name in names},
        )


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

    def own(self, processes: Processes, until: ExitStack) -> None:
        """The first process owns the folder for all, until `until` is closed; made if need be.

        Raises RunFolderError while another process owns it.
        """

        def take() -> Owner:
            self.path.mkdir(parents=True, exist_ok=True)
            return Owner.take(self.path, RunFolderError)

        if owner := processes.first(take):
            until.callback(owner.release)

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
        own = (self.record_file.name + ".", self.chunks_file.name)
        begun = own if (self.path / ABOUT).exists() else ()
        return all(is_sign_of_owner(path) or path.name.startswith(begun) for path in entries)

    def create(self, record: RunRecord, chunks: ChunkSelection) -> None:
        """Fill the folder, which this process owns; run.json, which makes it a run, comes last.

        chunks: copied where the config names a file of them, so that a resumed run needs no other.
        """
        self.refuse_taken()  # another process may have been faster
        if record.config.train.chunks:
            write_chunks(self.chunks_file, chunks.ids, chunks.weights)
        write_json(self.record_file, record.to_json())

    def record(self) -> RunRecord:
        """What the run began with. Raises RunFolderError."""
        try:
            return RunRecord.from_json(read_json(self.record_file))
        except (OSError, KeyError, ValueError) as error:
            raise RunFolderError(
                f"{self.record_file} is damaged or of another version ({error}). Next: restore "
                "it, or start anew"
            ) from error

    def corpus(self, split: str = "train") -> Corpus:
        """A split of the corpus that the run began with."""
        return Corpus.open(self.record().corpus, split)

    def chunks(self, count: int) -> ChunkSelection:
        """What the run samples of a train split of `count` chunks.

        Raises RunFolderError if the copy in the folder is not what the run began with.
        """
        record = self.record()
        if not record.config.train.chunks:
            return ChunkSelection(np.arange(count, dtype=np.int64))
        chunks = read_chunks(self.chunks_file, count)
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
        self, model: nn.Module, optimizer: torch.optim.Optimizer, console: Console
    ) -> dict[str, Any] | None:
        """Put the last checkpoint back and say so. Returns its state, None if there is none."""
        found = self.checkpoints()
        if not found:
            return None
        state = checkpoint.load(found[-1], model, optimizer)
        console.print(f"going on from {found[-1]}", highlight=False, soft_wrap=True)
        return state

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


def git_revision() -> str | None:
    """Commit of the working tree that this package is in, None if it is in none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
