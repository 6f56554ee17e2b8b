"""How the samples' parts are taken in a run of the audit: as the routes take them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from inrun.ghost.audit import Dots
from inrun.ghost.audit_data import RowOwners
from inrun.ghost.audit_runs import Run
from inrun.ghost.compiled import CompiledProbes
from inrun.ghost.forward import token_dots
from inrun.ghost.tape import StreamingDots, Use
from inrun.ghost.uses import UseTracker

Tensors = Mapping[str, Tensor]


def by_rules(owners: RowOwners, fused: bool, uses: set[Use]) -> Dots:
    """By a rule per operation.

    Args:
        owners: whose the rows of the batch are.
        fused: operations take their fused form.
        uses: gets what was done with which parameters.
    """

    def dots(run: Run, parameters: Tensors, directions: Tensors) -> dict[str, Tensor]:
        record = StreamingDots(directions, owners.n, fused)
        with _one_thread(), UseTracker(parameters, run.constants, record, owners.rows):
            run()
        uses.update(record.uses)
        return {name: d[0] for name, d in record.dots(directions).items()}

    return dots


def by_tokens(owners: RowOwners) -> Dots:
    """By one forward-mode pass: of all parameters together."""

    def dots(run: Run, parameters: Tensors, directions: Tensors) -> dict[str, Tensor]:
        weights = {parameters[name]: V[0] for name, V in directions.items()}

        def loss() -> Tensor:
            found = run(with_backward=False)
            assert found is not None, "what was backpropagated once gives a loss again"
            return found

        return {"": token_dots(loss, weights, owners.n, owners.rows, run.constants).sum(1)}

    return dots


def by_probes(n: int) -> Dots:
    """By the compiled forms, uncompiled."""

    def dots(run: Run, parameters: Tensors, directions: Tensors) -> dict[str, Tensor]:
        probes = CompiledProbes(parameters, directions, n)
        with _one_thread(), probes:
            run()
        return {name: d[0] for name, d in probes.dots(directions).items()}

    return dots


def _one_thread():
    return torch.autograd.set_multithreading_enabled(False)
