"""Columns of any name: `data.text_column=...` and the others."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inrun.config import ConfigError
from inrun.data.config import NAMED
from inrun.data.corpus import Corpus
from inrun.data.errors import SourceMalformed
from inrun.data.fields import Columns
from inrun.data.listing import list_path
from inrun.data.prepare import prepare
from inrun.data.sources import read_files, read_hub
from tests.support.corpus_example import config, write_jsonl

OTHERS = {
    "text_column": "body",
    "domain_column": "topic",
    "meta_column": "about",
    "doc_id_column": "url",
    "kind_column": "label",
    "pile_like_column": "stands_for",
}
#: with columns of the plain names, which are somebody else's then
ROWS = [
    {
        "body": f"the text of document {k}",
        "topic": "ab"[k % 2] if k % 3 else None,
        "about": {"pile_set_name": "FreeLaw"},
        "url": f"here/{k}",
        "label": "clean",
        "stands_for": "ArXiv",
        "text": 17,
        "domain": ["no", "name"],
        "kind": "a kind of the user's own",
    }
    for k in range(60)
]


def write(folder, kind):
    folder.mkdir(parents=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "part.parquet")
    elif kind == "map":
        maps = pa.map_(pa.string(), pa.string())
        table = pa.Table.from_pylist(ROWS).drop_columns(["about"])
        column = pa.array([[("pile_set_name", "FreeLaw")]] * len(ROWS), maps)
        pq.write_table(table.append_column("about", column), folder / "part.parquet")
    elif kind == "string":
        rows = [{**row, "about": json.dumps(row["about"])} for row in ROWS]
        pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    else:
        write_jsonl(folder / kind, ROWS)
    return folder


KINDS = ["parquet", "map", "string", "part.jsonl", "part.json", "part.ndjson.gz", "part.jsonl.zst"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_columns_are_read_and_no_others(tmp_path, kind):
    folder = write(tmp_path / "raw", kind)
    documents = list(read_files(str(folder), config(folder, **OTHERS).columns))
    assert [d.text for d in documents] == [row["body"] for row in ROWS]
    assert [d.domain for d in documents] == [row["topic"] or "FreeLaw" for row in ROWS]
    assert [d.doc_id for d in documents] == [row["url"] for row in ROWS]
    assert {d.kind for d in documents} == {"clean"}
    assert {d.pile_like for d in documents} == {"ArXiv"}


def test_corpus_of_named_columns_is_that_of_plain_ones(tmp_path):
    folder = write(tmp_path / "raw", "parquet")
    plain = [
        {name.removesuffix("_column"): row[other] for name, other in OTHERS.items()} for row in ROWS
    ]
    write_jsonl(tmp_path / "plain" / "part.jsonl", plain)
    named = Corpus.open(prepare(config(folder, **OTHERS), tmp_path / "out"))
    assert named.digest == Corpus.open(prepare(config(tmp_path / "plain"), tmp_path / "out")).digest
    assert named.manifest["settings"]["text_column"] == "body"


def test_columns_of_plain_names_leave_a_corpus_where_it_was(tmp_path):
    write_jsonl(tmp_path / "raw" / "part.jsonl", [{"text": f"text {k} " * 9} for k in range(60)])
    settings = Corpus.open(prepare(config(tmp_path / "raw"), tmp_path / "out")).manifest["settings"]
    assert not set(NAMED) & set(settings)


def test_domain_in_the_names_of_folders_may_have_another_name(tmp_path):
    for topic in ("a", "b"):
        place = tmp_path / "raw" / f"topic={topic}"
        place.mkdir(parents=True)
        table = pa.table({"body": ["some text"] * 3})
        pq.write_table(table, place / "part.parquet")
    columns = Columns(text="body", domain="topic")
    found = [d.domain for d in read_files(str(tmp_path / "raw"), columns)]
    assert found == ["a"] * 3 + ["b"] * 3


def test_named_columns_of_a_hub_dataset(tmp_path):
    write_jsonl(tmp_path / "train" / "00.jsonl", ROWS)
    columns = config(tmp_path, **OTHERS).columns
    documents = list(read_hub(str(tmp_path), "train", "main", columns=columns))
    assert [d.text for d in documents] == [row["body"] for row in ROWS]


@pytest.mark.parametrize("kind", ["parquet", "part.jsonl"])
def test_text_column_that_is_not_there_names_what_is(tmp_path, kind):
    folder = write(tmp_path / "raw", kind)
    with pytest.raises(SourceMalformed, match=r"no `content` \(it has .*'body'.*data.text_column"):
        list(read_files(str(folder), Columns(text="content")))


def test_domain_column_that_a_table_lacks_is_no_silent_unlabelled(tmp_path):
    folder = write(tmp_path / "raw", "parquet")
    with pytest.raises(SourceMalformed, match="no `theme`"):
        list(read_files(str(folder), Columns(text="body", domain="theme")))


def test_json_without_the_named_text_is_passed_over(tmp_path):
    folder = write(tmp_path / "raw", "part.json")
    (folder / "dataset_info.json").write_text('{"text": "about the data"}')
    listing = list_path(str(folder), Columns(text="body"))
    assert [file.name for file in listing.files] == ["part.json"]
    assert "no document with a `body`" in listing.passed_over["dataset_info.json"]


def test_one_column_cannot_be_two_things(tmp_path):
    with pytest.raises(ConfigError, match="two of the columns have one name: body, body"):
        config(tmp_path, text_column="body", domain_column="body")
