"""Noise whose truth is known: what a curation run ought to find. Each kind is a text that carries
the words or the vocabulary of clean text, so that a filter by length or by language alone does not
give it away.

| kind     | what it is                                           | the clean text in it          |
|----------|------------------------------------------------------|-------------------------------|
| markup   | debris of web pages: tags, attributes, entities, ... | a word here and there         |
| numbers  | tables of numbers, separated by tabs, commas or bars | none                          |
| shuffled | the words of a text in random order                  | every word, none of the order |
| repeated | one line of a text, over and over                    | one line                      |
| symbols  | random printable characters                          | none                          |

Fluent text in a foreign language is not noise: it is a domain (`wiki-fr-es`).
"""

import random
from collections.abc import Callable

NOISE_KINDS = ("markup", "numbers", "shuffled", "repeated", "symbols")

_TAGS = ("div", "span", "td", "tr", "li", "a", "p", "img", "font", "table", "script", "meta")
_ATTRIBUTES = (
    "class",
    "id",
    "style",
    "href",
    "src",
    "data-track",
    "onclick",
    "width",
    "align",
    "bgcolor",
)
_ENTITIES = ("&nbsp;", "&amp;", "&lt;", "&raquo;", "&#8217;", "&copy;", "&mdash;")
_STYLES = ("margin:0", "padding:4px", "float:left", "display:none", "color:#%06x", "width:%dpx")
_SYMBOLS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789abcdefABCDEFxyzXYZ"


def make_noise(kind: str, text: str, size: int, key: str) -> str:
    """A noise document of about `size` characters, made from the clean `text`; equal arguments give
    an equal document.
    """
    if kind not in _MAKERS:
        raise ValueError(f"no noise is called {kind!r}; there are {', '.join(NOISE_KINDS)}")
    return _MAKERS[kind](random.Random(f"{kind} {key}"), text, size)[:size]


def _markup(rng: random.Random, text: str, size: int) -> str:
    words = text.split() or ["page"]

    def value() -> str:
        shape = rng.random()
        if shape < 0.4:
            return _fill(rng, rng.choice(_STYLES))
        return (
            f"{rng.getrandbits(40):x}"
            if shape < 0.7
            else f"/{rng.getrandbits(24):x}?utm={rng.getrandbits(20)}"
        )

    pieces, length = [], 0
    while length < size:
        tag = rng.choice(_TAGS)
        attributes = "".join(
            f' {rng.choice(_ATTRIBUTES)}="{value()}"' for _ in range(rng.randint(0, 3))
        )
        inside = (
            rng.choice(words) if rng.random() < 0.4 else rng.choice(_ENTITIES) * rng.randint(0, 3)
        )
        pieces.append(
            f"<{tag}{attributes}>{inside}" + (f"</{tag}>" if rng.random() < 0.7 else "\n")
        )
        length += len(pieces[-1])
    return "".join(pieces)


def _fill(rng: random.Random, pattern: str) -> str:
    return pattern % rng.getrandbits(9) if "%" in pattern else pattern


def _numbers(rng: random.Random, text: str, size: int) -> str:
    columns, separator = rng.randint(3, 9), rng.choice(["\t", ", ", " | "])
    rows, length = [], 0
    while length < size:
        cells = [
            f"{rng.uniform(-1, 1) * 10 ** rng.randint(0, 5):.{rng.randint(0, 4)}f}"
            for _ in range(columns)
        ]
        rows.append(separator.join(cells))
        length += len(rows[-1]) + 1
    return "\n".join(rows)


def _shuffled(rng: random.Random, text: str, size: int) -> str:
    words = text[:size].split()
    rng.shuffle(words)
    return " ".join(words)


def _repeated(rng: random.Random, text: str, size: int) -> str:
    lines = [line.strip()[:200] for line in text.splitlines() if len(line.strip()) >= 20] or [
        text.strip()[:200] or "0"
    ]
    line = rng.choice(lines) + "\n"
    return line * (size // len(line) + 1)


def _symbols(rng: random.Random, text: str, size: int) -> str:
    return "".join(rng.choices(_SYMBOLS + " ", k=size))


_MAKERS: dict[str, Callable[[random.Random, str, int], str]] = {
    "markup": _markup,
    "numbers": _numbers,
    "shuffled": _shuffled,
    "repeated": _repeated,
    "symbols": _symbols,
}
