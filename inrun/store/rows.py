"""What a caller gives to the writer, checked and made into rows. Nothing here keeps or writes it.

Every function raises StoreError that names table, step and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from inrun.store import schema
from inrun.store.parts import StoreError


def term_rows(
    run: dict, step: int, sample_ids: ArrayLike, target: str, columns: Mapping[str, ArrayLike]
) -> pa.Table:
    """Rows of `terms`: for each sample id [n] a finite value of every method of the run."""
    methods = run["methods"]
    if set(columns) != set(methods):
        raise StoreError(
            f"terms of step {step}: columns {sorted(columns)}, but the run's methods are {methods}."
        )
    ids = _ids(sample_ids, f"terms of step {step}")
    where = f"terms of step {step}, target {target!r}"
    values = [_finite(columns[method], ids, f"{where}, {method}") for method in methods]
    arrays = [
        np.full(len(ids), step, np.int64),
        ids,
        _repeated(_known_target(run, f"terms of step {step}", target), run["targets"], len(ids)),
        *values,
    ]
    return pa.Table.from_arrays([pa.array(a) for a in arrays], schema=schema.terms_schema(methods))


def token_rows(
    run: dict,
    step: int,
    sample_ids: ArrayLike,
    target: str,
    method: str,
    values: Sequence[ArrayLike] | np.ndarray,
) -> pa.Table:
    """Rows of `tokens`: one for each sample id [n], with an array of finite values [t]."""
    where = f"tokens of step {step}, target {target!r}, {method}"
    ids = _ids(sample_ids, where)
    if len(values) != len(ids):
        raise StoreError(f"{where}: {len(ids)} sample ids but {len(values)} arrays of values.")
    rows = [np.asarray(row) for row in values]
    flat = np.concatenate(rows) if rows else np.empty(0)
    lengths = [len(row) for row in rows]
    flat = _finite(flat, np.repeat(ids, lengths), where)
    _known_method(run, method)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    arrays = [
        pa.array(np.full(len(ids), step, np.int64)),
        pa.array(ids),
        _repeated(_known_target(run, f"tokens of step {step}", target), run["targets"], len(ids)),
        _repeated(method, run["methods"], len(ids)),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
    ]
    return pa.Table.from_arrays(arrays, schema=schema.TOKENS_SCHEMA)


def name_rows(step: int, sample_ids: ArrayLike, names: Sequence[str | bytes]) -> pa.Table:
    """Rows of `names`: the name of each sample id [n]."""
    ids = _ids(sample_ids, f"names of step {step}")
    if len(names) != len(ids):
        raise StoreError(f"names of step {step}: {len(ids)} sample ids but {len(names)} names.")
    return pa.table(
        {"step": np.full(len(ids), step, np.int64), "sample_id": ids, "id": list(names)}
    )


def step_row(row: Mapping[str, Any], columns: pa.Schema) -> pa.Table:
    """A row of `steps`, in the columns of the store's first row."""
    if set(row) != set(columns.names):
        added, gone = set(row) - set(columns.names), set(columns.names) - set(row)
        raise StoreError(
            f"steps row of step {row['step']}: unknown columns {sorted(added)}, missing columns "
            f"{sorted(gone)}. The columns are those of the store's first row; give None for what "
            "was not measured."
        )
    return _one_row("steps", row, columns)


def ledger_row(run: dict, row: Mapping[str, Any]) -> pa.Table:
    """A row of `ledger`, in the columns of `schema.LEDGER_SCHEMA`."""
    if set(row) != set(schema.LEDGER_SCHEMA.names):
        raise StoreError(
            f"a row of the ledger has the columns {schema.LEDGER_SCHEMA.names}, got {sorted(row)}."
        )
    bad = [
        name for name, value in row.items() if isinstance(value, float) and not np.isfinite(value)
    ]
    if bad:
        raise StoreError(f"ledger of step {row['step']}: {bad} not finite. Has the run diverged?")
    whole = _one_row("ledger", row, schema.LEDGER_SCHEMA)
    _known_method(run, row["method"])
    _known_target(run, f"ledger of step {row['step']}", row["target"])
    return whole


def sample_table(table: pa.Table) -> pa.Table:
    """The table of `samples` as it is kept: sample_id as int64, no metadata."""
    if "sample_id" not in table.column_names or not pa.types.is_integer(
        table.schema.field("sample_id").type
    ):
        raise StoreError(
            f"the table of samples needs an integer column sample_id, it has {table.column_names}."
        )
    if clash := sorted({"value", "uses"} & set(table.column_names)):
        raise StoreError(f"the samples' columns {clash} would hide the store's own. Rename them.")
    ids = table["sample_id"]
    if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise StoreError(
            "the table of samples has a null or repeated sample_id; each sample has one row."
        )
    if len(ids) and pc.max(ids).as_py() > np.iinfo(np.int64).max:
        raise StoreError(
            "the table of samples has a sample_id past 2^63 - 1; cut hashes to 63 bits."
        )
    position = table.schema.get_field_index("sample_id")
    whole = table.set_column(position, "sample_id", ids.cast(pa.int64()))
    return whole.replace_schema_metadata(None)


def _one_row(table: str, row: Mapping[str, Any], columns: pa.Schema) -> pa.Table:
    where = f"{table} row of step {row['step']}"
    try:
        whole = pa.Table.from_pylist([dict(row)], schema=columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise StoreError(f"{where}: {error}. Give plain numbers.") from error
    empty = [field.name for field in columns if not field.nullable and row[field.name] is None]
    if empty:
        raise StoreError(f"{where}: {empty} must not be None.")
    return whole


def _ids(sample_ids: ArrayLike, where: str) -> np.ndarray:
    ids = np.asarray(sample_ids)
    if ids.ndim != 1 or (len(ids) and not np.issubdtype(ids.dtype, np.integer)):
        raise StoreError(
            f"{where}: sample ids must be integers [n], got {ids.dtype} {list(ids.shape)}."
        )
    if len(ids) and ids.max() > np.iinfo(np.int64).max:
        raise StoreError(
            f"{where}: sample ids are kept as int64, {ids.max()} is past 2^63 - 1. Cut hashes to "
            "63 bits: ids >> 1."
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


def _known_target(run: dict, where: str, target: str) -> str:
    if target not in run["targets"]:
        raise StoreError(f"{where}: unknown target {target!r}; the run's are {run['targets']}.")
    return target


def _known_method(run: dict, method: str) -> str:
    if method not in run["methods"]:
        raise StoreError(f"unknown method {method!r}; the run's are {run['methods']}.")
    return method


def _repeated(name: str, names: list[str], count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        np.full(count, names.index(name), np.int32), pa.array(names, pa.string())
    )
