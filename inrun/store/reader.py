"""Questions to a value store: sums over a run, rankings, domains, time courses, the ledger.

Read-only, larger than memory.

DuckDB works on the parquet files themselves. Which of them are parts is said by the store's lists,
and their checksums are looked at when a question first needs them (a second for each GB). A store
can be read while its run goes on: each question sees the whole steps that are there when it is
asked. A value is summed over all steps that its sample took part in, in float64. Answers are
ordered, ties by sample_id.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa

from inrun.store import description, queries
from inrun.store.ledger import LedgerTotals, ledger_totals
from inrun.store.parts import TABLES, StoreError
from inrun.store.quality import NOT_AUDITED, Quality, quality_of, was_audited
from inrun.store.tables import Tables, name, text
from inrun.store.verify import Report, verify


class ValueStore:
    """A value store, opened to be read. Usable as a context manager; closing frees DuckDB's memory
    and spill files.

    Args:
        path: folder written by `ValueWriter`.
        threads: threads of a query, at most 4 of the available cores if None.
        memory: a query spills beyond this, to a private folder of the system's temporary one.

    `target` and `method` may be left out in every question if the run has only one.

    >>> from inrun.store import ValueWriter
    >>> run = {"targets": ["val"], "methods": ["path"]}
    >>> with ValueWriter("values", run) as writer:
    ...     writer.terms(0, [7, 8, 9], "val", {"path": [0.5, -0.25, 0.0]})
    >>> with ValueStore("values") as store:
    ...     store.top(1).to_pylist()
    [{'sample_id': 7, 'value': 0.5, 'uses': 1}]
    """

    def __init__(self, path: str | Path, threads: int | None = None, memory: str = "2GB") -> None:
        self.path = Path(path)
        self.run = description.read_run(self.path)
        self._tables = Tables(self.path, self.run, threads, memory)

    @property
    def targets(self) -> list[str]:
        return self.run["targets"]

    @property
    def methods(self) -> list[str]:
        return self.run["methods"]

    @property
    def tables(self) -> list[str]:
        """The tables that have rows, as far as they are flushed."""
        return [table for table in TABLES if self._tables.has(table)]

    def values(self, target: str | None = None, method: str | None = None) -> pa.Table:
        """All samples that were used: sample_id, value, uses (times drawn), and the columns of
        `samples`; by sample_id.
        """
        rows = queries.described(f"({self._sums(target, method)})", self._tables.has("samples"))
        return self.sql(f"{rows} ORDER BY v.sample_id")

    def top(
        self,
        k: int = 20,
        target: str | None = None,
        method: str | None = None,
        by: str | None = None,
    ) -> pa.Table:
        """The k most helpful samples, best first, in the columns of `values`; with `by`, k for each
        of its groups.
        """
        return self._ranked(k, target, method, by, "DESC")

    def bottom(
        self,
        k: int = 20,
        target: str | None = None,
        method: str | None = None,
        by: str | None = None,
    ) -> pa.Table:
        """The k most harmful samples, worst first, in the columns of `values`; with `by`, k for
        each of its groups.
        """
        return self._ranked(k, target, method, by, "ASC")

    def means(
        self,
        target: str | None = None,
        method: str | None = None,
        first: int = 0,
        before: int | None = None,
        unit: str = "loss",
    ) -> pa.Table:
        """What a sample was worth each time it was used, over the steps `first` <= step < `before`:
        sample_id, value, uses, by sample_id.

        A sum over the run counts how often a sample was drawn and is ruled by the steps at which
        losses fall fast; a mean does not, and with unit="step" each value is first divided by the
        root mean square of its step's values, so that every step weighs the same. unit="loss": as
        stored.
        """
        if unit not in ("loss", "step"):
            raise StoreError(f"unit must be 'loss' or 'step', got {unit!r}.")
        target, method = self._target(target), self._method(method)
        return self.sql(queries.means(target, method, first, before, by_step=unit == "step"))

    def by(self, column: str, target: str | None = None, method: str | None = None) -> pa.Table:
        """Groups of a column of `samples`, best total first: the group, chunks, value (total),
        mean, negative (share).
        """
        group = self._column_of_samples(column)
        return self.sql(queries.groups(self._sums(target, method), group))

    def over(
        self,
        axis: str = "step",
        bins: int = 50,
        by: str | None = None,
        target: str | None = None,
        method: str | None = None,
    ) -> pa.Table:
        """The time course of the values, in bins of equally many steps; bins (and groups) without a
        row are left out.

        Returns bin, first_step, last_step, the group if `by` is given, and
            value: total of the bin in units of the loss; it falls with the learning rate and as the
                loss flattens.
            uses, mean: number of rows, and value / uses.
            loss_drop: the drop of the target's loss over the bin's steps that have a row in the
                ledger, else null.
            value_per_drop: total of those same steps / loss_drop, what a group contributed to each
                unit of progress; null where the loss did not fall.
        """
        if axis != "step":
            raise StoreError(
                f"the time course runs over 'step', not over {axis!r}; see sql() for others."
            )
        if bins < 1:
            raise StoreError(f"bins must be 1 or more, got {bins}.")
        target, method = self._target(target), self._method(method)
        group = None if by is None else self._column_of_samples(by)
        return self.sql(
            queries.course(target, method, bins, group, with_ledger=self._tables.has("ledger"))
        )

    def negative_share(self, target: str | None = None, method: str | None = None) -> float:
        """The share of the used samples whose value over the run is negative, 0 to 1."""
        counted = (
            "SELECT count(*) FILTER (WHERE value < 0) / count(*) AS share FROM "
            f"({self._sums(target, method)})"
        )
        share = self.sql(counted)["share"][0].as_py()
        if share is None:
            raise StoreError(f"{self.path} has no values yet for target {self._target(target)!r}.")
        return share

    def ledger(self, target: str | None = None, method: str | None = None) -> LedgerTotals:
        """The ledger of the whole run; see `LedgerTotals`."""
        target, method = self._target(target), self._method(method)
        rows = self.sql(
            f"SELECT drop, drift, values, residual FROM ledger "
            f"WHERE target = {text(target)} AND method = {text(method)} ORDER BY step"
        )
        if len(rows) == 0:
            raise StoreError(f"the ledger has no row for target {target!r} and method {method!r}.")
        return ledger_totals(rows)

    def quality(self, target: str | None = None, method: str | None = None) -> Quality:
        """How far the values can be trusted, by the run's own ledger."""
        target, method = self._target(target), self._method(method)
        ledger, steps = self._tables.has("ledger"), self._tables.has("steps")
        return quality_of(self.sql, target, method, self._kind(method), ledger, steps)

    @property
    def audited(self) -> bool | None:
        """Whether it was tested that values depend on their own sample's data alone; None: the run
        does not say.
        """
        return was_audited(self.sql, self.run.get("audit"), self._tables.has("steps"))

    def said(self) -> list[str]:
        """What is to be doubted of the values, a line each, with target and method."""
        return [
            *([NOT_AUDITED] if self.audited is False and self._tables.has("steps") else []),
            *(
                f"{target}, {method}: {line}"
                for target in self.targets
                for method in self.methods
                for line in self.quality(target, method).said(self._kind(method))
            ),
        ]

    def _kind(self, method: str) -> str:
        methods = self.run["attribution"].get("methods", {})
        return methods.get(method, {}).get("kind", "")

    def sql(self, query: str) -> pa.Table:
        """Any DuckDB query over the views terms, steps, ledger, samples, tokens (the tables) and
        values (long form: sample_id, target, method, value, uses). DuckDB's own errors tell what is
        wrong with a query.
        """
        return self._tables.sql(query)

    def names(self) -> pa.Table:
        """sample_id, id: the numbers of the samples that were given a name; by number."""
        described = self._tables.has("samples")
        if not described or "id" not in self.sql("SELECT * FROM samples LIMIT 0").column_names:
            return pa.table(
                {"sample_id": pa.array([], pa.int64()), "id": pa.array([], pa.string())}
            )
        return self.sql("SELECT sample_id, id FROM samples ORDER BY sample_id")

    def verify(self) -> Report:
        """What was looked at; see `inrun.store.verify` for what must hold. StoreError that names
        every fault.
        """
        report = self.report()
        if report.faults:
            raise StoreError(f"{self.path} is not whole: " + "; ".join(report.faults))
        return report

    def report(self) -> Report:
        """The same, with the faults in it."""
        return verify(self._tables)

    def close(self) -> None:
        self._tables.close()

    def __enter__(self) -> ValueStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ranked(
        self, k: int, target: str | None, method: str | None, by: str | None, order: str
    ) -> pa.Table:
        if k < 1:
            raise StoreError(f"k must be 1 or more, got {k}.")
        group = None if by is None else self._column_of_samples(by)
        values, described = self._sums(target, method), self._tables.has("samples")
        return self.sql(queries.ranked(values, k, order, group, described))

    def _sums(self, target: str | None, method: str | None) -> str:
        return queries.sums(self._target(target), self._method(method))

    def _target(self, target: str | None) -> str:
        return _one_of(target, self.targets, "target")

    def _method(self, method: str | None) -> str:
        return _one_of(method, self.methods, "method")

    def _column_of_samples(self, column: str) -> str:
        if not self._tables.has("samples"):
            raise StoreError(self._tables.why_missing("samples"))
        known = self.sql("SELECT * EXCLUDE (sample_id) FROM samples LIMIT 0").column_names
        if column not in known:
            raise StoreError(f"samples have no column {column!r}; they have {known}.")
        return name(column)


def _one_of(chosen: str | None, names: list[str], what: str) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is None:
        raise StoreError(f"the run has several {what}s, choose {what}= one of {names}.")
    if chosen not in names:
        raise StoreError(f"unknown {what} {chosen!r}; the run's are {names}.")
    return chosen
