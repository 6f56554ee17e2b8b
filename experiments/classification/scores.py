"""One problem of the classification study: trained once, scored by all methods."""

import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from experiments.artifacts import digest
from experiments.classification.settings import ClassificationConfig
from inrun.baselines import Cost, score
from inrun.baselines.pool import Pool
from inrun.baselines.supervised import SupervisedRun, train_run
from inrun.data.labelled import LabelledProblem, sample_problem
from inrun.files import write_file


class ProblemScores:
    """One problem, trained once, scored by all methods."""

    def __init__(
        self, settings: ClassificationConfig, problem_seed: int, seed: int, console: Console
    ):
        self.settings, self.problem_seed, self.seed, self.console = (
            settings,
            problem_seed,
            seed,
            console,
        )
        self.problem: LabelledProblem = sample_problem(
            settings.problem, problem_seed, settings.data_root
        )
        self.label = f"{settings.problem.source}, seed {problem_seed}" + (
            f", training {seed}" if seed != problem_seed else ""
        )
        about = {"problem": self.problem.digest(), "recipe": dataclasses.asdict(settings.recipe)}
        self.folder = Path(settings.runs) / "trained" / digest(about) / f"training-{seed}"
        began = time.monotonic()
        self.run: SupervisedRun = train_run(self.problem, settings.recipe, seed, self.folder)
        self.say(f"run with values, test quality {self.run.quality('test'):.3f}", began)
        self.pool_folder = Path(settings.pools) / self.run.digest[:12]
        self.pool = Pool(self.run, self.pool_folder)

    def scores(self) -> Iterator[tuple[str, np.ndarray, Cost]]:
        """(method, values [n], cost); a score that was taken before is read."""
        for method in self.settings.methods:
            name, options = self.settings.baseline(method, self.seed, self.pool_folder)
            asked = {key: value for key, value in options.items() if key != "pool"}
            path = (
                self.folder / "scores" / f"{method}-{digest({'baseline': name, **asked})}.parquet"
            )
            if not path.is_file():
                began = time.monotonic()
                scored = score(self.run, "val", name, **options)
                cost = json.dumps(dataclasses.asdict(scored.cost))
                path.parent.mkdir(exist_ok=True)
                table = scored.table.replace_schema_metadata({"cost": cost})
                write_file(path, functools.partial(pq.write_table, table))
                self.say(method, began)
            table = pq.read_table(path)
            yield (
                method,
                table["value"].to_numpy(),
                Cost(**json.loads(table.schema.metadata[b"cost"])),
            )

    def say(self, what: str, began: float) -> None:
        """A line on what took more than half a second."""
        seconds = time.monotonic() - began
        if seconds > 0.5:
            self.console.print(
                f"{self.label}: {what}, {seconds:.0f} s",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
