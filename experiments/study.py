"""What the studies share: the settings of language-model runs, and how one ends that is measured
once and shown from its table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.artifacts import Outputs
from inrun.data.prepare import DataConfig
from inrun.train import AttributionConfig, OptimConfig, RunConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class LanguageStudy:
    """Settings of the runs that a study trains, as in `inrun.train.RunConfig`; where it lies
    (`runs`, `name`), and whether it goes into the committed results (`record`).
    """

    model: dict[str, Any]
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    attribution: AttributionConfig
    scale: str = ""
    runs: str
    data_root: str = "data"
    name: str | None = None
    record: bool = False

    def run_config(self, folder: Path, name: str, **changes) -> RunConfig:
        """A run of the study in `folder`, with other or further fields of `RunConfig` as `changes`
        give them.
        """
        own = {
            key: getattr(self, key)
            for key in ("model", "data", "optim", "train", "attribution", "data_root")
        }
        return RunConfig(name=name, runs=str(folder), **{**own, **changes})


def measured_once(
    out: Outputs,
    measure: Callable[[], None],
    record: bool,
    console: Console,
    shown: str,
    recorded: Mapping[str, str] | None = None,
) -> None:
    """Call `measure`, which leaves its tables in `out`, unless that was finished before; record
    them if wanted, and print one.

    shown: the table whose markdown is printed. recorded: name of the committed CSV -> table whose
    rows it gets; by default `shown`, under its own name.
    """
    if out.finished:
        console.print("finished before", highlight=False)
    else:
        measure()
        out.finish()
    for name, table in (recorded or {shown: shown}).items() if record else ():
        out.record(name, out.rows(table))
    print((out.folder / f"{shown}.md").read_text(encoding="utf-8"))
    console.print(f"done: {out.folder}", highlight=False, soft_wrap=True)
