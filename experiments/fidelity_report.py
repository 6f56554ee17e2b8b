"""Tables, figure and report of the fidelity study."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

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


def write_report(folder: Path, rows: Sequence[dict], points: Sequence[dict]) -> str:
    """Write fidelity.parquet and .csv (one row per step, method and quantity), samples.parquet, fidelity.png and .svg, report.md; returns the latter."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows])
    pq.write_table(table, folder / "fidelity.parquet")
    pc.write_csv(table, folder / "fidelity.csv")
    pq.write_table(pa.Table.from_pylist(list(points)), folder / "samples.parquet")
    _figure(folder, rows)
    text = report(rows)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def report(rows: Sequence[dict]) -> str:
    """Markdown: medians over seeds and steps, by optimizer and learning rate."""
    lines = ["# Fidelity: values against the truth of one real step", ""]
    cases = {(row["seed"], row["train_steps"]) for row in rows}
    lines += [
        f"{rows[0]['players']} samples, {rows[0]['parameters']:,} parameters; medians over {len(cases)} steps (seeds x training steps).",
        "",
    ]
    for optimizer in _unique(rows, "optimizer"):
        lines += [f"## Values, one step of {optimizer}", ""]
        lines += ["| lr | method | RMSE / spread | RMSE | Pearson | Spearman | sum gap | cost, plain step = 1 |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for lr, method, found in _groups(rows, optimizer, "values"):
            middle = {
                key: _median(found, key) for key in ("relative_rmse", "rmse", "pearson", "spearman", "seconds_ratio")
            }
            gap = float(np.median([abs(row["sum_gap"]) for row in found]))
            lines.append(
                f"| {lr:g} | {method} | {middle['relative_rmse']:.2g} | {middle['rmse']:.2g} | {middle['pearson']:.5f} | {middle['spearman']:.3f} "
                f"| {gap:.2%} | {middle['seconds_ratio']:.2f} |"
            )
        error = max(
            row["largest_standard_error"] / row["truth_spread"] for row in rows if row["optimizer"] == optimizer
        )
        known = "enumerated: exact" if error == 0 else f"sampled: largest standard error {error:.2g} of the spread"
        lines += ["", f"Truth {known}.", "", f"## Utility of coalitions, one step of {optimizer}", ""]
        lines += ["| lr | prediction | RMSE / spread | Pearson | Spearman |", "|---|---|---|---|---|"]
        for lr, method, found in _groups(rows, optimizer, "utility"):
            middle = {key: _median(found, key) for key in ("relative_rmse", "pearson", "spearman")}
            lines.append(
                f"| {lr:g} | {method} | {middle['relative_rmse']:.2g} | {middle['pearson']:.5f} | {middle['spearman']:.4f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _figure(folder: Path, rows: Sequence[dict]) -> None:
    optimizers = _unique(rows, "optimizer")
    figure, axes = plt.subplots(2, len(optimizers), figsize=(5.2 * len(optimizers), 7), squeeze=False, sharex="col")
    for column, optimizer in enumerate(optimizers):
        curves: dict[str, list[tuple[float, list[dict]]]] = {}
        for lr, method, found in _groups(rows, optimizer, "values"):
            curves.setdefault(method, []).append((lr, found))
        for method, curve in curves.items():
            for axis, key in zip(axes[:, column], ("relative_rmse", "spearman")):
                axis.plot(
                    [lr for lr, _ in curve],
                    [_median(found, key) for _, found in curve],
                    "o-",
                    color=COLOURS[method],
                    label=method,
                )
                for lr, found in curve:
                    axis.plot(
                        [lr] * len(found),
                        [row[key] for row in found],
                        ".",
                        color=COLOURS[method],
                        alpha=0.4,
                        markersize=3,
                    )
        axes[0, column].set(title=f"one step of {optimizer}", xscale="log", yscale="log")
        axes[1, column].set(xlabel="learning rate", xscale="log")
        axes[0, column].legend(fontsize=7)
    axes[0, 0].set_ylabel("RMSE of values / spread of the truth")
    axes[1, 0].set_ylabel("Spearman with the truth")
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(folder / f"fidelity.{kind}", dpi=150)
    plt.close(figure)


def _groups(rows: Sequence[dict], optimizer: str, quantity: str):
    """(lr, method, its rows) in the order of learning rate and of first appearance."""
    chosen = [row for row in rows if row["optimizer"] == optimizer and row["quantity"] == quantity]
    for lr in sorted(_unique(chosen, "lr")):
        for method in _unique(chosen, "method"):
            yield lr, method, [row for row in chosen if row["lr"] == lr and row["method"] == method]


def _median(rows: Sequence[dict], key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def _unique(rows: Sequence[dict], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))
