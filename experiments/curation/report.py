"""Text and figure of the curation study."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.curation.settings import CurationConfig
from experiments.tables import grid, unique, where

Curves = dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]
COLOURS = {
    "full": "black",
    "random": "tab:gray",
    "high_loss": "tab:orange",
    "low_loss": "tab:olive",
    "clean": "tab:green",
    "online": "tab:purple",
    "influence": "tab:brown",
}


def report(out: Outputs, settings: CurationConfig) -> None:
    """What the tables curation, kinds and curves say."""
    rows, kinds = out.rows("curation"), out.rows("kinds")
    about = [
        f"{settings.scale}: {settings.model['name']}-{settings.model['preset']}, "
        f"{settings.train.steps} steps of {settings.train.batch_size} chunks of "
        f"{settings.data.block_size} tokens; target {settings.attribution.targets[0].name}; "
        f"values of the last {1 - settings.since:.0%} of the steps."
    ]
    out.text("curation", summary(rows, kinds, about))
    out.figure("curation", plot_curves(curves_of(out.rows("curves")), kinds))


def curves_of(rows: Sequence[dict]) -> Curves:
    """(seed, arm) -> iterations and test losses."""
    found: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for row in rows:
        place = found.setdefault((row["seed"], row["arm"]), [])
        place.append((row["iteration"], row["test_loss"]))
    return {
        key: (np.array([step for step, _ in curve]), np.array([loss for _, loss in curve]))
        for key, curve in found.items()
    }


def plot_curves(curves: Curves, kinds: Sequence[dict]) -> Figure:
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
    shown = [arm for arm in unique(kinds, "arm") if arm != "clean"]
    for number, arm in enumerate(shown):
        heights = [
            np.mean([row["dropped"] for row in where(kinds, arm=arm, kind=kind)]) for kind in names
        ]
        width = 0.8 / len(shown)
        places = np.arange(len(names)) + (number - (len(shown) - 1) / 2) * width
        right.bar(places, heights, width, label=arm, color=COLOURS.get(arm, f"C{number}"))
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
    shown = {
        "left out": ("dropped_share", ".0%"),
        "final test loss": ("test_loss", ".3f"),
        "against full": ("loss_difference", "+.3f"),
        "fewer iterations": ("fewer", ".0%"),
        "AUROC noise": ("auroc_noise", ".3f"),
        "AUROC foreign": ("auroc_foreign", ".3f"),
        "unwanted among left out": ("precision", ".0%"),
    }
    body = (
        [arm, *(_range(where(rows, arm=arm), key, form) for key, form in shown.values())]
        for arm in unique(rows, "arm")
    )
    lines += grid(["arm", *shown], body)
    arms = unique(kinds, "arm")
    lines += ["", "Share left out of each kind:", ""]
    body = (
        [
            kind,
            _range(where(kinds, kind=kind, arm=arms[0]), "chunks", ".0f"),
            *(_range(where(kinds, kind=kind, arm=arm), "dropped", ".0%") for arm in arms),
        ]
        for kind in unique(kinds, "kind")
    )
    return "\n".join([*lines, *grid(["kind", "chunks", *arms], body)]) + "\n"


def _range(rows: Sequence[dict], key: str, form: str) -> str:
    """`mean (low to high)`; a run that never got there is `never`."""
    given = [row.get(key) for row in rows]
    found = [value for value in given if value is not None]
    if key == "fewer" and len(found) < len(given):
        return f"never in {len(given) - len(found)} of {len(given)}"
    if not found:
        return ""
    middle, low, high = (format(float(f(found)), form) for f in (np.mean, min, max))
    return middle if min(found) == max(found) else f"{middle} ({low} to {high})"
