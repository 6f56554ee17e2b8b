"""The tests of the store are worth what they catch: mistakes put into it one by one must each fail
the test that is there for them.
"""

import shutil

import duckdb
import pytest

from inrun.store import StoreError, compaction, description, parts, snapshot, writer
from inrun.store.part_list import PartList
from tests.store import test_live, test_parts_listed, test_resume

CAUGHT = (AssertionError, pytest.fail.Exception, StoreError, duckdb.Error)


def unseen_checksums(patch):
    patch.setattr(parts.Part, "check", lambda self, store: None)


def constant_seal(patch):
    patch.setattr(description, "seal", lambda run: "0" * 64)


def any_name(patch):
    patch.setattr(parts, "is_name", lambda table, name: True)


def unfinished_steps_shown(patch):
    patch.setattr(snapshot.Snapshot, "cut", lambda self, table: None)


def resume_keeps_everything(patch):
    original = writer.cut_store
    patch.setattr(writer, "cut_store", lambda s, run, step, *a: original(s, run, 10**8, *a))


def compaction_in_another_order(patch):
    original = compaction.pa.concat_tables
    patch.setattr(compaction.pa, "concat_tables", lambda tables: original(list(tables)[::-1]))


def compaction_forgets_the_list(patch):
    patch.setattr(PartList, "create", classmethod(lambda cls, s, i, rank, *a: cls.read(s, i, rank)))


def leftovers_stay(patch):
    patch.setattr(compaction, "remove_leftovers", lambda store, run_id, listed: None)
    patch.setattr("inrun.store.cut.remove_leftovers", lambda store, run_id, listed: None)


def any_ranks(patch):
    patch.setattr(description, "lists_of", lambda run: 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return test_parts_listed.write(tmp_path_factory.mktemp("whole") / "v")


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "v")


def flips(path, _):
    test_parts_listed.test_one_flipped_bit_anywhere_is_an_error_by_name_or_changes_nothing(
        path, test_parts_listed.answers(path)
    )


def killed(path, tmp_path):
    """What a kill leaves is gone after a compaction."""
    leftover = next((path / "terms").iterdir())
    shutil.copy(leftover, leftover.with_name(leftover.name.replace("-000000000-", "-000000009-")))
    compaction.compact(path)
    assert len(list((path / "terms").iterdir())) == 1


def compacted(path, _):
    before = test_parts_listed.answers(path), ordered(path)
    compaction.compact(path)
    assert (test_parts_listed.answers(path), ordered(path)) == before


def ordered(path):
    with test_parts_listed.ValueStore(path, threads=1) as store:
        return store.sql("SELECT * FROM terms").to_pylist()


MUTANTS = [
    (unseen_checksums, flips),
    (constant_seal, flips),
    (
        any_name,
        lambda path, _: test_parts_listed.test_list_that_leads_out_of_the_store_is_refused(path),
    ),
    (
        unfinished_steps_shown,
        lambda _, t: test_live.test_step_is_seen_when_every_rank_has_flushed_it(t / "s"),
    ),
    (
        resume_keeps_everything,
        lambda _, t: test_resume.test_resume_drops_later_steps_and_cuts_the_part_that_straddles(
            t / "s"
        ),
    ),
    (compaction_in_another_order, compacted),
    (compaction_forgets_the_list, compacted),
    (leftovers_stay, killed),
    (any_ranks, lambda _, t: test_live.test_step_is_seen_when_every_rank_has_flushed_it(t / "s")),
]


@pytest.mark.parametrize(("apply", "test"), MUTANTS, ids=[apply.__name__ for apply, _ in MUTANTS])
def test_mistake_is_caught(path, tmp_path, apply, test):
    (tmp_path / "s").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        apply(patch)
        with pytest.raises(CAUGHT):
            test(path, tmp_path)


@pytest.mark.parametrize("test", [killed, compacted])
def test_without_a_mistake_nothing_is_caught(path, tmp_path, test):
    test(path, tmp_path)
