"""Whether the tables of a store agree with each other, as one question; see `inrun.store.verify`.

Every check is a SELECT of `fault`, a line of text for each row that is wrong.
"""

from __future__ import annotations

from inrun.store.snapshot import Snapshot
from inrun.store.tables import name, text

#: rounding of a float32 and of a float64
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53


#: the first and the last id of the samples, and how many different ones there are
IDS = (
    "SELECT min(sample_id) AS first, max(sample_id) AS last, count(DISTINCT sample_id) AS many "
    "FROM samples"
)


def question(run: dict, seen: Snapshot, ids: dict | None) -> str:
    """The query: for each check that something fails, its first fault and the number of them.

    ids: the answer to `IDS`; None for a store without samples.
    """
    checks = [*_values(run, seen), *_steps(run, seen)]
    if seen.parts["ledger"]:
        checks += _ledger(run)
    if ids is not None:
        checks += _samples(ids)
    if seen.parts["tokens"]:
        checks += _tokens()
    numbered = (f"SELECT {k} AS k, fault FROM ({check})" for k, check in enumerate(checks))
    return (
        f"WITH sums AS MATERIALIZED ({_sums(run)}), "
        "valued AS MATERIALIZED (SELECT DISTINCT step FROM sums) "
        "SELECT min(fault) AS fault, count(*) AS count FROM ("
        f"{' UNION ALL '.join(numbered)}) GROUP BY k ORDER BY k"
    )


def _sums(run: dict) -> str:
    """A row for each step and target: n, and of each method total, size, bad."""
    of_methods = ", ".join(
        f"sum(CAST({column} AS DOUBLE)) AS total_{k}, sum(abs(CAST({column} AS DOUBLE))) AS "
        f"size_{k}, count(*) FILTER (coalesce(NOT isfinite({column}), true)) AS bad_{k}"
        for k, column in enumerate(map(name, run["methods"]))
    )
    return f"SELECT step, target, count(*) AS n, {of_methods} FROM terms GROUP BY step, target"


def _values(run: dict, seen: Snapshot) -> list[str]:
    checks = []
    for k, method in enumerate(run["methods"]):
        checks.append(
            f"SELECT format('step {{}}, target {{}}: {{}} values of {method} are not finite', "
            f"step, target, bad_{k}) AS fault FROM sums WHERE bad_{k} > 0"
        )
        listed = [part.sums[method] for part in seen.parts["terms"]]
        if seen.cut("terms") is None and None not in listed:
            total = sum(number for number in listed if number is not None)
            checks.append(
                f"SELECT format('the values of {method} add up to {{}}, listed {total!r}', "
                f"sum(total_{k})) AS fault FROM sums HAVING "
                f"abs(sum(total_{k}) - {total!r}) > 2 * sum(n) * {_DOUBLE!r} * sum(size_{k})"
            )
    known = ", ".join(map(text, run["targets"]))
    checks.append(
        "SELECT format('step {}: {} rows of target {}, which is none of the run', step, n, target) "
        f"AS fault FROM sums WHERE target NOT IN ({known})"
    )
    return checks


def _steps(run: dict, seen: Snapshot) -> list[str]:
    every = run["attribution"].get("every")
    known = type(every) is int
    distance = str(every) if known else "(SELECT min(distance) FROM gaps)"
    first = f"OR (distance IS NULL AND step > 0 AND {known})"
    checks = [
        "SELECT format('step {}: {} of the run''s targets have values, with {} to {} rows', step, "
        "count(*), min(n), max(n)) AS fault FROM sums GROUP BY step "
        f"HAVING count(*) <> {len(run['targets'])} OR min(n) <> max(n)",
        "WITH gaps AS (SELECT step, step - lag(step) OVER (ORDER BY step) AS distance FROM valued) "
        "SELECT format('no values between step {} and the one before ({} steps)', step, "
        "coalesce(distance, step)) "
        f"AS fault FROM gaps WHERE distance <> {distance} {first}",
    ]
    if seen.parts["steps"]:
        checks += [
            "SELECT format('step {}: {} rows for a target, but {} samples in `steps`', step, n, "
            "samples) AS fault FROM sums JOIN steps USING (step) WHERE samples <> n",
            "SELECT format('step {} has values and no row in `steps`', step) AS fault "
            "FROM valued ANTI JOIN steps USING (step)",
            "SELECT format('step {} has a row in `steps` and no values', step) AS fault "
            "FROM steps ANTI JOIN valued USING (step)",
            "SELECT format('step {} has {} rows in `steps`', step, count(*)) AS fault FROM steps "
            "GROUP BY step HAVING count(*) > 1",
        ]
    return checks


def _ledger(run: dict) -> list[str]:
    where = "format('ledger of step {}, target {}, method {}: ', step, target, method)"
    wanted = " UNION ALL ".join(
        f"SELECT step, target, {text(method)} AS method, n, total_{k} AS total, size_{k} AS size "
        "FROM sums"
        for k, method in enumerate(run["methods"])
    )
    return [
        f"SELECT {where} || format('{{}} rows', count(*)) AS fault FROM ledger "
        "GROUP BY step, target, method HAVING count(*) > 1",
        f"SELECT {where} || 'no row' AS fault FROM ({wanted}) ANTI JOIN ledger "
        "USING (step, target, method) WHERE step < (SELECT max(step) FROM valued)",
        f"SELECT {where} || 'no values in `terms`' AS fault FROM ledger ANTI JOIN ({wanted}) "
        "USING (step, target, method)",
        f"SELECT {where} || format('values {{}}, but `terms` add up to {{}}', l.values, total) "
        f"AS fault FROM ledger l JOIN ({wanted}) USING (step, target, method) "
        f"WHERE NOT abs(l.values - total) <= n * {_SINGLE!r} * size",
        f"SELECT {where} || format('drop {{}} is not loss_before - loss_after', drop) AS fault "
        "FROM ledger WHERE NOT abs(loss_before - loss_after - drop) <= "
        f"4 * {_DOUBLE!r} * (abs(loss_before) + abs(loss_after))",
        f"SELECT {where} || format('drop {{}} is not drift + values + residual', drop) AS fault "
        'FROM ledger WHERE NOT abs(drift + "values" + residual - drop) <= '
        f'4 * {_DOUBLE!r} * (abs(drift) + abs("values") + abs(residual) + abs(drop))',
    ]


def _samples(ids: dict) -> list[str]:
    unknown = "(SELECT DISTINCT sample_id FROM terms) ANTI JOIN samples USING (sample_id)"
    if ids["many"] and ids["last"] - ids["first"] + 1 == ids["many"]:
        # without a gap, as numbers of chunks are: no join is needed
        unknown = f"terms WHERE sample_id NOT BETWEEN {ids['first']} AND {ids['last']}"
    return [
        "SELECT format('sample {} has {} rows in `samples`', sample_id, count(*)) AS fault "
        "FROM samples GROUP BY sample_id HAVING count(*) > 1",
        "SELECT format('sample {} has values and no row in `samples`', sample_id) AS fault "
        f"FROM {unknown}",
    ]


def _tokens() -> list[str]:
    return [
        "SELECT format('tokens of step {}, sample {}: not all finite', step, sample_id) AS fault "
        'FROM (SELECT step, sample_id, unnest("values") AS value FROM tokens) '
        "WHERE coalesce(NOT isfinite(value), true)",
        "SELECT format('tokens of step {}, which has no values', step) AS fault FROM "
        "(SELECT DISTINCT step FROM tokens) ANTI JOIN valued USING (step)",
    ]
