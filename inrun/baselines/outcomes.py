"""What trainings on subsets led to, in memory and in a file."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inrun.files import write_file

SAMPLES = "samples"  #: the key of the run's own training samples, beside the names of targets
UTILITIES = ("loss", "accuracy", "margin")


class PoolError(ValueError):
    """A pool that cannot be read or belongs to another recipe; the message says what to do."""


@dataclass(frozen=True)
class Outcomes:
    """What trainings on subsets led to; k trainings, n samples, m samples of a target."""

    members: np.ndarray
    "bool [k, n]: which samples were trained on, in the order of the run's `sample_ids`."
    seeds: np.ndarray
    "int64 [k]: of the trainings."
    losses: dict[str, np.ndarray]
    "SAMPLES or target -> float32 [k, n] or [k, m]."
    margins: dict[str, np.ndarray]
    "The same for log p / (1 - p) of the label; empty where the run does not classify."
    correct: dict[str, np.ndarray]
    "The same in bool: the label has the largest logit; empty where the run does not classify."
    cpu_seconds: np.ndarray
    "float64 [k]: of each training, wherever it was done."

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
        """The outcomes of these trainings, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        losses, margins, correct = (
            {key: array[rows] for key, array in kind.items()}
            for kind in (self.losses, self.margins, self.correct)
        )
        seeds, seconds = self.seeds[rows], self.cpu_seconds[rows]
        return Outcomes(self.members[rows], seeds, losses, margins, correct, seconds)

    @classmethod
    def concatenated(cls, pieces: Sequence["Outcomes"]) -> "Outcomes":
        """The trainings of one or more pieces, one after the other."""
        losses, margins, correct = (
            {
                key: np.concatenate([getattr(p, kind)[key] for p in pieces])
                for key in getattr(pieces[0], kind)
            }
            for kind in ("losses", "margins", "correct")
        )
        return cls(
            np.concatenate([p.members for p in pieces]),
            np.concatenate([p.seeds for p in pieces]),
            losses,
            margins,
            correct,
            np.concatenate([p.cpu_seconds for p in pieces]),
        )


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """An npz file that is whole or not there."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            # the keys name arrays, never an option
            np.savez(file, **_arrays(outcomes))  # type: ignore[arg-type]

    write_file(path, write)


def read_outcomes(path: Path, n: int) -> Outcomes:
    """The outcomes in a file that `write_outcomes` wrote, of a run with n samples."""
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
