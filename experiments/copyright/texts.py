"""What the copyright study trains on: originals, and the documents that they are hidden among.

Nothing of an original may stand elsewhere in the training set. So: of the translations only the
King James Version is trained on, and no other passage of an original's chapter; of an original's
article nothing else; and a document that shares a run of `SHARED_WORDS` words with an original is
left out (Scripture quotes itself). With documents of your own (source=files) that is up to you:
what is shared is counted and shown.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.copyright.originals import (
    Original,
    TextsConfig,
    own_originals,
    prose_originals,
    scripture_originals,
    up_to,
)
from inrun.baselines.text import words
from inrun.data.offline import DOMAINS, read_offline
from inrun.data.packages import cache_root
from inrun.data.prepare import DataConfig
from inrun.data.sources import Document, read_files
from inrun.data.tokenizers import load_tokenizer
from inrun.files import write_text

SHARED_WORDS = 8
#: trained on beside the originals' own kinds; the Bible comes from `verses`, whose translations are
#: aligned
OTHER_DOMAINS = tuple(domain.name for domain in DOMAINS if domain.name != "bible-kjv")


@dataclass(frozen=True)
class Texts:
    """What was written to a folder: training.jsonl, originals.json (name -> doc_id), and for each
    level a file of its variants, whose `domain` is the original's name.
    """

    folder: Path
    """where it lies"""
    originals: tuple[Original, ...]
    """with their variants"""
    levels: tuple[str, ...]
    """of rewriting"""
    dropped: int
    """documents left out because they share words with an original"""
    shared: int
    """documents that share words with one and were kept (of your own)"""

    def variants(self, level: str) -> Path:
        return self.folder / f"variants-{level}.jsonl"

    @property
    def training(self) -> Path:
        return self.folder / "training.jsonl"


def write_texts(config: TextsConfig, data: DataConfig, root: str | Path, folder: Path) -> Texts:
    """The texts in `folder`, the same ones for the same settings. root: where archives are kept."""
    if config.source == "files":
        documents, originals = list(read_files(config.path)), list(own_originals(config))
        dropped, shared = 0, _sharing(documents, originals)
    else:
        cache = cache_root(root)
        tokenizer = load_tokenizer(data.tokenizer, cache, data.tokenizer_from)
        scripture, around = scripture_originals(config, data, tokenizer, cache)
        prose, articles = prose_originals(config, data, tokenizer, cache)
        originals = [*scripture, *prose]
        others = [*around, *_others(config, cache, articles)]
        kept = list(_unlike(others, originals))
        planted = [Document(o.text, "planted", o.doc_id) for o in originals]
        documents, dropped, shared = [*planted, *kept], len(others) - len(kept), 0
    levels = tuple(dict.fromkeys(level for original in originals for level in original.variants))
    texts = Texts(folder, tuple(originals), levels, dropped, shared)
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        texts.training,
        ({"text": d.text, "domain": d.domain, "doc_id": d.doc_id} for d in documents if not d.skip),
    )
    for level in levels:
        rows = (
            {"text": o.variants[level], "domain": o.name} for o in originals if level in o.variants
        )
        _write(texts.variants(level), rows)
    names = json.dumps({original.name: original.doc_id for original in originals}, indent=1)
    write_text(folder / "originals.json", names + "\n")
    return texts


def _others(config: TextsConfig, cache: Path, articles: set[str]) -> Iterator[Document]:
    for name in OTHER_DOMAINS:
        documents = (
            d
            for d in read_offline(cache, [name], config.domain_bytes, config.seed)
            if d.doc_id not in articles
        )
        yield from up_to(documents, config.domain_bytes)


def _unlike(documents: Iterable[Document], originals: list[Original]) -> Iterator[Document]:
    """The documents that share no run of words with an original."""
    known = (
        set().union(*(word_runs(original.text) for original in originals)) if originals else set()
    )
    return (document for document in documents if not known & word_runs(document.text))


def _sharing(documents: list[Document], originals: list[Original]) -> int:
    """How many documents beside the originals share a run of words with one."""
    own = {original.doc_id for original in originals}
    others = [document for document in documents if document.doc_id not in own]
    return len(others) - sum(1 for _ in _unlike(others, originals))


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Every run of SHARED_WORDS words."""
    found = words(text)
    return {tuple(found[k : k + SHARED_WORDS]) for k in range(len(found) - SHARED_WORDS + 1)}


def _write(path: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text)
