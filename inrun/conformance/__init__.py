"""One suite of cases for every engine that values training samples: small models in float64, plain
loops as the oracle, three methods to be judged.

    python -m inrun.conformance                      # our own engine
    python -m inrun.conformance torch.func opacus    # others, where they are installed

Each case stands for a way in which a published implementation went wrong. To judge another engine,
write an `Adapter` and give it to `judge`.
"""

from inrun.conformance.adapter import Adapter
from inrun.conformance.cases import CASES
from inrun.conformance.engine import Engine
from inrun.conformance.libraries import Dattri, Opacus, TorchFunc
from inrun.conformance.library import NotInstalledError
from inrun.conformance.problem import Case, Formula, Observer, Problem, TrainingRun
from inrun.conformance.run import Outcome, judge

__all__ = [
    "CASES",
    "Adapter",
    "Case",
    "Dattri",
    "Engine",
    "Formula",
    "NotInstalledError",
    "Observer",
    "Opacus",
    "Outcome",
    "Problem",
    "TorchFunc",
    "TrainingRun",
    "judge",
]
