"""A source that changed gives another corpus; whole files are hashed, and only once."""

import os

import pytest

from inrun.data import fingerprint
from inrun.data.corpus import Corpus
from inrun.data.errors import SourceMalformed
from inrun.data.fingerprint import fingerprint_files, remembered_in
from inrun.data.prepare import prepare
from tests.support.corpus_example import config, rows, write_jsonl


@pytest.fixture
def large(tmp_path):
    """A file whose middle is far from both of its ends."""
    write_jsonl(
        tmp_path / "raw" / "a.jsonl", [{"text": f"row {k:05d} " + "a" * 90} for k in range(3000)]
    )
    return tmp_path / "raw" / "a.jsonl"


def edit_in_the_middle(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"row 01500 aaaa", b"row 01500 bbbb"))


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read to be hashed; files count as settled at once."""
    names: list[str] = []
    real = fingerprint.file_sha256

    def counted(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(fingerprint, "file_sha256", counted)
    monkeypatch.setattr(fingerprint, "SETTLED_S", -1.0)
    return names


def test_a_row_that_was_corrected_in_place_gives_another_corpus(large, tmp_path, hashed):
    before = prepare(config(large), tmp_path)
    edit_in_the_middle(large)
    after = prepare(config(large), tmp_path)
    assert before != after
    assert Corpus.open(before).digest != Corpus.open(after).digest


def test_also_where_somebody_sets_the_time_back(large, tmp_path, hashed):
    times = (large.stat().st_atime_ns, large.stat().st_mtime_ns)
    with remembered_in(tmp_path):
        before = fingerprint_files(str(large))
        edit_in_the_middle(large)
        os.utime(large, ns=times)
        assert large.stat().st_mtime_ns == times[1]
        assert fingerprint_files(str(large)) != before


def test_another_file_of_the_same_size_and_time_in_its_place(large, tmp_path, hashed):
    with remembered_in(tmp_path):
        before = fingerprint_files(str(large))
        other = large.with_name("other")
        other.write_bytes(large.read_bytes())
        edit_in_the_middle(other)
        os.utime(other, ns=(large.stat().st_atime_ns, large.stat().st_mtime_ns))
        os.replace(other, large)
        assert fingerprint_files(str(large)) != before


def test_a_file_that_stays_is_hashed_once(folder, tmp_path, hashed):
    place = prepare(config(folder), tmp_path / "out")
    assert sorted(hashed) == ["a.jsonl", "b.jsonl"]
    assert prepare(config(folder), tmp_path / "out") == place
    assert sorted(hashed) == ["a.jsonl", "b.jsonl"]
    write_jsonl(folder / "b.jsonl", rows(150, seed=5))
    assert prepare(config(folder), tmp_path / "out") != place
    assert sorted(hashed) == ["a.jsonl", "b.jsonl", "b.jsonl"]


def test_a_file_of_just_now_is_hashed_again(folder, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(fingerprint, "SETTLED_S", 1e6)
    for _ in range(2):
        with remembered_in(tmp_path):
            fingerprint_files(str(folder))
    assert sorted(hashed) == ["a.jsonl", "a.jsonl", "b.jsonl", "b.jsonl"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}'])
def test_a_damaged_memory_is_no_harm(folder, tmp_path, hashed, content):
    expected = fingerprint_files(str(folder))
    (tmp_path / fingerprint.MEMORY_FILE).write_text(content)
    with remembered_in(tmp_path):
        assert fingerprint_files(str(folder)) == expected


def test_a_folder_that_cannot_be_written_is_no_harm(folder, tmp_path, hashed):
    (tmp_path / "file").write_text("no folder")
    with remembered_in(tmp_path / "file"):
        assert len(fingerprint_files(str(folder))) == 2


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fingerprint, "file_sha256", refused)
    with pytest.raises(SourceMalformed, match=r"a\.jsonl: cannot be read .*Permission denied"):
        fingerprint_files(str(folder))
