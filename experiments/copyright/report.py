"""Tables and figure of the copyright experiment: ranks by degree of rewriting and method, with
bootstrap intervals over originals.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.chunk_scores import TITLES
from experiments.tables import markdown, unique, where
from inrun.evaluate import bootstrap

#: Wang et al. 2025, table 2: mean rank of 3 originals among about 320,000 chunks; influence
#: function and BM25 as there
PAPER: dict[str, dict[str, float]] = {
    "exact": {"paper": 1, "second_order": 1, "influence": 1, "bm25": 1},
    "close": {"paper": 1, "second_order": 1, "influence": 1, "bm25": 1},
    "free": {"paper": 32.3, "second_order": 32, "influence": 39.3, "bm25": 1.6},
    "topic": {"paper": 145.6, "second_order": 141.6, "influence": 292, "bm25": 20917.3},
}


def summary(rows: Sequence[dict]) -> list[dict[str, Any]]:
    """For each level, family (and all together) and method: median rank, mean rank, share ranked
    first, the latter with 95 % bootstrap intervals over originals.
    """
    found = []
    families = unique(rows, "family")
    for level in unique(rows, "level"):
        for family in ("all", *(families if len(families) > 1 else ())):
            for method in unique(rows, "method"):
                chosen = [
                    row
                    for row in rows
                    if (row["level"], row["method"]) == (level, method)
                    and family in ("all", row["family"])
                ]
                if chosen:
                    found.append(
                        {"level": level, "family": family, "method": method, **figures(chosen)}
                    )
    return found


def figures(rows: Sequence[dict]) -> dict[str, Any]:
    """Of the ranks of some originals."""
    ranks = np.array([row["rank"] for row in rows])
    first = (ranks == 1).astype(float)
    about: dict[str, Any] = {
        "originals": len(ranks),
        "chunks": int(np.median([row["chunks"] for row in rows])),
    }
    for name, statistic, values in (
        ("median_rank", np.median, ranks),
        ("mean_rank", np.mean, ranks),
        ("first", np.mean, first),
    ):
        about[name] = float(statistic(values))
        if len(ranks) > 1:
            interval = bootstrap(statistic, values)
            about |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return about


def report(out: Outputs, settings: object) -> None:
    """From the rank of every original: the table copyright, which is committed, and the figure."""
    rows = out.rows("copyright-ranks")
    found = summary(rows)
    scaled = [{"scale": rows[0]["scale"], **row} for row in found]
    out.table("copyright", scaled, text=report_text(found))
    out.figure("copyright", plot_ranks(rows))


def report_text(found: Sequence[dict]) -> str:
    """One table of all originals, one of each family, and the verdict on the claim."""
    lines = ["# Rank of the original among all training chunks", ""]
    for family in unique(found, "family"):
        of_family = where(found, family=family)
        lines += [
            f"## {family}: {of_family[0]['originals']} originals, {of_family[0]['chunks']} chunks",
            "",
        ]
        lines += [
            "Median rank [95 % interval]; share ranked first [interval]; mean rank (paper's "
            "mean rank of 3 among 320,000).",
            "",
        ]
        lines += [
            markdown([cells(of_family, method) for method in unique(of_family, "method")]),
            "",
        ]
    return "\n".join([*lines, *verdicts(found)])


def cells(rows: Sequence[dict], method: str) -> dict[str, str]:
    """A row of the table: a method, its figures level by level."""
    row = {"method": TITLES.get(method, method)}
    for level in unique(rows, "level"):
        found = where(rows, level=level, method=method)
        if not found:
            continue
        (one,) = found
        median, first = interval(one, "median_rank", "{:.0f}"), interval(one, "first", "{:.0%}")
        published = PAPER.get(level, {}).get(method)
        row[level] = f"{median}; {first}; {one['mean_rank']:.1f}" + (
            "" if published is None else f" ({published:g})"
        )
    return row


def interval(row: dict, name: str, form: str) -> str:
    """estimate [low, high], where an interval is known."""
    text = form.format(row[name])
    if row.get(f"{name}_low") is None:
        return text
    return f"{text} [{form.format(row[f'{name}_low'])}, {form.format(row[f'{name}_high'])}]"


def verdicts(found: Sequence[dict]) -> list[str]:
    """The paper's claim: the original ranks first for exact and close rewrites."""
    lines = [
        "Claim: the original ranks first for exact and close rewrites (median rank 1, all "
        "originals).",
        "",
    ]
    for row in found:
        if (
            row["family"] == "all"
            and row["level"] in ("exact", "close")
            and row["method"] not in ("random", "bm25", "embedding")
        ):
            holds = "holds" if row["median_rank"] == 1 else "does not hold"
            lines.append(
                f"- {TITLES.get(row['method'], row['method'])}, {row['level']}: {holds}, "
                f"{row['first']:.0%} ranked first."
            )
    return lines


def plot_ranks(rows: Sequence[dict]) -> Figure:
    """Every original's rank (log), one panel for each level."""
    levels, methods = unique(rows, "level"), unique(rows, "method")
    figure, axes = plt.subplots(
        1,
        len(levels),
        figsize=(3.4 * len(levels) + 2, 3.6),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    families = unique(rows, "family")
    for place, level in zip(axes[0], levels):
        for at, method in enumerate(methods):
            chosen = where(rows, level=level, method=method)
            spread = np.linspace(-0.28, 0.28, len(chosen))
            for number, family in enumerate(families):
                own = [
                    (at + s, row["rank"])
                    for s, row in zip(spread, chosen)
                    if row["family"] == family
                ]
                if own:
                    place.scatter(
                        *zip(*own),
                        s=9,
                        color=f"C{number}",
                        label=family if at == 0 else None,
                        linewidths=0,
                    )
            if chosen:
                place.hlines(
                    np.median([row["rank"] for row in chosen]), at - 0.35, at + 0.35, color="black"
                )
        place.set(title=level, yscale="log")
        place.set_xticks(range(len(methods)), methods, rotation=60, ha="right")
        place.axhline(1, color="grey", linewidth=0.5)
    axes[0][0].set_ylabel("rank of the original (1 = best)")
    axes[0][-1].legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small"
    )
    return figure
