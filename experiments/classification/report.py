"""Tables in the layout of the paper's appendix E.6 with its numbers beside ours, and the figure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

#: shares of the samples that are inspected, lowest values first
INSPECTED = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)

#: method -> how it is called in tables
NAMES = {
    "in_run_first_sgd": "In-Run 1st (the paper's formula)",
    "in_run_second_sgd": "In-Run 2nd (the paper's formula)",
    "in_run_first": "In-Run 1st, Adam's step",
    "in_run_path": "In-Run path, Adam's step",
    "knn_shapley": "KNN-Shapley",
    "influence_cg": "influence function, CG",
    "influence_lissa": "influence function, LiSSA",
    "influence_ekfac": "influence function, EK-FAC",
    "trak_25": "TRAK, 25 checkpoints",
    "trak_15": "TRAK, 15 checkpoints",
    "trak_5": "TRAK, 5 checkpoints",
    "trak_1": "TRAK, 1 checkpoint",
    "data_shapley": "Data Shapley (retraining)",
    "data_banzhaf": "Data Banzhaf (retraining)",
    "leave_one_out": "leave-one-out (retraining)",
    "empirical_influence": "empirical influence (retraining)",
    "datamodels": "datamodels (retraining)",
    "memorization": "memorization (retraining)",
    "less": "LESS",
    "tracin": "TracIn-CP",
    "representer": "representer points",
    "forgetting": "forgetting events, keep hard",
    "forgetting_easy": "forgetting events, keep easy",
    "el2n": "EL2N, keep hard",
    "el2n_easy": "EL2N, keep easy",
    "prototypes": "supervised prototypes, keep hard",
    "prototypes_easy": "supervised prototypes, keep easy",
    "loss": "own loss, keep low",
    "random": "random",
}

#: table 4 of the paper: CIFAR-10, ResNet18
PAPER_AUROC = {
    "in_run_first_sgd": "0.678 (0.045)",
    "in_run_second_sgd": "0.680 (0.048)",
    "knn_shapley": "0.76 (0.018)",
    "influence_cg": "0.654 (0.054)",
    "trak_25": "0.617 (0.021)",
    "trak_15": "0.609 (0.028)",
    "trak_5": "0.542 (0.025)",
    "trak_1": "0.511 (0.012)",
    "data_shapley": "0.582 (0.029)",
    "empirical_influence": "0.552 (0.017)",
    "less": "0.55 (0.032)",
    "datamodels": "0.52 (0.008)",
}

#: table 5, and for prototypes the public discussion: accuracy with the best 20, 40, 60, 80 %
PAPER_SELECTION = {
    "random": (0.350, 0.461, 0.525, 0.559),
    "influence_cg": (0.320, 0.450, 0.530, 0.580),
    "trak_1": (0.329, 0.443, 0.517, 0.572),
    "trak_5": (0.325, 0.445, 0.519, 0.572),
    "trak_15": (0.327, 0.446, 0.523, 0.573),
    "trak_25": (0.332, 0.443, 0.520, 0.578),
    "less": (0.314, 0.460, 0.541, 0.582),
    "data_shapley": (0.317, 0.468, 0.527, 0.570),
    "datamodels": (0.342, 0.465, 0.534, 0.559),
    "empirical_influence": (0.342, 0.466, 0.530, 0.568),
    "knn_shapley": (0.354, 0.478, 0.525, 0.563),
    "in_run_first_sgd": (0.344, 0.472, 0.541, 0.580),
    "in_run_second_sgd": (0.342, 0.473, 0.544, 0.580),
    "prototypes": (0.280, 0.390, 0.466, 0.516),
}

Rows = Sequence[dict]


def report(rows: Rows, about: str, regression: bool = False) -> str:
    """Markdown: a table per task, mean (standard deviation) over seeds; the paper's numbers are
    CIFAR-10's and stand beside for the order only.
    """
    lines = ["# Every method beside every other", "", f"{about}.", ""]
    lines += ["## Wrong labels found: area under the ROC curve", ""]
    lines += [
        "| method | paper (CIFAR-10) | here | ranked within labels | among the lowest 10 % | "
        "20 % |",
        "|---|---|---|---|---|---|",
    ]
    for method in ranked(rows, "detection", "auroc"):
        ours = (
            _cell(rows, task, method, "auroc") for task in ("detection", "detection within labels")
        )
        found = (_cell(rows, "detection", method, "found", share) for share in (0.1, 0.2))
        lines.append(_line([name(method), PAPER_AUROC.get(method, ""), *ours, *found]))
    what = "R^2 on the test part" if regression else "test accuracy"
    shares = sorted(
        {row["share"] for row in rows if row["task"] == "selection" and row["method"] in NAMES}
    )
    for task in ("selection", "selection within labels"):
        methods = [m for m in NAMES if _values(rows, task, m, "quality")]
        if not methods:
            continue
        best = "best values" if task == "selection" else "best values of each label"
        lines += ["", f"## Training on the {best}: {what}, one training a cell and seed", ""]
        lines += [
            _line(
                ["method", "paper: 20 / 40 / 60 / 80 %", *(f"best {share:.0%}" for share in shares)]
            )
        ]
        lines += ["|---" * (len(shares) + 2) + "|"]
        for method in methods:
            paper = " / ".join(f"{x:.3f}" for x in PAPER_SELECTION.get(method, ()))
            lines.append(
                _line(
                    [
                        name(method),
                        paper,
                        *(_cell(rows, task, method, "quality", s) for s in shares),
                    ]
                )
            )
    everything, right = (
        _cell(rows, "selection", m, "quality") for m in ("everything", "only right labels")
    )
    lines += ["", f"On everything: {everything}. On all samples with right labels: {right}.", ""]
    if any(row["task"] in ("lds", "stability", "loo") for row in rows):
        lines += ["## Agreement with trainings and between trainings (Spearman)", ""]
        lines += [
            "| method | linear datamodelling score | leave-one-out | two trainings of the "
            "same data |",
            "|---|---|---|---|",
        ]
        for method in (m for m in NAMES if _values(rows, "cost", m, "cpu_seconds")):
            lines.append(
                _line(
                    [
                        name(method),
                        *(
                            _cell(rows, task, method, "spearman")
                            for task in ("lds", "loo", "stability")
                        ),
                    ]
                )
            )
        lines.append("")
    lines += [
        "## Cost beside the run itself (mean over seeds; shared CPU)",
        "",
        "| method | CPU seconds | trainings | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for method in (m for m in NAMES if _values(rows, "cost", m, "cpu_seconds")):
        seconds, trainings, peak = (
            _values(rows, "cost", method, q) for q in ("cpu_seconds", "trainings", "peak_bytes")
        )
        memory = f"{np.mean(peak) / 1e6:.0f}" if peak else ""
        lines.append(
            _line([name(method), f"{np.mean(seconds):.2g}", f"{np.mean(trainings):.0f}", memory])
        )
    return "\n".join([*lines, ""])


def plot_methods(rows: Rows, about: str, regression: bool = False) -> Figure:
    """AUROC by method, the detection curve, and the quality of trainings on the best values; error
    bars: standard deviation over seeds.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 6.5), width_ratios=(1.2, 1, 1))
    methods = ranked(rows, "detection", "auroc")[::-1]
    for place, method in enumerate(methods):
        values = _values(rows, "detection", method, "auroc")
        left.barh(place, np.mean(values), xerr=_std(values), color=_colour(method), capsize=2)
    left.set(
        yticks=range(len(methods)),
        yticklabels=[name(m) for m in methods],
        xlabel="AUROC of wrong labels by -value",
        xlim=(0, 1),
    )
    left.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    shown = [m for m in SHOWN if m in methods]
    shares = sorted(
        {row["share"] for row in rows if row["task"] == "selection" and row["method"] in NAMES}
    )
    for method in shown:
        style = {
            "label": name(method),
            "color": _line_colour(method),
            "capsize": 2,
            "linewidth": 1.3,
        }
        for axis, task, quantity, places in (
            (middle, "detection", "found", INSPECTED),
            (right, "selection", "quality", shares),
        ):
            values = [_values(rows, task, method, quantity, share) for share in places]
            axis.errorbar(places, [np.mean(v) for v in values], [_std(v) for v in values], **style)
    middle.plot(INSPECTED, INSPECTED, ":", color="black", linewidth=0.8)
    middle.set(xlabel="share inspected, lowest values first", ylabel="share of wrong labels found")
    right.axhline(
        np.mean(_values(rows, "selection", "everything", "quality")),
        color="black",
        linewidth=0.8,
        linestyle=":",
    )
    right.set(
        xlabel="share trained on, highest values first",
        ylabel="test R^2" if regression else "test accuracy",
    )
    right.legend(fontsize=7)
    figure.suptitle(about, fontsize=9)
    figure.tight_layout()
    return figure


#: methods whose curves are drawn
SHOWN = (
    "in_run_second_sgd",
    "in_run_path",
    "knn_shapley",
    "influence_ekfac",
    "trak_5",
    "data_shapley",
    "datamodels",
    "less",
    "tracin",
    "loss",
    "random",
)


def summarised(rows: Rows) -> list[dict]:
    """One row for the seeds of each task, method, quantity and share: mean, std (divisor n - 1,
    None for one seed), seeds.
    """
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"], row["quantity"], row["share"]), []).append(
            row["value"]
        )
    return [
        {
            **dict(zip(("task", "method", "quantity", "share"), key)),
            "mean": float(np.mean(values)),
            "std": _std(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
        for key, values in groups.items()
    ]


def name(method: str) -> str:
    return NAMES.get(method, method)


def ranked(rows: Rows, task: str, quantity: str) -> list[str]:
    """Methods, best mean first."""
    methods = dict.fromkeys(
        row["method"] for row in rows if row["task"] == task and row["quantity"] == quantity
    )
    return sorted(methods, key=lambda m: -np.mean(_values(rows, task, m, quantity)))


def _values(
    rows: Rows, task: str, method: str, quantity: str, share: float | None = None
) -> list[float]:
    return [
        row["value"]
        for row in rows
        if (row["task"], row["method"], row["quantity"]) == (task, method, quantity)
        and share in (None, row["share"])
    ]


def _cell(rows: Rows, task: str, method: str, quantity: str, share: float | None = None) -> str:
    values = _values(rows, task, method, quantity, share)
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    return f"{np.mean(values):.3f} ({_std(values):.3f})"


def _std(values: Sequence[float]) -> float:
    """Over seeds, divisor n - 1; 0 for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _colour(method: str) -> str:
    if method.startswith("in_run"):
        return "tab:blue"
    return "tab:orange" if "retraining" in name(method) else "tab:gray"


def _line_colour(method: str):
    return plt.get_cmap("tab20")(SHOWN.index(method))
