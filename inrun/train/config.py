"""The whole configuration of a run. Each part stands beside what it builds; this one puts them
together.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inrun import models
from inrun.config import ConfigError, build, require
from inrun.data.prepare import DataConfig
from inrun.train.attribution import AttributionConfig
from inrun.train.log import LogConfig
from inrun.train.online import OnlineConfig
from inrun.train.optim import OptimConfig

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, and how often something else happens.

    steps: optimizer steps of the whole run. batch_size: chunks of one step. micro_batch: chunks
    that go through the model at once, 0 for all of the batch; it bounds memory and changes the
    result by rounding only. device: auto (CUDA where there is one), cpu, cuda. precision: auto
    (bf16 on a GPU that has it), fp32, bf16 (autocast; weights stay fp32). compile: torch.compile
    the model; values then need attribution.route=compiled. separate_documents: attention and loss
    do not cross the borders between packed documents. eval_every: steps between evaluations on
    eval_chunks chunks of each domain of the val split; 0: at the end only. checkpoint_every: steps
    between checkpoints, of which the last `keep` are kept; 0: at the end only. verify: size or hash
    of every corpus file, before the first step. eval_split, eval_domains (empty: all): what is
    evaluated on, val or test. chunks: a file that says which chunks may be drawn
    (`inrun.train.selection`); "": all of the train split.
    """

    steps: int = 1000
    batch_size: int = 16
    micro_batch: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    separate_documents: bool = False
    eval_every: int = 200
    eval_chunks: int = 16
    checkpoint_every: int = 500
    keep: int = 2
    verify: str = "size"
    eval_split: str = "val"
    eval_domains: tuple[str, ...] = ()
    chunks: str = ""

    def __post_init__(self):
        require(
            "train",
            (
                min(self.steps, self.batch_size, self.eval_chunks, self.keep) >= 1,
                "steps, batch_size, eval_chunks, keep: 1 or more",
            ),
            (
                min(self.micro_batch, self.eval_every, self.checkpoint_every) >= 0,
                "a number of steps or chunks is negative",
            ),
            (
                self.precision in PRECISIONS,
                f"precision={self.precision!r}: choose one of {', '.join(PRECISIONS)}",
            ),
            (
                self.device in ("auto", "cpu", "cuda"),
                f"device={self.device!r}: choose auto, cpu or cuda",
            ),
            (self.verify in ("size", "hash"), f"verify={self.verify!r}: choose size or hash"),
            (
                self.eval_split in ("val", "test"),
                f"eval_split={self.eval_split!r}: choose val or test",
            ),
        )


@dataclass(frozen=True)
class RunConfig:
    """A run: everything that its result depends on.

    name: its folder under `runs`. data_root: where corpora and the cache of archives lie. model:
    name, preset, and fields of the model's config that replace the preset's. online: draw by the
    values measured so far.
    """

    name: str
    model: dict[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    runs: str = "runs"
    data_root: str = "data"
    seed: int = 0

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
        asked = (("target", self.online.target, [target.name for target in self.attribution.targets]),
                 ("method", self.online.method, [method.name for method in self.attribution.method]))  # fmt: skip
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
