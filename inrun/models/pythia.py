"""Pythia (Biderman et al. 2023), a GPT-NeoX: rotary positions, parallel residual, untied head, erf
GELU, biases.

Logits equal Hugging Face's GPTNeoXForCausalLM to rounding. Attention and MLP read the same residual
stream through norms of their own: x + mlp(ln_2(x)) + attn(ln_1(x)). Initialisation is that of
Pythia's training runs: "small init" (Nguyen and Salazar 2019), std sqrt(2 / (5 d)), and for the
projections into the residual stream 2 / (n_layer sqrt(d)).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class PythiaConfig(Config):
    """Shape of a Pythia."""

    vocab_size: int = 50304
    """Rows of the two token tables, as published 50304 for a tokenizer of 50277.

    The logits of padding ids are ordinary outputs.
    """
    block_size: int = 2048
    """The most tokens of a sample."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Heads of attention."""
    d_model: int = 768
    """Width."""
    rotary_pct: float = 0.25
    """Share of a head's width that is rotated."""
    rotary_base: float = 10000.0
    """The wavelength of the slowest rotation is about 2 pi times this, in tokens."""
    fused_head: bool = True
    """Take the summed loss without ever holding whole logits (see `LanguageModel`)."""

    def __post_init__(self):
        super().__post_init__()
        if self.rotary_width % 2 or not 0 < self.rotary_width <= self.d_model // self.n_head:
            raise ValueError(
                f"rotary_pct={self.rotary_pct} rotates {self.rotary_width} of "
                f"{self.d_model // self.n_head} numbers "
                "per head; expected an even number of at least 2"
            )

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers are rotated."""
        return int(self.rotary_pct * (self.d_model // self.n_head))


PRESETS = {
    "tiny": PythiaConfig(vocab_size=8192, block_size=128, n_layer=4, n_head=4, d_model=128),
    "14m": PythiaConfig(n_layer=6, n_head=4, d_model=128),
    "160m": PythiaConfig(n_layer=12, n_head=12, d_model=768),
    "410m": PythiaConfig(n_layer=24, n_head=16, d_model=1024),
}


def rotary_tables(config: PythiaConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles, float32 [block_size, rotary_width].

    In float32 whatever the model's dtype: the published weights were trained with such tables, and
    a float64 model has to be the same function as the float32 one, computed more exactly.
    """
    width = config.rotary_width
    frequencies = 1.0 / config.rotary_base ** (
        torch.arange(0, width, 2, dtype=torch.float32) / width
    )
    angles = torch.arange(config.block_size, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first numbers of each head, pairing j with j + width / 2. x: [n, h, t, c]; cos,
    sin: [t, width].
    """
    turned, kept = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat(
        (turned.to(x.dtype), kept), dim=-1
    )  # back from fp32, where autocast made x bf16


class Attention(nn.Module):
    def __init__(self, config: PythiaConfig):
        super().__init__()
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.proj = nn.Linear(config.d_model, config.d_model)
        self.n_head = config.n_head

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.n_head)
        return self.proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask))


class MLP(nn.Module):
    def __init__(self, config: PythiaConfig):
        super().__init__()
        self.fc = nn.Linear(config.d_model, config.d_mlp)
        self.proj = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x)))


class Block(nn.Module):
    def __init__(self, config: PythiaConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.d_model)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        return self.mlp(self.ln_2(x)) + self.attn(self.ln_1(x), cos, sin, mask) + x


class Pythia(LanguageModel):
    """Pythia. The head is `embed_out`, a table of its own."""

    config: PythiaConfig
    cos: Tensor
    sin: Tensor

    def __init__(self, config: PythiaConfig):
        super().__init__()
        self.config = config
        self.embed_in = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model)
        self.embed_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self)

    def features(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        check_tokens(tokens, self.config.block_size, document_ids)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        mask = document_mask(document_ids)
        x = self.embed_in(tokens)
        for block in self.layers:
            x = block(x, cos, sin, mask)
        return self.ln_f(x)

    @property
    def head_weight(self) -> Tensor:
        return self.embed_out.weight


@torch.no_grad()
def initialise(model: Pythia) -> None:
    """Draw fresh weights from torch's global generator."""
    d = model.config.d_model
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (5 * d)))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.layers:
        assert isinstance(block, Block)
        for proj in (block.attn.proj, block.mlp.proj):
            nn.init.normal_(proj.weight, std=2 / (model.config.n_layer * math.sqrt(d)))


def build(config: PythiaConfig) -> Pythia:
    """A freshly initialised model."""
    return Pythia(config)


def from_hf(state_dict: Mapping[str, Tensor], config: PythiaConfig) -> Pythia:
    """A model with the weights of Hugging Face's GPTNeoXForCausalLM state dict, in their dtype.

    The head may be called lm_head (transformers 5) or embed_out (older, and the published files).
    Raises KeyError on a missing tensor, ValueError on an unknown one or on wrong shapes.
    """
    left = dict(state_dict)
    if "embed_out.weight" in left:
        left["lm_head.weight"] = left.pop("embed_out.weight")
    buffers = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")
    for name in [name for name in left if name.endswith(buffers)]:
        del left[name]  # causal masks and angles that old checkpoints carry as buffers
    tensors, source = {}, {}
    for own, theirs in weight_names(config.n_layer):
        tensor = take(left, theirs)
        tensors[own] = _reorder_qkv(tensor, (config.n_head, 3)) if ".qkv." in own else tensor
        source[own] = theirs
    if left:
        raise ValueError(
            f"the checkpoint holds {sorted(left)[:8]}, which a Pythia of {config.n_layer} "
            "layers has not"
        )
    return load_named(build(config), tensors, source)


def to_hf(model: Pythia) -> dict[str, Tensor]:
    """State dict for Hugging Face's GPTNeoXForCausalLM of transformers 5 (head: lm_head). Copies,
    detached.
    """
    own_tensors = model.state_dict()
    return {
        theirs: _reorder_qkv(own_tensors[own], (3, model.config.n_head))
        if ".qkv." in own
        else own_tensors[own].clone()
        for own, theirs in weight_names(model.config.n_layer)
    }


def _reorder_qkv(tensor: Tensor, order: tuple[int, int]) -> Tensor:
    """Swap the two outer axes of the fused rows: GPT-NeoX has (head, q|k|v, c), we have (q|k|v,
    head, c).
    """
    rows = tensor.unflatten(0, (*order, -1))
    return rows.transpose(0, 1).flatten(0, 2).contiguous()


def weight_names(n_layer: int):
    """Yield (our name, Hugging Face's name) of every weight and bias."""
    yield "embed_in.weight", "gpt_neox.embed_in.weight"
    parts = {
        "ln_1": "input_layernorm",
        "attn.qkv": "attention.query_key_value",
        "attn.proj": "attention.dense",
        "ln_2": "post_attention_layernorm",
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
    }
    for layer in range(n_layer):
        for own, theirs in parts.items():
            for kind in ("weight", "bias"):
                yield f"layers.{layer}.{own}.{kind}", f"gpt_neox.layers.{layer}.{theirs}.{kind}"
    yield "ln_f.weight", "gpt_neox.final_layer_norm.weight"
    yield "ln_f.bias", "gpt_neox.final_layer_norm.bias"
    yield "embed_out.weight", "lm_head.weight"
