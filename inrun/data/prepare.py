"""Prepare a corpus: read documents, tokenise them, pack them into chunks, write shards, chunk table
and manifest.

`prepare(config, root)` gives the folder `<root>/corpora/<name>-<tokenizer>-<block_size>-<digest>`,
where the digest is that of every setting and of the source; if that corpus is there already, it is
reused at once. It is built in `<folder>.partial` and renamed when whole. After each finished shard
the state is saved, and a preparation that was interrupted goes on from there; the result is byte
for byte that of an uninterrupted one. Memory does not grow with the corpus: one shard per split,
one batch of documents.

Each document is followed by <|endoftext|>. Its split is a hash of its id and the seed. Noise
(`noise.py`) is added to the train split only, so that what a validation loss measures is clean: of
the train chunks of every domain, the share `noise` is noise, to within one noise document (a few
chunks), in equal parts of each kind.

    python -m inrun.data --config configs/data/offline.yaml block_size=128 tokenizer=gpt2-8k
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from inrun.data.build import Build
from inrun.data.config import NAMED, SOURCES, SPLITS, DataConfig
from inrun.data.corpus import Corpus
from inrun.data.fields import PLAIN
from inrun.data.fingerprint import remembered_in
from inrun.data.packages import cache_root
from inrun.data.progress import Progress

RECIPE = 1  # raise it when the same settings would give other tokens than before


def prepare(
    config: DataConfig, root: str | Path = "data", report: Callable[[Progress], None] | None = None
) -> Path:
    """The folder of the corpus that `config` describes, prepared first if it is not there. `report`
    hears of progress.

    Archives are kept in $INRUN_CACHE or `<root>/cache`. Processes that ask for the same corpus at
    the same time wait for the one that builds it. Raises SourceUnreachable, SourceMalformed,
    ShardDamaged, or DataError with a next step.
    """
    cache = cache_root(root)
    with remembered_in(cache):
        settings = _settings(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = (
        Path(root)
        / "corpora"
        / f"{config.name}-{config.tokenizer}-{config.block_size}-{digest[:10]}"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            Build(config, settings, digest, folder, cache, report or _nothing).run()
    for split in SPLITS:
        Corpus.open(folder, split, verify="size")
    return folder


def _nothing(progress: Progress) -> None:
    pass


def _settings(config: DataConfig) -> dict[str, Any]:
    """All that the tokens depend on. `path` is not in it: the contents of the files are."""
    chosen = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("name", "path", "threads")
    }
    # only where somebody has said so: corpora from before have the same folder
    for name, plain in zip(NAMED, PLAIN.names, strict=True):
        if chosen[name] == plain:
            del chosen[name]
    chosen["fingerprint"] = SOURCES[config.source].fingerprint(config)
    chosen["recipe"] = RECIPE
    return json.loads(json.dumps(chosen))
