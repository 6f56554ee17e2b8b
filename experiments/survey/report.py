"""docs/models.md and the counts, from the rows of the survey alone."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.artifacts import Outputs
from experiments.tables import grid
from inrun.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
Rows = Sequence[Mapping[str, Any]]

HEAD = """\
# Models

Every model type of transformers that has a model class, and peft's adapters: is a step's value
exact? Made by `make survey` (`python -m experiments survey record=true`); the rows with all columns
are in [survey.csv](../experiments/results/survey.csv).
"""
HOW = """\
## How

Each type is built from its own config class, with widths of 64, two layers, random weights and no
dropout, in float64. Four samples make one step of SGD. Values by `path` and `first_order`, in
`route="tap"`, are compared with a loop that takes one sample's gradient at a time by plain
autograd. The error is the largest difference of a value over the largest value. **Exact** is an
error of at most 1e-9, and of at most 2e-5 where the model itself computes in float32 in places
(marked "f32"). Where plain autograd's one-sample gradients miss the batch's gradient by more, twice
of that is the limit, and the notes tell it. **Refused** is an error of ours, by its name, before
the weights move; another route is then tried on the same step. **Not built** says what the config
would need, or that there is nothing to compare with.

Where a sample has several rows of an input (patches of images, behind each other), the default
route asks whose they are, and `attr.batch(ids, rows=...)` says it ("rows= declared").

The loss is the model's own where it has one that is a sum over samples ("own"), else the mean over
samples of a quadratic function of its outputs ("outputs"). BatchNorm is frozen: in training mode it
mixes samples and is refused, which is tried for each such model ("bn"). Outputs that compare
samples with each other, as in contrastive models, are left out of the loss, and a loss that has
them must be refused, which is tried too ("mix"; ViLT's differ because it draws its patches).
Experts run in their plain form, since torch's grouped product has no float64. The survey shows that
a type's operations are covered at these sizes; it does not try every option of every config.
"""


def report(out: Outputs, settings: Any) -> None:
    """The counts and the page; the page of a recorded survey is docs/models.md."""
    rows = out.rows("survey")
    out.text("counts", counts(rows))
    out.text("models", page(rows))
    if settings.record:
        write_text(PAGE, page(rows))


def page(rows: Rows) -> str:
    """docs/models.md; rows as measured, or as read from the CSV."""
    models, adapted = split(rows)
    parts = [HEAD, counts(rows), HOW]
    for title, kind in (("Models", models), ("Adapters", adapted)):
        if not kind:
            continue
        for status in ("wrong", "died", "refused"):
            some = [row for row in kind if row["status"] == status]
            if some:
                parts.append(f"## {title}: {status}\n\n" + table(some) + "\n")
        exact = [row for row in kind if row["status"] == "exact"]
        parts.append(f"## {title}: exact\n\n{exact_table(exact)}\n")
        later = sum(row["status"] == "not asked" for row in kind)
        if later:
            parts.append(f"{later} of these were not asked: the time of the survey was over.\n")
        left = [row for row in kind if row["status"] == "not built"]
        if left:
            parts.append(f"## {title}: not built\n\n" + not_built(left) + "\n")
    return "\n".join(parts)


def split(rows: Rows) -> tuple[list, list]:
    adapted = [row for row in rows if row["type"].startswith("peft/")]
    return [row for row in rows if not row["type"].startswith("peft/")], adapted


def counts(rows: Rows) -> str:
    """A table of how many of each status there are, and what the exact ones' largest error is."""
    lines = []
    for title, kind in zip(("model types", "adapters"), split(rows)):
        if not kind:
            continue
        found = Counter(row["status"] for row in kind)
        built = len(kind) - found["not built"] - found["not asked"]
        refused = [row for row in kind if row["status"] == "refused"]
        otherwise = sum(
            number(row["route_error"]) is not None and not failed(row) for row in refused
        )
        lines.append(
            [
                title,
                str(len(kind)),
                str(built),
                f"{found['exact']} ({100 * found['exact'] / max(built, 1):.1f} %)",
                f"{found['refused']} ({otherwise} right by another route)",
                str(found["died"]),
                str(found["wrong"]),
                str(found["not built"]),
            ]
        )
    head = [
        "",
        "types",
        "built",
        "exact",
        "refused",
        "died of torch's words",
        "silently wrong",
        "not built",
    ]
    return "\n".join(grid(head, lines)) + "\n\n" + extremes(rows)


def extremes(rows: Rows) -> str:
    """The largest errors of exact rows, and what became of BatchNorm and mixed outputs."""
    exact = [row for row in rows if row["status"] == "exact"]
    said = []
    for name, single in (("in float64 throughout", False), ("with float32 in places", True)):
        errors = [number(r["error"]) or 0.0 for r in exact if truth(r["single"]) == single]
        if errors:
            said.append(f"largest error {name}: {max(errors):.1e} ({len(errors)} exact)")
    declared = sum("rows= declared" in (row["notes"] or "") for row in exact)
    if declared:
        said.append(f"exact with `rows=` declared, since a sample has several rows: {declared}")
    states = Counter(row["engine"] for row in rows).most_common()
    if len(states) > 1:
        listed = ", ".join(f"{n} rows with {state}" for state, n in states)
        said.append(f"states of the code that decides values (column `engine`): {listed}")
    for key, words in (
        ("batchnorm", "BatchNorm in training"),
        ("mixing", "outputs that mix samples"),
    ):
        tried = Counter(str(row[key]).partition(":")[0] for row in rows if row[key])
        if tried:
            said.append(
                f"{words}: " + ", ".join(f"{n} {what}" for what, n in sorted(tried.items()))
            )
    wrapped = (textwrap.fill(line, 98, subsequent_indent="  ") for line in said)
    return "".join(f"- {line}\n" for line in wrapped)


def table(rows: Rows) -> str:
    body = [[row["type"], row["model"] or "", cell(row["why"], 150), route(row)] for row in rows]
    return "\n".join(grid(["type", "class", "why", "another route"], body))


def exact_table(rows: Rows) -> str:
    body = [
        [row["type"], row["model"] or "", f"{number(row['error']) or 0.0:.0e}", marks(row)]
        for row in rows
    ]
    return "\n".join(grid(["type", "class", "error", "notes"], body))


def not_built(rows: Rows) -> str:
    body = [[row["type"], cell(row["why"], 110)] for row in rows]
    return "\n".join(grid(["type", "what is missing"], body))


def marks(row: Mapping[str, Any]) -> str:
    """Notes of an exact row, short."""
    found = ["own" if row["loss"] == "own" else "outputs"]
    found += ["f32"] if truth(row["single"]) else []
    found += [f"bn {row['batchnorm']}"] if row["batchnorm"] else []
    found += [f"mix {row['mixing']}"] if row["mixing"] else []
    kept = [n for n in (row["notes"] or "").split("; ") if n and n != "BatchNorm frozen"]
    return ", ".join(found + kept)


def route(row: Mapping[str, Any]) -> str:
    error = number(row["route_error"])
    return cell(row["route"], 60) + (f", {error:.0e}" if error is not None else "")


def failed(row: Mapping[str, Any]) -> bool:
    return (row["route"] or "").startswith("none")


def cell(text: str | None, width: int) -> str:
    """Text that fits a cell of a Markdown table."""
    plain = (text or "").replace("|", r"\|").replace("`", "'")
    return plain if len(plain) <= width else plain[:width].rstrip() + " ..."


def number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def truth(value: Any) -> bool:
    return value in (True, "True", "true")
