"""Is one step's value exact for every model type of transformers and peft?

Each type is built from its own config class, small and random, in float64. Four samples make one
step of SGD; their values by the default route are held against a loop of one-sample gradients. What
is refused is tried by another route. Nothing is downloaded.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

import inrun
import inrun_kernels
from experiments.artifacts import Outputs
from experiments.frame import StudyConfig, study
from experiments.survey.adapters import PREFIX, adapters
from experiments.survey.build import MIXES
from experiments.survey.processes import Isolated, Row
from experiments.survey.report import report
from experiments.survey.value import survey
from experiments.survey.zoo import types
from inrun.config import require
from inrun.files import read_json
from inrun.progress import live_line

PACKAGES = ("transformers", "peft", "torch")
#: packages of inrun whose code decides a value
DECIDING = ("attributor", "ghost", "methods", "rules", "updates")


@dataclass(frozen=True, kw_only=True)
class SurveyConfig(StudyConfig):
    """Which types, and how long each may take."""

    only: str = ""
    """regular expression; only types whose whole name it fits (peft's begin with peft/)"""
    seconds: float = 120.0
    """after which the process of a type is ended"""
    gigabytes: float = 2.5
    """of memory that the process of a type may take"""
    jobs: int = 1
    """processes at once"""
    minutes: float | None = None
    """after which no further type is begun; null: none. The same command goes on"""
    scale: str = "cpu"
    runs: str = "runs/survey"

    def __post_init__(self) -> None:
        require(
            "survey",
            (fits(self.only), f"only={self.only!r} is no regular expression"),
            (
                not (self.only and self.record),
                "record=true is for all types, and only=... is for some: leave one of them out",
            ),
            (self.seconds > 0, f"seconds={self.seconds}: choose more than 0"),
            (self.jobs >= 1, f"jobs={self.jobs}: choose 1 or more"),
            (self.gigabytes > 0, f"gigabytes={self.gigabytes}: choose more than 0"),
        )
        if self.name is None:
            chosen = hashlib.sha256(self.only.encode()).hexdigest()[:4] if self.only else "all"
            object.__setattr__(self, "name", f"{engine()}-{chosen}")

    def identity(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Limits and the number of processes change no row."""
        return {
            k: v for k, v in given.items() if k not in ("seconds", "gigabytes", "jobs", "minutes")
        }


def fits(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def versions() -> dict[str, str]:
    """Of the libraries that decide which types there are; "" where one is not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def engine() -> str:
    """Eight digits of the code that decides a row, and of the libraries' versions.

    Rows are kept as long as these are the same.
    """
    seen = hashlib.sha256(repr(versions()).encode())
    root = Path(str(inrun.__file__)).parent
    folders = [root / name for name in DECIDING]
    folders += [Path(str(inrun_kernels.__file__)).parent, Path(__file__).parent]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        if path.name not in ("report.py", "study.py"):
            seen.update(path.read_bytes())
    return seen.hexdigest()[:8]


def chosen(only: str) -> list[str]:
    """The types that are asked for, in the order of the table."""
    names = [*types(), *adapters()]
    return [name for name in names if not only or re.fullmatch(only, name)]


@study("survey", SurveyConfig, report, shown="counts", recorded={"survey": "survey"})
def measure(settings: SurveyConfig, out: Outputs, console: Console) -> None:
    """A row for each type; those of the same code and versions are not measured again."""
    names = chosen(settings.only)
    require("survey", (names, f"no type fits only={settings.only!r}"))
    folder = Path(settings.runs) / "rows" / engine()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with live_line(console, "survey") as say:
        for row in surveyed(names, settings, folder):
            rows.append(row)
            wrong = sum(r["status"] in ("wrong", "died") for r in rows)
            say(f"{len(rows)} of {len(names)}, {row['type']}: {row['status']}; {wrong} to mend")
    place = {name: k for k, name in enumerate(names)}
    rows.sort(key=lambda row: place[row["type"]])
    code = engine()
    out.table("survey", [versions_of(row) | {"engine": row.get("engine", code)} for row in rows])


def surveyed(names: list[str], settings: SurveyConfig, folder: Path) -> Iterator[Row]:
    """The rows, from the folder where they are, else from a process each."""
    isolated = Isolated(survey, settings.seconds, settings.gigabytes)
    ends = time.monotonic() + 60 * (settings.minutes or float("inf"))

    def row(name: str) -> Row:
        path = folder / f"{name.replace('/', '+')}.json"
        if path.is_file():
            return read_json(path)
        if time.monotonic() > ends:
            return {"type": name, "status": "not asked", "why": "the time was over"}
        return isolated.row(name, path)

    # a survey that is stopped has then seen some of all families
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    with ThreadPoolExecutor(settings.jobs) as pool:
        yield from pool.map(row, order)


def versions_of(row: Mapping[str, Any]) -> Row:
    """A row with every column, and what it was obtained with."""
    library = "peft" if row["type"].startswith(PREFIX) else "transformers"
    columns = (
        "head model status error why route route_error loss notes batchnorm mixing single "
        "parameters seconds"
    )
    found = {"type": row["type"], "library": f"{library} {versions()[library]}"}
    found |= {name: row.get(name) for name in columns.split()}
    return found | compared(row)


def compared(row: Row) -> Row:
    """What changes in a row where there was no truth, or no memory, or nothing to be tried."""
    why = str(row.get("why", ""))
    if "Cannot allocate memory" in why or "alloc_cpu" in why:
        return {"status": "not built", "why": "needs more memory than a type is given"}
    notes = str(row.get("notes", ""))
    part = "text only" in notes or "no labels" in notes
    if part and row.get("batchnorm") == "valued":
        return {"batchnorm": None}  # it stands in a part that these inputs do not go through
    if "eval mode" in notes and row.get("mixing"):
        return {"mixing": None}  # outputs differed because the model draws in training mode
    if MIXES in notes:
        told = "refused by the engine" if row["status"] == "refused" else "valued"
        return {
            "status": "not built",
            "why": f"no loss was found that is a sum over samples, so there is no truth ({told})",
        }
    return {}
