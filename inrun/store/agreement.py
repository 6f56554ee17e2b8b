"""Whether a run may write into a folder: a new one, or that of a store which is its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from inrun.files import partials
from inrun.owner import Owner, is_sign_of_owner
from inrun.store import description, part_list, schema
from inrun.store.part_list import PartList
from inrun.store.parts import Part, StoreError, read_part


def take_new(store: Path) -> Owner:
    """Own the folder of a new store, made if need be. StoreError if anything lies there.

    What a kill left of a store that was being made is removed.
    """
    if (store / description.STORE_FILE).exists():
        raise StoreError(
            f"{store} already holds the values of a run. Go on with it through "
            "ValueWriter.resume(path, run, step), or choose another path."
        )
    unfinished = {*partials(store, description.STORE_FILE), store / part_list.FOLDER}
    if store.exists() and any(
        entry not in unfinished and not is_sign_of_owner(entry) for entry in store.iterdir()
    ):
        raise StoreError(f"{store} is neither empty nor a value store. Choose another path.")
    store.mkdir(parents=True, exist_ok=True)
    owner = Owner.take(store, StoreError)
    for partial in partials(store):
        partial.unlink()
    if (store / part_list.FOLDER).is_dir():
        shutil.rmtree(store / part_list.FOLDER)
    return owner


def run_of_rank_zero(store: Path, run: dict) -> dict:
    """What rank 0 has said of the run. StoreError if it has not opened the store yet, or for
    another run or number of ranks.
    """
    if not (store / description.STORE_FILE).exists():
        raise StoreError(f"{store} is not there yet: rank 0 opens it first; put a barrier between.")
    said = description.read_run(store)
    check_agreement(store, said, run)
    _check_ranks(store, said, run["ranks"])
    return said


def check_resumed(store: Path, run: dict, listed: PartList, ranks: int, step: int) -> None:
    """StoreError unless rank 0 has resumed the store at this step and for so many ranks."""
    _check_ranks(store, run, ranks)
    at = run["resumed"][-1]["step"] if run["resumed"] else None
    if at != step or any(part.last >= step for part in listed.parts):
        raise StoreError(f"{store} was not resumed at step {step} by rank 0, which comes first.")


def check_samples(store: Path, stored: Part, table: pa.Table) -> None:
    """StoreError unless the samples of a store are these."""
    stored.check(store)
    if not read_part(stored.path(store)).equals(table):
        raise StoreError(
            f"{stored.path(store)} holds other samples than these. A store belongs to one corpus."
        )


def _check_ranks(store: Path, run: dict, ranks: int) -> None:
    if run["ranks"] != ranks:
        raise StoreError(
            f"rank 0 opened {store} for {run['ranks']} ranks, this one is of {ranks}: ranks= must "
            "be the same in all processes."
        )


def check_agreement(store: Path, before: dict, run: dict) -> None:
    """StoreError unless values of `before` and of `run` may be added up."""
    differing = [key for key in schema.MUST_AGREE if before.get(key) != run[key]]
    if differing:
        told = "; ".join(
            f"{key}: stored {before.get(key)!r}, now {run[key]!r}" for key in differing
        )
        raise StoreError(
            f"{store} belongs to another run, values must not be added up ({told}). Choose "
            "another path."
        )


def is_still_ours(owner: Owner | None, store: Path) -> Callable[[], bool]:
    """Whether no other writer has gone on with the store since now. owner: of rank 0."""
    if owner is not None:
        return lambda: owner.holds
    now = _generation(store)  # rank 0 makes the store, or notes that it resumes it
    return lambda: _generation(store) == now


def _generation(store: Path) -> tuple | None:
    """When the store began and how often it was resumed; None where there is none."""
    try:
        run = description.read_run(store)
    except StoreError:
        return None
    return run.get("created"), len(run.get("resumed", ()))
