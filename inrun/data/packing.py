"""Documents of tokens into rows of block_size + 1 tokens, rows into shards, and the chunk table
beside them.

A row (a *chunk*) holds documents of one (domain, kind) only, so that domain and ground truth are
properties of the chunk. Documents follow each other without padding, may be cut by the end of a
chunk and go on in the next one of the same (domain, kind). What does not fill a last chunk is
dropped and counted.

Per split one folder: `shard-00000.bin` (little-endian uint16 or uint32, rows one after the other)
and `shard-00000.parquet` (one row per chunk). All shards but the last hold the same number of rows,
so the chunk id alone says where a chunk lies. Files are written whole and renamed into place.

| column      | type         | meaning                                                       |
|-------------|--------------|---------------------------------------------------------------|
| chunk_id    | int64        | 0, 1, 2, ... within the split                                 |
| domain      | string       | e.g. "wiki-en", or the Pile's own names                       |
| pile_like   | string       | the Pile domain it stands in for; "" for none                 |
| kind        | string       | "clean", or the kind of noise: the truth of a curation run    |
| shard, row  | int32        | where its tokens lie                                          |
| doc_ids     | list<string> | the documents in it, in order                                 |
| doc_starts  | list<int32>  | position in the chunk where each of them begins or goes on    |
| doc_offsets | list<int64>  | which token of the document that is; 0: it begins here        |
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inrun.data.documents import Document
from inrun.data.errors import CorpusIncomplete
from inrun.files import write_bytes

CHUNK_SCHEMA = pa.schema(
    [
        ("chunk_id", pa.int64()),
        ("domain", pa.string()),
        ("pile_like", pa.string()),
        ("kind", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("doc_ids", pa.list_(pa.string())),
        ("doc_starts", pa.list_(pa.int32())),
        ("doc_offsets", pa.list_(pa.int64())),
    ]
)
STATE_FILE = "state.json"


def token_dtype(n_vocab: int) -> np.dtype:
    """The narrowest type on disk: uint16 up to 65,536 ids, else uint32; little-endian on any
    machine.
    """
    return np.dtype("<u2") if n_vocab <= 2**16 else np.dtype("<u4")


@dataclass
class _Carry:
    """The chunk being filled for one (domain, pile_like, kind)."""

    tokens: np.ndarray
    filled: int = 0
    doc_ids: list[str] = field(default_factory=list)
    doc_starts: list[int] = field(default_factory=list)
    doc_offsets: list[int] = field(default_factory=list)
    begun: int = 0
    "Documents of the source that begin in it; in no chunk unless it fills."


class SplitWriter:
    """Packs the documents of one split into `folder`. Memory: one shard and one chunk per (domain,
    kind).
    """

    def __init__(self, folder: Path, chunk_tokens: int, shard_tokens: int, dtype: np.dtype):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.chunk_tokens = chunk_tokens
        self.rows_per_shard = max(1, shard_tokens // chunk_tokens)
        self.dtype = dtype
        self.files: list[dict[str, Any]] = []  # of finished shards, for the manifest
        self.counts: dict[str, dict[str, int]] = {}  # chunks by domain and kind
        self.spanning = 0  # documents that lie in more than one chunk
        self._carries: dict[tuple[str, str, str], _Carry] = {}
        self._tokens = np.empty((self.rows_per_shard, chunk_tokens), dtype=dtype)
        self._table: dict[str, list[Any]] = {name: [] for name in CHUNK_SCHEMA.names}

    def add(self, tokens: np.ndarray, document: Document, *, made: bool = False) -> None:
        """Pack one document (its end-of-text token included): tokens, integers [t].

        made: not one of the source's, such as noise.
        """
        key, doc_id = (document.domain, document.pile_like, document.kind), document.doc_id
        carry = self._carries.get(key)
        if carry is None:
            carry = self._carries[key] = _Carry(np.empty(self.chunk_tokens, dtype=self.dtype))
        carry.begun += not made
        self.spanning += carry.filled + len(tokens) > self.chunk_tokens
        done = 0
        while done < len(tokens):
            taken = min(self.chunk_tokens - carry.filled, len(tokens) - done)
            carry.tokens[carry.filled : carry.filled + taken] = tokens[done : done + taken]
            carry.doc_ids.append(doc_id)
            carry.doc_starts.append(carry.filled)
            carry.doc_offsets.append(done)
            carry.filled += taken
            done += taken
            if carry.filled == self.chunk_tokens:
                self._emit(key, carry)

    def chunks(self, domain: str, kind: str) -> int:
        """How many whole chunks of this (domain, kind) there are so far."""
        return self.counts.get(domain, {}).get(kind, 0)

    @property
    def rows(self) -> int:
        """Whole chunks so far."""
        return sum(entry["rows"] for entry in self.files) + len(self._table["row"])

    def in_no_chunk(self) -> dict[str, int]:
        """Domain -> documents that have begun since its last whole chunk."""
        found: dict[str, int] = {}
        for (domain, _, _), carry in self._carries.items():
            if carry.begun:
                found[domain] = found.get(domain, 0) + carry.begun
        return found

    def finish(self) -> int:
        """Write the last, shorter shard. Returns the number of tokens in unfilled chunks, which are
        dropped.
        """
        if self._table["row"]:
            self._write_shard()
        return sum(carry.filled for carry in self._carries.values())

    def save(self) -> dict[str, Any]:
        """Bring everything to disk and return what `restore` needs. The unfinished shard is a file
        of fewer rows.
        """
        if self._table["row"]:
            self._put_files(len(self.files))
        carries = [
            {
                "key": list(key),
                "tokens": carry.tokens[: carry.filled].tolist(),
                "doc_ids": carry.doc_ids,
                "doc_starts": carry.doc_starts,
                "doc_offsets": carry.doc_offsets,
                "begun": carry.begun,
            }
            for key, carry in self._carries.items()
        ]
        return {
            "files": self.files,
            "counts": self.counts,
            "spanning": self.spanning,
            "rows_in_shard": len(self._table["row"]),
            "carries": carries,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `save`. Rows that were written after it are forgotten; they come again, the
        same.
        """
        self.files, self.counts, self.spanning = state["files"], state["counts"], state["spanning"]
        for saved in state["carries"]:
            carry = _Carry(np.empty(self.chunk_tokens, dtype=self.dtype), len(saved["tokens"]))
            carry.tokens[: carry.filled] = saved["tokens"]
            carry.doc_ids, carry.doc_starts = saved["doc_ids"], saved["doc_starts"]
            carry.doc_offsets, carry.begun = saved["doc_offsets"], saved["begun"]
            self._carries[tuple(saved["key"])] = carry
        rows, name = state["rows_in_shard"], f"shard-{len(self.files):05d}"
        if not rows:
            return
        on_disk = np.fromfile(self.folder / f"{name}.bin", dtype=self.dtype)
        table = pq.read_table(self.folder / f"{name}.parquet").slice(0, rows)
        if on_disk.size < rows * self.chunk_tokens or table.num_rows < rows:
            raise CorpusIncomplete(
                f"{self.folder / name}: fewer rows than its saved state. Next: delete "
                f"{self.folder.parent}"
            )
        self._tokens[:rows] = on_disk[: rows * self.chunk_tokens].reshape(rows, self.chunk_tokens)
        self._table = table.to_pydict()

    def _emit(self, key: tuple[str, str, str], carry: _Carry) -> None:
        domain, pile_like, kind = key
        row = len(self._table["row"])
        self._tokens[row] = carry.tokens
        values = (
            len(self.files) * self.rows_per_shard + row,
            domain,
            pile_like,
            kind,
            len(self.files),
            row,
        )
        lists = (carry.doc_ids, carry.doc_starts, carry.doc_offsets)
        for column, value in zip(self._table.values(), values + lists, strict=True):
            column.append(value)
        by_kind = self.counts.setdefault(domain, {})
        by_kind[kind] = by_kind.get(kind, 0) + 1
        carry.filled, carry.doc_ids, carry.doc_starts, carry.doc_offsets = 0, [], [], []
        carry.begun = 0
        if row + 1 == self.rows_per_shard:
            self._write_shard()

    def _write_shard(self) -> None:
        self.files.append(self._put_files(len(self.files)))
        self._table = {name: [] for name in CHUNK_SCHEMA.names}

    def _put_files(self, shard: int) -> dict[str, Any]:
        name, rows = f"shard-{shard:05d}", len(self._table["row"])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(self._table, schema=CHUNK_SCHEMA), sink, compression="zstd")
        tokens = self._tokens[:rows].data.cast("B")
        entry: dict[str, Any] = {"rows": rows}
        for role, ending, content in (
            ("tokens", "bin", tokens),
            ("table", "parquet", memoryview(sink.getvalue())),
        ):
            write_bytes(self.folder / f"{name}.{ending}", content)
            entry[role] = {
                "path": f"{self.folder.name}/{name}.{ending}",
                "bytes": content.nbytes,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        return entry
