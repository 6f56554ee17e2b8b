"""The tables of the soak, for the page on reliability: `python -m experiments.soak.report`.

The page's tables stand between two marks and are made from the committed rows.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from experiments.artifacts import RESULTS, Outputs
from experiments.frame import StudyConfig
from experiments.tables import markdown
from inrun.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


def report(out: Outputs, settings: StudyConfig) -> None:
    """Nothing beside the tables."""


def tables(results: Path = RESULTS) -> str:
    """Both tables of the committed rows, as Markdown."""
    trials = _rows(results / "soak.csv", ("trial", "trials", "stops", "held", "ended"))
    store = _rows(results / "soak-store.csv", ("rows", "work", "seconds", "peak_gib"))
    for row in store:
        row["rows"] = f"{int(float(row['rows'])):,}"
        row["seconds"] = f"{float(row['seconds']):.1f}"
        row["peak_gib"] = f"{float(row['peak_gib']):.2f}"
    return f"{markdown(trials).strip()}\n\n{markdown(store).strip()}"


def with_tables(page: str, made: str) -> str:
    """The page with these tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{column: row[column] for column in columns} for row in csv.DictReader(file)]


if __name__ == "__main__":
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), tables()))
