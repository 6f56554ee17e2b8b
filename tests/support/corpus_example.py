"""Documents, settings and bytes that the tests of preparing a corpus share (tests/data)."""

import gzip
import json
import random

import zstandard

from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.tokenizers import GPT2_BYTE_ORDER

BLOCK = 32
EOT = 256
ID_OF_BYTE = {byte: rank for rank, byte in enumerate(GPT2_BYTE_ORDER)}


def tokens_of(text: str) -> list[int]:
    return [ID_OF_BYTE[byte] for byte in text.encode()] + [EOT]


def sentences(rng: random.Random, words: int) -> str:
    return " ".join(
        rng.choice(["alpha", "béta", "gamma", "delta", "日本", "eta"]) for _ in range(words)
    )


def rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "text": sentences(rng, rng.randint(1, 60)),
            "meta": {"pile_set_name": rng.choice(["ArXiv", "Github", "FreeLaw"])},
        }
        for _ in range(count)
    ]


def write_jsonl(path, documents) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(document) + "\n" for document in documents).encode()
    if path.name.endswith(".gz"):
        content = gzip.compress(content)
    elif path.name.endswith(".zst"):
        content = zstandard.compress(content)
    path.write_bytes(content)


def config(path, **changes) -> DataConfig:
    settings = dict(
        name="test",
        source="files",
        path=str(path),
        tokenizer="bytes",
        block_size=BLOCK,
        val_share=0.2,
        test_share=0.1,
    )
    return DataConfig(**{**settings, **changes, "threads": 1})


def stream_of(corpus: Corpus, domain: str, kind: str = "clean") -> list[int]:
    return corpus[corpus.ids(domain=domain, kind=kind)].flatten().tolist()
