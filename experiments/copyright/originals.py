"""Originals and their rewritten texts at graded similarity.

Two families of originals, each one chunk of the training set, cut to exactly fill it:

    scripture   a passage of the King James Version (inrun.data.verses). Rewritten by people:
                American Standard Version (close), Young's Literal Translation (free).
    prose       the beginning of an encyclopedia article. Rewritten by rule
                (inrun.data.paraphrase): strength 0.35 (close), 1.0 (free).

Levels: `exact`, the second half of the original, word for word; `close`; `free`; `topic`, a text on
the same matter with other words: the following passage of the chapter in the World English Bible,
or the following part of the article.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from inrun.data.build import split_of
from inrun.data.errors import SourceMalformed
from inrun.data.offline import read_offline
from inrun.data.paraphrase import Paraphraser
from inrun.data.prepare import DataConfig
from inrun.data.sources import Document, read_files
from inrun.data.tokenizers import Tokenizer
from inrun.data.verses import Passage, verse_passages

LEVELS = ("exact", "close", "free", "topic")
VERSES = 6
CLOSE, FREE = 0.35, 1.0


@dataclass(frozen=True)
class TextsConfig:
    """Which originals, and what they are hidden among."""

    source: str = "planted"
    """planted (chosen from the Bible and an encyclopedia) or files (yours)"""
    scripture: int = 24
    """number of originals from the Bible"""
    prose: int = 12
    """number of originals from the encyclopedia"""
    scripture_bytes: int = 300_000
    """of other passages of the King James Version"""
    domain_bytes: int = 100_000
    """of each other domain of the offline corpus"""
    path: str = ""
    """source=files: the training documents, as for data=files"""
    variants: str = ""
    """source=files: .jsonl, a row per rewritten text: {"original": doc_id, "level", "text"}"""
    seed: int = 0
    """of the choice"""

    def __post_init__(self):
        if self.source not in ("planted", "files"):
            raise ValueError(f"texts.source={self.source!r}: choose planted or files")
        if self.source == "files" and not (self.path and self.variants):
            raise ValueError(
                "texts.source=files needs texts.path (training documents) and texts.variants "
                "(rewritten texts)"
            )


@dataclass(frozen=True)
class Original:
    """A training document and its rewritten texts, level -> text. `name` is that of its target."""

    name: str
    doc_id: str
    family: str
    text: str
    variants: dict[str, str]


def scripture_originals(
    config: TextsConfig, data: DataConfig, tokenizer: Tokenizer, cache: Path
) -> tuple[list[Original], list[Document]]:
    """Originals of as many chapters, and the passages of other chapters, a document each."""
    passages = list(verse_passages(cache, VERSES))
    following = {
        p.name: after for p, after in itertools.pairwise(passages) if _chapter(p) == _chapter(after)
    }
    originals: list[Original] = []
    taken: set[tuple[int, int]] = set()
    for passage in _shuffled(passages, config.seed, lambda p: p.name):
        doc_id = f"planted/scripture/{passage.name}"
        text = filling(passage.texts["kjv"], data.block_size, tokenizer)
        after = following.get(passage.name)
        if len(originals) == config.scripture:
            break
        if (
            text is None
            or after is None
            or _chapter(passage) in taken
            or split_of(doc_id, data) != "train"
        ):
            continue
        taken.add(_chapter(passage))
        part = len(text) / len(passage.texts["kjv"])
        variants = {
            "exact": _second_half(text),
            "close": _first_part(passage.texts["asv"], part),
            "free": _first_part(passage.texts["ylt"], part),
            "topic": _first_part(after.texts["web"], part),
        }
        originals.append(
            Original(f"scripture-{len(originals):02d}", doc_id, "scripture", text, variants)
        )
    _enough(originals, config.scripture, "scripture")
    around = [
        Document(passage.texts["kjv"], "scripture", f"scripture/{passage.name}")
        for passage in _shuffled(passages, config.seed + 1, lambda p: p.name)
        if _chapter(passage) not in taken
    ]
    return originals, list(up_to(around, config.scripture_bytes))


def prose_originals(
    config: TextsConfig, data: DataConfig, tokenizer: Tokenizer, cache: Path
) -> tuple[list[Original], set[str]]:
    """Originals, and the ids of the articles that they come from."""
    originals: list[Original] = []
    used: set[str] = set()
    if not config.prose:
        return originals, used
    paraphraser = Paraphraser(cache)
    for article in read_offline(cache, ["wiki-en"], 0, config.seed):
        if len(originals) == config.prose:
            break
        body = article.text.partition("\n\n")[2]
        text, doc_id = filling(body, data.block_size, tokenizer), f"planted/prose/{article.doc_id}"
        if text is None or split_of(doc_id, data) != "train":
            continue
        rest = body[len(text) :].partition(". ")[2].strip()
        if len(tokenizer.encode(rest)) < data.block_size // 2 or not body.isascii():
            continue
        used.add(article.doc_id)
        variants = {
            "exact": _second_half(text),
            "close": paraphraser.rewrite(text, CLOSE, config.seed),
            "free": paraphraser.rewrite(text, FREE, config.seed),
            "topic": rest[: len(text)],
        }
        originals.append(Original(f"prose-{len(originals):02d}", doc_id, "prose", text, variants))
    _enough(originals, config.prose, "prose")
    return originals, used


def own_originals(config: TextsConfig) -> Iterator[Original]:
    """Originals of your own; families are the documents' domains."""
    rows = [
        json.loads(line)
        for line in Path(config.variants).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    if wrong := [k for k, row in enumerate(rows) if not {"original", "level", "text"} <= set(row)]:
        raise SourceMalformed(
            f"{config.variants}, row {wrong[0]}: needs original, level and text; it has "
            f"{sorted(rows[wrong[0]])}"
        )
    texts: dict[str, dict[str, str]] = {}
    for row in rows:
        texts.setdefault(row["original"], {})[row["level"]] = row["text"]
    documents = {d.doc_id: d for d in read_files(config.path) if d.doc_id in texts}
    if missing := sorted(set(texts) - set(documents)):
        raise SourceMalformed(
            f"{config.path} has no document {missing[0]!r}, which {config.variants} names as "
            "an original"
        )
    for number, (doc_id, variants) in enumerate(texts.items()):
        document = documents[doc_id]
        yield Original(f"original-{number:02d}", doc_id, document.domain, document.text, variants)


def filling(text: str, size: int, tokenizer: Tokenizer) -> str | None:
    """The beginning of a text that is exactly `size` tokens.

    With its end mark it fills a chunk. None where there is none that ends with a whole word.
    """
    ids = tokenizer.encode(text)[:size]
    beginning = tokenizer.decode(ids)
    whole_words = not text[len(beginning) : len(beginning) + 1].isalnum()
    return (
        beginning
        if len(ids) == size and whole_words and tokenizer.encode(beginning) == ids
        else None
    )


def _second_half(text: str) -> str:
    found = text.split()
    return " ".join(found[len(found) // 2 :])


def _first_part(text: str, part: float) -> str:
    found = text.split()
    return " ".join(found[: max(1, round(part * len(found)))])


def _chapter(passage: Passage) -> tuple[int, int]:
    return passage.book, passage.chapter


def _shuffled(items: list, seed: int, key: Callable[[Passage], str]) -> list:
    return sorted(
        items, key=lambda item: hashlib.sha256(f"copyright {seed} {key(item)}".encode()).digest()
    )


def up_to(documents: Iterable[Document], size: int) -> Iterator[Document]:
    """Documents until they have `size` characters."""
    given = 0
    for document in documents:
        if given >= size:
            return
        given += len(document.text)
        yield document


def _enough(originals: list[Original], wanted: int, family: str) -> None:
    if len(originals) < wanted:
        raise SourceMalformed(
            f"only {len(originals)} originals of {family} can be found, {wanted} were asked "
            f"for. Next: lower texts.{family}, or data.block_size"
        )
