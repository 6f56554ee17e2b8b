"""What a path holds: the files of documents that are read, and what is passed over and why.

A path is a file, a folder (with its subfolders, a parquet dataset among them) or a glob pattern.
Links are followed, each file and each folder is read once. Everything that is not read has a reason
in `Listing.passed_over`, but for hidden files and markers that could hold no documents.
"""

import glob
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from inrun.data.errors import SourceMalformed
from inrun.data.fields import PLAIN, Columns
from inrun.data.rows import first_row

ENDINGS = (".jsonl", ".ndjson", ".json")
FILE_ENDINGS = (
    *(ending + packed for packed in ("", ".gz", ".zst", ".zstd") for ending in ENDINGS),
    ".parquet",
)


@dataclass
class Listing:
    """The files that a path stands for."""

    files: list[Path] = field(default_factory=list)
    "Those that are read, in the order in which they are read."
    passed_over: dict[str, str] = field(default_factory=dict)
    "Name of a file or folder that is not read -> why."
    root: Path | None = None
    "The folder that was looked through, from which names are given."
    columns: Columns = PLAIN
    "What documents are read from."

    @property
    def names(self) -> list[str]:
        """Of the files, without their common folder: equal wherever the files lie."""
        return short_names(self.files)

    def name(self, place: Path) -> str:
        """From the folder that was looked through, so that it does not depend on where that is."""
        return str(place.relative_to(self.root) if self.root else place)

    def pass_over(self, place: Path, why: str) -> None:
        self.passed_over[self.name(place)] = why


def list_path(path: str, columns: Columns = PLAIN) -> Listing:
    """What a `path` setting stands for; SourceMalformed when that is no file of documents."""
    place = Path(path)
    found = Listing(root=place if place.is_dir() else None, columns=columns)
    seen: dict[tuple[int, int], Path] = {}
    one = place.exists() or place.is_symlink()
    try:
        for match in [place] if one else sorted(map(Path, glob.glob(path, recursive=True))):
            if match.is_dir():
                _walk(match, found, seen)
            else:
                _take(match, found, seen, asked_for=True)
    except OSError as error:
        raise SourceMalformed(
            f"path {path!r}: cannot be looked through ({error}). Next: make it readable, or move "
            "what cannot be read away"
        ) from error
    if not found.files:
        passed = "".join(f"; {name}: {why}" for name, why in [*found.passed_over.items()][:5])
        raise SourceMalformed(
            f"path {path!r}: no file of documents there{passed}. Next: give a file, a folder or a "
            f"glob of {', '.join(FILE_ENDINGS)}"
        )
    found.files.sort()
    return found


def list_files(path: str) -> list[Path]:
    """The files a `path` setting stands for; SourceMalformed when there are none."""
    return list_path(path).files


def short_names(files: Iterable[Path]) -> list[str]:
    """File names without their common folder, so that document ids do not depend on where the files
    lie.
    """
    parts = [Path(os.path.abspath(file)).parts for file in files]
    shared = len(
        list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*(p[:-1] for p in parts))))
    )
    return ["/".join(p[shared:]) for p in parts]


def partition_of(file: Path, columns: Columns = PLAIN) -> dict[str, str]:
    """Columns that stand in the names of folders, as in `domain=Github/part-0.parquet`."""
    pairs = (folder.partition("=") for folder in Path(os.path.abspath(file)).parts[:-1])
    return {
        name: unquote(value) for name, equals, value in pairs if equals and name in columns.names
    }


def _walk(folder: Path, found: Listing, seen: dict[tuple[int, int], Path]) -> None:
    if _met_before(folder, found, seen):
        return
    for place in sorted(folder.iterdir()):
        if place.name.startswith((".", "_")):
            if _may_hold_documents(place):
                found.pass_over(place, "hidden: its name begins with . or _")
        elif place.is_dir():
            _walk(place, found, seen)
        else:
            _take(place, found, seen, asked_for=False)


def _take(
    file: Path, found: Listing, seen: dict[tuple[int, int], Path], *, asked_for: bool
) -> None:
    """List a file, or say why it is passed over. `asked_for`: by its name or a pattern of it."""
    if not file.exists():
        raise SourceMalformed(
            f"{file}: a link to {os.readlink(file)}, which is not there. Next: restore that file, "
            "or delete the link"
        )
    if not _is_document_name(file.name):
        if asked_for:
            raise SourceMalformed(
                f"path {str(file)!r}: {file.name} is of no known kind. Next: give a file, a folder "
                f"or a glob of {', '.join(FILE_ENDINGS)}"
            )
        found.pass_over(file, "of no known kind")
    elif not file.is_file():
        found.pass_over(file, "neither a file nor a folder")
    elif not file.stat().st_size:
        found.pass_over(file, "has no content")
    elif not asked_for and _is_other_json(file, found.columns):
        found.pass_over(
            file, f"JSON, but its first line is no document with a `{found.columns.text}`"
        )
    elif not _met_before(file, found, seen):
        found.files.append(file)


def _met_before(place: Path, found: Listing, seen: dict[tuple[int, int], Path]) -> bool:
    """Whether a link led to this place already; the second time it is passed over."""
    about = place.stat()
    before = seen.setdefault((about.st_dev, about.st_ino), place)
    if before is not place and before != place:  # a pattern matches a folder and what is in it
        found.pass_over(place, f"the same as {found.name(before)}")
    return before is not place


def _is_document_name(name: str) -> bool:
    return name.lower().endswith(FILE_ENDINGS)


def _may_hold_documents(place: Path) -> bool:
    if not place.is_dir():
        return _is_document_name(place.name)
    return any(_is_document_name(name) for _, _, names in os.walk(place) for name in names)


def _is_other_json(file: Path, columns: Columns) -> bool:
    """Whether a .json describes something (a model, a dataset) and holds no documents."""
    name = file.name.lower()
    for packed in (".gz", ".zst", ".zstd"):
        name = name.removesuffix(packed)
    if not name.endswith(".json"):
        return False
    row = first_row(file)
    return row is None or columns.text not in row
