"""Verify finds what does not agree, and says nothing of a store that is right."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter, parts
from inrun.store.part_list import PartList
from tests.support.other_process import ROOT
from tests.support.store_example import RUN, SAMPLES, write_step

STEPS = 6


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "inrun.store", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def path(tmp_path):
    with ValueWriter(tmp_path / "v", RUN, flush_every=2) as writer:
        writer.samples(SAMPLES)
        for step in range(STEPS):
            write_step(writer, step)
    return tmp_path / "v"


def rewrite(path, table, change):
    """A table's first part with other rows, listed and with a right checksum: as a writer with a
    bug would leave it.
    """
    with ValueStore(path) as store:
        run = store.run
    listed = PartList.read(path, run["id"], 0)
    old = next(part for part in listed.parts if part.table == table)
    footer = pq.read_schema(old.path(path)).metadata[parts.FOOTER]
    rows = change(parts.read_part(old.path(path)))
    about = {k: v for k, v in parts.read_footer(old.path(path)).items() if k != "rows"}
    assert footer
    new = parts.write_part(rows, path, table, (old.first, old.last), about, listed.serial)
    listed.append([new], [old], closed=True)
    if new.name != old.name:
        old.path(path).unlink()


def with_column(rows, name, values):
    index = rows.schema.get_field_index(name)
    return rows.set_column(
        index, rows.schema.field(index), pa.array(values, rows.schema.types[index])
    )


def doubled(name):
    return lambda rows: with_column(rows, name, 2 * rows[name].to_numpy())


def one_is(name, value):
    def change(rows):
        values = rows[name].to_numpy().copy()
        values[3] = value
        return with_column(rows, name, values)

    return change


def plus(name, what):
    return lambda rows: with_column(rows, name, rows[name].to_numpy() + what)


FAULTS = [
    ("terms", one_is("path", np.nan), "step 0, target val: 1 values of path are not finite"),
    ("terms", one_is("path", np.inf), "values of path are not finite"),
    ("terms", doubled("path"), r"ledger of step 0, target .*, method path: values .* add up to"),
    (
        "terms",
        lambda rows: rows.slice(1),
        r"step 0: 2 of the run's targets have values, with 5 to 6",
    ),
    ("terms", lambda rows: rows.slice(12), r"no values between step .* \(2 steps\)|no values in"),
    ("terms", one_is("sample_id", 4711), "sample 4711 has values and no row in `samples`"),
    ("terms", plus("step", 100), "no values between step 100 and the one before"),
    ("steps", lambda rows: rows.slice(1), "step 0 has values and no row in `steps`"),
    ("steps", lambda rows: pa.concat_tables([rows, rows]), "step 0 has 2 rows in `steps`"),
    ("steps", plus("samples", 1), "step 0: 6 rows for a target, but 7 samples in `steps`"),
    ("ledger", doubled("values"), "values .*, but `terms` add up to"),
    ("ledger", doubled("drop"), "drop .* is not loss_before - loss_after"),
    ("ledger", doubled("residual"), r"drop .* is not drift \+ values \+ residual"),
    (
        "ledger",
        lambda rows: rows.slice(1),
        "ledger of step 0, target val, method first_order: no row",
    ),
    ("ledger", lambda rows: pa.concat_tables([rows, rows]), "method .*: 2 rows"),
    ("samples", lambda rows: pa.concat_tables([rows, rows]), "sample 0 has 2 rows in `samples`"),
    ("samples", lambda rows: rows.slice(1), "sample 0 has values and no row in `samples`"),
    ("samples", one_is("sample_id", 4711), "sample 3 has values and no row in `samples`"),
    ("samples", lambda rows: rows.slice(40), "has values and no row in `samples`"),
    ("tokens", plus("step", 100), "tokens of step 100, which has no values"),
]


@pytest.mark.parametrize(
    ("table", "change", "told"), FAULTS, ids=[f"{t}-{m[:40]}" for t, _, m in FAULTS]
)
def test_tables_that_do_not_agree_are_told(path, table, change, told):
    rewrite(path, table, change)
    with ValueStore(path) as store, pytest.raises(StoreError, match=told):
        store.verify()


def test_rewriting_a_part_as_it_is_changes_nothing(path):
    for table in ("terms", "steps", "ledger", "samples", "tokens"):
        rewrite(path, table, lambda rows: rows)
    with ValueStore(path) as store:
        assert store.verify().rows == {
            "terms": 12 * STEPS, "steps": STEPS, "ledger": 4 * STEPS, "tokens": 6 * STEPS,
            "samples": 40, "names": 0,
        }  # fmt: skip


def test_steps_may_be_valued_every_second_time_but_not_now_and_then(tmp_path):
    every_second = RUN | {"attribution": {"every": 2}}
    with ValueWriter(tmp_path / "a", every_second) as writer:
        for step in (0, 2, 4):
            write_step(writer, step)
    with ValueStore(tmp_path / "a") as store:
        assert store.verify().steps == ", steps 0 to 4"
    for name, steps in (("b", (0, 2, 6)), ("c", (2, 4)), ("d", (0, 1, 2))):
        with ValueWriter(tmp_path / name, every_second) as writer:
            for step in steps:
                write_step(writer, step)
        told = "no values between step"
        with ValueStore(tmp_path / name) as store, pytest.raises(StoreError, match=told):
            store.verify()


def test_last_row_of_the_ledger_may_be_missing(tmp_path):
    """It is completed at the next step, which a killed run has not made."""
    with ValueWriter(tmp_path, RUN) as writer:
        write_step(writer, 0)
        for target in RUN["targets"]:
            ids = np.arange(6)
            writer.terms(1, ids, target, dict.fromkeys(RUN["methods"], np.ones(6)))
    with ValueStore(tmp_path) as store:
        assert "ledger of step 1" not in str(store.report())


def test_command_prints_the_report_and_fails_on_a_fault(path):
    done = command("verify", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("13 parts, ")
    assert done.stdout.endswith(
        "72 terms, 6 steps, 24 ledger, 36 tokens, 40 samples, steps 0 to 5\nno fault\n"
    )
    next((path / "terms").iterdir()).unlink()
    done = command("verify", path)
    assert done.returncode == 1
    assert "FAULT: " in done.stdout
    assert "is missing: the list of parts has it, with 24 rows" in done.stdout
    (path / "store.json").write_text("{}")
    done = command("verify", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("StoreError: ")
    assert "Traceback" not in done.stderr
