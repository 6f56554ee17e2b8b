"""Which chunks a run samples from, and how often each.

A parquet file with a column `sample_id` and, if wanted, `weight`:

    write_chunks("kept.parquet", ids, corpus=store.run["corpus_digest"])
    # then: python -m experiments pretrain ... train.chunks=kept.parquet

Numbers of chunks mean something in their corpus only, so the file carries its digest and is refused
for another one. A file of your own may come without: its numbers are then taken as they are.

Weights follow `inrun.data.Sampler`: an epoch has as many samples as there are ids, id k appears
weight_k / mean(weight) times on average. A run copies the file into its folder and goes on from the
copy when it is resumed; run.json has its digest.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inrun.config import ConfigError
from inrun.data.corpus import Corpus
from inrun.files import write_file

#: in the file's metadata: the digest of its corpus
CORPUS = "inrun.corpus_digest"


@dataclass(frozen=True)
class ChunkSelection:
    """The chunks that a run samples from."""

    ids: np.ndarray
    """int64 [n], different, in ascending order."""
    weights: np.ndarray | None = None
    """float64 [n]; None: equal ones."""

    @property
    def digest(self) -> str:
        """sha256 of ids and weights, whatever the file looks like."""
        content = self.ids.astype("<i8").tobytes()
        if self.weights is not None:
            content += self.weights.astype("<f8").tobytes()
        return hashlib.sha256(content).hexdigest()


def write_chunks(
    path: str | Path, ids: np.ndarray, weights: np.ndarray | None = None, *, corpus: str
) -> ChunkSelection:
    """Write the file, whole or not at all; ids are sorted.

    Args:
        path: of the file.
        ids: integers, different.
        weights: one per id; None: equal ones.
        corpus: digest of the corpus that the ids are of: `ValueStore.run["corpus_digest"]`,
            `RunRecord.corpus_digest`, or `Corpus.whole_digest`.

    Raises ConfigError for what `read_chunks` would refuse.
    """
    ids = np.asarray(ids, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    chunks = ChunkSelection(
        ids[order], None if weights is None else np.asarray(weights, dtype=np.float64)[order]
    )
    _check(chunks, f"chunks for {path}")
    columns = {"sample_id": chunks.ids} | ({} if weights is None else {"weight": chunks.weights})
    table = pa.table(columns).replace_schema_metadata({CORPUS: corpus})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda partial: pq.write_table(table, partial))
    return chunks


def read_chunks(path: str | Path, corpus: Corpus | None = None) -> ChunkSelection:
    """The chunks of a file, for this train split; None: for any.

    Raises ConfigError: no such file, no such column, an id twice or outside the corpus, another
    corpus than the file was written for, weights that cannot be sampled by.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"train.chunks={path}: there is no such file; write one with inrun.train.write_chunks"
        )
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"train.chunks={path} is no parquet file ({error})") from error
    if "sample_id" not in table.column_names:
        raise ConfigError(
            f"train.chunks={path} needs a column sample_id, it has {', '.join(table.column_names)}"
        )
    ids = table["sample_id"].to_numpy().astype(np.int64)
    order = np.argsort(ids, kind="stable")
    weights = (
        table["weight"].to_numpy().astype(np.float64)[order]
        if "weight" in table.column_names
        else None
    )
    chunks = ChunkSelection(ids[order], weights)
    _check(chunks, f"train.chunks={path}")
    if corpus is not None:
        made_for = (table.schema.metadata or {}).get(CORPUS.encode(), b"").decode()
        _check_corpus(chunks, made_for, corpus, f"train.chunks={path}")
    return chunks


def _check_corpus(chunks: ChunkSelection, made_for: str, corpus: Corpus, what: str) -> None:
    if made_for and not corpus.has_digest(made_for):
        raise ConfigError(
            f"{what} was made for another corpus (digest {made_for[:12]}, {corpus.folder} has "
            f"{corpus.whole_digest[:12]}): its numbers are of other texts here. Next: give the "
            "data settings of the run that was scored, or score a run on this corpus"
        )
    if chunks.ids[0] < 0 or chunks.ids[-1] >= len(corpus):
        raise ConfigError(
            f"{what} names chunk {chunks.ids[-1]}, but the train split has {len(corpus)}; was it "
            "made for another corpus?"
        )


def _check(chunks: ChunkSelection, what: str) -> None:
    if chunks.ids.size == 0:
        raise ConfigError(f"{what}: no chunk is left to train on")
    if (twice := chunks.ids[1:][np.diff(chunks.ids) == 0]).size:
        raise ConfigError(
            f"{what}: chunk {twice[0]} is listed more than once; use weights to sample it more "
            "often"
        )
    w = chunks.weights
    if w is not None and (
        w.shape != chunks.ids.shape or not np.isfinite(w).all() or w.min() < 0 or w.sum() == 0
    ):
        raise ConfigError(
            f"{what}: weights must be one per chunk, finite, not negative, and not all zero"
        )
