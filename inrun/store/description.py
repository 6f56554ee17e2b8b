"""`store.json`, in which a store says what its numbers mean: read, checked, written.

The last entry, `seal`, is a checksum of the others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from inrun.files import partials, write_json
from inrun.shapley import SIGN
from inrun.store.parts import TABLES, StoreError
from inrun.store.schema import SCHEMA_VERSION, check_names

STORE_FILE = "store.json"
FORMER_FILE = "run.json"  # its name before it was distinguished from a run's own run.json
SEAL = "seal"


def read_run(store: Path) -> dict:
    """The content of store.json. StoreError if there is no store, or one that this code cannot
    read.
    """
    if not store.is_dir():
        raise StoreError(
            f"{store} does not exist or is no folder, so it is no value store. Check the path."
        )
    path = store / STORE_FILE
    if not path.exists():
        refuse_former(store)
        if any((store / table).is_dir() for table in TABLES):
            raise StoreError(
                f"{store} has tables but no {STORE_FILE}: half of a store. Restore {STORE_FILE} "
                "from a copy."
            )
        if partials(store, STORE_FILE):
            raise StoreError(
                f"{store} was left before its {STORE_FILE} was whole; no value is in it. Run again."
            )
        inside = store / "values" / STORE_FILE
        hint = f"Open {inside.parent}" if inside.exists() else "Check the path"
        raise StoreError(f"{store} is no value store: it has no {STORE_FILE}. {hint}.")
    run, version = read_description(path)
    _check_read(path, run, version)
    return run


def read_description(path: Path) -> tuple[dict, Any]:
    """What a store.json says, unchecked but for being one, and its schema version."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return run, run["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}). Restore it from a copy.") from error


def _check_read(path: Path, run: dict, version: Any) -> None:
    """StoreError for a description that this code has not written, or that was altered."""
    if type(version) is not int or version < 1:
        raise StoreError(f"{path} is damaged (schema_version {version!r}). Restore it from a copy.")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path.parent} has schema version {version}, this code reads up to {SCHEMA_VERSION}. "
            "Update inrun to read it."
        )
    if version < SCHEMA_VERSION:
        raise StoreError(
            f"{path.parent} has schema version {version}, from before a store had a list of its "
            f"parts. Next: python -m inrun.store convert {path.parent}"
        )
    check_meaning(path, run)
    if run.pop(SEAL, None) != seal(run):
        raise StoreError(
            f"{path} is damaged (its content is not what was written). Restore it from a copy."
        )


def check_meaning(path: Path, run: dict) -> None:
    """StoreError unless sign and names of a description are such as this code writes."""
    if run.get("sign") != SIGN:
        raise StoreError(
            f"{path} says of its values {run.get('sign')!r}, here {SIGN!r} holds. They cannot be "
            "read as the others are; restore it from a copy."
        )
    try:
        check_names(run)
    except StoreError as error:
        raise StoreError(f"{path} is damaged: {error} Restore it from a copy.") from error


def refuse_former(store: Path) -> None:
    """StoreError for a store that still has its `store.json` under the former name."""
    former = store / FORMER_FILE
    if (store / STORE_FILE).exists() or not former.exists():
        return
    if (store / "terms").is_dir() or '"schema_version"' in former.read_text(encoding="utf-8"):
        raise StoreError(
            f"{store} is a value store of an older inrun: what is now {STORE_FILE} was called "
            f"{FORMER_FILE}. Next: python -m inrun.store convert {store}"
        )


def write_run(store: Path, run: dict) -> None:
    """Write the content of store.json, with its checksum, in the place of the former one."""
    write_json(store / STORE_FILE, {**run, SEAL: seal(run)})


def seal(run: dict) -> str:
    """The sha256 of the content of store.json, whatever its order and spaces."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def lists_of(run: dict) -> int:
    """How many ranks have a list of parts: those that write now, and those of before a resume."""
    return max(run["ranks"], *(note["ranks"] for note in run["resumed"]), 1)


def footer_of(run: dict, rank: int) -> dict[str, Any]:
    """What the footer of every part of this run and rank says."""
    kept = ("schema_version", "sign", "targets")
    return {"run": run["id"], "rank": rank, **{key: run[key] for key in kept}}
