"""One pool of subset trainings, from which every retraining-based method takes what it needs.

    request  = (members S of the n training samples, seed)
    outcome  = loss, and for classification margin and whether it is right, of the model trained on S
               on every training sample (in S or not) and on every sample of every target

Data Shapley, datamodels, empirical influence, memorization, leave-one-out and the linear
datamodelling score are sums over such outcomes and never look into a model. So a training is done
once, kept, and used by all of them. A request is known by what it asks (a hash of members and
seed); a pool folder belongs to one recipe (`Recognizable.digest`). Outcomes go to parts of a few
dozen trainings, npz files written beside their place and renamed, so that a killed process loses
its last part only and several processes fill one folder at once. Two that are asked the same at the
same time both train it: give them different requests (`experiments/pool.py` makes share i of k).
"""

import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from inrun.baselines.registry import Classified, Retrainable, TrainedRun, record_training
from inrun.files import read_json, write_bytes, write_json

SAMPLES = "samples"  #: the key of the run's own training samples, beside the names of targets
UTILITIES = ("loss", "accuracy", "margin")
BATCH = 1024  # samples per forward


class PoolError(ValueError):
    """A pool that cannot be read or belongs to another recipe; the message says what to do."""


@dataclass(frozen=True)
class Outcomes:
    """What trainings on subsets led to; k trainings, n samples, m samples of a target.

    Attributes:
        members: bool [k, n], in the order of the run's `sample_ids`. seeds: int64 [k].
        losses: SAMPLES or target -> float32 [k, n] or [k, m].
        margins, correct: the same in float32 and bool; empty where the run does not classify.
        cpu_seconds: float64 [k], of each training, wherever it was done.
    """

    members: np.ndarray
    seeds: np.ndarray
    losses: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]
    cpu_seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def outputs(self, key: str, utility: str = "loss") -> np.ndarray:
        """float64 [k, m], higher = better: minus the loss; 1 if right, else 0; or the margin log p
        / (1 - p) of the label.
        """
        if utility not in UTILITIES:
            raise PoolError(f"utility={utility!r}; choose from {', '.join(UTILITIES)}")
        if utility == "loss":
            return -self.losses[key].astype(np.float64)
        found = self.correct if utility == "accuracy" else self.margins
        if key not in found:
            raise PoolError(
                f"{utility} is defined for classification; this pool has losses only: "
                "utility='loss'"
            )
        return found[key].astype(np.float64)

    def utility(self, target: str, utility: str = "loss") -> np.ndarray:
        """float64 [k]: U of each training, the mean of `outputs` over the target."""
        return self.outputs(target, utility).mean(1)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Outcomes":
        rows = np.asarray(rows, dtype=np.int64)
        return Outcomes(
            self.members[rows],
            self.seeds[rows],
            *(
                {key: array[rows] for key, array in kind.items()}
                for kind in (self.losses, self.margins, self.correct)
            ),
            self.cpu_seconds[rows],
        )

    @classmethod
    def concatenated(cls, pieces: Sequence["Outcomes"]) -> "Outcomes":
        return cls(
            np.concatenate([p.members for p in pieces]),
            np.concatenate([p.seeds for p in pieces]),
            *(
                {
                    key: np.concatenate([getattr(p, kind)[key] for p in pieces])
                    for key in getattr(pieces[0], kind)
                }
                for kind in ("losses", "margins", "correct")
            ),
            np.concatenate([p.cpu_seconds for p in pieces]),
        )


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
            self._open()

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
        parts = np.unique(places[:, 0])
        pieces = [self._parts[p].take(places[places[:, 0] == p, 1]) for p in parts]
        order = (
            np.argsort(np.concatenate([np.flatnonzero(places[:, 0] == p) for p in parts]))
            if len(parts)
            else []
        )
        return Outcomes.concatenated(pieces).take(order) if pieces else self._nothing()

    def _nothing(self) -> Outcomes:
        return Outcomes(np.zeros((0, self.n), bool), np.zeros(0, np.int64), {}, {}, {}, np.zeros(0))

    # -- files

    def _open(self) -> None:
        if not isinstance(self.run, Recognizable):
            raise PoolError(
                f"a pool on disk must know its recipe again, and {type(self.run).__name__} "
                "has no `digest`; "
                "add it, or keep the pool in memory (folder=None)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        about, path = (
            {"version": 1, "recipe": self.run.digest, "samples": self.n},
            self.folder / "pool.json",
        )
        if not path.exists():
            write_json(path, about)
        if (found := read_json(path)) != about:
            raise PoolError(
                f"{self.folder} belongs to {found}, this run is {about}; give it another folder"
            )
        self._read_new_parts()

    def _read_new_parts(self) -> None:
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("part-*.npz")):
            if path.name not in self._read:
                self._remember(_load(path, self.n))
                self._read.add(path.name)

    def _add(self, outcomes: Outcomes) -> None:
        if self.folder is not None:
            names = b"".join(
                sorted(_name(row, seed) for row, seed in zip(outcomes.members, outcomes.seeds))
            )
            path = self.folder / f"part-{hashlib.sha256(names).hexdigest()[:16]}.npz"
            content = io.BytesIO()
            np.savez(content, **_arrays(outcomes))
            write_bytes(path, content.getbuffer())
            self._read.add(path.name)
        self._remember(outcomes)

    def _remember(self, outcomes: Outcomes) -> None:
        self._parts.append(outcomes)
        for row in range(len(outcomes)):
            self._known.setdefault(
                _name(outcomes.members[row], outcomes.seeds[row]), (len(self._parts) - 1, row)
            )


def train_one_by_one(run: TrainedRun, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
    """`run.retrain` for each request, and what its model does on all of the run's samples and
    targets.
    """
    ids = np.asarray(run.sample_ids)
    rows = []
    for row, seed in zip(members, seeds):
        began = time.process_time()
        model = run.retrain(ids[row].tolist(), int(seed)).model()
        with torch.no_grad():
            found = _judged(run, model, ids)
        rows.append((*found, time.process_time() - began))
    *kinds, seconds = zip(*rows)
    stacked = ({key: np.stack([row[key] for row in kind]) for key in kind[0]} for kind in kinds)
    return Outcomes(members, seeds, *stacked, np.array(seconds))


def _judged(run: TrainedRun, model: torch.nn.Module, ids: np.ndarray) -> tuple[dict, dict, dict]:
    losses = {SAMPLES: _batched(lambda part: run.losses(model, part), ids)}
    losses |= {target: run.target_losses(model, target).cpu().numpy() for target in run.targets}
    losses = {key: array.astype(np.float32) for key, array in losses.items()}
    if not isinstance(run, Classified):
        return losses, {}, {}
    logits = {
        SAMPLES: (_batched(lambda part: run.logits(model, part), ids), run.labels(ids.tolist()))
    }
    logits |= {
        t: (run.target_logits(model, t).cpu().numpy(), run.target_labels(t)) for t in run.targets
    }
    judged = {
        key: margins_and_correct(torch.from_numpy(z), y.cpu()) for key, (z, y) in logits.items()
    }
    return losses, *({key: pair[k].numpy() for key, pair in judged.items()} for k in (0, 1))


def margins_and_correct(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p / (1 - p) of the label, float32, and whether it has the largest logit; logits [...,
    classes], labels [...].
    """
    at = labels[..., None]
    others = logits.scatter(-1, at, -torch.inf).logsumexp(-1)
    return (logits.gather(-1, at)[..., 0] - others).float(), logits.argmax(-1) == labels


# -- subsets


def random_subsets(
    n: int, count: int, share: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`count` uniform subsets of round(share n) of n samples, bool [count, n], and a training seed
    for each; the first ones of a longer list are the shorter list.
    """
    size = round(share * n)
    if not 1 <= size < n:
        raise PoolError(
            f"share={share} of {n} samples is {size}; a subset has at least one and not all of them"
        )
    members = np.zeros((count, n), dtype=bool)
    for k in range(count):
        members[k, np.random.default_rng([seed, k]).choice(n, size, replace=False)] = True
    return members, training_seeds(count, seed)


def coin_subsets(n: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` subsets in which each sample is with probability one half, independently; and a
    training seed for each.
    """
    members = np.stack([np.random.default_rng([seed, k]).random(n) < 0.5 for k in range(count)])
    return members, training_seeds(count, seed)


def training_seeds(count: int, seed: int) -> np.ndarray:
    """int64 [count], different for different (k, seed) within a million each."""
    return np.arange(count, dtype=np.int64) + 1_000_000 * seed


# -- private


def _name(members: np.ndarray, seed: int) -> bytes:
    return hashlib.sha256(
        np.packbits(members).tobytes() + int(seed).to_bytes(8, "little", signed=True)
    ).digest()[:16]


def _batched(function: Callable[[list[int]], torch.Tensor], ids: np.ndarray) -> np.ndarray:
    parts = [function(ids[k : k + BATCH].tolist()).cpu().numpy() for k in range(0, len(ids), BATCH)]
    return np.concatenate(parts)


def _arrays(outcomes: Outcomes) -> dict[str, np.ndarray]:
    arrays = {
        "members": np.packbits(outcomes.members, axis=1),
        "seeds": outcomes.seeds,
        "cpu_seconds": outcomes.cpu_seconds,
    }
    arrays |= {f"losses/{key}": array for key, array in outcomes.losses.items()}
    arrays |= {f"margins/{key}": array for key, array in outcomes.margins.items()}
    return arrays | {
        f"correct/{key}": np.packbits(array, axis=1) for key, array in outcomes.correct.items()
    }


def _load(path: Path, n: int) -> Outcomes:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PoolError(
            f"{path} cannot be read ({error}); delete it, its trainings are done again when "
            "asked for"
        ) from error
    losses, margins = (
        {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
        for kind in ("losses/", "margins/")
    )
    correct = {
        key: np.unpackbits(arrays[f"correct/{key}"], axis=1, count=losses[key].shape[1]).astype(
            bool
        )
        for key in losses
        if f"correct/{key}" in arrays
    }
    members = np.unpackbits(arrays["members"], axis=1, count=n).astype(bool)
    return Outcomes(members, arrays["seeds"], losses, margins, correct, arrays["cpu_seconds"])
