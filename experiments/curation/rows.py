"""Rows of the curation study: what a training run came to, and what its score left out."""

from pathlib import Path

import numpy as np

from inrun.evaluate import auroc, iterations_to
from inrun.train import RunFolder

USEFUL, FOREIGN = "useful", "foreign"


def test_curve(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and test losses (nats per token) of the evaluations of a run."""
    rows = [row for row in RunFolder(folder).log() if "test/loss" in row]
    return np.array([row["iter"] for row in rows]), np.array([row["test/loss"] for row in rows])


def run_row(
    seed: int,
    arm: str,
    curve: tuple[np.ndarray, np.ndarray],
    full: tuple[np.ndarray, np.ndarray],
    dropped: np.ndarray,
    chunks: int,
) -> dict:
    """One training run beside the one on everything.

    iterations: to the test loss at which the full run ends (None: never); fewer: 1 - iterations /
    those of the full run, negative figures do not occur because a run has no more steps than the
    full one. loss_difference: of the final test losses, negative is better than full.
    """
    steps, losses = curve
    iterations = iterations_to(full[1][-1], steps.tolist(), losses.tolist())
    return {
        "seed": seed,
        "arm": arm,
        "chunks": chunks - len(dropped),
        "dropped_share": len(dropped) / chunks,
        "test_loss": float(losses[-1]),
        "loss_difference": float(losses[-1] - full[1][-1]),
        "iterations": iterations,
        "fewer": None if iterations is None else 1 - iterations / float(full[0][-1]),
    }


def score_row(score: np.ndarray, dropped: np.ndarray, labels: np.ndarray) -> dict:
    """How well a score (low is suspect; nan: never used) finds the planted noise, and what it
    threw away.

    auroc_noise: noise against all clean chunks; auroc_foreign: foreign against useful ones;
    auroc_unwanted: both against useful ones. precision, recall: of unwanted chunks among the
    dropped ones.
    """
    measured = ~np.isnan(score)
    noise, foreign = ~np.isin(labels, (USEFUL, FOREIGN)), labels == FOREIGN
    unwanted = noise | foreign

    def area(positive: np.ndarray, among: np.ndarray) -> float | None:
        chosen = positive[among & measured]
        return (
            auroc(-score[among & measured], chosen) if chosen.any() and not chosen.all() else None
        )

    everything = np.ones(len(labels), dtype=bool)
    return {
        "auroc_noise": area(noise, everything),
        "auroc_foreign": area(foreign, ~noise),
        "auroc_unwanted": area(unwanted, everything),
        "precision": float(unwanted[dropped].mean()) if len(dropped) else None,
        "recall": float(unwanted[dropped].sum() / max(unwanted.sum(), 1)),
    }


def kind_rows(
    seed: int,
    arm: str,
    score: np.ndarray | None,
    dropped: np.ndarray,
    labels: np.ndarray,
    domains: np.ndarray,
) -> list[dict]:
    """One row for each kind of noise, the foreign chunks, the useful ones, and these by domain:
    which share was dropped, and the kind's AUROC against the useful.
    """
    gone = np.zeros(len(labels), dtype=bool)
    gone[dropped] = True
    groups = {kind: labels == kind for kind in np.unique(labels)}
    groups |= {
        f"{USEFUL}: {domain}": (labels == USEFUL) & (domains == domain)
        for domain in np.unique(domains[labels == USEFUL])
    }
    rows = []
    for kind, members in groups.items():
        row = {
            "seed": seed,
            "arm": arm,
            "kind": kind,
            "chunks": int(members.sum()),
            "dropped": float(gone[members].mean()),
        }
        if score is not None:
            known = ~np.isnan(score)
            among = known & (members | (labels == USEFUL))
            row |= {
                "score": float(score[members & known].mean()) if (members & known).any() else None
            }
            if not kind.startswith(USEFUL) and (members & among).any():
                row |= {"auroc": auroc(-score[among], members[among])}
        rows.append(row)
    return rows
