"""The next step's batch, read while the device is busy with this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from inrun.data.batch import Batch


class Prefetcher:
    """Batches of chunk ids through `load`, one step ahead in a thread of its own. An error of
    `load` is raised by the `get` that asks for its batch.
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
