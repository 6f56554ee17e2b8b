"""What `inrun train --dry-run` looks at: the first documents, and what they fill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from inrun.data.config import SOURCES, SPLITS, split_of
from inrun.data.errors import TokenOutOfRange
from inrun.data.tokenizers import load_tokenizer
from inrun.train import RunConfig
from inrun.train.dry_run import estimate

#: it stops to look after so many seconds
SECONDS = 5.0


def looked_at(config: RunConfig) -> dict[str, Any]:
    """Counts of the first documents, and what the run will need; nothing is written but the
    tokenizer's files.

    Raises DataError where a document or the vocabulary does not fit, ConfigError.
    """
    tokenizer = load_tokenizer(
        config.data.tokenizer, Path(config.data_root) / "cache", config.data.tokenizer_from
    )
    room = config.model_config().vocab_size
    if tokenizer.n_vocab > room:
        raise TokenOutOfRange(
            f"the model has {room} token embeddings, but tokenizer {config.data.tokenizer} gives "
            f"ids up to {tokenizer.n_vocab - 1}. Next: choose a tokenizer by --set "
            "data.tokenizer=..., or a model with a larger table"
        )
    source = SOURCES[config.data.source]
    documents = source.documents(config.data, Path(config.data_root) / "cache")
    counts = dict.fromkeys((*SPLITS, "left out"), 0)
    tokens, begun, whole = 0, time.monotonic(), True
    for document in documents:
        if time.monotonic() - begun > SECONDS:
            whole = False
            break
        if document.skip:
            counts["left out"] += 1
            continue
        split = split_of(document.doc_id, config.data)
        counts[split] += 1
        if split == "train":
            tokens += len(tokenizer.encode(document.text)) + 1
    chunks = tokens // (config.data.block_size + 1)
    drawn = config.train.steps * config.train.batch_size
    which = "all" if whole else f"the first {sum(counts.values()):,}"
    return {
        "documents": f"{which}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()),
        "train tokens": tokens if whole else f"{tokens:,} and more",
        "train chunks": chunks if whole else f"{chunks:,} and more",
        "epochs": round(drawn / chunks, 2) if chunks and whole else "not known",
        **estimated(config),
    }


def estimated(config: RunConfig) -> dict[str, Any]:
    """What the run needs of the machine, from its settings alone."""
    lines = str(estimate(config)).splitlines()
    return {line[:20].strip(): line[20:].strip() for line in lines}
