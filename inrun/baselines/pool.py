"""One pool of subset trainings, from which every retraining-based method takes what it needs.

    request  = (members S of the n training samples, seed)
    outcome  = loss (for classification also margin, and whether it is right) of the model trained
               on S, for every training sample (in S or not) and every sample of every target

Data Shapley, datamodels, empirical influence, memorization, leave-one-out and the linear
datamodelling score are sums over such outcomes and never look into a model. So a training is done
once, kept, and used by all of them. A request is known by what it asks (a hash of members and
seed); a pool folder belongs to one recipe (`Recognizable.digest`). Outcomes go to parts of a few
dozen trainings, npz files written beside their place and renamed, so that a killed process loses
its last part only and several processes fill one folder at once. Two that are asked the same at the
same time both train it: give them different requests (`experiments/pool.py` makes share i of k).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from inrun.baselines.cost import record_training
from inrun.baselines.outcomes import SAMPLES, Outcomes, PoolError, read_outcomes, write_outcomes
from inrun.baselines.retrain import train_one_by_one
from inrun.baselines.runs import Retrainable, RetrainableRun, TrainedRun
from inrun.files import remember


@runtime_checkable
class SubsetTrainable(Protocol):
    """train_subsets(members, seeds): many trainings at once, where that is faster than `retrain`
    for one after the other.
    """

    def train_subsets(self, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
        """The outcomes of `retrain` on each row of members (bool [k, n]) with its seed, up to the
        rounding of sums in another order. Calls `record_training`.
        """


@runtime_checkable
class Recognizable(Protocol):
    """digest: a hash of everything that a retraining depends on (data, labels, model, recipe), but
    not the subset and the seed.
    """

    @property
    def digest(self) -> str:
        """Hexadecimal."""


class Pool:
    """Outcomes that were trained before, and those that are trained when asked for.

        pool = Pool(run, "runs/pool/digits")
        outcomes = pool.outcomes(members, seeds)

    Args:
        run: `Retrainable`, and better `SubsetTrainable`.
        folder: where outcomes are kept; the run must be `Recognizable`. None: in memory, for as
            long as this object lives.
        part: trainings in one file, and at once in `train_subsets`.

    Attributes:
        trained: trainings done by this object.
    """

    def __init__(self, run: TrainedRun, folder: str | Path | None = None, part: int = 50):
        if not isinstance(run, Retrainable | SubsetTrainable):
            raise PoolError(
                f"{type(run).__name__} cannot be trained again: it has neither retrain nor "
                "train_subsets"
            )
        if SAMPLES in run.targets:
            raise PoolError(
                f"a target may not be called {SAMPLES!r}: that is the pool's name for the "
                "training samples"
            )
        if part < 1:
            raise PoolError(f"part={part}: at least one training")
        self.run, self.part, self.trained = run, part, 0
        self.n = len(run.sample_ids)
        self.folder = None if folder is None else Path(folder)
        self._known: dict[bytes, tuple[int, int]] = {}  # request -> (which of _parts, row)
        self._parts: list[Outcomes] = []
        self._read: set[str] = set()
        if self.folder is not None:
            self._open(self.folder)

    def __len__(self) -> int:
        """Different requests whose outcomes are here."""
        return len(self._known)

    def outcomes(
        self,
        members: np.ndarray,
        seeds: np.ndarray | Sequence[int],
        progress: Callable[[int, int], None] | None = None,
    ) -> Outcomes:
        """One row for each request, in their order; what is missing is trained, a repeated request
        once.

        Args:
            members: bool [k, n]. seeds: int [k].
            progress: called with (trainings done, trainings to do) after each part.
        """
        members, seeds = self._requests(members, seeds)
        self.missing(members, seeds)
        names = [_name(row, seed) for row, seed in zip(members, seeds)]
        todo = list({name: k for k, name in enumerate(names) if name not in self._known}.values())
        fresh = {names[k] for k in todo}
        # neighbours in size make good stacks: nobody waits long for the largest subset
        todo.sort(key=lambda k: (int(members[k].sum()), int(seeds[k])))
        for start in range(0, len(todo), self.part):
            rows = todo[start : start + self.part]
            self._add(self._train(members[rows], seeds[rows]))
            if progress is not None:
                progress(min(start + self.part, len(todo)), len(todo))
        found = self._collect(names)
        for name, seconds in dict(zip(names, found.cpu_seconds)).items():
            if name not in fresh:
                record_training(cpu_seconds=float(seconds), wall_seconds=float(seconds))
        return found

    def missing(self, members: np.ndarray, seeds: np.ndarray | Sequence[int]) -> np.ndarray:
        """bool [k]: which requests would have to be trained. Looks for parts that other processes
        have written meanwhile.
        """
        members, seeds = self._requests(members, seeds)
        self._read_new_parts()
        return np.array(
            [_name(row, seed) not in self._known for row, seed in zip(members, seeds)], dtype=bool
        )

    # -- training

    def _train(self, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
        self.trained += len(seeds)
        if isinstance(self.run, SubsetTrainable):
            return self.run.train_subsets(members, seeds)
        assert isinstance(self.run, RetrainableRun)
        return train_one_by_one(self.run, members, seeds)

    def _requests(
        self, members: np.ndarray, seeds: np.ndarray | Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        members, seeds = np.asarray(members), np.asarray(seeds, dtype=np.int64)
        if members.dtype != bool or members.ndim != 2 or members.shape != (len(seeds), self.n):
            raise PoolError(
                f"requests are bool [k, {self.n}] with k seeds, got {members.dtype} "
                f"{list(members.shape)} and {len(seeds)} seeds"
            )
        return members, seeds

    def _collect(self, names: list[bytes]) -> Outcomes:
        places = np.array([self._known[name] for name in names]).reshape(-1, 2)
        if not names:
            return Outcomes(
                np.zeros((0, self.n), bool), np.zeros(0, np.int64), {}, {}, {}, np.zeros(0)
            )
        parts = np.unique(places[:, 0])
        pieces = [self._parts[p].take(places[places[:, 0] == p, 1]) for p in parts]
        order = np.argsort(np.concatenate([np.flatnonzero(places[:, 0] == p) for p in parts]))
        return Outcomes.concatenated(pieces).take(order)

    # -- files

    def _open(self, folder: Path) -> None:
        if not isinstance(self.run, Recognizable):
            raise PoolError(
                f"a pool on disk must know its recipe again, and {type(self.run).__name__} has no "
                "`digest`; add it, or keep the pool in memory (folder=None)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        about = {"version": 1, "recipe": self.run.digest, "samples": self.n}
        found = remember(folder / "pool.json", lambda: about)
        if found != about:
            raise PoolError(
                f"{folder} belongs to {found}, this run is {about}; give it another folder"
            )
        self._read_new_parts()

    def _read_new_parts(self) -> None:
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("part-*.npz")):
            if path.name not in self._read:
                self._remember(read_outcomes(path, self.n))
                self._read.add(path.name)

    def _add(self, outcomes: Outcomes) -> None:
        if self.folder is not None:
            names = b"".join(
                sorted(_name(row, seed) for row, seed in zip(outcomes.members, outcomes.seeds))
            )
            path = self.folder / f"part-{hashlib.sha256(names).hexdigest()[:16]}.npz"
            write_outcomes(path, outcomes)
            self._read.add(path.name)
        self._remember(outcomes)

    def _remember(self, outcomes: Outcomes) -> None:
        self._parts.append(outcomes)
        for row in range(len(outcomes)):
            self._known.setdefault(
                _name(outcomes.members[row], outcomes.seeds[row]), (len(self._parts) - 1, row)
            )


def _name(members: np.ndarray, seed: int) -> bytes:
    return hashlib.sha256(
        np.packbits(members).tobytes() + int(seed).to_bytes(8, "little", signed=True)
    ).digest()[:16]
