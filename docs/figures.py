"""Draws the pages' figures from committed results: `python docs/figures.py` writes docs/*.svg."""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import median

import matplotlib
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
FIDELITY = DOCS.parent / "experiments/results/fidelity.csv"

#: title of a panel -> its optimizer in fidelity.csv and (method there, label, colour), worst first
PANELS = {
    "SGD step": (
        "sgd",
        [
            ("first_order", "first_order", "#c2571a"),
            ("second_order", "second_order", "#7a6bb0"),
            ("path_1", "path", "#0b6e6e"),
        ],
    ),
    "AdamW step": (
        "adamw",
        [
            ("sgd_formula", "first_order, update=sgd", "#999999"),
            ("first_order_previous", "first_order", "#c2571a"),
            ("second_order", "second_order", "#7a6bb0"),
            ("path_1", "path", "#0b6e6e"),
        ],
    ),
}
MARKERS = {
    "first_order": "o",
    "second_order": "s",
    "path": "D",
    "first_order, update=sgd": "v",
}


def pearson_medians(table: Path = FIDELITY) -> dict[tuple[str, str], dict[float, float]]:
    """(optimizer, method) -> {learning rate: median Pearson correlation with exact values}.

    Of GPT-2 with 8 samples a step, from step 50 on: every coalition was enumerated, so the truth
    has no noise.
    """
    found: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with open(table, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            chosen = (row["quantity"], row["model"], row["players"], row["scale"])
            if chosen == ("values", "gpt2", "8", "cpu"):
                rates = found[row["optimizer"], row["method"]]
                rates[float(row["lr"])].append(float(row["pearson"]))
    return {key: {lr: median(rates[lr]) for lr in sorted(rates)} for key, rates in found.items()}


def plot_fidelity(path: Path) -> None:
    """Pearson correlation with enumerated Shapley values over learning rate, by method."""
    medians = pearson_medians()
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True, layout="constrained")
    for axis, (title, (optimizer, lines)) in zip(axes, PANELS.items()):
        for method, label, colour in lines:
            points = medians[optimizer, method]
            axis.plot(
                list(points),
                list(points.values()),
                color=colour,
                marker=MARKERS[label],
                markersize=4,
                linewidth=1.6,
                label=label,
            )
        axis.set(xscale="log", title=title, xlabel="learning rate", ylim=(0, 1.04))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.4)
    figure.legend(
        *axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    axes[0].set_ylabel("Pearson r with\nexact Shapley values")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main(folder: Path = DOCS) -> None:
    """Write every figure into `folder`."""
    matplotlib.use("svg")
    # the same bits from the same numbers
    with plt.rc_context({"svg.hashsalt": "inrun", "font.size": 9}):
        plot_fidelity(folder / "fidelity.svg")


if __name__ == "__main__":
    main()
