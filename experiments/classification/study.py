"""Every method beside every other on labelled data with wrong labels: `make classification`. The
paper's appendix E.6, with the tasks that its reviewers asked for.

    detection    are the wrong labels the lowest values? area under the ROC curve, and the share found among the lowest ones
    selection    train again on the highest values only: accuracy on clean test samples (a regression: R^2), one training per cell
    within       both once more with values ranked among the samples of the same label: what a label has in common is taken out
    lds          linear datamodelling score on held-out subset trainings; loo: correlation with leave-one-out differences, where those are among the methods
    stability    rank correlation of the values of two trainings of the same data that differ in their seed
    cost         CPU and wall seconds beside the run itself, trainings, memory

Values that are all equal (a lasso that kept no sample) order nothing: their correlations are 0
here. A seed draws the samples, the wrong labels, the weights, the order and whatever a method
draws. Values are towards the validation loss; selection is judged on the test part.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from omegaconf import DictConfig
from rich.console import Console
from scipy.stats import rankdata

from experiments import artifacts as outputs
from experiments.artifacts import Outputs
from experiments.classification.report import INSPECTED, plot_methods, report, summarised
from experiments.frame import CONFIGS, command, plain
from experiments.study import measured_once
from inrun.baselines import Cost, get_baseline, score
from inrun.baselines.pool import Pool
from inrun.baselines.subsets import random_subsets
from inrun.baselines.supervised import Recipe, SupervisedRun, train_run
from inrun.config import build
from inrun.data.labelled import LabelledProblem, ProblemConfig, sample_problem
from inrun.evaluate import (
    agreement,
    auroc,
    detection_curve,
    leave_one_out_correlation,
    linear_datamodelling_score,
)
from inrun.train import ConfigError

#: seeds of the held-out subsets begin here, so that no method has trained on them
HELD_OUT = 1000
BASELINES = Path(CONFIGS) / "baseline"
#: `scale=` means these data
SCALES = {"cpu": "digits", "paper": "cifar10"}


@dataclass(frozen=True)
class ClassificationConfig:
    """The study of one data set.

    methods: names of configs/baseline/NAME.yaml. options: method -> options beyond that file. keep:
    shares of the samples, best first, that are trained on again. trainings: budget of every method
    that trains again, 0: as its file says. held_out: subset trainings of the linear datamodelling
    score, 0: none. repeats: trainings of the first seed's data for the stability of values, 1:
    none.
    """

    problem: ProblemConfig
    recipe: Recipe
    methods: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    keep: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    trainings: int = 0
    held_out: int = 100
    repeats: int = 1
    scale: str = "cpu"
    data: str = ""
    runs: str = "runs/classification"
    pools: str = "runs/pool"
    data_root: str = "data"
    name: str | None = None
    record: bool = False

    def __post_init__(self):
        demands = [
            (
                bool(self.seeds) and len(set(self.seeds)) == len(self.seeds),
                "seeds must be different, at least one",
            ),
            (
                bool(self.methods) and len(set(self.methods)) == len(self.methods),
                "methods must be different, at least one",
            ),
            (all(0 < share < 1 for share in self.keep), "keep lists shares between 0 and 1"),
            (
                self.repeats >= 1 and self.held_out >= 0 and self.trainings >= 0,
                "repeats is 1 or more, held_out and trainings 0 or more",
            ),
            (
                not set(self.options) - baseline_files(),
                f"options are for methods: {', '.join(sorted(baseline_files()))}",
            ),
        ]
        for holds, message in demands:
            if not holds:
                raise ConfigError(f"classification: {message}")

    def baseline(self, method: str, seed: int, pool: Path) -> tuple[str, dict[str, Any]]:
        """Registered name, and the options with which it is asked: seed, budget and pool go where
        the method has such an option.
        """
        if method not in baseline_files():
            raise ConfigError(f"methods: there is no {method}.yaml in configs/baseline")
        given = yaml.safe_load((BASELINES / f"{method}.yaml").read_text(encoding="utf-8"))
        name = given.pop("name")
        known = {f.name for f in dataclasses.fields(get_baseline(name).options)}
        ours = {
            "seed": seed,
            "pool": str(pool),
            **({"trainings": self.trainings} if self.trainings else {}),
        }
        return name, {
            **given,
            **{k: v for k, v in ours.items() if k in known},
            **self.options.get(method, {}),
        }


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    given = plain(config)
    settings = build(ClassificationConfig, given)
    resolved = {
        m: dict(zip(("name", "options"), settings.baseline(m, 0, Path("pool"))))
        for m in settings.methods
    }
    out = Outputs.open(
        settings.runs,
        {**{k: v for k, v in given.items() if k != "pools"}, "baselines": resolved},
        settings.name,
    )

    def study() -> None:
        rows: list[dict] = []
        for seed in settings.seeds:
            rows += Study(settings, seed, seed, console).rows()
        if settings.repeats > 1:
            rows += stability(settings, console)
        write_report(out, settings, rows)

    measured_once(
        out, study, settings.record, console, "classification", {"classification": "summary"}
    )


def write_report(out: outputs.Outputs, settings: ClassificationConfig, rows: list[dict]) -> None:
    """classification (one row per seed; its markdown is the report), summary (over seeds), and the
    figure.
    """
    about = (
        f"{settings.problem.source}: {settings.problem.train} training samples, "
        f"{settings.problem.flipped:.0%} wrong, {len(settings.seeds)} seeds; "
    )
    about += (
        f"{settings.recipe.network.name}, normalisation: "
        f"{settings.recipe.network.normalisation}; {settings.recipe.epochs} epochs"
    )
    where = {
        "data": settings.problem.source,
        "normalisation": settings.recipe.network.normalisation,
    }
    out.table(
        "classification",
        rows,
        report(rows, about, regression=settings.problem.source == "diabetes"),
    )
    out.table("summary", [{**where, **row} for row in summarised(rows)])
    out.figure(
        "classification",
        plot_methods(rows, about, regression=settings.problem.source == "diabetes"),
    )


class Study:
    """One problem, trained once, scored by all methods."""

    def __init__(
        self, settings: ClassificationConfig, problem_seed: int, seed: int, console: Console
    ):
        self.settings, self.problem_seed, self.seed, self.console = (
            settings,
            problem_seed,
            seed,
            console,
        )
        self.problem: LabelledProblem = sample_problem(
            settings.problem, problem_seed, settings.data_root
        )
        self.label = f"{settings.problem.source}, seed {problem_seed}" + (
            f", training {seed}" if seed != problem_seed else ""
        )
        about = {"problem": self.problem.digest(), "recipe": dataclasses.asdict(settings.recipe)}
        self.folder = Path(settings.runs) / "trained" / outputs.digest(about) / f"training-{seed}"
        began = time.monotonic()
        self.run: SupervisedRun = train_run(self.problem, settings.recipe, seed, self.folder)
        self._say(f"run with values, test quality {self.run.quality('test'):.3f}", began)
        self.pool_folder = Path(settings.pools) / self.run.digest[:12]
        self.pool = Pool(self.run, self.pool_folder)

    def scores(self) -> Iterator[tuple[str, np.ndarray, Cost]]:
        """(method, values [n], cost); a score that was taken before is read."""
        for method in self.settings.methods:
            name, options = self.settings.baseline(method, self.seed, self.pool_folder)
            asked = {key: value for key, value in options.items() if key != "pool"}
            path = (
                self.folder
                / "scores"
                / f"{method}-{outputs.digest({'baseline': name, **asked})}.parquet"
            )
            if not path.is_file():
                began = time.monotonic()
                scored = score(self.run, "val", name, **options)
                cost = json.dumps(dataclasses.asdict(scored.cost))
                path.parent.mkdir(exist_ok=True)
                outputs.whole(
                    path,
                    lambda p, t=scored.table, c=cost: pq.write_table(
                        t.replace_schema_metadata({"cost": c}), p
                    ),
                )
                self._say(method, began)
            table = pq.read_table(path)
            yield (
                method,
                table["value"].to_numpy(),
                Cost(**json.loads(table.schema.metadata[b"cost"])),
            )

    def rows(self) -> list[dict]:
        """All tasks: task, method, share (of samples kept or inspected), seed, quantity, value."""
        found, chosen = [], {}
        for method, values, cost in self.scores():
            found += self._detection(method, values)
            found += [
                self._row("cost", method, k, v)
                for k, v in dataclasses.asdict(cost).items()
                if v is not None
            ]
            chosen[method] = values
        found += self._selection(chosen, "selection") + self._predictions(chosen)
        if self.problem.classes:
            ranks = {
                method: within(values, self.problem.train.y) for method, values in chosen.items()
            }
            auc = {method: auroc(-r, self.problem.wrong) for method, r in ranks.items()}
            found += [
                self._row("detection within labels", method, "auroc", value)
                for method, value in auc.items()
            ]
            untied = {
                method: within(values, self.problem.train.y, "ordinal")
                for method, values in chosen.items()
            }
            found += self._selection(untied, "selection within labels")
        return found

    def _detection(self, method: str, values: np.ndarray) -> list[dict]:
        curve = detection_curve(-values, self.problem.wrong, INSPECTED)
        return [
            self._row("detection", method, "auroc", auroc(-values, self.problem.wrong)),
            *(
                self._row("detection", method, "found", float(f), s)
                for s, f in zip(INSPECTED, curve)
            ),
        ]

    def _selection(self, values: dict[str, np.ndarray], task: str) -> list[dict]:
        n = len(self.problem.train)
        cells, members = [], []
        for method, v in values.items():
            order = np.argsort(-v, kind="stable")
            for share in self.settings.keep:
                cells.append((method, share))
                members.append(_mask(n, order[: round(share * n)]))
        cells += [("everything", 1.0), ("only right labels", 1 - self.settings.problem.flipped)]
        members += [np.ones(n, bool), ~self.problem.wrong]
        qualities = self._qualities(np.array(members), task)
        return [
            self._row(task, method, "quality", q, share)
            for (method, share), q in zip(cells, qualities)
        ]

    def _qualities(self, members: np.ndarray, what: str) -> np.ndarray:
        """Accuracy on the test part, or R^2, of a training on each row of members with the study's
        seed.
        """
        began = time.monotonic()
        outcomes = self.pool.outcomes(members, np.full(len(members), self.seed))
        self._say(f"{what}: {len(members)} trainings", began)
        if self.problem.classes:
            return outcomes.utility("test", "accuracy")
        return (
            1
            - outcomes.losses["test"].astype(np.float64).mean(1)
            / self.problem.test.y.astype(np.float64).var()
        )

    def _predictions(self, values: dict[str, np.ndarray]) -> list[dict]:
        rows = []
        if self.settings.held_out:
            began = time.monotonic()
            subsets = random_subsets(len(self.problem.train), self.settings.held_out, 0.5, HELD_OUT)
            outcomes = self.pool.outcomes(*subsets)
            self._say(f"held-out subsets: {len(outcomes)} trainings", began)
            for method, v in values.items():
                score = (
                    linear_datamodelling_score(v, outcomes.members, outcomes.utility("val"))
                    if np.ptp(v)
                    else 0.0
                )
                rows.append(self._row("lds", method, "spearman", score))
        if "leave_one_out" in values:
            for method, v in values.items():
                if method != "leave_one_out":
                    nothing = {"pearson": 0.0, "spearman": 0.0}
                    found = (
                        leave_one_out_correlation(v, values["leave_one_out"])
                        if np.ptp(v)
                        else nothing
                    )
                    rows += [
                        self._row("loo", method, quantity, value)
                        for quantity, value in found.items()
                    ]
        return rows

    def _row(
        self, task: str, method: str, quantity: str, value: float, share: float | None = None
    ) -> dict:
        return {
            "task": task,
            "method": method,
            "quantity": quantity,
            "share": share,
            "seed": self.problem_seed,
            "value": float(value),
        }

    def _say(self, what: str, began: float) -> None:
        seconds = time.monotonic() - began
        if seconds > 0.5:
            self.console.print(
                f"{self.label}: {what}, {seconds:.0f} s",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def stability(settings: ClassificationConfig, console: Console) -> list[dict]:
    """Rank correlations between the values of trainings that differ in their seed only."""
    first = settings.seeds[0]
    seeds = range(first, first + settings.repeats)
    repeats = [
        {m: v for m, v, _ in Study(settings, first, seed, console).scores()} for seed in seeds
    ]
    rows = []
    for method in settings.methods:
        for pair, both in enumerate(combinations([values[method] for values in repeats], 2)):
            value = float(agreement(np.stack(both))[0]) if all(np.ptp(v) for v in both) else 0.0
            row = {
                "task": "stability",
                "method": method,
                "quantity": "spearman",
                "share": None,
                "seed": pair,
            }
            rows.append({**row, "value": value})
    return rows


def baseline_files() -> set[str]:
    return {path.stem for path in BASELINES.glob("*.yaml")}


def within(values: np.ndarray, labels: np.ndarray, ties: str = "average") -> np.ndarray:
    """Rank of each value among the samples of the same label, as a share in (0, 1), highest value
    highest; `ties` as in scipy's rankdata.
    """
    ranks = np.empty(len(values))
    for label in np.unique(labels):
        own = labels == label
        ranks[own] = (rankdata(values[own], ties) - 0.5) / own.sum()
    return ranks


def _mask(n: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    return mask


def by_data(arguments: Sequence[str]) -> list[str]:
    """`data=X` and `scale=X` choose configs/classification/X.yaml; scale=cpu is data=digits,
    scale=paper is data=cifar10.
    """
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        found.append(
            f"classification={SCALES.get(value, value)}" if key in ("data", "scale") else argument
        )
    return found


if __name__ == "__main__":
    sys.argv[1:] = by_data(sys.argv[1:])
    command("classification", main)
