"""What the classification study asks of every method's values.

    detection    are the wrong labels the lowest values? area under the ROC curve, and the share
                 found among the lowest ones
    selection    train again on the highest values only: accuracy on clean test samples (a
                 regression: R^2), one training per cell
    within       both once more with values ranked among the samples of the same label: what a label
                 has in common is taken out
    lds          linear datamodelling score on held-out subset trainings
    loo          correlation with leave-one-out differences, where those are among the methods
    stability    rank correlation of the values of two trainings of the same data that differ in
                 their seed (`study.py`)
    cost         CPU and wall seconds beside the run itself, trainings, memory

Values that are all equal (a lasso that kept no sample) order nothing: their correlations are 0
here.
"""

import dataclasses
import time

import numpy as np
from scipy.stats import rankdata

from experiments.classification.report import INSPECTED
from experiments.classification.scores import ProblemScores
from inrun.baselines.subsets import random_subsets
from inrun.evaluate import (
    auroc,
    detection_curve,
    leave_one_out_correlation,
    linear_datamodelling_score,
)

#: seeds of the held-out subsets begin here, so that no method has trained on them
HELD_OUT = 1000


class Tasks:
    """All tasks, on one problem."""

    def __init__(self, scores: ProblemScores):
        self.scores, self.problem = scores, scores.problem

    def rows(self) -> list[dict]:
        """All tasks: task, method, share (of samples kept or inspected), seed, quantity, value."""
        found, chosen = [], {}
        for method, values, cost in self.scores.scores():
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
            for share in self.scores.settings.keep:
                cells.append((method, share))
                members.append(_mask(n, order[: round(share * n)]))
        cells += [
            ("everything", 1.0),
            ("only right labels", 1 - self.scores.settings.problem.flipped),
        ]
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
        outcomes = self.scores.pool.outcomes(members, np.full(len(members), self.scores.seed))
        self.scores.say(f"{what}: {len(members)} trainings", began)
        if self.problem.classes:
            return outcomes.utility("test", "accuracy")
        return (
            1
            - outcomes.losses["test"].astype(np.float64).mean(1)
            / self.problem.test.y.astype(np.float64).var()
        )

    def _predictions(self, values: dict[str, np.ndarray]) -> list[dict]:
        rows = []
        if self.scores.settings.held_out:
            began = time.monotonic()
            subsets = random_subsets(
                len(self.problem.train), self.scores.settings.held_out, 0.5, HELD_OUT
            )
            outcomes = self.scores.pool.outcomes(*subsets)
            self.scores.say(f"held-out subsets: {len(outcomes)} trainings", began)
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
            "seed": self.scores.problem_seed,
            "value": float(value),
        }


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
