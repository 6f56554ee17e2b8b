"""What a path holds: endings, contents, links, hidden files, folders that are datasets."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from inrun.data.corpus import Corpus
from inrun.data.errors import SourceMalformed
from inrun.data.fields import document_of
from inrun.data.listing import list_path, partition_of, short_names
from inrun.data.prepare import prepare
from inrun.data.sources import read_files
from tests.support.corpus_example import config, rows

LINES = "".join(json.dumps({"text": f"text number {k}"}) + "\n" for k in range(5)).encode()
PACKED = {
    "": LINES,
    ".gz": gzip.compress(LINES),
    ".zst": zstandard.compress(LINES),
    ".zstd": zstandard.compress(LINES),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def texts(path) -> list[str]:
    return [document.text for document in read_files(str(path))]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".JSONL", ".Json"])
def test_every_spelling_of_an_ending_is_read(tmp_path, ending, packed):
    write(tmp_path / f"x{ending}{packed}", PACKED[packed])
    expected = [f"text number {k}" for k in range(5)]
    assert texts(tmp_path) == texts(tmp_path / f"x{ending}{packed}") == expected


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_the_content_says_how_a_file_is_packed_not_its_name(tmp_path, name, packed):
    write(tmp_path / name, PACKED[packed])
    assert len(texts(tmp_path)) == 5


def test_parquet_under_another_name_is_parquet(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "x.jsonl")
    assert texts(tmp_path) == ["a", "b"]


def test_what_is_passed_over_is_named_with_its_reason(tmp_path):
    for name in ("a.jsonl", "_tmp/part.jsonl", ".ipynb_checkpoints/a.jsonl", ".b.jsonl"):
        write(tmp_path / name, LINES)
    write(tmp_path / "notes.csv", b"text\n")
    write(tmp_path / "empty.jsonl", b"")
    write(tmp_path / "dataset_info.json", json.dumps({"features": {}}, indent=2).encode())
    write(tmp_path / "config.json.gz", gzip.compress(b'{"layers": 2}'))
    (tmp_path / "twice.jsonl").symlink_to(tmp_path / "a.jsonl")
    for marker in ("_SUCCESS", ".a.jsonl.crc"):
        write(tmp_path / marker, b"x")
    listing = list_path(str(tmp_path))
    assert listing.names == ["a.jsonl"]
    assert listing.passed_over == {
        ".b.jsonl": "hidden: its name begins with . or _",
        ".ipynb_checkpoints": "hidden: its name begins with . or _",
        "_tmp": "hidden: its name begins with . or _",
        "config.json.gz": "JSON, but its first line is no document with a `text`",
        "dataset_info.json": "JSON, but its first line is no document with a `text`",
        "empty.jsonl": "has no content",
        "notes.csv": "of no known kind",
        "twice.jsonl": "the same as a.jsonl",
    }


def test_the_manifest_and_the_summary_name_what_is_passed_over(folder, tmp_path, capsys):
    from inrun.data.__main__ import main

    write(folder / "notes.csv", b"text\n")
    settings = ["source=files", f"path={folder}", "tokenizer=bytes", "block_size=32"]
    main([*settings, "--root", str(tmp_path)])
    out, err = capsys.readouterr()
    assert Corpus.open(out.strip()).manifest["passed_over"] == {"notes.csv": "of no known kind"}
    assert "notes.csv (of no known kind)" in " ".join(err.split())


def test_folders_that_are_datasets_are_walked(tmp_path):
    (tmp_path / "corpus.parquet").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "corpus.parquet" / "part-0.parquet")
    write(tmp_path / "x.jsonl" / "part-0.jsonl", LINES)
    assert len(texts(tmp_path)) == 6
    assert texts(tmp_path / "*.parquet") == texts(tmp_path / "corpus.parquet") == ["a"]
    assert len(texts(tmp_path / "*")) == 6


def test_columns_in_the_names_of_folders_are_read(tmp_path):
    for domain in ("Github", "Wikipedia%20%28en%29"):
        write(tmp_path / f"domain={domain}" / "part-0.jsonl", LINES)
    domains = [document.domain for document in read_files(str(tmp_path))]
    assert domains == ["Github"] * 5 + ["Wikipedia (en)"] * 5
    assert partition_of(tmp_path / "lr=3" / "x.jsonl") == {}
    # the folder itself, whose name is in no name of a file: still another corpus for another domain
    one = prepare(config(tmp_path / "domain=Github"), tmp_path / "out")
    two = prepare(config(tmp_path / "domain=Wikipedia%20%28en%29"), tmp_path / "out")
    assert one != two
    assert Corpus.open(two).domains == ["Wikipedia (en)"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "elsewhere" / "b.jsonl", LINES)
    write(tmp_path / "raw" / "a.jsonl", LINES)
    (tmp_path / "raw" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "loop").symlink_to(tmp_path / "raw")
    listing = list_path(str(tmp_path / "raw"))
    assert listing.names == ["a.jsonl", "linked/b.jsonl"]
    assert listing.passed_over == {"loop": "the same as ."}


def test_a_dangling_link_is_an_error_that_names_it(tmp_path):
    write(tmp_path / "a.jsonl", LINES)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    for path in (tmp_path, tmp_path / "gone.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(SourceMalformed, match=r"gone\.jsonl: a link to .*nowhere.*restore"):
            list_path(str(path))


def test_files_of_one_name_in_two_folders_are_two_sources(tmp_path):
    for folder in ("one", "two"):
        write(tmp_path / folder / "x.jsonl", LINES)
    ids = [document.doc_id for document in read_files(str(tmp_path / "*" / "x.jsonl"))]
    assert ids == [f"{folder}/x.jsonl:{k}" for folder in ("one", "two") for k in range(5)]
    assert short_names([tmp_path / "one" / "x.jsonl"]) == ["x.jsonl"]


def test_a_path_without_documents_says_what_lies_there(tmp_path):
    write(tmp_path / "empty.jsonl", b"")
    for path in (tmp_path, tmp_path / "empty.jsonl"):
        with pytest.raises(SourceMalformed, match=r"empty\.jsonl: has no content"):
            list_path(str(path))


def test_a_row_of_the_library_without_text_names_what_it_has():
    with pytest.raises(SourceMalformed, match=r"here: no `text` \(it has \['content'\]\)"):
        document_of({"content": "a"}, "x:0", "here")
    assert rows(1)[0]["text"]
