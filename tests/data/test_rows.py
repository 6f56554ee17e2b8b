"""Rows of files: encodings, damage, values of every type that a column may hold."""

import datetime
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from inrun.data.documents import Document
from inrun.data.errors import SourceMalformed
from inrun.data.fields import document_of
from inrun.data.sources import read_files

TEXTS = [f"Nummer {k} kostet 10 € und heißt Übung" for k in range(50)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)


def read(path) -> list[Document]:
    return list(read_files(str(path)))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_text_is_the_same_in_every_encoding(tmp_path, encoding, end, newline):
    content = (LINES.rstrip("\n") + end).replace("\n", newline)
    (tmp_path / "x.jsonl").write_bytes(content.encode(encoding))
    assert [document.text for document in read(tmp_path / "x.jsonl")] == TEXTS
    (tmp_path / "y.jsonl").write_bytes(gzip.compress(content.encode(encoding)))
    assert [document.text for document in read(tmp_path / "y.jsonl")] == TEXTS


def test_byte_order_marks_inside_a_file_do_no_harm(tmp_path):
    half = LINES.encode("utf-8-sig")
    (tmp_path / "x.jsonl").write_bytes(half + half)
    assert [document.text for document in read(tmp_path / "x.jsonl")] == TEXTS * 2


def test_utf16_that_is_cut_is_named_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(LINES.encode("utf-16")[:-1])
    with pytest.raises(SourceMalformed, match=r"x\.jsonl, line \d+: not UTF-16"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and more", "a zip archive"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b'{\n  "text": "a"\n}\n', "line 1: not JSON.*One JSON object per line"),
        (b'{"text": "a"} {"text": "b"}\n', "line 1: not JSON"),
        (b"[" * 100_000 + b"\n", "line 1: not JSON"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", "line 1: not JSON"),
    ],
)
def test_what_is_no_lines_of_json_is_refused_by_file_and_row(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(SourceMalformed, match=rf"(?s)x\.jsonl.*{message}"):
        read(tmp_path)


def frames(*contents: bytes) -> bytes:
    return b"".join(zstandard.compress(content) for content in contents)


def test_several_frames_are_one_file(tmp_path):
    lines = LINES.encode()
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    for k, content in enumerate(
        (
            frames(lines[:777], lines[777:]),
            frames(b"", lines),
            skipped + frames(lines[:777]) + skipped + frames(lines[777:]) + skipped,
        )
    ):
        (tmp_path / f"{k}.jsonl.zst").write_bytes(content)
        assert [document.text for document in read(tmp_path / f"{k}.jsonl.zst")] == TEXTS, k
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines[:777]) + gzip.compress(lines[777:]))
    assert [document.text for document in read(tmp_path / "x.jsonl.gz")] == TEXTS


def flushed(packer) -> bytes:
    """A frame whose first half ends with a line and is flushed: cut there, all lines are whole."""
    lines = LINES.encode().splitlines(keepends=True)
    return packer(b"".join(lines[:25]), b"".join(lines[25:]))


def zstd_cut(first: bytes, rest: bytes) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(first) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def gzip_cut(first: bytes, rest: bytes) -> bytes:
    out = io.BytesIO()
    packer = gzip.GzipFile(fileobj=out, mode="wb")
    packer.write(first)
    packer.flush()
    return out.getvalue()


@pytest.mark.parametrize("packer", [zstd_cut, gzip_cut])
def test_a_frame_without_its_end_is_an_error_though_all_its_lines_are_whole(tmp_path, packer):
    (tmp_path / "x.jsonl").write_bytes(flushed(packer))
    with pytest.raises(SourceMalformed, match=r"x\.jsonl: damaged, cut short.*after document \d+"):
        read(tmp_path)


@pytest.mark.parametrize("place", ["page", "footer"])
def test_damaged_parquet_is_named(tmp_path, place):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "x.parquet", compression="zstd")
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    at = 60 if place == "page" else len(content) - 60
    content[at : at + 30] = b"\xff" * 30
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(SourceMalformed, match=r"x\.parquet: damaged"):
        read(tmp_path)


def test_rows_of_parquet_that_are_not_utf8_are_left_out_alone(tmp_path):
    content = pa.array([*(text.encode() for text in TEXTS), b"\xff bad"], pa.binary())
    text = pa.StringArray.from_buffers(len(content), content.buffers()[1], content.buffers()[2])
    for name, column in (("text", text), ("bytes", content)):
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
        found = read(tmp_path / f"{name}.parquet")
        assert [document.text for document in found[:-1]] == TEXTS
        assert [document.skip for document in found] == [""] * 50 + ["invalid_utf8"]


def test_columns_that_are_not_needed_are_not_read(tmp_path):
    odd = pa.array([datetime.datetime(1, 1, 1)] * 2, pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b"], "when": odd, "n": [1, 2]}), tmp_path / "x.parquet")
    assert [document.text for document in read(tmp_path)] == ["a", "b"]


def test_parquet_without_text_or_with_two_is_refused_even_without_rows(tmp_path):
    pq.write_table(pa.table({"content": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(SourceMalformed, match=r"no `text` \(it has \['content'\]"):
        read(tmp_path)
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceMalformed, match="two columns `text`"):
        read(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINES)
    documents = read_files(str(tmp_path))
    next(documents)
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(SourceMalformed, match="changed while it was read"):
        list(documents)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_null_text_is_left_out_as_null(missing):
    assert document_of({"text": missing}, "x:0", "here") == Document(
        "", "unlabelled", "x:0", skip="null"
    )


@pytest.mark.parametrize(
    ("value", "kind"), [(3, "a number"), (["a"], "a list"), ({"a": 1}, "an object"), (True, "a tr")]
)
def test_a_text_that_is_no_string_is_refused_with_what_it_is(value, kind):
    with pytest.raises(SourceMalformed, match=rf"here: `text` is {kind}.*not a string"):
        document_of({"text": value}, "x:0", "here")


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("a", "a"),
        (0, "0"),
        (2.5, "2.5"),
        (b"a", "a"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (None, "unlabelled"),
        ("", "unlabelled"),
        (float("nan"), "unlabelled"),
    ],
)
def test_names_are_strings_or_numbers(value, domain):
    assert document_of({"text": "a", "domain": value}, "x:0", "here").domain == domain
    by_meta = {"text": "a", "meta": {"pile_set_name": value}}
    assert document_of(by_meta, "x:0", "here").domain == domain
    assert document_of({"text": "a", "doc_id": value}, "x:0", "here").doc_id == (
        "x:0" if domain == "unlabelled" else domain
    )


@pytest.mark.parametrize("column", ["domain", "doc_id", "kind", "pile_like"])
@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}])
def test_names_that_are_lists_or_objects_are_refused(column, value):
    with pytest.raises(SourceMalformed, match=f"here: `{column}` is a"):
        document_of({"text": "a", column: value}, "x:0", "here")


@pytest.mark.parametrize("column", ["domain", "doc_id", "kind"])
@pytest.mark.parametrize("value", ["\ud800", b"\xff"])
def test_names_that_are_not_utf8_leave_the_document_out(column, value):
    assert document_of({"text": "a", column: value}, "x:0", "here").skip == "invalid_utf8"


META = {"pile_set_name": "Github"}


@pytest.mark.parametrize(
    "meta",
    [
        pa.array([META]),
        pa.array([json.dumps(META)]),
        pa.array([json.dumps(META).encode()]),
        pa.array([[("pile_set_name", "Github")]], pa.map_(pa.string(), pa.string())),
    ],
    ids=["struct", "string", "bytes", "map"],
)
def test_meta_is_an_object_a_map_or_a_string_of_json(tmp_path, meta):
    pq.write_table(pa.table({"text": ["a"], "meta": meta}), tmp_path / "x.parquet")
    (document,) = read(tmp_path)
    assert (document.domain, document.pile_like) == ("Github", "Github")


@pytest.mark.parametrize("meta", [None, "no json", "[1]", 3, [], ["a"]])
def test_meta_that_is_something_else_names_no_domain(meta):
    assert document_of({"text": "a", "meta": meta}, "x:0", "here").domain == "unlabelled"
