"""Table and figure of the stability study."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.tables import markdown, unique, where


def report(out: Outputs, settings: object) -> None:
    """All rows under what was valued, and the figure."""
    rows, (about,) = out.rows("stability"), out.rows("problem")
    text = f"# Stability of values over seeds\n\n{head(about)}\n\n{markdown(rows)}\n"
    out.text("stability", text)
    out.figure("stability", plot_stability(rows))


def head(about: dict) -> str:
    """What was valued, and what the columns are."""
    return (
        f"{about['data']}: {about['samples']} samples, {about['wrong']} labels wrong, "
        f"{about['network']}, {about['repeats']} repeats; "
        f"validation {about['measure']} {about['quality']:.3f}. Means over "
        "repeats, standard deviations in columns _sd; agreement over pairs of repeats."
    )


def plot_stability(rows: list[dict]) -> Figure:
    """Agreement, AUROC and LDS against the cost of a repeat, with their spreads."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    panels = (
        ("agreement", "Spearman between repeats"),
        ("auroc", "AUROC of wrong labels"),
        ("lds", "LDS, validation loss"),
    )
    for axis, (key, label) in zip(axes, panels):
        for k, method in enumerate(unique(rows, "method")):
            mine = where(rows, method=method)
            x, y = ([row[name] for row in mine] for name in ("trainings", key))
            if key == "agreement":
                spread = [
                    [row["agreement"] - row["agreement_min"] for row in mine],
                    [row["agreement_max"] - row["agreement"] for row in mine],
                ]
            else:
                spread = [row[f"{key}_sd"] for row in mine]
            ours = method.startswith("in_run")
            axis.errorbar(
                x,
                y,
                spread,
                label=method,
                color=f"C{k}",
                marker="o" if ours else "s",
                ls="-" if ours else "--",
                ms=4,
                capsize=2,
            )
        axis.axhline(0.5 if key == "auroc" else 0, color="grey", lw=0.6)
        axis.set(xscale="log", xlabel="model trainings, or their cost", ylabel=label)
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    return fig
