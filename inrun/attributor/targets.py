"""The targets of an `Attributor`, and when their gradients are taken anew."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from inrun.attributor.options import Options
from inrun.attributor.processes import Processes
from inrun.methods import Target


class Targets(dict[str, Target]):
    """Name -> target.

    Args:
        closures: name -> closure that evaluates the loss, a scalar.
        model: whose buffers an evaluation leaves as they are.
        parameters: name -> tracked parameter.

    Raises:
        ValueError: there is none.
    """

    def __init__(
        self,
        closures: Mapping[str, Callable[[], Tensor]],
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        options: Options,
        processes: Processes,
    ):
        if not closures:
            raise ValueError("give at least one target: targets={'val': lambda: <validation loss>}")
        self.refresh_every, self._valued = options.intervals.refresh, 0
        reuse, fused = self.refresh_every > 1, options.route.fused_targets
        shared = processes.sums if processes.share_targets and not processes.alone else None
        quietly = processes.quietly
        super().__init__(
            (name, Target(name, closure, parameters, model, fused, reuse, quietly, shared))
            for name, closure in closures.items()
        )

    def forget(self) -> None:
        """The weights have moved: drop what was evaluated at the old ones."""
        for target in self.values():
            target.forget()

    def begin(self, valued: bool) -> None:
        """A step begins: its weights are others than the last one's."""
        self.look(valued)
        self._valued += valued

    def look(self, valued: bool) -> None:
        """The same without beginning it."""
        self.forget()
        if not valued:
            return
        anew = self._valued % self.refresh_every == 0
        for target in self.values() if anew else ():
            target.refresh()

    def restart(self) -> None:
        """The next valued step takes all gradients anew, as a run that is resumed here must, and
        one in which other parameters are trained.
        """
        self._valued = 0
