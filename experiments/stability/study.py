"""How much values depend on the seed of training, and what it costs to mend.

One data set with wrong labels is valued again and again, every repeat with seeds of its own
(initial weights, orders, subsets). In-Run values of one run, or the mean over several runs, stand
beside retraining-based values from budgets of subset trainings, each ten times the former one:

    agreement    Spearman correlation between the values of two repeats; 1: the seed does not matter
    auroc        wrong labels found by the lowest values
    lds          Spearman correlation of summed values with the validation loss of held-out
                 trainings on random halves, that no method has seen
    trainings    what a repeat cost; an In-Run run counts as one training plus its measuring, in
                 units of a training's CPU time

Values that are all equal (a lasso that kept no sample) order nothing: their correlations are 0
here, and the column order_nothing counts them.

  python -m experiments stability                                       200 digits, a small MLP
  python -m experiments stability methods=[datamodels] budgets=[100]
  python -m experiments stability scale=paper                           CIFAR-10: needs a GPU

A killed study goes on where it was: runs and subset trainings are found again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.artifacts import Outputs
from experiments.frame import StudyConfig, study
from experiments.stability.report import report
from inrun.baselines import score
from inrun.baselines.pool import Pool
from inrun.baselines.subsets import random_subsets
from inrun.baselines.supervised import Recipe, train_run, untrained
from inrun.config import ConfigError, require
from inrun.data.labelled import LabelledProblem, ProblemConfig, sample_problem
from inrun.evaluate import agreement, auroc, linear_datamodelling_score
from inrun.files import remember

RETRAINING = (
    "data_shapley",
    "data_banzhaf",
    "datamodels",
    "empirical_influence",
    "memorization",
    "leave_one_out",
)
HELD_OUT = 1000  #: seed of the held-out subsets, beyond those of any repeat


@dataclass(frozen=True, kw_only=True)
class StabilityConfig(StudyConfig):
    """The study."""

    problem: ProblemConfig
    """the data, and how many labels are wrong"""
    recipe: Recipe
    """network and training"""
    problem_seed: int = 0
    """which samples are chosen and whose labels are wrong"""
    in_run: tuple[str, ...] = ("first_order_sgd", "second_order_sgd", "path")
    """of inrun.baselines.supervised.METHODS"""
    runs_averaged: tuple[int, ...] = (1, 10)
    """numbers of runs whose mean In-Run value is taken"""
    methods: tuple[str, ...] = RETRAINING
    """of the retraining-based ones"""
    budgets: tuple[int, ...] = (50, 500, 5000)
    """trainings of a repeat"""
    repeats: int = 4
    """with seeds 0, 1, ..."""
    held_out: int = 200
    """trainings of the linear datamodelling score"""
    scale: str = "cpu"
    runs: str = "runs/stability"

    def __post_init__(self):
        require(
            "stability",
            (self.repeats >= 2, "repeats: two or more, to be compared"),
            (not set(self.methods) - set(RETRAINING), f"methods must be among {RETRAINING}"),
            (
                min((*self.budgets, *self.runs_averaged), default=0) >= 1,
                "budgets and runs_averaged: numbers of at least 1",
            ),
            (self.held_out >= 2, "held_out: two or more"),
        )


@dataclass(frozen=True)
class Valuation:
    """Values [repeats, n] of a method at a budget, and the mean cost of a repeat."""

    method: str
    budget: int
    values: np.ndarray
    trainings: float
    cpu_seconds: float


@study("stability", StabilityConfig, report)
def measure(settings: StabilityConfig, out: Outputs, console: Console) -> None:
    """One row for each method and budget; what was valued, in the table `problem`."""
    problem = sample_problem(settings.problem, settings.problem_seed, settings.data_root)
    run = untrained(problem, settings.recipe)
    folder = Path(settings.runs) / "trained" / run.digest[:12]
    pool = Pool(run, folder / "pool")
    subsets, seeds = random_subsets(pool.n, settings.held_out, 0.5, HELD_OUT)
    truth = pool.outcomes(subsets, seeds).utility("val")
    about = {"scale": settings.scale, "data": settings.problem.source, "samples": pool.n}
    rows = []
    for valuation in (
        *in_run(settings, problem, folder, console),
        *retrained(settings, pool, console),
    ):
        rows.append({**about, **judged(valuation, problem, subsets, truth)})
    full = pool.outcomes(np.ones((settings.repeats, pool.n), bool), np.arange(settings.repeats))
    quality = (
        full.utility("val", "accuracy").mean() if problem.classes else -full.utility("val").mean()
    )
    told = {"network": settings.recipe.network.name, "repeats": settings.repeats}
    told |= {"wrong": int(problem.wrong.sum()), "quality": float(quality)}
    told |= {"measure": "accuracy" if problem.classes else "loss"}
    out.table("stability", rows)
    out.table("problem", [{**about, **told}])


def in_run(
    settings: StabilityConfig, problem: LabelledProblem, folder: Path, console: Console
) -> Iterator[Valuation]:
    """Values of single runs, and means over several: repeat r averages runs of its own."""
    most = max(settings.runs_averaged, default=0)
    values: dict[str, list[np.ndarray]] = {method: [] for method in settings.in_run}
    measuring: dict[str, list[float]] = {method: [] for method in settings.in_run}
    began = time.monotonic()
    for seed in range(settings.repeats * most if settings.in_run else 0):
        run = train_run(problem, settings.recipe, seed, folder / f"run-{seed}")
        for method in settings.in_run:
            table = run.values(method, "val").sort_by("sample_id")
            if not np.array_equal(table["sample_id"].to_numpy(), run.sample_ids):
                raise ConfigError("a sample was never trained on; train for an epoch or more")
            values[method].append(table["value"].to_numpy())
            measuring[method].append(run.about["seconds"][method]["cpu_seconds"])
    if settings.in_run:
        console.print(
            f"In-Run: {settings.repeats * most} runs, {time.monotonic() - began:.0f} s",
            highlight=False,
        )
        plainly = _training_seconds(run, folder)
    for method in settings.in_run:
        table = np.stack(values[method]).reshape(settings.repeats, most, -1)
        one = plainly + float(np.mean(measuring[method]))
        for count in settings.runs_averaged:
            yield Valuation(
                f"in_run_{method}",
                count,
                table[:, :count].mean(1),
                count * one / plainly,
                count * one,
            )


def retrained(settings: StabilityConfig, pool: Pool, console: Console) -> Iterator[Valuation]:
    """Largest budgets first: a smaller one asks for trainings among those of the larger."""
    for method in settings.methods:
        found = []
        for budget in sorted(settings.budgets, reverse=True):
            options = {"trainings": budget}
            if method == "leave_one_out":
                if budget < pool.n + 1:
                    continue
                options = {"seeds": budget // (pool.n + 1)}
            began = time.monotonic()
            scored = [
                score(pool.run, "val", method, pool=str(pool.folder), seed=repeat, **options)
                for repeat in range(settings.repeats)
            ]
            trainings = float(np.mean([s.cost.trainings for s in scored]))
            console.print(
                f"{method}, {budget} trainings: {time.monotonic() - began:.0f} s", highlight=False
            )
            if (
                trainings > 1.5 * budget
            ):  # truncated Monte Carlo cannot do with less than two orders
                continue
            seconds = float(np.mean([s.cost.cpu_seconds for s in scored]))
            found.append(
                Valuation(method, budget, np.stack([s.values for s in scored]), trainings, seconds)
            )
        yield from reversed(found)


def judged(
    valuation: Valuation, problem: LabelledProblem, subsets: np.ndarray, truth: np.ndarray
) -> dict:
    """A row of the table."""
    orders = np.ptp(valuation.values, axis=1) > 0
    both = list(combinations(range(len(orders)), 2))
    pairs = np.array(
        [
            agreement(valuation.values[[i, j]])[0] if orders[i] and orders[j] else 0.0
            for i, j in both
        ]
    )
    found = [auroc(-values, problem.wrong) for values in valuation.values]
    predicted = [
        linear_datamodelling_score(values, subsets, truth) if some else 0.0
        for values, some in zip(valuation.values, orders)
    ]
    return {
        "method": valuation.method,
        "budget": valuation.budget,
        "trainings": valuation.trainings,
        "cpu_seconds": valuation.cpu_seconds,
        "agreement": float(pairs.mean()),
        "agreement_min": float(pairs.min()),
        "agreement_max": float(pairs.max()),
        "auroc": float(np.mean(found)),
        "auroc_sd": float(np.std(found, ddof=1)),
        "lds": float(np.mean(predicted)),
        "lds_sd": float(np.std(predicted, ddof=1)),
        "repeats": len(valuation.values),
        "order_nothing": int((~orders).sum()),
    }


def _training_seconds(run, folder: Path) -> float:
    """CPU seconds of one training without values, one after the other as In-Run runs are (not in a
    stack); measured once for a folder.
    """

    def spent() -> dict[str, float]:
        seconds = []
        for seed in range(3):
            began = time.process_time()
            run.retrain(run.sample_ids, seed)
            seconds.append(time.process_time() - began)
        return {"cpu_seconds": float(np.median(seconds))}

    return float(remember(folder / "training.json", spent)["cpu_seconds"])
