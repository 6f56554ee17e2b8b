"""Table and figure of the retrieval study."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.artifacts import Outputs
from experiments.chunk_scores import TITLES
from experiments.frame import StudyConfig
from experiments.tables import markdown, unique, where

#: Wang et al. 2025, table 3: normalised recall@1000 among about 320,000 chunks of the Pile, by the
#: domain's name there
PAPER = {
    "Github": {"paper": 30.5, "second_order": 29, "influence": 17.9, "bm25": 18.8},
    "EuroParl": {"paper": 12.7, "second_order": 14.8, "influence": 4.1, "bm25": 6.3},
    "ArXiv": {"paper": 48.4, "second_order": 50, "influence": 41.7, "bm25": 44.8},
    "PhilPapers": {"paper": 0.6, "second_order": 0.4, "influence": 0.5, "bm25": 1.1},
    "FreeLaw": {"paper": 14.6, "second_order": 16.9, "influence": 5.7, "bm25": 72.6},
    "HackerNews": {"paper": 2.7, "second_order": 3.8, "influence": 2.6, "bm25": 9.9},
    "StackExchange": {"paper": 16.3, "second_order": 20, "influence": 6.5, "bm25": 37.2},
    "Wikipedia (en)": {"paper": 14.5, "second_order": 18.9, "influence": 5.5, "bm25": 18.6},
    "PubMed Abstracts": {"paper": 10.4, "second_order": 16.6, "influence": 10.2, "bm25": 28.6},
    "USPTO Backgrounds": {"paper": 10.5, "second_order": 11.1, "influence": 7.4, "bm25": 23},
    "PubMed Central": {"paper": 30, "second_order": 31.1, "influence": 26.9, "bm25": 53.7},
    "Enron Emails": {"paper": 0.8, "second_order": 1, "influence": 0.2, "bm25": 1},
    "NIH ExPorter": {"paper": 1.7, "second_order": 1.9, "influence": 1.2, "bm25": 4.1},
    "DM Mathematics": {"paper": 23.5, "second_order": 24.5, "influence": 10.1, "bm25": 34.6},
    "Ubuntu IRC": {"paper": 10.2, "second_order": 11.5, "influence": 4.3, "bm25": 12.5},
    "Gutenberg (PG-19)": {"paper": 8.7, "second_order": 15.3, "influence": 8.8, "bm25": 25.9},
}  # fmt: skip


def report(out: Outputs, settings: StudyConfig) -> None:
    """The recall at the largest number of chunks that was looked at last."""
    rows = out.rows("retrieval")
    k = rows[-1]["k"]
    out.text("retrieval", report_text(rows, k))
    out.figure("retrieval", plot_recall(rows, k))


def report_text(rows: list[dict], k: int) -> str:
    """Domains down, methods across."""
    rows = where(rows, k=k)
    methods, domains = unique(rows, "method"), unique(rows, "domain")
    table = []
    for domain in domains:
        own = {row["method"]: row for row in rows if row["domain"] == domain}
        (like,) = {row["pile_like"] for row in own.values()}
        line = {
            "domain": domain,
            "stands in for": like,
            "chunks": next(iter(own.values()))["relevant"],
        }
        for method in methods:
            published = PAPER.get(like, {}).get(method)
            line[method] = f"{own[method]['recall']:.1f}" + (
                "" if published is None else f" ({published:g})"
            )
        table.append({**line, "at most": f"{next(iter(own.values()))['largest']:.1f}"})
    means = {
        m: f"{np.mean([row['recall'] for row in rows if row['method'] == m]):.2f}" for m in methods
    }
    table.append(
        {"domain": "mean", "stands in for": "", "chunks": rows[0]["chunks"], **means, "at most": ""}
    )
    methods_in_words = "; ".join(f"{name}: {TITLES[name]}" for name in methods if name in TITLES)
    return "\n".join(
        [
            f"# Normalised recall@{k} of a domain's chunks",
            "",
            "1 is chance. In brackets the paper's figure (recall@1000 among about 320,000 "
            "chunks) for the domain of the Pile that this one stands in for: other text,",
            "other shares, so that only the order of the methods can be compared.",
            "",
            markdown(table),
            "",
            methods_in_words + ".",
        ]
    )


def plot_recall(rows: list[dict], k: int) -> Figure:
    """A dot for each domain and method."""
    rows = where(rows, k=k)
    methods, domains = unique(rows, "method"), unique(rows, "domain")
    figure, place = plt.subplots(figsize=(9, 0.34 * len(domains) + 1.2), layout="constrained")
    for number, method in enumerate(methods):
        own = {row["domain"]: row["recall"] for row in rows if row["method"] == method}
        heights = [at + 0.08 * (number - len(methods) / 2) for at in range(len(domains))]
        place.scatter(
            [own[domain] for domain in domains],
            heights,
            s=16,
            label=TITLES.get(method, method),
            color=f"C{number}",
        )
    largest = {row["domain"]: row["largest"] for row in rows}
    place.scatter(
        [largest[d] for d in domains],
        range(len(domains)),
        marker="|",
        s=90,
        color="black",
        label="most that can be reached",
    )
    place.axvline(1, color="grey", linewidth=0.5)
    place.set_yticks(range(len(domains)), domains)
    place.invert_yaxis()
    place.set(xlabel=f"normalised recall@{k} (1 = chance)")
    place.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
    return figure
