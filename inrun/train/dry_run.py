"""What a run will need, before it is started: memory of the device, disk, operations.

Counted from the config alone: no data, no network.

Memory is counted from shapes, in fp32, for the eager path, without the interpreter and its
libraries (about 0.5 GiB). GPT-2 124M, 1024 tokens, one sequence at a time, two methods, one target:
5.3 GiB counted, 5.6 GiB measured on a CPU (peak resident). Store rows are counted exactly; their
size on disk is the measured one of a compressed row (`ROW_BYTES`).
"""

from dataclasses import dataclass

import torch

from inrun import models
from inrun.models import Config
from inrun.train.config import RunConfig
from inrun.train.optim import state_bytes

#: bytes on disk of a row of `terms`: 4 per method (a float's bits do not compress), and step,
#: sample and target together
ROW_BYTES = 3.0
VALUE_BYTES = 4.0
#: floats that one token leaves per layer until the backward, in units of d_model: block input, two
#: norms, qkv 3, attention, two residuals; and in units of the MLP's width: before and after its
#: activation
LAYER_FLOATS, LAYER_MLP_FLOATS = 9, 2
#: inputs and output gradients of a layer's four matrix products, in the same two units: what a tape
#: keeps of a token
TAPE_FLOATS, TAPE_MLP_FLOATS = 8, 2
#: logits, log-probabilities and their gradient
HEAD_COPIES = 3
GIB = 2**30


@dataclass(frozen=True)
class ResourceEstimate:
    """What a run needs. In bytes, where no other unit is given."""

    parameters: int
    """Numbers that are trained."""
    weights: int
    """The parameters."""
    gradients: int
    """As large as the weights."""
    optimizer: int
    """The optimizer's state, after a step."""
    directions: int
    """V of each method and target, and the targets' gradients."""
    tape: int
    """Inputs and output gradients that are kept, for methods that need the whole gradient first."""
    replayed: int
    """Micro-batches of a step that are run once more, because what is kept finds no room."""
    micro_batches: int
    """Micro-batches of a step, in one process."""
    training: int
    """Activations of a micro-batch."""
    targets: int
    """Activations of a target; an alternative in time to `training`: the larger one counts."""
    checkpoint: int
    """On disk, each."""
    store: int
    """Values on disk."""
    rows: int
    """How many rows of values."""
    flops_per_step: int
    """Operations of training alone."""

    @property
    def memory(self) -> int:
        """Peak of the device's memory."""
        fixed = self.weights + self.gradients + self.optimizer + self.directions + self.tape
        return fixed + max(self.training, self.targets)

    def _kept(self) -> str:
        again = f"{self.replayed} of {self.micro_batches} micro-batches are run once more (replay)"
        kept = f"{self.tape / GIB:.2f} GiB of inputs and output gradients are kept (tape)"
        told = ([again] if self.replayed else []) + ([kept] if self.tape else [])
        return ", ".join(told) or "nothing is kept of a batch"

    def __str__(self) -> str:
        lines = [
            f"parameters          {self.parameters:,}",
            f"memory (estimate)   {self.memory / GIB:.1f} GiB: weights {self.weights / GIB:.2f}, "
            f"gradients {self.gradients / GIB:.2f}, optimizer {self.optimizer / GIB:.2f}, "
            f"directions of values {self.directions / GIB:.2f}, tape {self.tape / GIB:.2f}, "
            f"activations {max(self.training, self.targets) / GIB:.2f}",
            f"checkpoint          {self.checkpoint / GIB:.2f} GiB each",
            f"values, each step   {self._kept()}",
            f"values (estimate)   {self.store / GIB:.3f} GiB for {self.rows:,} rows",
            f"operations          {self.flops_per_step / 1e12:,.1f} TFLOP per step for "
            "training alone",
        ]
        return "\n".join(lines)


def estimate(config: RunConfig) -> ResourceEstimate:
    """What the run of this config needs."""
    model, train, values = config.model_config(), config.train, config.attribution
    weights = models.parameter_bytes(model)
    tokens = config.data.block_size
    targets = len(values.targets) if values.on else 0
    keys = targets * len(values.method)
    micro = train.micro_batch or train.batch_size
    micro_batches = -(-train.batch_size // micro)
    one = 4 * _tape_floats(model) * tokens * micro
    kept = _kept_micro_batches(config, one, micro_batches)
    largest_target = max(
        (min(t.chunks, values.target_micro_batch or t.chunks) for t in values.targets), default=0
    )
    rows = -(-train.steps // values.every) * train.batch_size * targets
    state = state_bytes(lambda: models.build_from(model), config.optim)
    return ResourceEstimate(
        parameters=weights // 4,
        weights=weights,
        gradients=weights,
        optimizer=state,
        # a direction per method and target, once more while they are stacked, and the gradient of
        # each target
        directions=(2 * keys + targets) * weights,
        tape=min(kept * one, 4 * _tape_floats(model) * tokens * train.batch_size),
        replayed=micro_batches - kept if _waits(config) else 0,
        micro_batches=micro_batches,
        training=4 * _activation_floats(model) * tokens * micro,
        targets=4 * _activation_floats(model) * tokens * largest_target if targets else 0,
        checkpoint=weights + state,
        store=int(rows * (ROW_BYTES + VALUE_BYTES * len(values.method))),
        rows=rows,
        flops_per_step=models.flops_per_token(model, tokens) * tokens * train.batch_size,
    )


def _waits(config: RunConfig) -> bool:
    """Whether directions are known after the backward only, at least in the first steps."""
    return any(method.may_wait for method in config.attribution.method)


def _kept_micro_batches(config: RunConfig, one: int, micro_batches: int) -> int:
    """How many micro-batches of a step find room for their inputs and output gradients."""
    route = config.attribution.route
    if not _waits(config) or route.needs_forward or not route.late_directions:
        return 0
    cuda = config.train.device != "cpu" and torch.cuda.is_available()
    return min(route.room(torch.device("cuda" if cuda else "cpu")).budget // one, micro_batches)


def _activation_floats(model: Config) -> int:
    layer = LAYER_FLOATS * model.d_model + LAYER_MLP_FLOATS * model.d_mlp
    return layer * model.n_layer + HEAD_COPIES * model.vocab_size


def _tape_floats(model: Config) -> int:
    layer = TAPE_FLOATS * model.d_model + TAPE_MLP_FLOATS * model.d_mlp
    return layer * model.n_layer + model.d_model + model.vocab_size
