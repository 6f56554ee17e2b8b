"""Every method that values are compared with, one file each, over one contract.

The contract is in `inrun.baselines.registry`, what a run can be asked in `inrun.baselines.runs`.
Each file of this folder registers its baselines when it is imported, and all are imported here.
"""

import importlib
import pkgutil

from inrun.baselines.cost import Cost, record_training
from inrun.baselines.registry import (
    BASELINES,
    Baseline,
    BaselineError,
    MissingCapabilityError,
    NoOptions,
    Scored,
    baseline,
    baseline_names,
    get_baseline,
    score,
    value_table,
)
from inrun.baselines.runs import (
    AdamMoments,
    Adaptive,
    Checkpoint,
    Classified,
    Featured,
    Regressed,
    Retrainable,
    Textual,
    TrainedRun,
    Valued,
    Watched,
)

__all__ = [
    "BASELINES",
    "AdamMoments",
    "Adaptive",
    "Baseline",
    "BaselineError",
    "Checkpoint",
    "Classified",
    "Cost",
    "Featured",
    "MissingCapabilityError",
    "NoOptions",
    "Regressed",
    "Retrainable",
    "Scored",
    "Textual",
    "TrainedRun",
    "Valued",
    "Watched",
    "baseline",
    "baseline_names",
    "get_baseline",
    "record_training",
    "score",
    "value_table",
]

for _found in pkgutil.iter_modules(__path__):
    if not _found.ispkg:
        importlib.import_module(f"{__name__}.{_found.name}")
