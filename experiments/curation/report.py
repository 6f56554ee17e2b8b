"""Rows, figure and text of the curation study."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from inrun.evaluate import auroc, iterations_to
from inrun.train.log import read_lines

USEFUL, FOREIGN = "useful", "foreign"
COLOURS = {"full": "black", "random": "tab:gray", "high_loss": "tab:orange", "low_loss": "tab:olive", "clean": "tab:green", "online": "tab:purple", "influence": "tab:brown"}  # fmt: skip


def test_curve(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and test losses (nats per token) of the evaluations of a run."""
    rows = [row for row in read_lines(folder / "log.jsonl") if "test/loss" in row]
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
    iterations = iterations_to(full[1][-1], steps, losses)
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
    """How well a score (low is suspect; nan: never drawn) finds the planted noise, and what it
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


def plot_curves(
    curves: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]], kinds: Sequence[dict]
) -> Figure:
    """Left: test losses, mean over seeds, faint lines for each. Right: which share of each kind was
    left out, by score.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    arms = list(dict.fromkeys(arm for _, arm in curves))
    for number, arm in enumerate(arms):
        colour = COLOURS.get(arm, f"C{number - 1}")
        members = [curve for (_, name), curve in curves.items() if name == arm]
        for steps, losses in members:
            left.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        left.plot(
            members[0][0],
            np.mean([losses for _, losses in members], axis=0),
            color=colour,
            label=arm,
        )
    ends = [losses[-1] for (_, arm), (_, losses) in curves.items() if arm == "full"]
    left.axhline(np.mean(ends), color="black", linewidth=0.6, linestyle=":")
    every = np.concatenate([losses for _, losses in curves.values()])
    left.set(
        xlabel="iteration",
        ylabel="test loss, nats per token",
        ylim=(every.min() - 0.03, np.quantile(every, 0.75)),
    )
    left.legend(fontsize="small")
    names = list(dict.fromkeys(row["kind"] for row in kinds if ":" not in row["kind"]))
    shown = [arm for arm in dict.fromkeys(row["arm"] for row in kinds) if arm != "clean"]
    for number, arm in enumerate(shown):
        heights = [
            np.mean([row["dropped"] for row in kinds if row["arm"] == arm and row["kind"] == kind])
            for kind in names
        ]
        right.bar(np.arange(len(names)) + (number - (len(shown) - 1) / 2) * 0.8 / len(shown), heights, 0.8 / len(shown), label=arm,
                  color=COLOURS.get(arm, f"C{number}"))  # fmt: skip
    right.set_xticks(np.arange(len(names)), names)
    right.set(ylabel="share left out")
    right.legend(fontsize="small")
    return figure


def summary(rows: Sequence[dict], kinds: Sequence[dict], about: Sequence[str]) -> str:
    """Markdown: every arm's mean and range over seeds, then the kinds."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Curation",
        "",
        *about,
        "",
        f"Seeds {', '.join(map(str, seeds))}: mean (lowest to highest).",
        "",
    ]
    lines += [
        "| arm | left out | final test loss | against full | fewer iterations | AUROC noise "
        "| AUROC foreign | unwanted among left out |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        cells = [_range(mine, key, form) for key, form in (
            ("dropped_share", ".0%"), ("test_loss", ".3f"), ("loss_difference", "+.3f"), ("fewer", ".0%"), ("auroc_noise", ".3f"), ("auroc_foreign", ".3f"),
            ("precision", ".0%"))]  # fmt: skip
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    arms = list(dict.fromkeys(row["arm"] for row in kinds))
    lines += [
        "",
        "Share left out of each kind:",
        "",
        f"| kind | chunks | {' | '.join(arms)} |",
        "|---" * (len(arms) + 2) + "|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in kinds):
        mine = [row for row in kinds if row["kind"] == kind]
        cells = [
            _range([row for row in mine if row["arm"] == arm], "dropped", ".0%") for arm in arms
        ]
        lines.append(
            f"| {kind} | {_range([r for r in mine if r['arm'] == arms[0]], 'chunks', '.0f')} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _range(rows: Sequence[dict], key: str, form: str) -> str:
    """`mean (low to high)`; a run that never got there is `never`."""
    found = [row.get(key) for row in rows]
    if key == "fewer" and any(value is None for value in found):
        return f"never in {sum(value is None for value in found)} of {len(found)}"
    found = [value for value in found if value is not None]
    if not found:
        return ""
    middle = format(float(np.mean(found)), form)
    return (
        middle
        if len(found) == 1 or min(found) == max(found)
        else f"{middle} ({format(min(found), form)} to {format(max(found), form)})"
    )
