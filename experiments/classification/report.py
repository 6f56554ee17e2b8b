"""Tables in the layout of the paper's appendix E.6 with its numbers beside ours, and the figure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.classification.published import NAMES, PAPER_AUROC, PAPER_SELECTION
from experiments.classification.settings import ClassificationConfig
from experiments.tables import grid, spread, unique, where

#: shares of the samples that are inspected, lowest values first
INSPECTED = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)

Rows = Sequence[dict]


def report(out: Outputs, settings: ClassificationConfig) -> None:
    """The text on all rows, summary (over seeds), and the figure."""
    rows, about = out.rows("classification"), described(settings)
    regression = settings.problem.source == "diabetes"
    about_rows = {
        "data": settings.problem.source,
        "normalisation": settings.recipe.network.normalisation,
    }
    out.text("classification", report_text(rows, about, regression))
    out.table("summary", [{**about_rows, **row} for row in summarised(rows)])
    out.figure("classification", plot_methods(rows, about, regression))


def described(settings: ClassificationConfig) -> str:
    """What was trained on what."""
    problem, recipe = settings.problem, settings.recipe
    return (
        f"{problem.source}: {problem.train} training samples, {problem.flipped:.0%} wrong, "
        f"{len(settings.seeds)} seeds; {recipe.network.name}, normalisation: "
        f"{recipe.network.normalisation}; {recipe.epochs} epochs"
    )


def report_text(rows: Rows, about: str, regression: bool = False) -> str:
    """Markdown: a table per task, mean (standard deviation) over seeds.

    The paper's numbers are CIFAR-10's and stand beside for the order only.
    """
    lines = ["# Every method beside every other", "", f"{about}.", "", *_detection(rows)]
    for task in ("selection", "selection within labels"):
        lines += _selection(rows, task, "R^2 on the test part" if regression else "test accuracy")
    everything, right = (
        _cell(rows, "selection", m, "quality") for m in ("everything", "only right labels")
    )
    lines += ["", f"On everything: {everything}. On all samples with right labels: {right}.", ""]
    if any(row["task"] in ("lds", "stability", "loo") for row in rows):
        lines += [*_agreement(rows), ""]
    return "\n".join([*lines, *_costs(rows), ""])


def _detection(rows: Rows) -> list[str]:
    body = []
    for method in ranked(rows, "detection", "auroc"):
        ours = (
            _cell(rows, task, method, "auroc") for task in ("detection", "detection within labels")
        )
        found = (_cell(rows, "detection", method, "found", share) for share in (0.1, 0.2))
        body.append([title(method), PAPER_AUROC.get(method, ""), *ours, *found])
    head = ["method", "paper (CIFAR-10)", "here", "ranked within labels"]
    head += ["among the lowest 10 %", "20 %"]
    return ["## Wrong labels found: area under the ROC curve", "", *grid(head, body)]


def _selection(rows: Rows, task: str, what: str) -> list[str]:
    methods = [m for m in NAMES if _values(rows, task, m, "quality")]
    if not methods:
        return []
    shares = _shares(rows)
    best = "best values" if task == "selection" else "best values of each label"
    body = [
        [
            title(method),
            " / ".join(f"{x:.3f}" for x in PAPER_SELECTION.get(method, ())),
            *(_cell(rows, task, method, "quality", share) for share in shares),
        ]
        for method in methods
    ]
    head = ["method", "paper: 20 / 40 / 60 / 80 %", *(f"best {share:.0%}" for share in shares)]
    about = f"## Training on the {best}: {what}, one training a cell and seed"
    return ["", about, "", *grid(head, body)]


def _agreement(rows: Rows) -> list[str]:
    body = [
        [title(m), *(_cell(rows, task, m, "spearman") for task in ("lds", "loo", "stability"))]
        for m in _with_costs(rows)
    ]
    head = ["method", "linear datamodelling score", "leave-one-out"]
    head += ["two trainings of the same data"]
    about = "## Agreement with trainings and between trainings (Spearman)"
    return [about, "", *grid(head, body)]


def _costs(rows: Rows) -> list[str]:
    body = []
    for method in _with_costs(rows):
        seconds, trainings, peak = (
            _values(rows, "cost", method, q) for q in ("cpu_seconds", "trainings", "peak_bytes")
        )
        memory = f"{np.mean(peak) / 1e6:.0f}" if peak else ""
        means = f"{np.mean(seconds):.2g}", f"{np.mean(trainings):.0f}"
        body.append([title(method), *means, memory])
    about = "## Cost beside the run itself (mean over seeds; shared CPU)"
    return [about, "", *grid(["method", "CPU seconds", "trainings", "peak memory, MB"], body)]


def _with_costs(rows: Rows) -> list[str]:
    return [m for m in NAMES if _values(rows, "cost", m, "cpu_seconds")]


def _shares(rows: Rows) -> list[float]:
    """Shares of the samples that methods were asked to keep."""
    return sorted({r["share"] for r in where(rows, task="selection") if r["method"] in NAMES})


def plot_methods(rows: Rows, about: str, regression: bool = False) -> Figure:
    """AUROC by method, the detection curve, and the quality of trainings on the best values; error
    bars: standard deviation over seeds.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 6.5), width_ratios=(1.2, 1, 1))
    methods = ranked(rows, "detection", "auroc")[::-1]
    for place, method in enumerate(methods):
        values = _values(rows, "detection", method, "auroc")
        left.barh(place, np.mean(values), xerr=spread(values), color=_colour(method), capsize=2)
    left.set(
        yticks=range(len(methods)),
        yticklabels=[title(m) for m in methods],
        xlabel="AUROC of wrong labels by -value",
        xlim=(0, 1),
    )
    left.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    shown = [m for m in SHOWN if m in methods]
    shares = _shares(rows)
    for method in shown:
        style = {
            "label": title(method),
            "color": _line_colour(method),
            "capsize": 2,
            "linewidth": 1.3,
        }
        for axis, task, quantity, places in (
            (middle, "detection", "found", INSPECTED),
            (right, "selection", "quality", shares),
        ):
            points = [_values(rows, task, method, quantity, share) for share in places]
            means, spreads = [np.mean(p) for p in points], [spread(p) for p in points]
            axis.errorbar(places, means, spreads, **style)
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


#: methods whose curves are shown
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
            "std": spread(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
        for key, values in groups.items()
    ]


def title(method: str) -> str:
    return NAMES.get(method, method)


def ranked(rows: Rows, task: str, quantity: str) -> list[str]:
    """Methods, best mean first."""
    methods = unique(where(rows, task=task, quantity=quantity), "method")
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
    return f"{np.mean(values):.3f} ({spread(values):.3f})"


def _colour(method: str) -> str:
    if method.startswith("in_run"):
        return "tab:blue"
    return "tab:orange" if "retraining" in title(method) else "tab:gray"


def _line_colour(method: str):
    return plt.get_cmap("tab20")(SHOWN.index(method))
