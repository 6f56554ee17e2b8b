"""What a question is asked of: a value store, and the texts of its samples where they are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inrun.store import STORE_FILE, StoreError, ValueStore

if TYPE_CHECKING:
    from inrun.data.corpus import Corpus

#: of a column of the table `samples` that holds the text itself
TEXT = "text"


@dataclass(frozen=True)
class Opened:
    """A run that is asked.

    Attributes:
        store: its values.
        folder: the run's folder, None for a value store alone.
    """

    store: ValueStore
    folder: Path | None

    def targets(self, chosen: str | None) -> list[str]:
        """The target that was chosen, or all of them."""
        return self.store.targets if chosen is None else [chosen]

    def method(self, chosen: str | None) -> str:
        """The method that was chosen, or the run's first."""
        return self.store.methods[0] if chosen is None else chosen

    def corpus(self) -> Corpus | None:
        """The train split that the run sampled from; None for a store alone.

        Raises DataError where the corpus is gone or damaged.
        """
        if self.folder is None:
            return None
        from inrun.data.corpus import Corpus  # torch is imported only where text is wanted

        record = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return Corpus.open(record["corpus"], "train")


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The run or the store in the folder `path`.

    Raises StoreError where there is neither.
    """
    if (path / STORE_FILE).is_file() and not (path / "values").is_dir():
        folder, values = None, path
    elif (path / "values" / STORE_FILE).is_file():
        folder, values = path if (path / "run.json").is_file() else None, path / "values"
    else:
        raise StoreError(
            f"{path} holds no values: neither {path / STORE_FILE} of a value store nor "
            f"{path / 'values' / STORE_FILE} of a run is there. Next: give the folder of a run "
            "that was trained with attribution, or the one that `store=` named"
        )
    with ValueStore(values) as store:
        yield Opened(store, folder)
