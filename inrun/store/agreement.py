"""Whether a store is that of the run which wants to write there."""

from __future__ import annotations

from pathlib import Path

from inrun.store import schema
from inrun.store.parts import StoreError


def run_of_rank_zero(store: Path) -> dict:
    """What rank 0 has said of the run. StoreError if it has not opened the store yet."""
    if not (store / schema.STORE_FILE).exists():
        raise StoreError(f"{store} is not there yet: rank 0 opens it first; put a barrier between.")
    return schema.read_run(store)


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


def generation(store: Path) -> tuple | None:
    """When the store began and how often it was resumed; None where there is none."""
    try:
        run = schema.read_run(store)
    except StoreError:
        return None
    return run.get("created"), len(run.get("resumed", ()))
