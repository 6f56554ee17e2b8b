"""Tables and figures of the fidelity study."""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.artifacts import Outputs
from inrun.evaluate import spearman

COLOURS = {
    "first_order": "tab:orange",
    "first_order_current": "tab:orange",
    "first_order_previous": "tab:brown",
    "second_order": "tab:green",
    "path_1": "tab:blue",
    "path_3": "tab:purple",
    "sgd_formula": "tab:red",
    "sgd_formula_2nd": "tab:pink",
}
#: optimizer -> the first-order method that describes its step
FIRST_ORDER = {"sgd": "first_order", "adamw": "first_order_current"}
#: the claim: where first order still orders samples better than USABLE, path's order is that of the
#: truth
USABLE, TRUE_ORDER = 0.8, 0.99


def write_report(
    out: Outputs,
    about: dict[str, Any],
    rows: Sequence[dict],
    points: Sequence[dict],
    coalitions: Sequence[dict],
) -> None:
    """fidelity (one row per step, method and quantity; its markdown is the report), samples,
    coalitions; figures fidelity and utility.
    """
    rows = [{**row, **about} for row in rows]
    out.table("fidelity", rows, report(rows))
    out.table("samples", points)
    out.table("coalitions", coalitions, f"{len(coalitions)} coalitions; see coalitions.parquet\n")
    out.figure("fidelity", _errors(rows))
    out.figure("utility", _utility(coalitions))


def report(rows: Sequence[dict]) -> str:
    """Markdown: medians over seeds and steps, by optimizer and learning rate."""
    first = rows[0]
    cases = {(row["seed"], row["train_steps"]) for row in rows}
    lines = ["# Fidelity: values against the truth of one real step", ""]
    lines.append(
        f"{first['model']}, {first['parameters']:,} parameters, {first['players']} samples "
        f"of {first['block']} tokens; medians over {len(cases)} steps: "
        f"seeds {', '.join(map(str, _unique(rows, 'seed')))}, after "
        f"{', '.join(map(str, _unique(rows, 'train_steps')))} steps of training."
    )
    for optimizer in _unique(rows, "optimizer"):
        chosen = [row for row in rows if row["optimizer"] == optimizer]
        lines += [
            "",
            f"## One step of {optimizer}",
            "",
            f"Truth {_certainty(chosen)}.",
            "",
            *_values(chosen),
            "",
        ]
        lines += [
            "Path's order of samples where first order's is still usable:",
            "",
            *_claim(chosen, optimizer),
            "",
        ]
        lines += [
            "Over the run, RMSE / spread; Spearman (medians over seeds):",
            "",
            *_over_the_run(chosen),
            "",
        ]
        lines += ["Utility of coalitions, prediction against U(S):", "", *_predictions(chosen)]
    return "\n".join(lines) + "\n"


def claim(rows: Sequence[dict], optimizer: str) -> Iterator[dict]:
    """By learning rate: median Spearman of first order and of path (one node), path's smallest, and
    in how many cases path's is TRUE_ORDER.
    """
    methods = (FIRST_ORDER[optimizer], "path_1")
    chosen = [row for row in rows if row["optimizer"] == optimizer and row["quantity"] == "values"]
    for lr in sorted(_unique(chosen, "lr")):
        first, path = (
            [r["spearman"] for r in chosen if r["lr"] == lr and r["method"] == m] for m in methods
        )
        yield {
            "lr": lr,
            "first_order": float(np.median(first)),
            "path": float(np.median(path)),
            "worst": min(path),
            "true_order": sum(found >= TRUE_ORDER for found in path),
            "cases": len(path),
        }


def _values(rows: Sequence[dict]) -> list[str]:
    lines = [
        "| lr | method | RMSE / spread | RMSE | Pearson | Spearman | worst | sum gap | cost, "
        "plain step = 1 |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for lr, method, found in _groups(rows, "values"):
        keys = ("relative_rmse", "rmse", "pearson", "spearman", "cost_ratio")
        middle = {key: _median(found, key) for key in keys}
        gap = float(np.median([abs(row["sum_gap"]) for row in found]))
        lines.append(
            f"| {lr:g} | {method} | {middle['relative_rmse']:.2g} | {middle['rmse']:.2g} | "
            f"{middle['pearson']:.5f} | {middle['spearman']:.3f} "
            f"| {min(row['spearman'] for row in found):.3f} | {gap:.2%} | "
            f"{middle['cost_ratio']:.2f} |"
        )
    return lines


def _claim(rows: Sequence[dict], optimizer: str) -> list[str]:
    lines = [
        f"| lr | Spearman of {FIRST_ORDER[optimizer]} | of path_1 | worst | cases >= "
        f"{TRUE_ORDER} | median >= {TRUE_ORDER} where first order > {USABLE} |",
        "|---|---|---|---|---|---|",
    ]
    for found in claim(rows, optimizer):
        holds = "yes" if found["path"] >= TRUE_ORDER else "no"
        verdict = holds if found["first_order"] > USABLE else "not asked"
        lines.append(
            f"| {found['lr']:g} | {found['first_order']:.3f} | {found['path']:.3f} | "
            f"{found['worst']:.3f} | {found['true_order']} of {found['cases']} | {verdict} |"
        )
    return lines


def _over_the_run(rows: Sequence[dict]) -> list[str]:
    steps = _unique(rows, "train_steps")
    lines = [
        "| lr | method | " + " | ".join(f"step {step}" for step in steps) + " |",
        "|---|---" + "|---" * len(steps) + "|",
    ]
    for lr, method, found in _groups(rows, "values"):
        cells = []
        for step in steps:
            here = [row for row in found if row["train_steps"] == step]
            cells.append(f"{_median(here, 'relative_rmse'):.2g}; {_median(here, 'spearman'):.3f}")
        lines.append(f"| {lr:g} | {method} | " + " | ".join(cells) + " |")
    return lines


def _predictions(rows: Sequence[dict]) -> list[str]:
    lines = ["| lr | prediction | RMSE / spread | Pearson | Spearman |", "|---|---|---|---|---|"]
    for lr, method, found in _groups(rows, "utility"):
        middle = {key: _median(found, key) for key in ("relative_rmse", "pearson", "spearman")}
        lines.append(
            f"| {lr:g} | {method} | {middle['relative_rmse']:.2g} | {middle['pearson']:.5f} "
            f"| {middle['spearman']:.4f} |"
        )
    return lines


def _certainty(rows: Sequence[dict]) -> str:
    error = max(row["largest_standard_error"] / row["truth_spread"] for row in rows)
    return (
        "enumerated: exact"
        if error == 0
        else f"sampled: largest standard error {error:.2g} of the spread"
    )


def _errors(rows: Sequence[dict]) -> plt.Figure:
    """RMSE and Spearman against the learning rate, medians as lines, single steps as dots."""
    optimizers = _unique(rows, "optimizer")
    figure, axes = plt.subplots(
        2, len(optimizers), figsize=(5.2 * len(optimizers), 7), squeeze=False, sharex="col"
    )
    for column, optimizer in enumerate(optimizers):
        curves: dict[str, list[tuple[float, list[dict]]]] = {}
        for lr, method, found in _groups(
            [row for row in rows if row["optimizer"] == optimizer], "values"
        ):
            curves.setdefault(method, []).append((lr, found))
        for method, curve in curves.items():
            style = {"color": COLOURS[method]}
            for axis, key in zip(axes[:, column], ("relative_rmse", "spearman")):
                axis.plot(
                    [lr for lr, _ in curve],
                    [_median(f, key) for _, f in curve],
                    "o-",
                    label=method,
                    **style,
                )
                for lr, found in curve:
                    axis.plot(
                        [lr] * len(found),
                        [row[key] for row in found],
                        ".",
                        alpha=0.4,
                        markersize=3,
                        **style,
                    )
        axes[0, column].set(title=f"one step of {optimizer}", xscale="log", yscale="log")
        axes[1, column].set(xlabel="learning rate", xscale="log")
        axes[0, column].legend(fontsize=7)
    axes[0, 0].set_ylabel("RMSE of values / spread of the truth")
    axes[1, 0].set_ylabel("Spearman with the truth")
    figure.tight_layout()
    return figure


def _utility(coalitions: Sequence[dict]) -> plt.Figure:
    """Predicted against real U(S), all coalitions of one step each: the last step of the first
    seed, by optimizer and learning rate.
    """
    seed, step = coalitions[0]["seed"], max(row["train_steps"] for row in coalitions)
    chosen = [row for row in coalitions if row["seed"] == seed and row["train_steps"] == step]
    optimizers, rates = _unique(chosen, "optimizer"), sorted(_unique(chosen, "lr"))
    shape = (len(optimizers), len(rates))
    figure, axes = plt.subplots(*shape, figsize=(3 * shape[1], 3.1 * shape[0]), squeeze=False)
    for axis, (optimizer, lr) in zip(axes.flat, ((o, r) for o in optimizers for r in rates)):
        found = [row for row in chosen if row["optimizer"] == optimizer and row["lr"] == lr]
        actual = np.array([row["utility"] for row in found])
        for method in (name for name in COLOURS if name in found[0]):
            predicted = np.array([row[method] for row in found])
            label = f"{method} {spearman(predicted, actual):.3f}"
            axis.plot(
                actual,
                predicted,
                ".",
                markersize=2.5,
                alpha=0.6,
                color=COLOURS[method],
                label=label,
            )
        axis.axline((actual[0], actual[0]), slope=1, color="black", linewidth=0.7)
        axis.set_title(f"{optimizer}, lr {lr:g}", fontsize=8)
        axis.tick_params(labelsize=6)
        axis.locator_params(nbins=4)
        axis.ticklabel_format(style="sci", scilimits=(-2, 2), useMathText=True)
        axis.legend(fontsize=6, title="Spearman", title_fontsize=6)
    figure.supxlabel(f"U(S), seed {seed}, after {step} steps", fontsize=9)
    figure.supylabel("predicted", fontsize=9)
    figure.tight_layout()
    return figure


def _groups(rows: Sequence[dict], quantity: str) -> Iterator[tuple[float, str, list[dict]]]:
    """(lr, method, its rows) in the order of learning rate and of first appearance."""
    chosen = [row for row in rows if row["quantity"] == quantity]
    for lr in sorted(_unique(chosen, "lr")):
        for method in _unique(chosen, "method"):
            yield lr, method, [row for row in chosen if row["lr"] == lr and row["method"] == method]


def _median(rows: Sequence[dict], key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def _unique(rows: Sequence[dict], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))
