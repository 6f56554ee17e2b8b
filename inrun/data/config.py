"""What corpus to prepare, and the table of the sources that documents come from.

    @source("news", fingerprint)
    def news(config, cache):            # -> an iterator of Document
        ...

Then `DataConfig(source="news")` prepares it. `fingerprint(config)` is a JSON value that differs
where the documents do; it is part of the corpus's digest.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from inrun.config import ConfigError, one_of, require
from inrun.data.documents import Document
from inrun.data.fields import Columns
from inrun.data.noise import NOISE_KINDS
from inrun.data.tokenizers import NAMES
from inrun.registry import Registry

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataConfig:
    """What corpus to prepare. `configs/data/*.yaml` fill these fields (`inrun.config.build`)."""

    name: str = "offline"
    "Of the corpus's folder; no influence on the tokens."
    source: str = "offline"
    "offline (package archives and generated text), files, hub, or a source of your own."
    path: str = ""
    "Of files: a file, folder or glob. Of hub: a dataset, or a local folder in the hub's layout."
    hub_split: str = "train"
    "Which split of a hub dataset."
    hub_files: str = ""
    "Which files of a hub dataset, a name or a pattern; empty for those of the split."
    revision: str = "main"
    "Of a hub dataset."
    text_column: str = "text"
    "What the column of the text is called in your files, or in a hub dataset."
    domain_column: str = "domain"
    "That of the domain; where it is missing, `pile_set_name` in `meta_column` is taken."
    meta_column: str = "meta"
    "An object, a parquet map, or a string of JSON."
    doc_id_column: str = "doc_id"
    "A name of each document, which decides its split."
    kind_column: str = "kind"
    "clean, or a kind of noise: the truth of a curation run."
    pile_like_column: str = "pile_like"
    "The Pile domain that a document stands in for."
    domains: tuple[str, ...] = ()
    "Keep only these; empty for all."
    tokenizer: str = "gpt2"
    "One of `inrun.data.tokenizers.NAMES`."
    tokenizer_from: str = "package"
    "package or hub."
    block_size: int = 1024
    "Tokens that a chunk predicts; it holds one more."
    max_bytes_per_domain: int = 0
    "Bytes of UTF-8, 0 for no limit."
    max_tokens: int = 0
    "Over all splits, 0 for no limit."
    noise: float = 0.0
    "Share of the train chunks."
    noise_kinds: tuple[str, ...] = NOISE_KINDS
    "Kinds of noise, in equal parts."
    val_share: float = 0.05
    "Share of the documents in the validation split."
    test_share: float = 0.05
    "Share of the documents in the test split."
    seed: int = 0
    "Of splits, noise, and the order of the offline corpus."
    shard_tokens: int = 2**25
    "Tokens in one file."
    threads: int = 0
    "Of the tokenizer, 0 for one per core; no influence on the tokens."

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "noise_kinds", tuple(self.noise_kinds))
        source = SOURCES[self.source]
        positive = (self.max_bytes_per_domain, self.max_tokens, self.seed, self.threads)
        require(
            "data",
            one_of("tokenizer", self.tokenizer, NAMES),
            (self.path or not source.needs_path, f"source {self.source!r} needs a path"),
            (
                len(set(self.columns.names)) == len(self.columns.names),
                f"two of the columns have one name: {', '.join(self.columns.names)}",
            ),
            (self.block_size >= 2, f"block_size must be at least 2, got {self.block_size}"),
            (min(positive) >= 0, "a setting is negative"),
            (0 <= self.noise < 1, f"noise={self.noise} is a share of the chunks, 0 to below 1"),
            (
                not set(self.noise_kinds) - set(NOISE_KINDS),
                f"noise_kinds must be among {NOISE_KINDS}",
            ),
            (self.noise == 0 or self.noise_kinds, "noise_kinds is empty, but noise is not 0"),
            (
                min(self.val_share, self.test_share) >= 0,
                "val_share and test_share must not be negative",
            ),
            (
                self.val_share + self.test_share < 1,
                "val_share and test_share leave nothing to train on",
            ),
        )

    @property
    def columns(self) -> Columns:
        """What the columns that are read are called."""
        return Columns(**{name.removesuffix("_column"): getattr(self, name) for name in NAMED})


#: fields of `DataConfig`
NAMED = tuple(f"{field.name}_column" for field in fields(Columns))


@dataclass(frozen=True)
class Source:
    """Where documents come from."""

    documents: Callable[[DataConfig, Path], Iterator[Document]]
    "(config, folder of cached archives) -> documents, in an order that never changes."
    fingerprint: Callable[[DataConfig], Any]
    "A JSON value that differs where the documents do."
    needs_path: bool
    "Whether `DataConfig.path` must be given."
    passed_over: Callable[[DataConfig], dict[str, str]] = lambda config: {}
    "What lies at the path and is not read -> why; the manifest names it."


SOURCES: Registry[str, Source] = Registry("source of documents", error=ConfigError)

Documents = Callable[[DataConfig, Path], Iterator[Document]]


def source(
    name: str,
    fingerprint: Callable[[DataConfig], Any],
    *,
    needs_path: bool = True,
    passed_over: Callable[[DataConfig], dict[str, str]] = lambda config: {},
) -> Callable[[Documents], Documents]:
    """Decorator: this function gives the documents of the source called `name`."""

    def add(documents: Documents) -> Documents:
        SOURCES.add(
            name, Source(documents, fingerprint, needs_path, passed_over), made_by=documents
        )
        return documents

    return add


def split_of(doc_id: str, config: DataConfig) -> str:
    """train, val or test: a hash of the document's id and the seed, so that it does not depend on
    the other documents.
    """
    place = (
        int.from_bytes(hashlib.sha256(f"split {config.seed} {doc_id}".encode()).digest()[:8], "big")
        / 2**64
    )
    if place < config.val_share:
        return "val"
    return "test" if place < config.val_share + config.test_share else "train"
