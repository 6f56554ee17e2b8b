"""One text and what is known about it, and how much text it is."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Document:
    """One text and what is known about it."""

    text: str
    'Of any length; "" where the document cannot be used.'
    domain: str
    "The name of its domain."
    doc_id: str
    "Its name, the same in every preparation."
    pile_like: str = ""
    "The Pile domain it stands in for, empty for none."
    kind: str = "clean"
    "Clean, or a kind of noise."
    skip: str = ""
    "Why it cannot be used; such a document is passed on, so that it is counted."


def of_domains(documents: Iterable[Document], domains: Collection[str]) -> Iterator[Document]:
    """The same documents; those of other domains (empty: there are none) are marked `skip`."""
    for document in documents:
        if not domains or document.skip or document.domain in domains:
            yield document
        else:
            yield replace(document, text="", skip="other_domain")


def within_bytes(documents: Iterable[Document], max_bytes_per_domain: int) -> Iterator[Document]:
    """The same documents; those of domains that have given `max_bytes_per_domain` (0: no limit)
    already are marked `skip`.
    """
    given: dict[str, int] = {}
    for document in documents:
        if not max_bytes_per_domain or document.skip:
            yield document
        elif given.get(document.domain, 0) >= max_bytes_per_domain:
            yield replace(document, text="", skip="over_limit")
        else:
            given[document.domain] = given.get(document.domain, 0) + utf8_length(document.text)
            yield document


def utf8_length(text: str) -> int:
    """Bytes of a text in UTF-8; lone surrogates (which JSON can hold and UTF-8 cannot) count three
    each.
    """
    return len(text.encode("utf-8", "surrogatepass"))
