"""Figure of the study of intervals; its table shows all rows."""

from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.frame import StudyConfig
from inrun.plain_text import in_figure


def report(out: Outputs, settings: StudyConfig) -> None:
    """The agreement that is kept, by interval."""
    out.figure("intervals", plot_agreement_kept(out.rows("intervals")))


def plot_agreement_kept(rows: list[dict]) -> Figure:
    """Spearman within a step (refresh) and of the domains' means (both options) against k."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (option, column) in zip(
        figure.subplots(1, 3, sharey=True),
        (("refresh", "within_step"), ("refresh", "domains"), ("every", "domains")),
    ):
        for target, method in dict.fromkeys((r["target"], r["method"]) for r in rows):
            mine = [
                r
                for r in rows
                if (r["option"], r["target"], r["method"]) == (option, target, method)
            ]
            place.plot(
                [r["k"] for r in mine],
                [r[column] for r in mine],
                marker="o",
                label=f"{in_figure(target)}, {method}",
            )
        place.set(title=f"{option}=k, {column.replace('_', ' ')}", xlabel="k", xscale="log")
        place.set_xticks([r["k"] for r in mine], [str(r["k"]) for r in mine], minor=False)
    figure.axes[0].set_ylabel("Spearman with values of every step")
    figure.axes[0].legend(fontsize="small")
    return figure
