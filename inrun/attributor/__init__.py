"""The public three lines, around anybody's training loop."""

from inrun.attributor.attributor import Attributor
from inrun.attributor.balance import BalanceError, NonFiniteError, UnseenParameterError
from inrun.attributor.processes import ProcessError, Processes
from inrun.attributor.result import StepResult

__all__ = [
    "Attributor",
    "BalanceError",
    "NonFiniteError",
    "ProcessError",
    "Processes",
    "StepResult",
    "UnseenParameterError",
]
