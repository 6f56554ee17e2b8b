"""Tables and figures of the fidelity study."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments.artifacts import Outputs
from experiments.tables import grid, markdown, median, unique, where
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
FIRST_ORDER = {
    "sgd": "first_order",
    "adamw": "first_order_current",
    "lion": "first_order_current",
    "momentum": "first_order",
}
#: the claim: where first order still orders samples better than USABLE, path's order is that of the
#: truth
USABLE, TRUE_ORDER = 0.8, 0.99


def report(out: Outputs, settings: object) -> None:
    """What the tables fidelity, samples and coalitions say; figures fidelity and utility."""
    rows, coalitions = out.rows("fidelity"), out.rows("coalitions")
    out.text("fidelity", report_text(rows))
    out.text("samples", markdown(out.rows("samples")))
    out.text("coalitions", f"{len(coalitions)} coalitions; see coalitions.parquet\n")
    out.figure("fidelity", plot_errors(rows))
    out.figure("utility", plot_utility(coalitions))


def report_text(rows: Sequence[dict]) -> str:
    """Markdown: medians over seeds and steps, by optimizer and learning rate."""
    first = rows[0]
    cases = {(row["seed"], row["train_steps"]) for row in rows}
    lines = ["# Fidelity: values against the truth of one real step", ""]
    lines.append(
        f"{first['model']}, {first['parameters']:,} parameters, {first['players']} samples "
        f"of {first['block']} tokens; medians over {len(cases)} steps: "
        f"seeds {', '.join(map(str, unique(rows, 'seed')))}, after "
        f"{', '.join(map(str, unique(rows, 'train_steps')))} steps of training."
    )
    for optimizer in unique(rows, "optimizer"):
        chosen = where(rows, optimizer=optimizer)
        lines += ["", f"## One step of {optimizer}", "", f"Truth {_certainty(chosen)}."]
        for title, table in (
            ("", _values(chosen)),
            (
                "Path's order of samples where first order's is still usable:",
                _claim(chosen, optimizer),
            ),
            (
                "Over the run, RMSE / spread; Pearson; Spearman; size of the sum's gap (medians "
                "over seeds):",
                _over_the_run(chosen),
            ),
            ("Utility of coalitions, prediction against U(S):", _predictions(chosen)),
        ):
            lines += [*(["", title] if title else []), "", *table]
    return "\n".join(lines) + "\n"


def claim(rows: Sequence[dict], optimizer: str) -> Iterator[dict]:
    """By learning rate: median Spearman of first order and of path (one node), path's smallest, and
    in how many cases path's is TRUE_ORDER.
    """
    methods = (FIRST_ORDER[optimizer], "path_1")
    chosen = where(rows, optimizer=optimizer, quantity="values")
    for lr in sorted(unique(chosen, "lr")):
        first, path = ([r["spearman"] for r in where(chosen, lr=lr, method=m)] for m in methods)
        yield {
            "lr": lr,
            "first_order": float(np.median(first)),
            "path": float(np.median(path)),
            "worst": min(path),
            "true_order": sum(found >= TRUE_ORDER for found in path),
            "cases": len(path),
        }


def _values(rows: Sequence[dict]) -> list[str]:
    head = ["lr", "method", "RMSE / spread", "RMSE", "Pearson", "Spearman", "worst", "sum gap"]
    body = []
    for lr, method, found in _groups(rows, "values"):
        keys = ("relative_rmse", "rmse", "pearson", "spearman", "cost_ratio")
        error, rmse, pearson, rank, cost = (median(found, key) for key in keys)
        gap = float(np.median([abs(row["sum_gap"]) for row in found]))
        worst = min(row["spearman"] for row in found)
        cells = f"{error:.2g} {rmse:.2g} {pearson:.5f} {rank:.3f} {worst:.3f} {gap:.2%} {cost:.2f}"
        body.append([f"{lr:g}", method, *cells.split()])
    return grid([*head, "cost, plain step = 1"], body)


def _claim(rows: Sequence[dict], optimizer: str) -> list[str]:
    head = ["lr", f"Spearman of {FIRST_ORDER[optimizer]}", "of path_1", "worst"]
    head += [f"cases >= {TRUE_ORDER}", f"median >= {TRUE_ORDER} where first order > {USABLE}"]
    body = []
    for found in claim(rows, optimizer):
        holds = "yes" if found["path"] >= TRUE_ORDER else "no"
        orders = (f"{found[key]:.3f}" for key in ("first_order", "path", "worst"))
        verdict = holds if found["first_order"] > USABLE else "not asked"
        share = f"{found['true_order']} of {found['cases']}"
        body.append([f"{found['lr']:g}", *orders, share, verdict])
    return grid(head, body)


def _over_the_run(rows: Sequence[dict]) -> list[str]:
    steps = unique(rows, "train_steps")
    body = []
    for lr, method, found in _groups(rows, "values"):
        here = [where(found, train_steps=step) for step in steps]
        body.append([f"{lr:g}", method, *map(_at_a_step, here)])
    return grid(["lr", "method", *(f"step {step}" for step in steps)], body)


def _at_a_step(rows: Sequence[dict]) -> str:
    error, linear, order = (median(rows, key) for key in ("relative_rmse", "pearson", "spearman"))
    gap = float(np.median([abs(row["sum_gap"]) for row in rows]))
    return f"{error:.2g}; {linear:.3f}; {order:.3f}; {gap:.0%}"


def _predictions(rows: Sequence[dict]) -> list[str]:
    body = []
    for lr, method, found in _groups(rows, "utility"):
        error, pearson, rank = (
            median(found, key) for key in ("relative_rmse", "pearson", "spearman")
        )
        body.append([f"{lr:g}", method, f"{error:.2g}", f"{pearson:.5f}", f"{rank:.4f}"])
    return grid(["lr", "prediction", "RMSE / spread", "Pearson", "Spearman"], body)


def _certainty(rows: Sequence[dict]) -> str:
    error = max(row["largest_standard_error"] / row["truth_spread"] for row in rows)
    return (
        "enumerated: exact"
        if error == 0
        else f"sampled: largest standard error {error:.2g} of the spread"
    )


def plot_errors(rows: Sequence[dict]) -> plt.Figure:
    """RMSE and Spearman against the learning rate, medians as lines, single steps as dots."""
    optimizers = unique(rows, "optimizer")
    figure, axes = plt.subplots(
        2, len(optimizers), figsize=(5.2 * len(optimizers), 7), squeeze=False, sharex="col"
    )
    for column, optimizer in enumerate(optimizers):
        curves: dict[str, list[tuple[float, list[dict]]]] = {}
        for lr, method, found in _groups(where(rows, optimizer=optimizer), "values"):
            curves.setdefault(method, []).append((lr, found))
        for method, curve in curves.items():
            style = {"color": COLOURS[method]}
            for axis, key in zip(axes[:, column], ("relative_rmse", "spearman")):
                axis.plot(
                    [lr for lr, _ in curve],
                    [median(f, key) for _, f in curve],
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


def plot_utility(coalitions: Sequence[dict]) -> plt.Figure:
    """Predicted against real U(S), all coalitions of one step each: the last step of the first
    seed, by optimizer and learning rate.
    """
    seed, step = coalitions[0]["seed"], max(row["train_steps"] for row in coalitions)
    chosen = where(coalitions, seed=seed, train_steps=step)
    optimizers, rates = unique(chosen, "optimizer"), sorted(unique(chosen, "lr"))
    shape = (len(optimizers), len(rates))
    figure, axes = plt.subplots(*shape, figsize=(3 * shape[1], 3.1 * shape[0]), squeeze=False)
    for axis, (optimizer, lr) in zip(axes.flat, ((o, r) for o in optimizers for r in rates)):
        found = where(chosen, optimizer=optimizer, lr=lr)
        actual = np.array([row["utility"] for row in found])
        for method in (name for name in COLOURS if found[0].get(name) is not None):
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
    chosen = where(rows, quantity=quantity)
    for lr in sorted(unique(chosen, "lr")):
        for method in unique(chosen, "method"):
            yield lr, method, where(chosen, lr=lr, method=method)
