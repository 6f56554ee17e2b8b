"""Tables and figure of the throughput study."""

from typing import Protocol

from matplotlib.figure import Figure

from experiments.artifacts import Outputs

#: what the page shows: label, size, precision, case
SHOWN = (
    ("first order", "first_order"),
    ("path", "path"),
    ("second order", "second_order"),
    ("stock PyTorch, no values", "stock"),
)


class Named(Protocol):
    """What is read of `BenchConfig`."""

    @property
    def table(self) -> str:
        """Name of the table."""


def report(out: Outputs, settings: Named) -> None:
    """The table in words, and the figure."""
    rows = out.rows(settings.table)
    out.text(settings.table, table(rows))
    out.figure(settings.table, plot_ratios(rows))


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| model, samples x tokens | precision | case | s / step | of regular, same tokens "
        "(min / median / max) | of regular, training batch alone | of stock | peak MiB |",
        "|---|---|---|---:|---|---:|---:|---:|",
    ]
    for r in rows:
        alone, stock = (
            "" if r[key] is None else f"{r[key]:.2f}"
            for key in ("ratio_to_train_only", "ratio_to_stock")
        )
        lines.append(
            f"| {r['size']}, {r['samples']} x {r['tokens']} | {r['precision']} | {r['case']} | "
            f"{r['seconds']:.2f} | {r['ratio_min']:.3f} / **{r['ratio']:.3f}** / "
            f"{r['ratio_max']:.3f} | {alone} | {stock} | {r['peak_mib'] or ''} |"
        )
    return "\n".join(lines)


def short_table(rows: list[dict]) -> str:
    """The table of the page on performance: medians of ratios, by size and precision.

    They are throughputs against regular training on the same tokens with the same fused head.
    """
    settings = list(
        dict.fromkeys((r["size"], r["precision"], r["samples"], r["tokens"]) for r in rows)
    )
    found = {(r["size"], r["precision"], r["case"]): r for r in rows}
    settings = [
        s for s in settings if (*s[:2], "first_order") in found and (*s[:2], "stock") in found
    ]
    head = [
        f"{size.split('-')[0]}, {precision}, {samples} x {tokens}"
        for size, precision, samples, tokens in settings
    ]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for label, name in SHOWN:
        cells = [found.get((*s[:2], name)) for s in settings]
        shown = ["-" if c is None else f"{float(c['ratio']):.2f}" for c in cells]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def plot_ratios(rows: list[dict]) -> Figure:
    """Ratios to regular training, a bar per case and setting, with the range over rounds."""
    settings = list(dict.fromkeys((r["size"], r["precision"]) for r in rows))
    names = [c for c in dict.fromkeys(r["case"] for r in rows) if c != "regular"]
    figure = Figure(figsize=(2.5 + 0.9 * len(names), 4), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(settings)
    for at, (size, precision) in enumerate(settings):
        found = {r["case"]: r for r in rows if (r["size"], r["precision"]) == (size, precision)}
        xs = [x for x, name in enumerate(names) if name in found]
        values = [found[names[x]] for x in xs]
        errors = [
            [v["ratio"] - v["ratio_min"] for v in values],
            [v["ratio_max"] - v["ratio"] for v in values],
        ]
        heights = [v["ratio"] for v in values]
        places = [x + at * width for x in xs]
        ax.bar(
            places, heights, width, yerr=errors, label=f"{size} {precision}", error_kw={"lw": 0.8}
        )
    ax.axhline(1.0, color="black", lw=0.8)
    ax.set_xticks([x + 0.4 - width / 2 for x in range(len(names))], names, rotation=30, ha="right")
    ax.set_ylabel("throughput / regular training")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
