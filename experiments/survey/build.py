"""A small random model of a type, and samples on which its loss can be compared."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.survey import zoo
from experiments.survey.arguments import Asked
from experiments.survey.inputs import Sample, batch, candidates, placeholders
from experiments.survey.outputs import (
    CannotBuild,
    alike,
    differentiable,
    in_rows,
    named,
    of_outputs,
    own_loss,
    tensors,
)
from experiments.survey.shrink import shrink
from experiments.survey.special import SPECIAL, Special

SAMPLES = 4
#: parameters of a tiny model, at the most
MOST = 20_000_000
#: CPU seconds after which no further way of making a type is begun
PATIENCE = 5.0
#: how many classes of a type are tried
CLASSES = 3
MIXES = "no sum over samples"


@dataclass
class Built:
    """A model that runs, and how its samples are made.

    Attributes:
        share: factor of a sample's own loss in that of the batch.
        kept: which of the output's tensors the loss is made of; None: the model's own loss.
        mixing: some output of a sample depends on the other samples.
        mixed: the outputs with the samples' axis first, those among them.
        single: the model computes in float32 in places, whatever its weights are.
    """

    model: nn.Module
    make: Callable[[int, int], Sample]
    images: int = 0
    notes: list[str] = field(default_factory=list)
    share: float = 1 / SAMPLES
    kept: list[int] | None = None
    mixing: bool = False
    mixed: list[int] = field(default_factory=list)
    single: bool = False

    def sample(self, seed: int) -> Sample:
        return self.make(seed, self.images)

    def samples(self, seed: int, n: int = SAMPLES) -> list[Sample]:
        return [self.sample(seed + i) for i in range(n)]

    def loss(self, inputs: Sample, n: int) -> Tensor:
        """The loss of n samples: the model's own, or a function of its outputs."""
        torch.manual_seed(0)
        out = self.model(**inputs)
        return own_loss(out) if self.kept is None else of_outputs(out, n, self.kept)

    def owners(self) -> list[int]:
        """The sample of each row, where some input has several rows a sample; else nothing."""
        most = max(len(t) for t in batch(self.samples(0)).values() if isinstance(t, Tensor))
        return [] if most == SAMPLES else [row // (most // SAMPLES) for row in range(most)]

    def note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    @property
    def batch_norms(self) -> list[nn.Module]:
        return [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def spell_out(self) -> None:
        """Frozen BatchNorm by its formula, in plain operations."""
        for module in self.batch_norms:
            module.forward = functools.partial(frozen_norm, module)
        self.note("BatchNorm by its formula: torch's frozen one has other gradients in a batch")

    def settle(self, inputs: Sample) -> None:
        """Statistics of BatchNorm nearer to the weights, as a trained model has them."""
        for module in self.batch_norms:
            module.train()
            module.momentum = 0.9
        if self.batch_norms:
            with torch.no_grad():
                self.model(**inputs)

    def freeze(self) -> None:
        """BatchNorm with its statistics as they are: in training mode it mixes samples."""
        for module in self.batch_norms:
            module.eval()
            self.note("BatchNorm frozen")


def frozen_norm(layer: Any, x: Tensor) -> Tensor:
    """What a frozen BatchNorm computes, of x [n, c, ...]."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    scale = (layer.running_var + layer.eps).rsqrt()
    out = (x - layer.running_mean.view(shape)) * scale.view(shape)
    return out if layer.weight is None else out * layer.weight.view(shape) + layer.bias.view(shape)


def build(model_type: str, row: dict[str, Any]) -> Built:
    """The first class of the type that can be made, and that runs on made-up samples.

    Args:
        model_type: of transformers.
        row: gets the class's head and name.

    Raises:
        CannotBuild: none can.
    """
    special = SPECIAL.get(model_type, Special())
    if special.leave_out:
        raise CannotBuild(special.leave_out)
    try:
        classes = zoo.classes_of(model_type, zoo.config_of(model_type))
    except Exception as error:
        raise CannotBuild(f"config: {named(error)}") from None
    chosen = [(h, c) for h, c in classes if not special.head or h == special.head]
    failures, began = [], time.process_time()
    for head, cls in chosen[:CLASSES]:
        about = {"head": head, "model": cls.__name__}
        try:
            built = smallest(cls, model_type, head, special, began)
        except CannotBuild as reason:
            failures.append((about, str(reason)))
        except Exception as error:
            failures.append((about, named(error)))
        else:
            row |= about
            return built
    if not failures:
        raise CannotBuild("no model class takes this config")
    row |= failures[0][0]
    raise CannotBuild(failures[0][1])


def smallest(cls: type, model_type: str, head: str, special: Special, began: float) -> Built:
    """The class with small widths, else with its own and few layers."""
    errors: list[Exception] = []
    for narrow in (True, False):
        if time.process_time() - began > PATIENCE:
            break
        try:
            config = shrink(zoo.config_of(model_type), special.config, narrow)
            return running(made(cls, config, special), head, special)
        except Exception as error:
            errors.append(error)
    raise errors[0] if errors else CannotBuild("takes too long")


def made(cls: type, config: Any, special: Special) -> nn.Module:
    """The model in float64, its weights moved a little, so that none begins at 0."""
    config.use_cache = False
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = 1
    if special.eager:
        config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # torch's grouped product has no float64
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > MOST:
        raise CannotBuild(f"{size / 1e6:.0f} million parameters are left after shrinking")
    torch.manual_seed(0)
    model = cls(config).double().train()
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                p.add_(0.05 * torch.randn_like(p))
    return model


def running(model: nn.Module, head: str, special: Special) -> Built:
    """The model with samples on which its loss is finite and has a gradient."""
    failures: list[str] = []
    for words, make in candidates(Asked(model, head, special.inputs)):
        built = Built(model, make, special.images, [words] if words else [])
        for _ in range(3):
            try:
                check(built)
                return built
            except Exception as error:
                found = placeholders(error)
                each = found // SAMPLES if found and found % SAMPLES == 0 else built.images
                if each == built.images:
                    failures.append(str(error) if type(error) is CannotBuild else named(error))
                    break
                built.images = each
    raise CannotBuild(failures[0] if failures else "nothing is known that its forward takes")


def check(built: Built) -> None:
    """Find a mode and a loss that are a sum over samples: the model's own loss in training first.

    Raises:
        CannotBuild: there is no finite loss with a gradient.
    """
    samples = built.samples(100)
    built.settle(batch(samples))
    for mode in ("train", "eval"):
        built.model.train(mode == "train")
        built.freeze()
        with Precision(built):
            out = built.model(**batch(samples))
        for kept in losses(built, samples, out):
            built.kept = kept
            if kept != [] and repeatable(built, samples) and additive(built, samples):
                if mode == "eval":
                    built.note("eval mode: draws at random in training")
                return
    built.kept, built.mixing = differentiable(out), True
    if not built.kept:
        raise CannotBuild("no output has a gradient")
    built.model.train()
    built.freeze()
    repeatable(built, samples)
    built.note(MIXES)


def losses(built: Built, samples: list[Sample], out: Any) -> Iterator[list[int] | None]:
    """The model's own loss where it has one, then one of its outputs."""
    own = getattr(out, "loss", None)
    if isinstance(own, Tensor) and own.requires_grad:
        yield None
    yield separate(built, samples, out)


class Precision(TorchDispatchMode):
    """Notes whether anything is computed in float32."""

    def __init__(self, built: Built):
        super().__init__()
        self.built = built

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(t.dtype == torch.float32 and t.numel() > 1 for t in tensors(out)):
            self.built.single = True
        return out


def separate(built: Built, samples: list[Sample], out: Any) -> list[int]:
    """The outputs that a sample has alone as it has them among others."""
    found = differentiable(out)
    each = [tensors(built.model(**s)) for s in samples]
    same = [k for k in found if all(len(e) > k for e in each) and alike(tensors(out)[k], each, k)]
    rows = [k for k in found if all(in_rows(tensors(out)[k], e, k) for e in each)]
    built.kept = built.mixed = rows
    built.mixing = len(same) < len(rows) and not additive(built, samples)
    return same


def repeatable(built: Built, samples: list[Sample]) -> bool:
    """Whether the loss draws nothing at random. Raises CannotBuild: it is not finite."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        out = built.model(**batch(samples))
        losses.append(own_loss(out) if built.kept is None else of_outputs(out, SAMPLES, built.kept))
    if not torch.isfinite(losses[0]):
        raise CannotBuild("its loss is not finite")
    return bool(losses[0].detach() == losses[1].detach())


def additive(built: Built, samples: list[Sample]) -> bool:
    """Whether the loss is the mean, or the sum, of the samples' own: sets `share`."""
    whole = float(built.loss(batch(samples), SAMPLES))
    each = sum(float(built.loss(s, 1)) for s in samples)
    for share in (1 / SAMPLES, 1.0):
        if abs(share * each - whole) <= 1e-5 * max(abs(whole), 1e-6):
            built.share = share
            return True
    return False
