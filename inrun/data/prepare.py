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

    python -m inrun.data.prepare --config configs/data/offline.yaml block_size=128 tokenizer=gpt2-8k
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from inrun.data import offline, sources
from inrun.data.build import SPLITS, Build
from inrun.data.corpus import Corpus
from inrun.data.noise import NOISE_KINDS
from inrun.data.packages import cache_root
from inrun.data.progress import Progress
from inrun.data.tokenizers import NAMES

RECIPE = 1  # raise it when the same settings would give other tokens than before


@dataclass(frozen=True)
class DataConfig:
    """What corpus to prepare. `configs/data/*.yaml` fill these fields; an unknown key is an error.

    source: `offline` (package archives and generated text), `files` (path: file, folder or glob),
    `hub` (path: dataset name, or a local folder in the hub's layout; hub_split and hub_files choose
    within it). domains: keep only these (empty: all). Limits are 0 for none: max_bytes_per_domain
    in bytes of UTF-8, max_tokens in tokens over all splits. noise: share of the train chunks.
    tokenizer_from: `package` or `hub`. threads: 0 for one per core; like `name`, it has no
    influence on the tokens.
    """

    name: str = "offline"
    source: str = "offline"
    path: str = ""
    hub_split: str = "train"
    hub_files: str = ""
    revision: str = "main"
    domains: tuple[str, ...] = ()
    tokenizer: str = "gpt2"
    tokenizer_from: str = "package"
    block_size: int = 1024
    max_bytes_per_domain: int = 0
    max_tokens: int = 0
    noise: float = 0.0
    noise_kinds: tuple[str, ...] = NOISE_KINDS
    val_share: float = 0.05
    test_share: float = 0.05
    seed: int = 0
    shard_tokens: int = 2**25
    threads: int = 0

    def __post_init__(self):
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "noise_kinds", tuple(self.noise_kinds))
        demands = [
            (
                self.source in ("offline", "files", "hub"),
                f"source must be offline, files or hub, got {self.source!r}",
            ),
            (self.source == "offline" or self.path, f"source {self.source!r} needs a path"),
            (
                self.tokenizer in NAMES,
                f"tokenizer must be one of {', '.join(NAMES)}, got {self.tokenizer!r}",
            ),
            (self.block_size >= 2, f"block_size must be at least 2, got {self.block_size}"),
            (
                min(self.max_bytes_per_domain, self.max_tokens, self.seed, self.threads) >= 0,
                "a setting is negative",
            ),
            (
                0 <= self.noise < 1,
                f"noise is a share of the chunks, 0 to below 1, got {self.noise}",
            ),
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
        ]
        for holds, message in demands:
            if not holds:
                raise ValueError(f"DataConfig: {message}")

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> "DataConfig":
        """A config from a mapping (a YAML file, a composed configuration); an unknown key is a
        ValueError.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"DataConfig has no {sorted(unknown)}; it has {sorted(known)}")
        return cls(**values)


def prepare(
    config: DataConfig, root: str | Path = "data", report: Callable[[Progress], None] | None = None
) -> Path:
    """The folder of the corpus that `config` describes, prepared first if it is not there. `report`
    hears of progress.

    Archives are kept in $INRUN_CACHE or `<root>/cache`. Processes that ask for the same corpus at
    the same time wait for the one that builds it. Raises SourceUnreachable, SourceMalformed,
    ShardDamaged, or DataError with a next step.
    """
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
            Build(config, settings, digest, folder, cache_root(root), report or _nothing).run()
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
    if config.source == "offline":
        chosen["fingerprint"] = offline.fingerprint(config.domains)
    elif config.source == "files" or Path(config.path).is_dir():
        chosen["fingerprint"] = sources.fingerprint_files(config.path)
    else:
        chosen["fingerprint"] = {"dataset": config.path, "revision": config.revision}
    chosen["recipe"] = RECIPE
    return json.loads(json.dumps(chosen))


if __name__ == "__main__":
    from inrun.data.__main__ import main

    main()
