"""In-Run Data Shapley itself, as one method among the others: the values that an Attributor
measured while the run trained.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Valued, ValuedRun


@dataclass(frozen=True)
class InRunOptions:
    """Which of the run's values."""

    method: str = "path"
    "Its name in the run's store."


@baseline("in_run", InRunOptions, needs=(Valued,))
def in_run(run: ValuedRun, target: str, options: InRunOptions) -> pa.Table:
    """The run's own values, as they are."""
    table = run.values(options.method, target)
    value = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist()))
    if missing := [i for i in run.sample_ids if i not in value]:
        raise BaselineError(
            f"in_run: {len(missing)} samples were never drawn, first {missing[0]}; the run "
            "is too short"
        )
    return value_table(run, np.array([value[i] for i in run.sample_ids]))
