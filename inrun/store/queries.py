"""The SQL behind a value store's questions. `target` and `method` are checked names of the run.

The tables are the views of `inrun.store.tables`. A column name that a caller chose comes here as an
identifier that is quoted already (`tables.name`).
"""

from __future__ import annotations

from inrun.store.tables import text


def sums(target: str, method: str) -> str:
    """sample_id, value (summed over all steps in float64), uses: one row for each sample."""
    return (
        f'SELECT sample_id, sum(CAST("{method}" AS DOUBLE)) AS value, count(*) AS uses '
        f"FROM terms WHERE target = {text(target)} GROUP BY sample_id"
    )


def sizes(target: str, method: str) -> str:
    """step, size: the sum of |value| of each step, in order."""
    return (
        f'SELECT step, sum(abs(CAST("{method}" AS DOUBLE))) AS size FROM terms '
        f"WHERE target = {text(target)} GROUP BY step ORDER BY step"
    )


def residuals(target: str, method: str) -> str:
    """step, drop, drift, residual of the ledger, in order."""
    return (
        f"SELECT step, drop, drift, residual FROM ledger WHERE target = {text(target)} "
        f"AND method = {text(method)} ORDER BY step"
    )


#: which columns the run's steps have
FIRST_STEP = "SELECT * FROM steps LIMIT 1"
#: whether any step was audited
AUDITED = "SELECT coalesce(max(audited), 0) > 0 AS audited FROM steps"
#: what each step said of the slope frozen before it
SLOPES = "SELECT step, excess, frozen, valued FROM steps ORDER BY step"


def described(rows: str, with_samples: bool) -> str:
    """The query `rows` as v, with the other columns of `samples` as s where there are any."""
    if not with_samples:
        return f"SELECT v.* FROM {rows} v"
    return (
        f"SELECT v.*, s.* EXCLUDE (sample_id) FROM {rows} v LEFT JOIN samples s USING (sample_id)"
    )


def ranked(values: str, k: int, order: str, group: str | None, with_samples: bool) -> str:
    """The first k of `values` by value, in the order DESC or ASC, or the first k of each group."""
    if group is None:
        first = f"(SELECT * FROM ({values}) ORDER BY value {order}, sample_id LIMIT {k})"
        return described(first, with_samples) + f" ORDER BY v.value {order}, v.sample_id"
    first = f"""(
        SELECT a.* FROM ({values}) a LEFT JOIN samples g USING (sample_id)
        QUALIFY row_number() OVER (
            PARTITION BY g.{group} ORDER BY a.value {order}, a.sample_id
        ) <= {k}
    )"""
    return described(first, with_samples) + f" ORDER BY s.{group}, v.value {order}, v.sample_id"


def means(target: str, method: str, first: int, before: int | None, by_step: bool) -> str:
    """sample_id, value (mean over its uses), uses, over the steps first <= step < before.

    What is summed are float32 numbers, as stored or divided by their step's size, so that the sums
    do not depend on the order of the rows (`inrun.store.schema`).
    """
    end = "" if before is None else f"AND step < {int(before)}"
    chosen = (
        f'SELECT step, sample_id, CAST("{method}" AS DOUBLE) AS value FROM terms '
        f"WHERE target = {text(target)} AND step >= {int(first)} {end}"
    )
    if not by_step:
        summed, rows = "value", f"({chosen})"
    else:
        sizes = f"SELECT step, sqrt(avg(value * value)) AS size FROM ({chosen}) GROUP BY step"
        rows = f"({chosen}) JOIN (SELECT step, CAST(size AS FLOAT) AS size FROM ({sizes}))"
        rows += " USING (step)"
        # a step whose values are all 0 tells nothing about anybody
        summed = "CASE WHEN size > 0 THEN CAST(CAST(value / size AS FLOAT) AS DOUBLE) ELSE 0 END"
    return (
        f"SELECT sample_id, sum({summed}) / count(*) AS value, count(*) AS uses FROM {rows} "
        "GROUP BY sample_id ORDER BY sample_id"
    )


def groups(values: str, group: str) -> str:
    """Each group of `samples`: chunks, value (total), mean, negative (share), best total first."""
    return f"""
        SELECT s.{group}, count(*) AS chunks, sum(v.value) AS value,
               sum(v.value) / count(*) AS mean,
               count(*) FILTER (WHERE v.value < 0) / count(*) AS negative
        FROM ({values}) v LEFT JOIN samples s USING (sample_id)
        GROUP BY s.{group} ORDER BY value DESC, s.{group}
        """


def course(target: str, method: str, bins: int, group: str | None, with_ledger: bool) -> str:
    """Values in bins of equally many steps; the columns are those of `ValueStore.over`."""
    if with_ledger:
        known = (
            f"SELECT step, drop FROM ledger WHERE target = {text(target)} AND method = "
            f"{text(method)} AND step BETWEEN (SELECT low FROM span) AND (SELECT high FROM span)"
        )
    else:
        known = "SELECT NULL::BIGINT AS step, NULL::DOUBLE AS drop WHERE false"
    place = f"((step - low) * {bins} // (high - low + 1))"
    of_group, join, shown, last = "", "", "", ""
    if group is not None:
        of_group, join = f"s.{group},", "LEFT JOIN samples s USING (sample_id)"
        shown, last = f"p.{group},", f", p.{group}"
    return f"""
        WITH {_span(target)},
        known AS ({known}),
        drops AS (SELECT {place} AS bin, sum(drop) AS loss_drop FROM known, span GROUP BY ALL),
        placed AS (
            SELECT {place} AS bin, step, sample_id, CAST("{method}" AS DOUBLE) AS value
            FROM terms, span WHERE target = {text(target)}
        ),
        summed AS (
            SELECT p.bin, {of_group} sum(p.value) AS value, count(*) AS uses,
                   sum(p.value) FILTER (WHERE k.drop IS NOT NULL) AS of_known
            FROM placed p LEFT JOIN known k USING (step) {join} GROUP BY ALL
        )
        SELECT p.bin, {_first_step("p.bin", bins)} AS first_step,
               {_first_step("(p.bin + 1)", bins)} - 1 AS last_step,
               {shown} p.value, p.uses, p.value / p.uses AS mean, d.loss_drop,
               CASE WHEN d.loss_drop > 0 THEN p.of_known / d.loss_drop END AS value_per_drop
        FROM summed p LEFT JOIN drops d USING (bin), span
        ORDER BY p.bin {last}
        """


def ledger_course(target: str, method: str, bins: int) -> str:
    """The ledger in bins of equally many steps; the columns are those of `ledger_over`."""
    return f"""
        WITH {_span(target)},
        rows AS (
            SELECT (step - low) * {bins} // (high - low + 1) AS bin, low, high, ledger.*
            FROM ledger, span
            WHERE target = {text(target)} AND method = {text(method)}
              AND step BETWEEN low AND high
        ),
        binned AS (
            SELECT bin, any_value(low) AS low, any_value(high) AS high, count(*) AS steps,
                   sum(drop) AS drop,
                   CASE WHEN count(drift) = count(*) THEN sum(drift) END AS drift,
                   sum("values") AS "values",
                   CASE WHEN count(residual) = count(*) THEN sum(residual) END AS residual,
                   arg_max(loss_after, step) AS loss_after
            FROM rows GROUP BY bin
        )
        SELECT bin, {_first_step("bin", bins)} AS first_step,
               {_first_step("(bin + 1)", bins)} - 1 AS last_step,
               steps, drop, drift, "values", residual, loss_after
        FROM binned ORDER BY bin
        """


def _span(target: str) -> str:
    return (
        "span AS (SELECT min(step) AS low, max(step) AS high FROM terms "
        f"WHERE target = {text(target)})"
    )


def _first_step(bin: str, bins: int) -> str:
    return f"low + ({bin} * (high - low + 1) + {bins} - 1) // {bins}"
