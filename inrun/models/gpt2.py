"""GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, tanh GELU, head tied to the
token table.

Logits equal Hugging Face's GPT2LMHeadModel to rounding. Initialisation is GPT-2's: normal(0, 0.02),
zero biases, and the two projections into the residual stream scaled by 1/sqrt(2 n_layer), the
number of terms that are summed there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun.models.language_model import (
    Config,
    LanguageModel,
    attend,
    check_tokens,
    document_mask,
    load_named,
    split_heads,
    take,
)

INIT_STD = 0.02
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class GPT2Config(Config):
    """Shape of a GPT-2."""

    vocab_size: int = 50304
    """Rows of the token table.

    50304 is GPT-2's 50257 padded to a multiple of 64 (see `padded_vocab`); the logits of padding
    ids are ordinary outputs. A published checkpoint needs 50257.
    """
    block_size: int = 1024
    """The most tokens of a sample."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Heads of attention."""
    d_model: int = 768
    """Width."""
    bias: bool = True
    """Biases in linear layers and norms: GPT-2 has them, the paper's code base goes without."""
    dropout: float = 0.0
    """Of embeddings, attention weights and residual branches, while training."""
    activation: str = "gelu_new"
    """gelu_new (tanh, GPT-2's) or gelu (erf)."""
    fused_head: bool = True
    """Take the summed loss without ever holding whole logits (see `LanguageModel`)."""

    def __post_init__(self):
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; known: {sorted(ACTIVATIONS)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; expected a share in [0, 1)")


PRESETS = {
    "tiny": GPT2Config(vocab_size=8192, block_size=128, n_layer=4, n_head=4, d_model=128),
    "124m": GPT2Config(n_layer=12, n_head=12, d_model=768),
    "355m": GPT2Config(n_layer=24, n_head=16, d_model=1024),
}


class Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.n_head)
        return self.proj(attend(q, k, v, mask, self.dropout if self.training else 0.0))


class MLP(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.fc = nn.Linear(config.d_model, config.d_mlp, bias=config.bias)
        self.proj = nn.Linear(config.d_mlp, config.d_model, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activation(self.fc(x)))


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x), mask))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT2(LanguageModel):
    """GPT-2. The head is `wte` used a second time, so the state dict holds the tied weight once."""

    config: GPT2Config

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.block_size, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, bias=config.bias)
        initialise(self)

    def features(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        check_tokens(tokens, self.config.block_size, document_ids)
        # One row of positions per sample, not one broadcast over the samples: a broadcast would sum
        # the gradient of wpe over the samples before anyone could see whose it is.
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        mask = document_mask(document_ids)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x, mask)
        return self.ln_f(x)

    @property
    def head_weight(self) -> Tensor:
        return self.wte.weight


@torch.no_grad()
def initialise(model: GPT2) -> None:
    """Draw fresh weights from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.h:
        assert isinstance(block, Block)
        for proj in (block.attn.proj, block.mlp.proj):
            nn.init.normal_(proj.weight, std=INIT_STD / math.sqrt(2 * model.config.n_layer))


def build(config: GPT2Config) -> GPT2:
    """A freshly initialised model."""
    return GPT2(config)


def from_hf(state_dict: Mapping[str, Tensor], config: GPT2Config) -> GPT2:
    """A model with the weights of Hugging Face's GPT2LMHeadModel or GPT2Model state dict, in their
    dtype.

    With config.bias=False the checkpoint's biases must be zero. Raises KeyError on a missing
    tensor, ValueError on an unknown one, on wrong shapes, an untied head or biases that the config
    has no place for.
    """
    left = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    for name in [name for name in left if name.endswith((".attn.bias", ".attn.masked_bias"))]:
        del left[name]  # causal masks that old checkpoints carry as buffers
    head = left.pop("lm_head.weight", None)
    tensors, source = {}, {}
    for own, theirs, transposed in weight_names(config.n_layer):
        tensor = take(left, theirs)
        if own.endswith("bias") and not config.bias:
            if tensor.any():
                raise ValueError(
                    f"{theirs} is not zero and the config has bias=False; set bias=True"
                )
            continue
        tensors[own] = tensor.t() if transposed else tensor
        source[own] = theirs
    if left:
        raise ValueError(
            f"the checkpoint holds {sorted(left)[:8]}, which a GPT-2 of {config.n_layer} "
            "layers has not"
        )
    if head is not None and not torch.equal(head, tensors["wte.weight"]):
        raise ValueError("lm_head.weight differs from wte.weight; this GPT-2 has a tied head")
    return load_named(build(config), tensors, source)


def to_hf(model: GPT2) -> dict[str, Tensor]:
    """State dict for Hugging Face's GPT2LMHeadModel (which always has biases: zeros where the model
    has none).

    Copies, detached from the model; linear weights are transposed, as their Conv1D stores them [in,
    out].
    """
    own_tensors = model.state_dict()
    converted = {}
    for own, theirs, transposed in weight_names(model.config.n_layer):
        if own in own_tensors:
            tensor = own_tensors[own]
            converted[f"transformer.{theirs}"] = (
                tensor.t().contiguous() if transposed else tensor.clone()
            )
        else:
            weight = own_tensors[own.removesuffix("bias") + "weight"]
            converted[f"transformer.{theirs}"] = weight.new_zeros(weight.shape[0])
    converted["lm_head.weight"] = converted["transformer.wte.weight"]
    return converted


def weight_names(n_layer: int):
    """Yield (our name, Hugging Face's name without prefix, stored transposed there) of every weight
    and bias.
    """
    yield "wte.weight", "wte.weight", False
    yield "wpe.weight", "wpe.weight", False
    parts = {
        "ln_1": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.proj": "attn.c_proj",
        "ln_2": "ln_2",
        "mlp.fc": "mlp.c_fc",
        "mlp.proj": "mlp.c_proj",
    }
    for layer in range(n_layer):
        for own, theirs in parts.items():
            yield f"h.{layer}.{own}.weight", f"h.{layer}.{theirs}.weight", not own.startswith("ln")
            yield f"h.{layer}.{own}.bias", f"h.{layer}.{theirs}.bias", False
    yield "ln_f.weight", "ln_f.weight", False
    yield "ln_f.bias", "ln_f.bias", False
