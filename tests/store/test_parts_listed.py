"""What a reader takes for the store is what the list says: parts that are missing, foreign, double,
half-written or altered are errors or invisible.
"""

import hashlib
import json
import random
import shutil

import pyarrow.parquet as pq
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter, parts
from tests.support.store_example import RUN, SAMPLES, write_step

STEPS = 8


def write(path, flush_every=3, run=RUN, steps=STEPS):
    with ValueWriter(path, run, flush_every=flush_every) as writer:
        writer.samples(SAMPLES)
        for step in range(steps):
            write_step(writer, step)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "v")


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "v")


def answers(path):
    with ValueStore(path) as store:
        return (
            store.top(40, "val", "path").to_pylist(),
            store.by("domain", "math", "path").to_pylist(),
            store.over(bins=3, by="kind", target="val", method="first_order").to_pylist(),
            store.ledger("val", "path"),
            store.sql("SELECT * FROM steps ORDER BY step").to_pylist(),
            store.sql("SELECT sum(len(values)) AS n FROM tokens").to_pylist(),
            dict(store.run),
        )


@pytest.fixture(scope="module")
def true(whole):
    return answers(whole)


def terms(path):
    return sorted((path / "terms").iterdir())


@pytest.mark.parametrize("which", [0, 1, -1])
def test_missing_part_is_named_with_what_to_do(path, which):
    part = terms(path)[which]
    part.unlink()
    first = int(part.name.split("-")[1])
    told = rf"{part.name} is missing: .* checkpoint of step {first} or earlier"
    for ask in (lambda s: s.top(1, "val", "path"), lambda s: s.verify()):
        with ValueStore(path) as store, pytest.raises(StoreError, match=told):
            ask(store)
    with ValueStore(path) as store:
        assert store.ledger("val", "path").steps == STEPS  # which does not need it


def test_part_twice_changes_no_answer_and_is_a_fault(path, true):
    part = terms(path)[0]
    twin = part.with_name(part.name.replace("rank0000", "rank0001"))
    shutil.copy(part, twin)
    assert answers(path) == true
    with ValueStore(path) as store, pytest.raises(StoreError, match=f"{twin.name} is in no list"):
        store.verify()


def test_part_of_another_run_changes_no_answer_and_is_a_fault(path, true, tmp_path):
    stranger = terms(write(tmp_path / "other", flush_every=2))[-1]
    shutil.copy(stranger, path / "terms")
    assert answers(path) == true
    with ValueStore(path) as store, pytest.raises(StoreError, match="is in no list"):
        store.verify()
    # in the place of a part it is no other than a damaged one
    shutil.copy(stranger, terms(path)[0])
    with ValueStore(path) as store, pytest.raises(StoreError, match="its checksum is not the list"):
        store.top(1, "val", "path")


def test_part_that_a_kill_left_is_invisible_noted_and_removed(path, true, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    writer = ValueWriter.resume(path, RUN, STEPS)
    write_step(writer, STEPS)
    monkeypatch.setattr("os.ftruncate", killed)  # the part is there, its line is not
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    monkeypatch.undo()
    assert answers(path)[:-1] == true[:-1]
    with ValueStore(path) as store:
        assert "4 files that no list has" in store.verify().notes[0]
    ValueWriter.resume(path, RUN, STEPS).close()
    with ValueStore(path) as store:
        assert store.verify().notes == []


def test_lists_of_another_run_and_missing_ones_are_refused(path, tmp_path):
    other = write(tmp_path / "other")
    mine = path / "parts" / "rank0000.jsonl"
    shutil.copy(other / "parts" / "rank0000.jsonl", mine)
    with ValueStore(path) as store, pytest.raises(StoreError, match="list of another run"):
        store.top(1, "val", "path")
    mine.unlink()
    with ValueStore(path) as store, pytest.raises(StoreError, match=r"rank0000\.jsonl is missing"):
        store.top(1, "val", "path")


def test_list_that_leads_out_of_the_store_is_refused(path):
    """Also one whose checksums are right: it is deleted from and read through."""
    lines = (path / "parts" / "rank0000.jsonl").read_text().splitlines()
    former, out = "", b""
    for line in lines:
        entry = json.loads(line)[2]
        for part in entry.get("added", ()):
            part["name"] = "../" + part["name"]
        body = json.dumps(entry).encode()
        former = hashlib.sha256(former.encode() + body).hexdigest()
        out += b'["%010d", "%b", %b]\n' % (len(body) + 85, former.encode(), body)
    (path / "parts" / "rank0000.jsonl").write_bytes(out)
    for act in (
        lambda: ValueStore(path).top(1, "val", "path"),
        lambda: ValueWriter.resume(path, RUN, 0),
    ):
        with pytest.raises(StoreError, match="no file of a store"):
            act()


def test_one_flipped_bit_anywhere_is_an_error_by_name_or_changes_nothing(path, true):
    """240 random bits of parts, list and description; a flip that is not seen may change nothing.

    The end of a file is tried more often: a flip there could be taken for a torn line.
    """
    rng = random.Random(0)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    errors = unnamed = 0
    for number in range(240):
        file = files[number % len(files)]
        before = file.read_bytes()
        place = len(before) - 1 if number % 5 == 0 else rng.randrange(len(before))
        damaged = bytearray(before)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            assert answers(path) == true, (file, place)
        except StoreError as error:
            errors += file.name in str(error)
            unnamed += file.name not in str(error)
        file.write_bytes(before)
    assert answers(path) == true
    assert unnamed == 0
    assert errors > 200


@pytest.mark.parametrize("lost", [1, 40, 300])
def test_torn_last_line_of_a_list_is_not_seen(path, lost):
    list_ = path / "parts" / "rank0000.jsonl"
    content = list_.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    assert len(content) - last > lost
    list_.write_bytes(content[:-lost])
    with ValueStore(path) as store:
        report = store.verify()
        assert report.rows["steps"] < STEPS
        assert "files that no list has" in report.notes[0]
    list_.write_bytes(content[:-lost] + b"\0" * lost)  # as after a loss of power
    with ValueStore(path) as store:
        assert store.verify().rows == report.rows


def test_line_that_is_lost_in_the_middle_is_found(path):
    list_ = path / "parts" / "rank0000.jsonl"
    lines = list_.read_bytes().splitlines(keepends=True)
    for damaged in (lines[:2] + lines[3:], [lines[0], lines[2], lines[1], *lines[3:]], lines[1:]):
        list_.write_bytes(b"".join(damaged))
        with ValueStore(path) as store, pytest.raises(StoreError, match=r"jsonl is damaged"):
            store.top(1, "val", "path")
    list_.write_bytes(b"")
    with ValueStore(path) as store, pytest.raises(StoreError, match=r"jsonl is damaged"):
        store.top(1, "val", "path")


def test_footer_says_whose_a_part_is(path):
    run = ValueStore(path).run
    for table in ("terms", "steps", "ledger", "tokens", "samples"):
        for file in (path / table).iterdir():
            words = pq.read_schema(file).metadata[b"inrun"].decode()
            for said in (run["id"], run["sign"], '"schema_version": 2', file.name, *RUN["targets"]):
                assert said in words


def test_checksum_is_looked_at_once_for_each_reader_and_again_after_a_change(path, monkeypatch):
    looked = []

    def counted(file, original=parts.digest_of):
        looked.append(file.name)
        return original(file)

    monkeypatch.setattr(parts, "digest_of", counted)
    with ValueStore(path) as store:
        store.ledger("val", "path")
        assert len(looked) == len(list((path / "ledger").iterdir()))
        looked.clear()
        store.ledger("math", "path")
        store.sql("SELECT max(step) FROM ledger")
        assert looked == []
        part = terms(path)[0]
        store.top(1, "val", "path")
        looked.clear()
        part.write_bytes(part.read_bytes()[:-8] + b"\0" * 8)
        with pytest.raises(StoreError, match=f"{part.name} is damaged"):
            store.top(1, "val", "path")
        assert looked == [part.name]
