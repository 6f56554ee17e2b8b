"""A row of a file becomes a Document: which columns are read, and what their values may be.

    text       a string, or bytes of UTF-8; null is left out and counted
    domain     a string or a number; where it is missing, `pile_set_name` in `meta`
    meta       an object, a parquet map, or a string that holds a JSON object
    doc_id     a string or a number; where it is missing, the file's name and the row's number
    kind       "clean", or a kind of noise: the truth of a curation run
    pile_like  the Pile domain that it stands in for

Null, "" and NaN are missing values: tables write NaN where a column of strings has none. `Columns`
says under which other names a source keeps these.
"""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

from inrun.data.documents import UNLABELLED, Document
from inrun.data.errors import SourceMalformed

# `meta.pile_set_name` in monology/pile-uncopyrighted: the Pile's 22 names without Books3,
# BookCorpus2, OpenSubtitles, YoutubeSubtitles and OpenWebText2, which that copy leaves out.
PILE_DOMAINS = (
    "ArXiv",
    "DM Mathematics",
    "Enron Emails",
    "EuroParl",
    "FreeLaw",
    "Github",
    "Gutenberg (PG-19)",
    "HackerNews",
    "NIH ExPorter",
    "PhilPapers",
    "Pile-CC",
    "PubMed Abstracts",
    "PubMed Central",
    "StackExchange",
    "USPTO Backgrounds",
    "Ubuntu IRC",
    "Wikipedia (en)",
)


@dataclass(frozen=True)
class Columns:
    """Under which names a source keeps what is read of a row; the other columns are not read."""

    text: str = "text"
    domain: str = "domain"
    meta: str = "meta"
    doc_id: str = "doc_id"
    kind: str = "kind"
    pile_like: str = "pile_like"

    @property
    def names(self) -> tuple[str, ...]:
        """As they stand in the files."""
        return astuple(self)

    @property
    def renamed(self) -> tuple[str, ...]:
        """Of these, the ones that somebody has chosen: a table must have them."""
        return tuple(name for name, plain in zip(astuple(self), astuple(PLAIN)) if name != plain)

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's columns that are read, by their plain names."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {plain: row[name] for plain, name in pairs if name in row}

    def lacking(self, name: str, where: str, known: list[str]) -> SourceMalformed:
        """The error of a row or a table without a column."""
        return SourceMalformed(
            f"{where}: no `{name}` (it has {known}). Next: say what it is called there, as in "
            f"data.text_column={next(iter(known), 'content')}, or rename it"
        )


PLAIN = Columns()


def document_of(
    row: Mapping[str, Any] | None, default_id: str, where: str, columns: Columns = PLAIN
) -> Document:
    """The document in a row; None stands for a row that is not UTF-8.

    where: file and row, for the error. Raises SourceMalformed where there is no text, or where a
    column holds what it cannot hold.
    """
    if row is None:
        return _left_out(default_id, "invalid_utf8")
    if columns.text not in row:
        raise columns.lacking(columns.text, where, sorted(map(str, row)))
    row = columns.of(row)
    try:
        text = _text(row["text"], where)
        if text is None:
            return _left_out(default_id, "null")
        domain = _label(row.get("domain"), "domain", where) or _label(
            _mapping(row.get("meta")).get("pile_set_name"), "meta.pile_set_name", where
        )
        return Document(
            text=text,
            domain=domain or UNLABELLED,
            doc_id=_label(row.get("doc_id"), "doc_id", where) or default_id,
            pile_like=_label(row.get("pile_like"), "pile_like", where)
            or (domain if domain in PILE_DOMAINS else ""),
            kind=_label(row.get("kind"), "kind", where) or "clean",
        )
    except UnicodeError:
        return _left_out(default_id, "invalid_utf8")


def _left_out(doc_id: str, reason: str) -> Document:
    return Document("", UNLABELLED, doc_id, skip=reason)


def _text(value: Any, where: str) -> str | None:
    """The text; None for null. Raises UnicodeDecodeError for bytes that are not UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value != value:
        return None
    raise SourceMalformed(
        f"{where}: `text` is {_named(value)}, not a string ({value!r:.60}). Next: write the text "
        "as one string, or drop that row"
    )


def _label(value: Any, column: str, where: str) -> str:
    """A name as a string, "" where it is missing. Raises UnicodeError where it is not UTF-8."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, (dict, list, tuple)):
        raise SourceMalformed(
            f"{where}: `{column}` is {_named(value)} ({value!r:.60}). Next: give each document one "
            "name, as a string or a number"
        )
    label = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    label.encode("utf-8")  # JSON can hold a lone surrogate, the chunk table cannot
    return label


def _mapping(value: Any) -> Mapping[str, Any]:
    """`meta` as a mapping: a struct, a map (pairs), or a JSON object in a string; else empty."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)
    return value if isinstance(value, dict) else {}


def _named(value: Any) -> str:
    kinds = {bool: "a truth value", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
