"""Originals, rewritten at graded similarity, and the training documents that they are hidden among.

Two families of originals, each one chunk of the training set, cut to exactly fill it:
  scripture   a passage of the King James Version (inrun.data.verses). Rewritten by people: American Standard Version (close), Young's Literal Translation (free).
  prose       the beginning of an encyclopedia article. Rewritten by rule (inrun.data.paraphrase): strength 0.35 (close), 1.0 (free).
Levels: `exact`, the second half of the original, word for word; `close`; `free`; `topic`, a text on
the same matter with other words: the following passage of the chapter in the World English Bible,
or the following part of the article.

Nothing of an original may stand elsewhere in the training set. So: of the translations only the
King James Version is trained on, and no other passage of an original's chapter; of an original's
article nothing else; and a document that shares a run of `SHARED_WORDS` words with an original is
left out (Scripture quotes itself). With documents of your own (source=files) that is up to you:
what is shared is counted and shown.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.artifacts import whole
from inrun.baselines.text import words
from inrun.data.build import split_of
from inrun.data.errors import SourceMalformed
from inrun.data.offline import DOMAINS, read_offline
from inrun.data.packages import cache_root
from inrun.data.paraphrase import Paraphraser
from inrun.data.prepare import DataConfig
from inrun.data.sources import Document, read_files
from inrun.data.tokenizers import Tokenizer, load_tokenizer
from inrun.data.verses import Passage, verse_passages

LEVELS = ("exact", "close", "free", "topic")
SHARED_WORDS = 8
VERSES = 6
CLOSE, FREE = 0.35, 1.0
#: trained on beside the originals' own kinds; the Bible comes from `verses`, whose translations are
#: aligned
OTHER_DOMAINS = tuple(domain.name for domain in DOMAINS if domain.name != "bible-kjv")


@dataclass(frozen=True)
class TextsConfig:
    """source: planted (as above) or files. scripture, prose: number of originals. scripture_bytes:
    of other passages of the King James Version; domain_bytes: of each other domain of the offline
    corpus. path: for source=files, the training documents (as for data=files); variants: a .jsonl
    file with one row per rewritten text, {"original": doc_id of a training document, "level": any
    name, "text": ...}. seed: of the choice.
    """

    source: str = "planted"
    scripture: int = 24
    prose: int = 12
    scripture_bytes: int = 300_000
    domain_bytes: int = 100_000
    path: str = ""
    variants: str = ""
    seed: int = 0

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


@dataclass(frozen=True)
class Texts:
    """What was written to `folder`: training.jsonl, for each level a file of its variants, `domain`
    = the original's name, and originals.json, name -> doc_id.

    dropped: documents left out because they share words with an original; shared: documents that do
    and were kept (of your own).
    """

    folder: Path
    originals: tuple[Original, ...]
    levels: tuple[str, ...]
    dropped: int
    shared: int

    def variants(self, level: str) -> Path:
        return self.folder / f"variants-{level}.jsonl"

    @property
    def training(self) -> Path:
        return self.folder / "training.jsonl"


def write_texts(config: TextsConfig, data: DataConfig, root: str | Path, folder: Path) -> Texts:
    """The texts in `folder`, the same ones for the same settings. root: where archives are kept."""
    if config.source == "files":
        documents, originals = list(read_files(config.path)), list(_own(config))
        dropped, shared = 0, _sharing(documents, originals)
    else:
        cache = cache_root(root)
        tokenizer = load_tokenizer(data.tokenizer, cache, data.tokenizer_from)
        scripture, around = _scripture(config, data, tokenizer, cache)
        prose, articles = _prose(config, data, tokenizer, cache)
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
    whole(
        folder / "originals.json", lambda beside: beside.write_text(names + "\n", encoding="utf-8")
    )
    return texts


# -- originals


def _scripture(
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
    return originals, list(_up_to(around, config.scripture_bytes))


def _prose(
    config: TextsConfig, data: DataConfig, tokenizer: Tokenizer, cache: Path
) -> tuple[list[Original], set[str]]:
    """Originals, and the ids of the articles that they come from."""
    paraphraser = Paraphraser(cache) if config.prose else None
    originals: list[Original] = []
    used: set[str] = set()
    for article in read_offline(cache, ["wiki-en"], 0, config.seed) if config.prose else ():
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


def _own(config: TextsConfig) -> Iterator[Original]:
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


# -- what surrounds them


def _others(config: TextsConfig, cache: Path, articles: set[str]) -> Iterator[Document]:
    for name in OTHER_DOMAINS:
        documents = (
            d
            for d in read_offline(cache, [name], config.domain_bytes, config.seed)
            if d.doc_id not in articles
        )
        yield from _up_to(documents, config.domain_bytes)


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


# -- small facts


def filling(text: str, size: int, tokenizer: Tokenizer) -> str | None:
    """The beginning of the text that is exactly `size` tokens, so that with its end mark it fills a
    chunk; None where there is none that ends with a whole word.
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


def _shuffled(items: list, seed: int, key) -> list:
    return sorted(
        items, key=lambda item: hashlib.sha256(f"copyright {seed} {key(item)}".encode()).digest()
    )


def _up_to(documents: Iterable[Document], size: int) -> Iterator[Document]:
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


def _write(path: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))
