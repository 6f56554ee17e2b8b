"""Which chunks a step trains on, and their tokens, read one step ahead.

They are read while the device is busy with the step before.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from inrun.attributor import Processes
from inrun.data.batch import Batch, batch_of
from inrun.data.corpus import Corpus
from inrun.data.sampler import Sampler
from inrun.store import ValueStore
from inrun.train.config import RunConfig
from inrun.train.online import decide
from inrun.train.selection import ChunkSelection


class Prefetcher:
    """Batches of chunk ids through `load`, one step ahead in a thread of its own.

    An error of `load` is raised by the `get` that asks for its batch.
    """

    def __init__(self, load: Callable[[np.ndarray], Batch]):
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inrun-batches")
        self._next: tuple[np.ndarray, Future[Batch]] | None = None

    def get(self, ids: np.ndarray, following: np.ndarray | None) -> Batch:
        """The batch of `ids`; that of `following`, if there is one, begins to be read."""
        ready, self._next = self._next, None
        batch = (
            ready[1].result()
            if ready is not None and np.array_equal(ready[0], ids)
            else self._load(ids)
        )
        if following is not None:
            self._next = (following, self._thread.submit(self._load, following))
        return batch

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class BatchStream:
    """The batches of a run, this process's part of them.

    Args:
        corpus: the train split.
        chunks: what is sampled of it.
        config: of the run.
        processes: that the logical batches are dealt to.
        pin: whether batches wait in memory that a GPU can copy from.
        values: opens the values measured so far, on which `config.online` decides.

    Attributes:
        sampler: gives the logical batches, by the last decision.
    """

    def __init__(
        self,
        corpus: Corpus,
        chunks: ChunkSelection,
        config: RunConfig,
        processes: Processes,
        pin: bool,
        values: Callable[[], ValueStore],
    ):
        self._corpus, self._chunks, self._config, self._pin = corpus, chunks, config, pin
        self._processes, self._values = processes, values
        self._decided: int | None = None
        self.sampler = self._sampler(chunks)
        self._ahead = Prefetcher(self._load)

    def at(self, step: int) -> tuple[np.ndarray, Batch]:
        """Ids and batch of this process's chunks in `step` (counted from 0).

        At a decision of `config.online`, or after a resume past one, what is left out is looked up
        in the values.
        """
        decision = self._config.online.decision(step)
        if decision is not None and decision != self._decided:
            with self._values() as store:
                chosen = decide(self._config.online, decision, store, self._chunks)
            self._decided, self.sampler = decision, self._sampler(chosen)
        ids = self._own(step)
        return ids, self._ahead.get(ids, self._following(step))

    def close(self) -> None:
        self._ahead.close()

    def _own(self, step: int) -> np.ndarray:
        """Ids of a logical batch that this process trains on."""
        ids = self.sampler.batch_at(step)
        return np.array_split(ids, self._processes.size)[self._processes.rank]

    def _following(self, step: int) -> np.ndarray | None:
        """Ids of the next step, if they are known by now."""
        known = (
            step + 1 < self._config.train.steps
            and self._config.online.decision(step + 1) == self._decided
        )
        return self._own(step + 1) if known else None

    def _load(self, ids: np.ndarray) -> Batch:
        batch = batch_of(self._corpus, ids, self._config.train.separate_documents)
        return batch.pinned() if self._pin else batch

    def _sampler(self, chunks: ChunkSelection) -> Sampler:
        config = self._config
        return Sampler(chunks.ids, config.train.batch_size, config.seed, chunks.weights)
