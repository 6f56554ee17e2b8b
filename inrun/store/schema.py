"""What a value store is on disk: `store.json`, and one folder of parquet parts for each table.

    store.json             what the numbers mean, where they come from, the run's id, a checksum
    parts/rank0000.jsonl   which files are parts of the store, with their checksums (`part_list`)
    terms/rank0000-000000000-000000199-000001.parquet
                           step, sample_id, target, a column for each method
    steps/rank0000-...     a row for each training step, columns as you choose
    ledger/rank0000-...    step, target, method: the drop, and who has it
    tokens/rank0000-...    step, sample_id, target, method, token by token
    samples/samples.parquet   of a sample: domain, kind, documents
    names/rank0000-...     sample_id, id: the names of samples that have some

A part is named after the first and the last step in it and a serial number. Every `*.parquet` and
`store.json` is whole, whenever its writer was killed (`inrun.files`).

Values are stored as float32 and summed as float64. A value is a dot product accumulated in float32,
so its own error is above the 6e-8 that this rounding costs; and 24-bit numbers add *exactly* in
float64 as long as the largest and the smallest differ by less than 2^29 / (number of rows), so that
a sum does not depend on the order in which threads meet the rows, nor a ranking on the number of
threads.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import uuid
from importlib import metadata
from typing import Any

import pyarrow as pa

from inrun.shapley import SIGN
from inrun.store.parts import StoreError

SCHEMA_VERSION = 2  # 1 had no list of parts; `inrun.store.conversion` makes it a 2
VALUE = pa.float32()

# What a run says of itself: the first two must be given, the others have these defaults.
RUN_DEFAULTS: dict[str, Any] = {
    "config": {},  # the resolved configuration, for the record
    "attribution": {},  # options that change what a value means: update rule, credit, every
    "git_revision": None,
    "corpus_digest": None,
    "audit": None,  # whether an audit was asked for (`inrun.attributor.Audit`); None: not known
    "packages": None,  # None: the versions found by `package_versions`
}
# Rows before and after a resume may only be added up if these agree.
MUST_AGREE = ("schema_version", "sign", "targets", "methods", "corpus_digest", "attribution")

_RECORDED_PACKAGES = ("inrun", "torch", "triton", "numpy", "pyarrow", "duckdb")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def terms_schema(methods: list[str]) -> pa.Schema:
    return pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("target", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            *(pa.field(method, VALUE, nullable=False) for method in methods),
        ]
    )


TOKENS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("target", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("method", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("values", pa.list_(VALUE), nullable=False),
    ]
)

# drop = loss_before - loss_after = drift + values + residual; null: not measured at this step.
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("loss_before", pa.float64(), nullable=False),
        pa.field("loss_after", pa.float64(), nullable=False),
        pa.field("drop", pa.float64(), nullable=False),
        pa.field("drift", pa.float64()),
        pa.field("values", pa.float64(), nullable=False),
        pa.field("residual", pa.float64()),
    ]
)

# clip: the factor that clipping multiplied the gradient by; seconds, tokens, samples: of this step,
# over all ranks.
STEPS_FIXED = {
    "step": pa.int64(),
    "lr": pa.float64(),
    "clip": pa.float64(),
    "loss": pa.float64(),
    "seconds": pa.float64(),
    "tokens": pa.int64(),
    "samples": pa.int64(),
}


def steps_schema(columns: list[str]) -> pa.Schema:
    """The fixed columns first, then the caller's own in the order given, all of them float64."""
    own = [column for column in columns if column not in STEPS_FIXED]
    return pa.schema(
        [pa.field(name, dtype, nullable=name != "step") for name, dtype in STEPS_FIXED.items()]
        + [pa.field(name, pa.float64()) for name in own]
    )


def complete_run(run: dict, ranks: int = 1) -> dict:
    """The content of store.json for a run described by `run`: checked, defaults filled in, sign,
    versions and an id of its own added.

    `run` must hold `targets` and `methods` (lists of names, a method being a column of `terms`) and
    may hold the keys of `RUN_DEFAULTS`. StoreError on an unknown key, on names that cannot be
    columns, on what JSON cannot hold.

    ranks: how many processes write.
    """
    unknown = sorted(set(run) - {"targets", "methods", *RUN_DEFAULTS})
    if unknown:
        raise StoreError(
            f"unknown keys in the run's description: {unknown}. Known are targets, methods, "
            f"{', '.join(RUN_DEFAULTS)}; anything else belongs into config."
        )
    check_names(run)
    whole = {
        "schema_version": SCHEMA_VERSION,
        "sign": SIGN,
        "id": uuid.uuid4().hex,
        "created": now(),
        "ranks": ranks,
        **RUN_DEFAULTS,
        **run,
        "targets": list(run["targets"]),
        "methods": list(run["methods"]),
        "resumed": [],
    }
    if whole["packages"] is None:
        whole["packages"] = package_versions()
    try:
        return json.loads(json.dumps(whole, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the run's description cannot be written as JSON: {error}. Give plain values only."
        ) from error


def check_names(run: dict) -> None:
    """StoreError unless targets and methods are names, and the methods' can be columns."""
    for key in ("targets", "methods"):
        names = run.get(key)
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise StoreError(f"run[{key!r}] must list one or more different names, got {names!r}.")
        if not names or len(set(names)) != len(names):
            raise StoreError(f"run[{key!r}] must list one or more different names, got {names!r}.")
    reserved = {"step", "sample_id", "target"}
    bad = [
        name for name in run["methods"] if not _COLUMN.fullmatch(name) or name.lower() in reserved
    ]
    if bad:
        raise StoreError(
            f"method names become columns: letters, digits and _, not {sorted(reserved)}; "
            f"got {bad}."
        )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers, as far as they are
    installed.
    """
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
