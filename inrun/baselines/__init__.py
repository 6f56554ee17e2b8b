"""Every method that values are compared with, one file each, over one contract (`inrun.baselines.contract`)."""

from inrun.baselines import ekfac, simple, text
from inrun.baselines.contract import (
    AdamMoments,
    Adaptive,
    Baseline,
    BaselineError,
    Checkpoint,
    Classified,
    Cost,
    Featured,
    MissingCapabilityError,
    NoOptions,
    Retrainable,
    Scored,
    Textual,
    TrainedRun,
    Valued,
    Watched,
    baseline,
    baseline_names,
    get_baseline,
    measure,
    record_training,
    value_table,
)

#: importing these registers them
FILES = (ekfac, simple, text)

__all__ = [
    "FILES",
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
    "Retrainable",
    "Scored",
    "Textual",
    "TrainedRun",
    "Valued",
    "Watched",
    "baseline",
    "baseline_names",
    "get_baseline",
    "measure",
    "record_training",
    "value_table",
]
