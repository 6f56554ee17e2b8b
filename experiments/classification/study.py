"""Every method beside every other on labelled data with wrong labels.

The paper's appendix E.6, with the tasks that its reviewers asked for (`tasks.py`). Values are
towards the validation loss; selection is judged on the test part.

  python -m experiments classification                    digits of scikit-learn, three seeds
  python -m experiments classification data=mnist-5k      MNIST from a package archive
  python -m experiments classification data=diabetes      a regression
  python -m experiments classification data=cifar10       the paper's own setting (scale=paper):
                                                          needs a GPU and the hub, or local copies:
                  problem.path=DIR recipe.network.pretrained=DIR
  python -m experiments classification methods=[in_run_path,less,random] seeds=[0]

A killed study goes on where it was: runs, scores and subset trainings are found again.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from rich.console import Console

from experiments.artifacts import Outputs
from experiments.classification.report import report
from experiments.classification.scores import ProblemScores
from experiments.classification.settings import ClassificationConfig
from experiments.classification.tasks import Tasks
from experiments.frame import study
from inrun.evaluate import agreement

#: `scale=` means these data
SCALES = {"cpu": "digits", "paper": "cifar10"}


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


@study(
    "classification",
    ClassificationConfig,
    report,
    recorded={"classification": "summary"},
    spelling=by_data,
)
def measure(settings: ClassificationConfig, out: Outputs, console: Console) -> None:
    """Rows of all tasks, methods and seeds."""
    rows: list[dict] = []
    for seed in settings.seeds:
        rows += Tasks(ProblemScores(settings, seed, seed, console)).rows()
    if settings.repeats > 1:
        rows += stability(settings, console)
    out.table("classification", rows)


def stability(settings: ClassificationConfig, console: Console) -> list[dict]:
    """Rank correlations between the values of trainings that differ in their seed only."""
    first = settings.seeds[0]
    seeds = range(first, first + settings.repeats)
    repeats = [
        {m: v for m, v, _ in ProblemScores(settings, first, seed, console).scores()}
        for seed in seeds
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
