"""The public three lines, around anybody's training loop."""

from inrun.attributor.attributor import Attributor
from inrun.attributor.balance import BalanceError, NonFiniteError, UnseenParameterError
from inrun.attributor.hooks import StepError
from inrun.attributor.options import Audit, Intervals, Options, Valuation
from inrun.attributor.processes import ProcessError, Processes
from inrun.attributor.recording import Recording
from inrun.attributor.result import StepResult
from inrun.attributor.routes import Compiled, Forward, Fused, Replay, Route, Tap
from inrun.attributor.whole import Whole

__all__ = [
    "Attributor",
    "Audit",
    "BalanceError",
    "Compiled",
    "Forward",
    "Fused",
    "Intervals",
    "NonFiniteError",
    "Options",
    "ProcessError",
    "Processes",
    "Recording",
    "Replay",
    "Route",
    "StepError",
    "StepResult",
    "Tap",
    "UnseenParameterError",
    "Valuation",
    "Whole",
]
