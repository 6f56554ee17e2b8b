"""Which domains carry a target's progress, and when.

The paper's section 5.3.2 (figures 3 and 11) with several targets, a mathematics text among them,
and with what its figures lack: values for each unit of progress, and the ledger of every phase:
loss drop = drift + values + residual.

  python -m experiments dynamics                  prose, code and mathematics; minutes on 2 cores
  python -m experiments dynamics seeds=[0,1,2]
  python -m experiments dynamics scale=paper      GPT-2 124M on the Pile: needs a GPU

A killed study goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.artifacts import Outputs
from experiments.dynamics.report import PHASES, report
from experiments.frame import LanguageStudy, study
from inrun.config import ConfigError
from inrun.store import dynamics, ledger_over
from inrun.train import LogConfig, RunConfig, RunFolder, train_or_reuse


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig(LanguageStudy):
    """The study. The first method is shown; phases are thirds of the run."""

    seeds: tuple[int, ...] = (0,)
    """one training run each"""
    bins: int = 20
    """of equally many steps, for the curves"""
    log_every: int = 50
    """steps between two lines of the runs' logs"""
    runs: str = "runs/dynamics"

    def __post_init__(self):
        if not self.seeds or self.bins < len(PHASES):
            raise ConfigError(f"dynamics: seeds must not be empty, bins at least {len(PHASES)}")
        if not self.attribution.on or not self.attribution.intervals.ledger:
            raise ConfigError(
                "dynamics: values and their ledger are needed; choose an attribution with "
                "ledger >= 1"
            )

    def run(self, runs: Path, seed: int) -> RunConfig:
        return self.run_config(runs, f"seed-{seed}", log=LogConfig(every=self.log_every), seed=seed)


@study(
    "dynamics",
    DynamicsConfig,
    report,
    shown="ledger",
    recorded={"dynamics": "phases", "dynamics-ledger": "ledger"},
)
def measure(settings: DynamicsConfig, out: Outputs, console: Console) -> None:
    """Rows of the curves, the phases and the phases' ledgers, of all seeds and targets."""
    runs = out.folder / "trained"
    method = settings.attribution.method[0].name
    about = {"scale": settings.scale, "model": settings.model["name"], "method": method}
    curves, phases, ledger = [], [], []
    for seed in settings.seeds:
        with RunFolder(train_or_reuse(settings.run(runs, seed), console)).values() as store:
            for target in store.targets:
                where = {**about, "seed": seed, "target": target}
                curves += [
                    {**where, **row}
                    for row in dynamics(store, "domain", settings.bins, target, method).to_pylist()
                ]
                phases += [
                    {**where, "phase": PHASES[row["bin"]], **row}
                    for row in dynamics(store, "domain", len(PHASES), target, method).to_pylist()
                ]
                ledger += [
                    {**where, "phase": PHASES[row["bin"]], **row}
                    for row in ledger_over(store, len(PHASES), target, method).to_pylist()
                ]
    out.table("dynamics", curves)
    out.table("phases", phases)
    out.table("ledger", ledger)
