"""The one way into a value store: append rows, flush whole parts, resume after a kill.

A killed and resumed run leaves the same rows as one that was never killed, if `flush` is called
before each checkpoint is saved: `resume` drops what is past the checkpoint's step, and nothing
before it can be missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from inrun.owner import Owner
from inrun.store import description, forgotten, schema
from inrun.store.agreement import (
    check_agreement,
    check_resumed,
    check_samples,
    is_still_ours,
    run_of_rank_zero,
    take_new,
)
from inrun.store.buffer import Buffer
from inrun.store.compaction import compact_many
from inrun.store.cut import cut_store
from inrun.store.part_list import PartList
from inrun.store.parts import StoreError, read_columns
from inrun.store.rows import ledger_row, name_rows, sample_table, step_row, term_rows, token_rows


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
        ranks: how many processes write this store. A reader sees a step when all of them have
            flushed it.

    Rows come in order of steps, and each (step, target), or (step, target, method), once: a second
    time is a StoreError.

    One process writes a store: rank 0 owns its folder until `close` (`inrun.owner`), and in another
    process opening it is a StoreError that tells who does. A writer that was not closed is flushed
    when it goes away or the process ends, and stderr says so.
    """

    #: of rank 0, for all
    _owner: Owner | None = None

    def __init__(
        self,
        path: str | Path,
        run: Mapping,
        rank: int = 0,
        flush_every: int = 200,
        ranks: int = 1,
    ) -> None:
        store = Path(path)
        _check(rank, flush_every, ranks)
        whole = schema.complete_run(dict(run), ranks)
        description.refuse_former(store)
        if rank == 0:
            self._owner = take_new(store)
            listed = PartList.create(store, whole["id"], rank)
            for other in range(1, ranks):
                PartList.create(store, whole["id"], other)
            description.write_run(store, whole)
        else:
            whole = run_of_rank_zero(store, whole)
            listed = PartList.read(store, whole["id"], rank)
            if listed.parts:
                raise StoreError(
                    f"{store} already holds parts of rank {rank}. Resume it, or choose "
                    "another path."
                )
        self._start(whole, listed, flush_every, first_step=0)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        run: Mapping,
        step: int,
        rank: int = 0,
        flush_every: int = 200,
        ranks: int = 1,
    ) -> ValueWriter:
        """Go on with a store at `step`, the first step to be done: rows of this and later steps are
        dropped.

        Parts wholly past `step` leave the list, a part that straddles it is written anew without
        them, the checksums of all that is kept are looked at, leftovers of a kill are removed. Rank
        0 does so for all ranks, before the others resume, so that a run may resume with other
        `ranks`. A kill in here is harmless too. StoreError if the store was written by a run that
        differs in one of `schema.MUST_AGREE`, or if a part from before `step` is missing or
        damaged.
        """
        store = Path(path)
        _check(rank, flush_every, ranks)
        if step < 0:
            raise StoreError(f"cannot resume at step {step}: steps count from 0.")
        described = schema.complete_run(dict(run), ranks)
        description.refuse_former(store)
        if not (store / description.STORE_FILE).exists():
            raise StoreError(
                f"{store} holds no run to resume. Start one with ValueWriter(path, run)."
            )
        writer = cls.__new__(cls)
        before = description.read_run(store)
        check_agreement(store, before, described)
        writer._owner = owner = Owner.take(store, StoreError) if rank == 0 else None
        with owner.let_go_on_error() if owner else nullcontext():
            if rank == 0:
                before = cut_store(store, before, step, ranks, described["git_revision"])
            listed = PartList.read(store, before["id"], rank)
            check_resumed(store, before, listed, ranks, step)
            writer._start(before, listed, flush_every, first_step=step)
        return writer

    def _start(self, run: dict, listed: PartList, flush_every: int, first_step: int) -> None:
        self.path, self.run, self.rank = listed.path.parent.parent, run, listed.rank
        self.flush_every, self._first_step = flush_every, first_step
        self._buffer = Buffer(self.path, listed, description.footer_of(run, self.rank))
        forgotten.watch(self._buffer, is_still_ours(self._owner, self.path))
        # the last step of each table, and its keys so far
        self._latest: dict[str, tuple[int, set[tuple]]] = {}
        written = [part for part in listed.parts if part.table == "steps"]
        self._steps_schema = read_columns(written[0].path(self.path)) if written else None

    def terms(
        self, step: int, sample_ids: ArrayLike, target: str, columns: Mapping[str, ArrayLike]
    ) -> None:
        """The values of one step's samples for one target, all micro-batches of this rank together.

        Args:
            sample_ids: integers [n].
            columns: for each method of the run, finite values [n] in units of the target's loss;
                kept as float32.
        """
        rows = term_rows(self.run, step, sample_ids, target, columns)
        self._append("terms", step, (target,), rows)

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
        rows = token_rows(self.run, step, sample_ids, target, method, values)
        self._append("tokens", step, (target, method), rows)

    def names(self, step: int, sample_ids: ArrayLike, names: Sequence[str | bytes]) -> None:
        """Names of samples, at the step in which this rank first uses them; readers' `id`."""
        self._append("names", step, (), name_rows(step, sample_ids, names))

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
        rows = step_row(row, self._steps_schema)
        self._append("steps", rows["step"][0].as_py(), (), rows)

    def ledger(self, row: Mapping[str, float | int | str | None]) -> None:
        """The ledger of one step, target and method: the columns of `schema.LEDGER_SCHEMA`; drift,
        residual may be None.
        """
        self._rank_zero("ledger")
        rows = ledger_row(self.run, row)
        step, target, method = (rows[key][0].as_py() for key in ("step", "target", "method"))
        self._append("ledger", step, (target, method), rows)

    def samples(self, table: pa.Table) -> None:
        """What is known of the samples: `sample_id` (integers, unique) and columns of any kind,
        written once.

        A resumed run may say it again; a table that differs from the stored one is a StoreError.
        """
        self._rank_zero("samples")
        self._buffer.check_open()
        table = sample_table(table)
        stored = [part for part in self._buffer.listed.parts if part.table == "samples"]
        if not stored:
            return self._buffer.write_samples(table)
        check_samples(self.path, stored[0], table)

    def flush(self) -> None:
        """Make all rows so far durable, as whole parts that readers see. Call it before a
        checkpoint is saved.
        """
        self._check_ours()
        self._buffer.begin_flush()
        self._buffer.finish_flush()

    def close(self) -> None:
        """Flush and end; very many parts are made few large ones. Closing twice is allowed; after a
        failed flush it leaves the store as it is, to be resumed.
        """
        if not self._buffer.closed:
            self._check_ours()
            self._buffer.write_last()
            compact_many(self.path, self.run, self._buffer.listed)
        self._buffer.close()
        forgotten.leave(self._buffer)
        if self._owner is not None:
            self._owner.release()

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

    def _append(self, table: str, step: int, key: tuple[str, ...], rows: pa.Table) -> None:
        """Check that the rows of (step, *key) are due, and flush first when they would make the
        parts too long.
        """
        self._check_ours()
        if step < self._first_step:
            raise StoreError(
                f"{table} of step {step}: this writer begins at step {self._first_step}."
            )
        latest, keys = self._latest.get(table, (-1, set()))
        if step < latest or (step == latest and key in keys):
            what = f" for {', '.join(map(repr, key))}" if key else ""
            raise StoreError(
                f"{table} of step {step}{what}: written before, or out of order (last was "
                f"{latest})."
            )
        waiting = self._buffer.first_step
        if waiting is not None and step >= waiting + self.flush_every:
            self._buffer.begin_flush()
        self._latest[table] = (step, keys | {key} if step == latest else {key})
        self._buffer.append(table, step, rows)

    def _check_ours(self) -> None:
        self._buffer.check_open()
        if self._owner is not None and not self._owner.holds:
            raise StoreError(
                f"{self.path} is not this writer's any more: another one has gone on with it, or "
                "the folder was deleted. Go on with the newer writer."
            )

    def _rank_zero(self, table: str) -> None:
        if self.rank != 0:
            raise StoreError(
                f"{table} belongs to the whole step and is written by rank 0, not by rank "
                f"{self.rank}."
            )


def _check(rank: int, flush_every: int, ranks: int) -> None:
    if flush_every < 1 or not 0 <= rank < ranks:
        raise StoreError(
            f"flush_every must be 1 or more and rank one of the {ranks} ranks, got {flush_every} "
            f"and {rank}."
        )
