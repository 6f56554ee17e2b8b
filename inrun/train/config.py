"""The whole configuration of a run, put together from the parts' own."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inrun import models
from inrun.config import ConfigError, build, one_of, require
from inrun.data.config import DataConfig
from inrun.train.attribution import AttributionConfig
from inrun.train.log import LogConfig
from inrun.train.online import OnlineConfig
from inrun.train.optim import OptimConfig

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, and how often something else happens."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 16
    """Chunks of one step."""
    micro_batch: int = 0
    """Chunks that go through the model at once, 0 for all of the batch.

    It bounds memory and changes the result by rounding only.
    """
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda."""
    precision: str = "auto"
    """auto (bf16 on a GPU that has it), fp32, bf16 (autocast; weights stay fp32)."""
    compile: bool = False
    """torch.compile the model; values then need attribution.route=compiled."""
    separate_documents: bool = False
    """Attention and loss do not cross the borders between packed documents.

    In training, in targets and in evaluation.
    """
    eval_every: int = 200
    """Steps between evaluations; 0: at the end only."""
    eval_chunks: int = 16
    """Chunks of each domain that are evaluated on."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0: at the end only."""
    keep: int = 2
    """How many of the last checkpoints are kept."""
    timeout: int = 1800
    """Seconds that a process of several waits for the others in a step."""
    verify: str = "size"
    """What is checked of every corpus file before the first step: size or hash.

    A resumed run checks the hashes in any case.
    """
    eval_split: str = "val"
    """What is evaluated on: val or test."""
    eval_domains: tuple[str, ...] = ()
    """Domains of it; empty: all."""
    chunks: str = ""
    """A file that says which chunks are sampled from (`inrun.train.selection`).

    "": all of the train split.
    """

    def __post_init__(self):
        require(
            "train",
            (
                min(self.steps, self.batch_size, self.eval_chunks, self.keep) >= 1,
                "steps, batch_size, eval_chunks, keep: 1 or more",
            ),
            (self.timeout >= 1, f"timeout={self.timeout} seconds: choose 1 or more"),
            (
                min(self.micro_batch, self.eval_every, self.checkpoint_every) >= 0,
                "a number of steps or chunks is negative",
            ),
            one_of("precision", self.precision, PRECISIONS),
            one_of("device", self.device, ("auto", "cpu", "cuda")),
            one_of("verify", self.verify, ("size", "hash")),
            one_of("eval_split", self.eval_split, ("val", "test")),
        )


@dataclass(frozen=True)
class RunConfig:
    """A run: everything that its result depends on."""

    name: str
    """Its folder under `runs`."""
    model: dict[str, Any]
    """name, preset, and fields of the model's config that replace the preset's."""
    data: DataConfig = field(default_factory=DataConfig)
    """The corpus."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batches, evaluation, checkpoints."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """What is valued."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """Sample by the values measured so far."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is told."""
    runs: str = "runs"
    """Where runs lie."""
    data_root: str = "data"
    """Where corpora and the cache of archives lie."""
    seed: int = 0
    """Of weights, batches, targets and evaluation."""

    def __post_init__(self):
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name={self.name!r} must be the name of a folder under {self.runs}/")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must not be negative")
        if self.model_config().block_size < self.data.block_size:
            raise ConfigError(
                f"data.block_size={self.data.block_size} is more than "
                f"model.block_size={self.model_config().block_size}; make them equal"
            )
        if self.online.start:
            self._check_online()
        if self.train.compile and self.attribution.on and self.attribution.route.kind != "compiled":
            raise ConfigError(
                f"train.compile=true with attribution.route={self.attribution.route.kind}: what "
                "runs inside torch.compile is not seen. Choose "
                "attribution.route=compiled (first_order along the state before the step), "
                "train.compile=false, or attribution=off"
            )

    def _check_online(self) -> None:
        """The values that are to decide must be measured in this run."""
        targets = [target.name for target in self.attribution.targets]
        methods = [method.name for method in self.attribution.method]
        asked = [("target", self.online.target, targets), ("method", self.online.method, methods)]
        for what, name, known in asked:
            if (name and name not in known) or (not name and len(known) != 1):
                raise ConfigError(
                    f"online.{what}={name!r}: this run measures {what}s {known}; choose one of them"
                )

    def model_config(self) -> models.Config:
        """The model's own config; ConfigError names what is unknown."""
        if missing := [key for key in ("name", "preset") if key not in self.model]:
            raise ConfigError(
                f"model: {', '.join(missing)} must be given, for example name=gpt2 preset=tiny"
            )
        try:
            return models.config(**self.model)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model: {error}") from error

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Strict: an unknown key, at whatever depth, is a ConfigError that names the known ones."""
        return build(cls, values, "config")

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; `from_mapping` gives an equal config back."""
        return dataclasses.asdict(self)
