"""Settings of the classification study."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments.arguments import CONFIGS
from experiments.frame import StudyConfig
from inrun.baselines import get_baseline
from inrun.baselines.supervised import Recipe
from inrun.config import ConfigError, require
from inrun.data.labelled import ProblemConfig

BASELINES = Path(CONFIGS) / "baseline"


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(StudyConfig):
    """The study of one data set."""

    problem: ProblemConfig
    """the data, and how many labels are wrong"""
    recipe: Recipe
    """network and training"""
    methods: tuple[str, ...]
    """names of configs/baseline/NAME.yaml"""
    options: dict[str, Any] = field(default_factory=dict)
    """method -> options beyond that file"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of samples, wrong labels, weights, order and whatever a method chooses"""
    keep: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """shares of the samples, best first, that are trained on again"""
    trainings: int = 0
    """budget of every method that trains again; 0: as its file says"""
    held_out: int = 100
    """subset trainings of the linear datamodelling score; 0: none"""
    repeats: int = 1
    """trainings of the first seed's data for the stability of values; 1: none"""
    scale: str = "cpu"
    data: str = ""
    """name of the setting, as in the rows"""
    runs: str = "runs/classification"
    pools: str = "runs/pool"
    """subset trainings, shared with `python -m experiments pool`"""

    def __post_init__(self):
        seeds, methods = self.seeds, self.methods
        files = baseline_files()
        require(
            "classification",
            (seeds and len(set(seeds)) == len(seeds), "seeds must be different, at least one"),
            (
                methods and len(set(methods)) == len(methods),
                "methods must be different, at least one",
            ),
            (all(0 < share < 1 for share in self.keep), "keep lists shares between 0 and 1"),
            (
                self.repeats >= 1 and self.held_out >= 0 and self.trainings >= 0,
                "repeats is 1 or more, held_out and trainings 0 or more",
            ),
            (not set(self.options) - files, f"options are for methods: {', '.join(sorted(files))}"),
        )

    def baseline(self, method: str, seed: int, pool: Path) -> tuple[str, dict[str, Any]]:
        """Registered name, and the options with which it is asked.

        Seed, budget and pool go where the method has such an option.
        """
        if method not in baseline_files():
            raise ConfigError(f"methods: there is no {method}.yaml in configs/baseline")
        given = yaml.safe_load((BASELINES / f"{method}.yaml").read_text(encoding="utf-8"))
        name = given.pop("name")
        known = {f.name for f in dataclasses.fields(get_baseline(name).options)}
        ours = {
            "seed": seed,
            "pool": str(pool),
            **({"trainings": self.trainings} if self.trainings else {}),
        }
        return name, {
            **given,
            **{k: v for k, v in ours.items() if k in known},
            **self.options.get(method, {}),
        }

    def identity(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As given, with what the methods' files say; where the pools lie changes no result."""
        resolved = {
            m: dict(zip(("name", "options"), self.baseline(m, 0, Path("pool"))))
            for m in self.methods
        }
        return {**{k: v for k, v in given.items() if k != "pools"}, "baselines": resolved}


def baseline_files() -> set[str]:
    """Names of the files in configs/baseline."""
    return {path.stem for path in BASELINES.glob("*.yaml")}
