"""What a finished run found, in words, tables and a figure: `summary.md`, `domains.png`,
`domains.svg` in the run's folder.

How well planted noise is found is measured on the train chunks that the run used, `kind` of the
chunk table being the truth. A chunk is suspected by `-value`: the value was measured at the one
step (or the few) that used it. Two baselines on the same chunks: the chunk's own loss at that step
(needs `log.chunk_losses`), and chance: 0.5, with the spread that random scores would have. Values
of different steps differ in size by orders of magnitude, since progress does, so a second figure
ranks a chunk among those of its own step only (`within step`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from inrun.data.corpus import Corpus
from inrun.evaluate import auroc
from inrun.plain_text import in_code, in_figure, in_markdown, plain
from inrun.store import LedgerTotals, ValueStore, sql_text
from inrun.train import RunFolder

SNIPPET = 60


@dataclass(frozen=True)
class NoiseFound:
    """Area under the ROC curve of finding the noise among the used chunks; 0.5 is chance.

    None: not measured, or there is no noise.
    """

    chunks: int
    """how many were used"""
    noise: int
    """how many of them are noise"""
    value: float | None
    """by -value"""
    value_within_step: float | None
    """by the rank of -value among the chunks of its step"""
    loss: float | None
    """by the chunk's training loss, high is suspect"""
    loss_within_step: float | None
    """by the rank of that loss among the chunks of its step"""
    chance_spread: float | None
    """standard deviation of the area under random scores, sqrt((a + b + 1) / (12 a b))
    (Mann and Whitney 1947)"""


@dataclass(frozen=True)
class TargetReport:
    """Findings for one target and method."""

    target: str
    method: str
    top: pa.Table
    """rows of the store, best first"""
    bottom: pa.Table
    """rows of the store, worst first"""
    by_domain: pa.Table
    by_kind: pa.Table
    negative: float
    """share of the used chunks"""
    noise: NoiseFound
    ledger: LedgerTotals


def reports(folder: Path, store: ValueStore, k: int = 5) -> list[TargetReport]:
    """One report for every target and method of the run in `folder`."""
    return [
        TargetReport(
            target,
            method,
            top=store.top(k, target, method),
            bottom=store.bottom(k, target, method),
            by_domain=store.by("domain", target, method),
            by_kind=store.by("kind", target, method),
            negative=store.negative_share(target, method),
            noise=find_noise(folder, store, target, method),
            ledger=store.ledger(target, method),
        )
        for target in store.targets
        for method in store.methods
    ]


def find_noise(folder: Path, store: ValueStore, target: str, method: str) -> NoiseFound:
    """See `NoiseFound`."""
    rows = store.sql(
        f'SELECT t.step, t.sample_id, CAST(t."{method}" AS DOUBLE) AS value, s.kind FROM '
        "terms t JOIN samples s USING (sample_id) "
        f"WHERE t.target = {sql_text(target)} ORDER BY t.step, t.sample_id"
    )
    step, ids, value = (rows[name].to_numpy() for name in ("step", "sample_id", "value"))
    noise = rows["kind"].to_numpy(zero_copy_only=False) != "clean"
    losses = _chunk_losses(RunFolder(folder), step, ids)

    def found(suspicion: np.ndarray | None) -> float | None:
        if suspicion is None or noise.all() or not noise.any():
            return None
        return auroc(suspicion, noise)

    return NoiseFound(
        chunks=len(np.unique(ids)),
        noise=len(np.unique(ids[noise])),
        value=found(-value),
        value_within_step=found(within_step(-value, step)),
        loss=found(losses),
        loss_within_step=found(None if losses is None else within_step(losses, step)),
        chance_spread=chance_spread(int(noise.sum()), int((~noise).sum())),
    )


def chance_spread(positives: int, negatives: int) -> float | None:
    """Standard deviation of the area under random scores; None without one of the kinds."""
    if not positives or not negatives:
        return None
    return math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def within_step(scores: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Rank of each score among those of its step, from 0 to 1 (a step with one sample: 0.5):
    float64 [n].
    """
    ranks = np.full(len(scores), 0.5)
    for each in np.unique(step):
        here = np.flatnonzero(step == each)
        if len(here) > 1:
            ranks[here[np.argsort(scores[here], kind="stable")]] = np.arange(len(here)) / (
                len(here) - 1
            )
    return ranks


def _chunk_losses(run: RunFolder, step: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
    if not run.chunk_losses_file.exists():
        return None
    known = {
        (row["step"], i): loss
        for row in run.chunk_losses()
        for i, loss in zip(row["ids"], row["losses"])
    }
    return np.array([known[s, i] for s, i in zip(step.tolist(), ids.tolist())])


def snippet(corpus: Corpus, chunk_id: int, length: int = SNIPPET) -> str:
    """The beginning of a chunk on one line."""
    return plain(corpus.text(chunk_id))[:length]


def plot_domains(store: ValueStore, folder: Path, bins: int = 40) -> list[Path]:
    """What each domain's chunks have contributed up to a step, in nats, one panel per target (first
    method): domains.png and domains.svg.

    What is missing to the black line, the target's loss drop up to that step, is drift (momentum
    and weight decay) and residual.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    method = store.methods[0]
    figure = Figure(figsize=(5.5 * len(store.targets), 4.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(store.targets)))
    domains = sorted(
        {row["domain"] for row in store.by("domain", store.targets[0], method).to_pylist()}
    )
    for place, target in zip(axes, store.targets):
        rows = store.over("step", bins, by="domain", target=target, method=method).to_pylist()
        lasts = sorted({row["last_step"] for row in rows})
        for number, domain in enumerate(domains):
            values = {row["last_step"]: row["value"] for row in rows if row["domain"] == domain}
            heights = np.cumsum([values.get(last, 0.0) for last in lasts])
            place.plot(
                lasts,
                heights,
                label=in_figure(domain),
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
            )
        drops = {row["last_step"]: row["loss_drop"] or 0.0 for row in rows}
        place.plot(
            lasts, np.cumsum([drops[last] for last in lasts]), color="black", label="loss drop"
        )
        place.set(title=f"target: {in_figure(target)}", xlabel="step")
        place.set_yscale("symlog", linthresh=0.1)
    axes[0].set_ylabel(f"cumulative value, nats ({method})")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False)
    paths = [folder / "domains.png", folder / "domains.svg"]
    for path, canvas in zip(paths, (FigureCanvasAgg, FigureCanvasSVG)):
        canvas(figure).print_figure(path, dpi=150 if path.suffix == ".png" else None)
    return paths


def summary(found: list[TargetReport], corpus: Corpus, about: list[str]) -> str:
    """The run in Markdown. about: sentences on what was run and on what machine."""
    lines = [
        "# What the chunks were worth",
        "",
        *about,
        "",
        "Positive value = lowered the target's validation loss.",
        "",
    ]
    for report in found:
        title = f"## Target {in_markdown(report.target)}, method {report.method}"
        lines += [title, "", *_findings(report), ""]
        for title, rows in (("Most helpful", report.top), ("Most harmful", report.bottom)):
            lines += [f"{title}:", "", "| value | domain | kind | text |", "|---:|---|---|---|"]
            lines += [
                f"| {row['value']:+.2e} | {in_markdown(row['domain'])} "
                f"| {in_markdown(row['kind'])} | "
                f"`{in_code(snippet(corpus, row['sample_id']))}` |"
                for row in rows.to_pylist()
            ]
            lines.append("")
    lines += ["![values by domain](domains.png)", ""]
    return "\n".join(lines)


def _findings(report: TargetReport) -> list[str]:
    ledger, noise = report.ledger, report.noise
    gap = "not measured at every step" if ledger.gap is None else f"{ledger.gap:+.1%}"
    drift = "not measured" if ledger.drift is None else f"{ledger.drift:.4f}"
    lines = [
        f"- The target's loss fell by {ledger.drop:.4f} nats over {ledger.steps} steps: values "
        f"{ledger.values:.4f}, drift {drift}, efficiency gap {gap}.",
        f"- {report.negative:.1%} of the {noise.chunks} chunks used have a negative value.",
    ]
    if noise.value is not None:
        loss = (
            "not logged"
            if noise.loss is None
            else f"{noise.loss:.3f} ({noise.loss_within_step:.3f} within step)"
        )
        lines.append(
            f"- Finding the {noise.noise} noise chunks (AUROC): by -value {noise.value:.3f} "
            f"({noise.value_within_step:.3f} within step), "
            f"by loss {loss}, by chance 0.500 ± {noise.chance_spread:.3f}."
        )
    kinds = ", ".join(
        f"{in_markdown(row['kind'])} {row['mean']:+.2e}" for row in report.by_kind.to_pylist()
    )
    return [*lines, f"- Mean value by kind: {kinds}."]
