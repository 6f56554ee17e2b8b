"""What a run will need, before it is started: memory of the device, disk of checkpoints and values.
No data, no network.

Memory is counted from shapes, in fp32, for the eager path, without the interpreter and its
libraries (about 0.5 GiB). GPT-2 124M, 1024 tokens, one sequence at a time, two methods, one target:
5.3 GiB counted, 5.6 GiB measured on a CPU (peak resident). Store rows are counted exactly; their
size on disk is the measured one of a compressed row (`ROW_BYTES`).
"""

from dataclasses import dataclass

from inrun import models
from inrun.models import Config
from inrun.train.config import RunConfig

#: bytes on disk of a row of `terms`: 4 per method (a float's bits do not compress), and step,
#: sample and target together
ROW_BYTES = 3.0
VALUE_BYTES = 4.0
#: optimizer state, in copies of the weights
STATE = {"adamw": 2, "sgd": 1, "lion": 1}
#: floats that one token leaves per layer until the backward, in units of d_model: block input, two
#: norms, qkv 3, attention, two residuals, mlp 4 + 4
LAYER_FLOATS = 17
#: inputs and output gradients of a layer's four matrix products, in the same units: what a tape
#: keeps of a token
TAPE_FLOATS = 16
#: logits, log-probabilities and their gradient
HEAD_COPIES = 3
GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes. `training` and `targets` are alternatives in time, the larger one counts; the others
    add up.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    directions: int
    tape: int
    training: int
    targets: int
    checkpoint: int
    store: int
    rows: int
    flops_per_step: int

    @property
    def memory(self) -> int:
        """Peak of the device's memory."""
        fixed = self.weights + self.gradients + self.optimizer + self.directions + self.tape
        return fixed + max(self.training, self.targets)

    def __str__(self) -> str:
        lines = [
            f"parameters          {self.parameters:,}",
            f"memory (estimate)   {self.memory / GIB:.1f} GiB: weights "
            f"{self.weights / GIB:.2f}, gradients {self.gradients / GIB:.2f}, "
            f"optimizer {self.optimizer / GIB:.2f}, directions of values "
            f"{self.directions / GIB:.2f}, tape {self.tape / GIB:.2f}, "
            f"activations {max(self.training, self.targets) / GIB:.2f}",
            f"checkpoint          {self.checkpoint / GIB:.2f} GiB each",
            f"values (estimate)   {self.store / GIB:.3f} GiB for {self.rows:,} rows",
            f"operations          {self.flops_per_step / 1e12:,.1f} TFLOP per step for "
            "training alone",
        ]
        return "\n".join(lines)


def estimate(config: RunConfig) -> Estimate:
    """Counts for a run, from its config alone."""
    model, train, values = config.model_config(), config.train, config.attribution
    weights = models.parameter_bytes(model)
    tokens = config.data.block_size
    targets = len(values.targets) if values.on else 0
    keys = targets * len(values.methods)
    keeps_tape = any(not method.known_before for method in values.methods)
    largest_target = max(
        (min(t.chunks, values.target_micro_batch or t.chunks) for t in values.targets), default=0
    )
    rows = -(-train.steps // values.every) * train.batch_size * targets
    state = STATE[config.optim.name] * weights
    return Estimate(
        parameters=weights // 4,
        weights=weights,
        gradients=weights,
        optimizer=state,
        # a direction per method and target, once more while they are stacked, and the gradient of
        # each target
        directions=(2 * keys + targets) * weights,
        tape=4 * _tape_floats(model) * tokens * train.batch_size if keeps_tape else 0,
        training=4 * _activation_floats(model) * tokens * (train.micro_batch or train.batch_size),
        targets=4 * _activation_floats(model) * tokens * largest_target if targets else 0,
        checkpoint=weights + state,
        store=int(rows * (ROW_BYTES + VALUE_BYTES * len(values.methods))),
        rows=rows,
        flops_per_step=models.flops_per_token(model, tokens) * tokens * train.batch_size,
    )


def _activation_floats(model: Config) -> int:
    return LAYER_FLOATS * model.d_model * model.n_layer + HEAD_COPIES * model.vocab_size


def _tape_floats(model: Config) -> int:
    return TAPE_FLOATS * model.d_model * model.n_layer + model.d_model + model.vocab_size
