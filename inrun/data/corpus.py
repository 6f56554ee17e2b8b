"""A prepared corpus, read through memory maps: `corpus[ids]` gives tokens, `corpus.chunks` what is
known about them.

Layout and chunk table: `packing.py`. A chunk has block_size + 1 tokens: the model reads the first
block_size and predicts the last block_size.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from inrun.data.errors import (
    CorpusIncomplete,
    DataError,
    ShardDamaged,
    TokenizerMismatch,
    TokenOutOfRange,
)
from inrun.data.tokenizers import Tokenizer, tokenizer_from_file
from inrun.files import file_sha256, read_json

FORMAT = 1
_ROLES = ("tokens", "table")
Ids = int | Sequence[int] | np.ndarray | torch.Tensor


class Corpus:
    """One split of a prepared corpus. Build it with `Corpus.open`.

    `block_size`, `n_vocab` (of the tokenizer), `manifest` (the whole manifest.json), `digest`
    (sha256 of what the split holds: equal digests are equal tokens and equal chunk tables),
    `whole_digest` (of all splits).
    """

    def __init__(self, folder: Path, split: str, manifest: dict[str, Any]):
        self.folder, self.split, self.manifest = folder, split, manifest
        self.block_size: int = manifest["block_size"]
        self.n_vocab: int = manifest["tokenizer"]["n_vocab"]
        about = manifest["splits"][split]
        self._count: int = about["chunks"]
        self._rows_per_shard: int = about["rows_per_shard"]
        self._shards = about["shards"]
        self._dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self._maps: dict[int, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path, split: str = "train", verify: str = "size") -> "Corpus":
        """Open a split (train, val, test) of the corpus in `folder`.

        `verify`: "size" looks at the size of every file (at once, the default); "hash" reads every
        file and compares its sha256 (about a second per GB). Raises CorpusIncomplete, ShardDamaged.
        """
        folder = Path(folder)
        if verify not in ("size", "hash"):
            raise ValueError(f"verify must be 'size' or 'hash', got {verify!r}")
        corpus = cls(folder, split, _manifest(folder, split))
        for entry in corpus._files():
            _verify_file(folder / entry["path"], entry, verify)
        return corpus

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, ids: Ids) -> torch.Tensor:
        """Tokens of chunks: integers [n] -> torch.int64 [n, block_size + 1], in the order of the
        ids (one int: n = 1).
        """
        ids = self._checked(ids)
        tokens = np.empty((ids.size, self.block_size + 1), dtype=np.int64)
        shards, rows = np.divmod(ids, self._rows_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            tokens[here] = self._map(int(shard))[rows[here]]
        if tokens.size and tokens.max() >= self.n_vocab:
            chunk = int(ids[np.argmax(tokens.max(axis=1))])
            raise TokenOutOfRange(
                f"{self.folder}, {self.split} chunk {chunk}: token id {tokens.max()}, but the "
                f"vocabulary of {self.manifest['tokenizer']['name']} has {self.n_vocab}. The shard "
                "is damaged. Next: delete the folder and prepare it again; Corpus.open(..., "
                "verify='hash') names the file"
            )
        return torch.from_numpy(tokens)

    def check(self, n_vocab: int | None = None, tokenizer_sha256: str | None = None) -> None:
        """Refuse, before the first step, a model that cannot read this corpus.

        `n_vocab`: rows of the model's token embedding; more than the tokenizer has is fine
        (padding), fewer is not. Raises TokenOutOfRange, TokenizerMismatch.
        """
        mine = self.manifest["tokenizer"]
        if n_vocab is not None and n_vocab < self.n_vocab:
            raise TokenOutOfRange(
                f"the model has {n_vocab} token embeddings, but tokenizer {mine['name']} of "
                f"{self.folder} gives ids up to {self.n_vocab - 1}. Next: set the model's "
                f"vocabulary to {self.n_vocab} or more, or prepare the corpus with the model's "
                "tokenizer"
            )
        if tokenizer_sha256 is not None and tokenizer_sha256 != mine["sha256"]:
            raise TokenizerMismatch(
                f"{self.folder} was made with tokenizer {mine['name']} (sha256 "
                f"{mine['sha256'][:12]}), the model expects sha256 {tokenizer_sha256[:12]}. Next: "
                "prepare the corpus with the model's tokenizer (tokenizer=...)"
            )

    @cached_property
    def digest(self) -> str:
        content = [(f["path"], f["sha256"]) for f in self._files()]
        known = {
            "format": FORMAT,
            "tokenizer": self.manifest["tokenizer"]["sha256"],
            "block": self.block_size,
        }
        return hashlib.sha256(json.dumps([known, content], sort_keys=True).encode()).hexdigest()

    @cached_property
    def whole_digest(self) -> str:
        """sha256 of the corpus: all splits, the tokenizer, and which chunk stands where."""
        manifest, splits = self.manifest, {}
        for split, about in manifest["splits"].items():
            files = [
                (shard["rows"], *((shard[role]["path"], shard[role]["sha256"]) for role in _ROLES))
                for shard in about["shards"]
            ]
            splits[split] = [about["chunks"], about["rows_per_shard"], files]
        keys = ("format", "block_size", "dtype")
        known = {key: manifest[key] for key in keys}
        tokenizer = {key: manifest["tokenizer"][key] for key in ("sha256", "n_vocab", "eot")}
        content = json.dumps([known, tokenizer, splits], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def has_digest(self, digest: str) -> bool:
        """Whether it is of this corpus; before `whole_digest`, runs noted that of the split."""
        return digest in (self.whole_digest, self.digest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the corpus was made with, from the file that lies beside the shards: no
        network needed.
        """
        about = self.manifest["tokenizer"]
        path = self.folder / about["file"]
        if not path.is_file():
            raise ShardDamaged(
                f"{path} is missing. Next: delete {self.folder} and prepare it again"
            )
        tokenizer = tokenizer_from_file(about["name"], path.read_bytes())
        if tokenizer.sha256 != about["sha256"]:
            raise TokenizerMismatch(
                f"{path} is not the file of the manifest. Next: delete {self.folder} and "
                "prepare it again"
            )
        return tokenizer

    @cached_property
    def chunks(self) -> pa.Table:
        """The chunk table (columns: `packing.py`), one row per chunk, row k is chunk k."""
        from inrun.data.packing import CHUNK_SCHEMA

        tables = [pq.read_table(self.folder / shard["table"]["path"]) for shard in self._shards]
        return pa.concat_tables(tables) if tables else CHUNK_SCHEMA.empty_table()

    @cached_property
    def domains(self) -> list[str]:
        """Names of the domains in this split, sorted."""
        return sorted(self.manifest["splits"][self.split]["by_domain_and_kind"])

    def ids(
        self, domain: str | Sequence[str] | None = None, kind: str | Sequence[str] | None = None
    ) -> np.ndarray:
        """Ids of the chunks of these domains and kinds (None: all), ascending: np.int64 [n].

        Raises DataError for a domain or kind that no chunk of the split has.
        """
        chosen = np.ones(self._count, dtype=bool)
        for column, given in (("domain", domain), ("kind", kind)):
            if given is None:
                continue
            wanted = {given} if isinstance(given, str) else set(given)
            present = set(pc.unique(self.chunks[column]).to_pylist())
            if wanted - present:
                raise DataError(
                    f"{self.folder}, {self.split}: no chunk has {column} "
                    f"{sorted(wanted - present)}; there are {sorted(present)}"
                )
            chosen &= pc.is_in(
                self.chunks[column], value_set=pa.array(sorted(wanted), pa.string())
            ).to_numpy()
        return np.flatnonzero(chosen).astype(np.int64)

    def text(self, chunk_id: int) -> str:
        """The chunk as text, <|endoftext|> between its documents; a character cut off at an end
        shows as U+FFFD.
        """
        return self.tokenizer.decode(self[[chunk_id]][0].tolist())

    def document_starts(self, ids: Ids) -> list[np.ndarray]:
        """Per chunk the positions where a document begins or goes on (the first is always 0): list
        of np.int32 [d].
        """
        starts = self.chunks["doc_starts"].take(pa.array(self._checked(ids)))
        return [np.array(row, dtype=np.int32) for row in starts.to_pylist()]

    def _files(self) -> list[dict[str, Any]]:
        return [shard[role] for shard in self._shards for role in _ROLES]

    def _checked(self, ids: Ids) -> np.ndarray:
        ids = np.atleast_1d(np.asarray(ids))
        if ids.size == 0:
            return np.empty(0, dtype=np.int64)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(
                f"chunk ids must be one row of integers, got shape {ids.shape} of {ids.dtype}"
            )
        if ids.min() < 0 or ids.max() >= self._count:
            wrong = ids[(ids < 0) | (ids >= self._count)][0]
            raise IndexError(
                f"{self.folder}, {self.split}: there is no chunk {wrong}; ids go from 0 to "
                f"{self._count - 1}"
            )
        return ids.astype(np.int64)

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            entry = self._shards[shard]
            path = self.folder / entry["tokens"]["path"]
            _verify_file(path, entry["tokens"], "size")  # the file may have gone since `open`
            self._maps[shard] = np.memmap(
                path, self._dtype, mode="r", shape=(entry["rows"], self.block_size + 1)
            )
        return self._maps[shard]


def _manifest(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        partial = (
            folder
            if folder.name.endswith(".partial")
            else folder.with_name(folder.name + ".partial")
        )
        state = (
            "its preparation was interrupted" if partial.is_dir() else "nothing was prepared there"
        )
        raise CorpusIncomplete(
            f"{folder} is no finished corpus: {state}. Next: python -m inrun.data.prepare with its "
            "settings (it goes on where it stopped)"
        )
    try:
        manifest = read_json(path)
        manifest["format"], manifest["splits"], manifest["tokenizer"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusIncomplete(
            f"{path} is damaged ({type(error).__name__}: {error}). Next: delete {folder} and "
            "prepare it again"
        ) from error
    if manifest["format"] != FORMAT:
        raise CorpusIncomplete(
            f"{folder} has format {manifest['format']}, this version reads {FORMAT}. Next: "
            "prepare anew"
        )
    if split not in manifest["splits"]:
        raise CorpusIncomplete(
            f"{folder} has no split {split!r}; it has {sorted(manifest['splits'])}"
        )
    return manifest


def _verify_file(path: Path, entry: dict[str, Any], verify: str) -> None:
    problem = ""
    if not path.is_file():
        problem = "is missing"
    elif path.stat().st_size != entry["bytes"]:
        problem = f"has {path.stat().st_size} bytes instead of {entry['bytes']}"
    elif verify == "hash" and file_sha256(path) != entry["sha256"]:
        problem = "has another sha256 than the manifest says"
    if problem:
        raise ShardDamaged(
            f"{path} {problem}. Next: delete {path.parent.parent} and prepare it again"
        )
