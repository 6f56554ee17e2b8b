"""The rows of a file of documents: JSON lines, compressed or not, or parquet.

What a file is follows from its first bytes, not from its name alone: a .jsonl that is compressed is
opened as what it is. Lines are UTF-8 (with or without a byte order mark), UTF-16 or UTF-32. Every
error names the file and the row.
"""

import codecs
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from inrun.data.errors import SourceMalformed
from inrun.data.fields import PLAIN, Columns

Row = dict[str, Any] | None
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
SKIPPED_FRAME = b"\x2a\x4d\x18"  # of zstd, after a byte 0x50 to 0x5f
# first bytes of what is neither text nor read here -> its name
FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
# the longer marks first: that of UTF-32 begins as that of UTF-16
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNMARKED = (
    (b"{\x00\x00\x00", "utf-32-le"),
    (b"\x00\x00\x00{", "utf-32-be"),
    (b"{\x00", "utf-16-le"),
    (b"\x00{", "utf-16-be"),
)
DAMAGED = (EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, OSError)
CHUNK_BYTES = 65536
LARGEST_WINDOW = 2**31


def rows_of(file: Path, columns: Columns = PLAIN, elsewhere: Collection[str] = ()) -> Iterator[Row]:
    """Each row as a mapping, None where it is not UTF-8.

    elsewhere: columns that stand in the names of folders, which a table may lack.

    Raises SourceMalformed, with file and row, for what is damaged, cut short, no JSON or no text,
    and if the file changes while it is read.
    """
    done = 0
    try:
        before = file.stat()
        for row in (
            _parquet_rows(file, columns, elsewhere) if is_parquet(file) else _json_rows(file)
        ):
            yield row
            done += 1
        after = file.stat()
    except DAMAGED as error:
        raise SourceMalformed(
            f"{file}: damaged, cut short or unreadable after document {done} "
            f"({str(error).strip() or type(error).__name__}). Next: fetch it again"
        ) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceMalformed(
            f"{file}: changed while it was read. Next: wait until it is written, then prepare again"
        )


def check_whole(file: Path) -> None:
    """SourceMalformed where compressed content is damaged or has no end. It is decompressed once.

    For files that another library reads, which may take a cut file for a short one.
    """
    try:
        if not is_parquet(file):
            with _open(file) as content:
                while content.read(2**20):
                    pass
    except DAMAGED as error:
        raise SourceMalformed(
            f"{file}: damaged, cut short or unreadable "
            f"({str(error).strip() or type(error).__name__}). Next: fetch it again"
        ) from error


def is_parquet(file: Path) -> bool:
    """By its first bytes, or by its name where they are damaged."""
    return _head(file).startswith(PARQUET) or file.name.lower().endswith(".parquet")


def first_row(file: Path) -> Row:
    """The first row, None where the file does not begin with one."""
    try:
        return next(rows_of(file), None)
    except SourceMalformed:
        return None


def _parquet_rows(file: Path, columns: Columns, elsewhere: Collection[str]) -> Iterator[Row]:
    """Only the columns that are needed are read; the others may hold anything."""
    with pq.ParquetFile(file) as parquet:
        count = Counter(parquet.schema_arrow.names)
        if twice := [name for name in columns.names if count[name] > 1]:
            raise SourceMalformed(
                f"{file}: two columns `{twice[0]}` (it has {sorted(count.elements())}). Next: "
                "rename one of them"
            )
        for name in (columns.text, *columns.renamed):
            if name not in count and name not in elsewhere:
                raise columns.lacking(name, str(file), sorted(count.elements()))
        wanted = [name for name in columns.names if name in count]
        for batch in parquet.iter_batches(batch_size=256, columns=wanted):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                yield from _one_by_one(batch)


def _one_by_one(batch: pa.RecordBatch) -> Iterator[Row]:
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield None


def _json_rows(file: Path) -> Iterator[Row]:
    with _open(file) as content:
        for number, line in enumerate(_lines(content, file), start=1):
            if line is None:
                yield None
                continue
            line = line.lstrip("\ufeff")
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceMalformed(
                    f"{where}: not JSON ({getattr(error, 'msg', error)}). One JSON object per line "
                    "is expected. Next: repair or drop that line"
                ) from error
            if not isinstance(row, dict):
                raise SourceMalformed(
                    f"{where}: a JSON object per line is expected, got {row!r:.60}"
                )
            yield row


def _lines(content: io.BufferedReader, file: Path) -> Iterator[str | None]:
    """The lines as text, None where one is not UTF-8."""
    head = content.peek(32)
    for magic, name in FOREIGN.items():
        if head.startswith(magic):
            raise SourceMalformed(
                f"{file}: it is {name}, not lines of text. Next: give the unpacked file as .jsonl "
                "or .parquet"
            )
    encoding = next((name for mark, name in MARKS + UNMARKED if head.startswith(mark)), "")
    if not encoding:
        for line in content:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                yield None
        return
    number = 0
    try:
        with io.TextIOWrapper(content, encoding=encoding, newline="\n") as lines:
            for text in lines:
                number += 1
                yield text
    except UnicodeError as error:
        raise SourceMalformed(
            f"{file}, line {number + 1}: not {encoding.upper()}, as which the file begins "
            f"({error}). Next: write it as UTF-8"
        ) from error


def _head(file: Path) -> bytes:
    with open(file, "rb") as content:
        return content.read(8)


def _open(file: Path) -> io.BufferedReader:
    """The content, decompressed if it is compressed, whatever the name says."""
    head = _head(file)
    skipped = head[1:4] == SKIPPED_FRAME and head[0] >> 4 == 5
    packed = GZIP if head.startswith(GZIP) else ZSTD if head.startswith(ZSTD) or skipped else b""
    # a name speaks where the first bytes are damaged, not where they are those of a plain file
    if not packed and not head.lstrip().startswith(b"{"):
        name = file.name.lower()
        packed = GZIP if name.endswith(".gz") else b""
        packed = ZSTD if name.endswith((".zst", ".zstd")) else packed
    if packed == GZIP:
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(file, "rb")))
    return io.BufferedReader(_Frames(open(file, "rb"))) if packed else open(file, "rb")


class _Frames(io.RawIOBase):
    """The content of the zstd frames of a file. EOFError where the last of them has no end."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input and not (chunk := self._file.read(CHUNK_BYTES)):
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._output = memoryview(self._next(self._input or chunk))
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count

    def _next(self, content: bytes) -> bytes:
        if self._frame is None:
            # max_window_size: frames of `zstd --long`
            self._frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
        found = self._frame.decompress(content)
        self._input = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return found

    def close(self) -> None:
        self._file.close()
        super().close()
