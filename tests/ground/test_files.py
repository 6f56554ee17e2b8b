"""Whatever happens to a writer, a reader sees the former content of a file or the new one."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from inrun import files


class Killed(BaseException):
    """As a kill: nothing on the way handles it."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_json_and_bytes_are_there_and_nothing_else(tmp_path):
    assert files.write_text(tmp_path / "a", "ä\n") == tmp_path / "a"
    files.write_bytes(tmp_path / "b", memoryview(b"\r\n"))
    files.write_json(tmp_path / "c", {"x": ["é", 1.5]})
    assert (tmp_path / "a").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\r\n"
    assert (tmp_path / "c").read_text(encoding="utf-8").endswith("}\n")
    assert files.read_json(tmp_path / "c") == {"x": ["é", 1.5]}
    assert names(tmp_path) == ["a", "b", "c"]


def test_a_number_that_json_has_not_is_refused_and_the_former_file_stays(tmp_path):
    files.write_json(tmp_path / "c", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "c", float("nan"))
    assert files.read_json(tmp_path / "c") == 1


def test_a_writer_that_fails_leaves_the_former_file_and_no_other(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    files.write_text(tmp_path / "a", "whole")
    with pytest.raises(OSError, match="disk full"):
        files.write_file(tmp_path / "a", fail)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_a_killed_writer_leaves_the_former_file_and_a_partial_that_is_found(tmp_path):
    def die(path):
        path.write_text("half")
        raise Killed

    files.write_text(tmp_path / "a", "whole")
    with pytest.raises(Killed):
        files.write_file(tmp_path / "a", die)
    (left,) = files.partials(tmp_path)
    assert files.partials(tmp_path, "a") == [left]
    assert files.partials(tmp_path, "b") == []
    assert (tmp_path / "a").read_text() == "whole"


def test_content_and_folder_are_synced_before_and_after_the_renaming(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "sync", lambda path: seen.append(path))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("rename"), replace(a, b)))
    files.write_text(tmp_path / "a", "whole")
    assert seen[0].name.startswith("a.")
    assert seen[1:] == ["rename", tmp_path]


def test_many_writers_of_one_file_never_show_half_of_it(tmp_path):
    place = tmp_path / "shared.json"
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda k: files.write_json(place, [k] * 1000), range(40)):
            found = files.read_json(place)
            assert len(found) == 1000
            assert len(set(found)) == 1
    assert names(tmp_path) == ["shared.json"]


def test_remembered_value_is_computed_once_and_reads_alike(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {1: (2, 3)}

    first = files.remember(tmp_path / "deep" / "memo.json", compute)
    assert first == files.remember(tmp_path / "deep" / "memo.json", compute) == {"1": [2, 3]}
    assert len(calls) == 1


def test_folder_appears_whole_in_the_place_of_the_former_one(tmp_path):
    place = tmp_path / "step"
    for k in (1, 2):
        with files.new_folder(place) as unfinished:
            (unfinished / "inside").mkdir()
            (unfinished / "inside" / f"{k}.json").write_text(json.dumps(k))
            assert unfinished.name.endswith(".partial")
            assert place.exists() == (k == 2)
    assert names(place / "inside") == ["2.json"]
    assert names(tmp_path) == ["step"]


def test_folder_that_fails_leaves_the_former_one(tmp_path):
    with files.new_folder(tmp_path / "step") as unfinished:
        (unfinished / "a").touch()

    def fail():
        with files.new_folder(tmp_path / "step") as unfinished:
            (unfinished / "b").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert names(tmp_path / "step") == ["a"]
    assert names(tmp_path) == ["step"]
