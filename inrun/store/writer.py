"""The one way into a value store: append rows, flush whole parts, resume after a kill.

A killed and resumed run leaves the same rows as one that was never killed, if `flush` is called
before each checkpoint is saved: `resume` drops what is past the checkpoint's step, and nothing
before it can be missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from inrun.files import partials
from inrun.store import parts, schema
from inrun.store.parts import StoreError

_STEPPED = ("terms", "steps", "ledger", "tokens")


class ValueWriter:
    """Writes one rank's rows of a new store; `ValueWriter.resume` goes on with an existing one.

    Args:
        path: folder of the store; it must not exist or be empty.
        run: what the run says of itself, see `schema.complete_run`; must hold `targets` and
            `methods`.
        rank: rank 0 makes the store and alone writes `steps`, `ledger` and `samples`, which belong
            to the whole step. The other ranks open it after rank 0 (with a barrier between) and
            write `terms` and `tokens` of their own samples.
        flush_every: a part spans at most this many steps; a kill loses at most the rows since the
            last flush.

    Rows come in order of steps, and each (step, target), or (step, target, method), once: a second
    time is a StoreError.
    """

    def __init__(
        self, path: str | Path, run: Mapping, rank: int = 0, flush_every: int = 200
    ) -> None:
        store, run = Path(path), schema.complete_run(dict(run))
        schema.refuse_former(store)
        if rank == 0:
            if (store / schema.STORE_FILE).exists():
                raise StoreError(
                    f"{store} already holds the values of a run. Go on with it through "
                    "ValueWriter.resume(path, run, step), or choose another path."
                )
            if store.exists() and any(
                entry not in partials(store, schema.STORE_FILE) for entry in store.iterdir()
            ):
                raise StoreError(
                    f"{store} is neither empty nor a value store. Choose another path."
                )
            store.mkdir(parents=True, exist_ok=True)
            parts.remove_partials(store)
            schema.write_run(store, run)
        else:
            _check_agreement(store, _run_of_rank_zero(store), run)
            if any(part.rank == rank for table in _STEPPED for part in parts.parts(store, table)):
                raise StoreError(
                    f"{store} already holds parts of rank {rank}. Resume it, or choose "
                    "another path."
                )
        self._start(store, run, rank, flush_every, first_step=0)

    @classmethod
    def resume(
        cls, path: str | Path, run: Mapping, step: int, rank: int = 0, flush_every: int = 200
    ) -> ValueWriter:
        """Go on with a store at `step`, the first step to be done: rows of this and later steps are
        dropped.

        Parts wholly past `step` are deleted, a part that straddles it is rewritten without them,
        leftovers of a kill are removed. Rank 0 does so for all ranks, so that a run may resume with
        fewer of them. A kill in here is harmless too. StoreError if the store was written by a run
        that differs in one of `schema.MUST_AGREE`.
        """
        store, run = Path(path), schema.complete_run(dict(run))
        if step < 0:
            raise StoreError(f"cannot resume at step {step}: steps count from 0.")
        schema.refuse_former(store)
        if not (store / schema.STORE_FILE).exists():
            raise StoreError(
                f"{store} holds no run to resume. Start one with ValueWriter(path, run)."
            )
        before = schema.read_run(store)
        _check_agreement(store, before, run)
        for table in _STEPPED:
            parts.drop_from(store, table, step, only_rank=None if rank == 0 else rank)
        if rank == 0:
            parts.remove_partials(store)
            note = {"step": step, "at": schema.now(), "git_revision": run["git_revision"]}
            schema.write_run(store, {**before, "resumed": [*before["resumed"], note]})
        writer = cls.__new__(cls)
        writer._start(store, before, rank, flush_every, first_step=step)
        return writer

    def _start(self, store: Path, run: dict, rank: int, flush_every: int, first_step: int) -> None:
        if rank < 0 or flush_every < 1:
            raise StoreError(
                f"rank must be 0 or more and flush_every 1 or more, got {rank} and {flush_every}."
            )
        self.path, self.run, self.rank, self.flush_every = store, run, rank, flush_every
        self._first_step = first_step
        self._state = "open"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inrun-store")
        self._writing: Future[None] | None = None
        self._buffers: dict[str, list[pa.Table]] = {table: [] for table in _STEPPED}
        self._spans: dict[str, tuple[int, int]] = {}  # first and last step of each non-empty buffer
        self._latest: dict[
            str, tuple[int, set[tuple]]
        ] = {}  # the last step of each table, and its keys so far
        self._terms_schema = schema.terms_schema(run["methods"])
        written = parts.parts(store, "steps")
        self._steps_schema = pq.read_schema(written[0].path) if written else None

    def terms(
        self, step: int, sample_ids: ArrayLike, target: str, columns: Mapping[str, ArrayLike]
    ) -> None:
        """The values of one step's samples for one target, all micro-batches of this rank together.

        Args:
            sample_ids: integers [n].
            columns: for each method of the run, finite values [n] in units of the target's loss;
                kept as float32.
        """
        methods = self.run["methods"]
        if set(columns) != set(methods):
            raise StoreError(
                f"terms of step {step}: columns {sorted(columns)}, but the run's methods are "
                f"{methods}."
            )
        ids = _ids(sample_ids, f"terms of step {step}")
        where = f"terms of step {step}, target {target!r}"
        values = [_finite(columns[method], ids, f"{where}, {method}") for method in methods]
        self._admit("terms", step, target, ())
        arrays = [
            np.full(len(ids), step, np.int64),
            ids,
            _repeated(target, self.run["targets"], len(ids)),
            *values,
        ]
        self._append(
            "terms",
            step,
            pa.Table.from_arrays([pa.array(a) for a in arrays], schema=self._terms_schema),
        )

    def tokens(
        self,
        step: int,
        sample_ids: ArrayLike,
        target: str,
        method: str,
        values: Sequence[ArrayLike] | np.ndarray,
    ) -> None:
        """Per-token values of one step's samples: for each of the `sample_ids` [n] an array [t],
        lengths may differ.
        """
        where = f"tokens of step {step}, target {target!r}, {method}"
        ids = _ids(sample_ids, where)
        if len(values) != len(ids):
            raise StoreError(f"{where}: {len(ids)} sample ids but {len(values)} arrays of values.")
        rows = [np.asarray(row) for row in values]
        flat = np.concatenate(rows) if rows else np.empty(0)
        lengths = [len(row) for row in rows]
        flat = _finite(flat, np.repeat(ids, lengths), where)
        self._admit("tokens", step, target, (self._known_method(method),))
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
        arrays = [
            pa.array(np.full(len(ids), step, np.int64)),
            pa.array(ids),
            _repeated(target, self.run["targets"], len(ids)),
            _repeated(method, self.run["methods"], len(ids)),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
        ]
        self._append("tokens", step, pa.Table.from_arrays(arrays, schema=schema.TOKENS_SCHEMA))

    def steps(self, row: Mapping[str, float | int | None]) -> None:
        """One training step: the columns of `schema.STEPS_FIXED`, and numbers of your own, the same
        ones in every row.
        """
        self._rank_zero("steps")
        missing = [name for name in schema.STEPS_FIXED if name not in row]
        if missing:
            raise StoreError(
                f"a row of steps lacks {missing}; give None for what was not measured."
            )
        if self._steps_schema is None:
            self._steps_schema = schema.steps_schema(list(row))
        if set(row) != set(self._steps_schema.names):
            added, gone = (
                set(row) - set(self._steps_schema.names),
                set(self._steps_schema.names) - set(row),
            )
            raise StoreError(
                f"steps row of step {row['step']}: unknown columns {sorted(added)}, missing "
                f"columns {sorted(gone)}. "
                "The columns are those of the store's first row; give None for what was not "
                "measured."
            )
        self._append_row("steps", row, self._steps_schema)

    def ledger(self, row: Mapping[str, float | int | str | None]) -> None:
        """The books of one step, target and method: the columns of `schema.LEDGER_SCHEMA`; drift,
        residual may be None.
        """
        self._rank_zero("ledger")
        if set(row) != set(schema.LEDGER_SCHEMA.names):
            raise StoreError(
                f"a row of the ledger has the columns {schema.LEDGER_SCHEMA.names}, got "
                f"{sorted(row)}."
            )
        bad = [
            name
            for name, value in row.items()
            if isinstance(value, float) and not np.isfinite(value)
        ]
        if bad:
            raise StoreError(
                f"ledger of step {row['step']}: {bad} not finite. Has the run diverged?"
            )
        self._append_row("ledger", row, schema.LEDGER_SCHEMA)

    def samples(self, table: pa.Table) -> None:
        """What is known of the samples: `sample_id` (integers, unique) and columns of any kind,
        written once.

        A resumed run may say it again; a table that differs from the stored one is a StoreError.
        """
        self._rank_zero("samples")
        self._check_open()
        if "sample_id" not in table.column_names or not pa.types.is_integer(
            table.schema.field("sample_id").type
        ):
            raise StoreError(
                "the table of samples needs an integer column sample_id, it has "
                f"{table.column_names}."
            )
        clash = sorted({"value", "uses"} & set(table.column_names))
        if clash:
            raise StoreError(
                f"the samples' columns {clash} would hide the store's own. Rename them."
            )
        ids = table["sample_id"]
        if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
            raise StoreError(
                "the table of samples has a null or repeated sample_id; each sample has one row."
            )
        position = table.schema.get_field_index("sample_id")
        table = table.set_column(
            position, "sample_id", ids.cast(pa.int64())
        ).replace_schema_metadata(None)
        path = self.path / "samples" / "samples.parquet"
        if path.exists():
            if not parts.read_part(path).replace_schema_metadata(None).equals(table):
                raise StoreError(
                    f"{path} holds other samples than these. A store belongs to one corpus."
                )
            return
        path.parent.mkdir(exist_ok=True)
        parts.write_part(table, path)

    def flush(self) -> None:
        """Make all rows so far durable, as whole parts that readers see. Call it before a
        checkpoint is saved.
        """
        self._check_open()
        self._begin_flush()
        self._finish_flush()

    def close(self) -> None:
        """Flush and end. Closing twice is allowed; after a failed flush it leaves the store as it
        is, to be resumed.
        """
        if self._state == "open":
            self.flush()
            self._state = "closed"
        self._thread.shutdown()

    def _begin_flush(self) -> None:
        """Hand the rows so far to the thread that writes: training goes on meanwhile."""
        self._finish_flush()
        due = {table: (self._buffers[table], *span) for table, span in self._spans.items()}
        self._buffers.update({table: [] for table in due})
        self._spans = {}
        self._writing = self._thread.submit(self._write, due)

    def _finish_flush(self) -> None:
        """Wait for the parts that are being written. Rows of a failed flush must not be written
        twice: the writer is broken then.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except BaseException:
                self._state = "broken"
                raise

    def _write(self, due: dict[str, tuple[list[pa.Table], int, int]]) -> None:
        for table, (buffer, first, last) in due.items():
            rows = pa.concat_tables(buffer)
            path = self.path / table / parts.Part.name(self.rank, first, last)
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # the same step was flushed in two halves
                rows = pa.concat_tables([parts.read_part(path).cast(rows.schema), rows])
            parts.write_part(rows.unify_dictionaries().combine_chunks(), path)

    @property
    def last_step(self) -> int | None:
        """The newest step with a row in any table since this writer was opened or resumed; None if
        there is none.
        """
        return max((step for step, _ in self._latest.values()), default=None)

    def __enter__(self) -> ValueWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append_row(self, table: str, row: Mapping, columns: pa.Schema) -> None:
        where = f"{table} row of step {row['step']}"
        try:
            whole = pa.Table.from_pylist([dict(row)], schema=columns)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise StoreError(f"{where}: {error}. Give plain numbers.") from error
        empty = [field.name for field in columns if not field.nullable and row[field.name] is None]
        if empty:
            raise StoreError(f"{where}: {empty} must not be None.")
        if table == "ledger":
            self._admit(table, row["step"], row["target"], (self._known_method(row["method"]),))
        else:
            self._admit(table, row["step"], None, ())
        self._append(table, row["step"], whole)

    def _admit(self, table: str, step: int, target: str | None, rest: tuple) -> None:
        """Check that a row set is due, and flush first when it would make the parts too long."""
        self._check_open()
        if target is not None and target not in self.run["targets"]:
            raise StoreError(
                f"{table} of step {step}: unknown target {target!r}; the run's are "
                f"{self.run['targets']}."
            )
        if step < self._first_step:
            raise StoreError(
                f"{table} of step {step}: this writer begins at step {self._first_step}."
            )
        latest, keys = self._latest.get(table, (-1, set()))
        key = (target, *rest)
        if step < latest or (step == latest and key in keys):
            what = "" if target is None else f" for {', '.join(map(repr, key))}"
            raise StoreError(
                f"{table} of step {step}{what}: written before, or out of order (last was "
                f"{latest})."
            )
        if (
            self._spans
            and step >= min(first for first, _ in self._spans.values()) + self.flush_every
        ):
            self._begin_flush()
        self._latest[table] = (step, keys | {key} if step == latest else {key})

    def _append(self, table: str, step: int, rows: pa.Table) -> None:
        if len(rows):
            self._buffers[table].append(rows)
            self._spans[table] = (self._spans.get(table, (step, step))[0], step)

    def _known_method(self, method: str) -> str:
        if method not in self.run["methods"]:
            raise StoreError(f"unknown method {method!r}; the run's are {self.run['methods']}.")
        return method

    def _rank_zero(self, table: str) -> None:
        if self.rank != 0:
            raise StoreError(
                f"{table} belongs to the whole step and is written by rank 0, not by rank "
                f"{self.rank}."
            )

    def _check_open(self) -> None:
        if self._state == "broken":
            raise StoreError(
                f"a flush of {self.path} failed before. Go on with ValueWriter.resume from a "
                "checkpoint."
            )
        if self._state == "closed":
            raise StoreError(f"the writer of {self.path} is closed.")


def _ids(sample_ids: ArrayLike, where: str) -> np.ndarray:
    ids = np.asarray(sample_ids)
    if ids.ndim != 1 or (len(ids) and not np.issubdtype(ids.dtype, np.integer)):
        raise StoreError(
            f"{where}: sample ids must be integers [n], got {ids.dtype} {list(ids.shape)}."
        )
    return ids.astype(np.int64)


def _finite(values: ArrayLike, ids: np.ndarray, where: str) -> np.ndarray:
    """Values [n] as float32; one that is not finite would poison every sum over its sample, so it
    is an error.
    """
    given = np.asarray(values)
    if given.shape != ids.shape:
        raise StoreError(f"{where}: {len(ids)} sample ids but values of shape {list(given.shape)}.")
    with np.errstate(over="ignore"):
        kept = given.astype(np.float32)
    if not np.isfinite(kept).all():
        first = ids[np.flatnonzero(~np.isfinite(kept))[0]]
        raise StoreError(
            f"{where}: the value of sample {first} is not finite in float32. Has the run diverged?"
        )
    return kept


def _repeated(name: str, names: list[str], count: int) -> pa.DictionaryArray:
    if name not in names:
        raise StoreError(f"{name!r} is not one of the run's {names}.")
    return pa.DictionaryArray.from_arrays(
        np.full(count, names.index(name), np.int32), pa.array(names, pa.string())
    )


def _run_of_rank_zero(store: Path) -> dict:
    if not (store / schema.STORE_FILE).exists():
        raise StoreError(f"{store} is not there yet: rank 0 opens it first; put a barrier between.")
    return schema.read_run(store)


def _check_agreement(store: Path, before: dict, run: dict) -> None:
    differing = [key for key in schema.MUST_AGREE if before.get(key) != run[key]]
    if differing:
        told = "; ".join(
            f"{key}: stored {before.get(key)!r}, now {run[key]!r}" for key in differing
        )
        raise StoreError(
            f"{store} belongs to another run, values must not be added up ({told}). Choose "
            "another path."
        )
