"""What the two model families share: the loss, causal attention over packed documents, and the
costs of a step.

A language model here maps tokens [n, t] to logits [n, t, v]; its loss is the sum over tokens of the
cross-entropy against the targets, in nats. The sum and not the mean, because In-Run Data Shapley is
defined for a gradient that is a sum over samples (paper, section 3): with a mean, the share of one
sample would depend on who else is in the batch.

The modules stay plain. Instrumentation happens from outside, at the level of torch operations, so
every parameter is used through F.linear, F.embedding or F.layer_norm, with the sample axis in
front.

Axes: n samples, t tokens, v vocabulary, d model width, h heads, c width of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun_kernels
from inrun.config import fits

M = TypeVar("M", bound=nn.Module)

IGNORED_TARGET = -100
VOCAB_MULTIPLE = 64


class LanguageModel(nn.Module):
    """Base of GPT2 and Pythia. A subclass sets `config` and writes `features(tokens,
    document_ids=None)` and `head_weight`.

    To compile, use `model.compile(fullgraph=True)`, which also reaches the features inside `loss`;
    `torch.compile(model)` returns a wrapper whose `loss` would run uncompiled.

    With `config.fused_head` the summed loss never holds whole logits
    (inrun_kernels.cross_entropy_sum), which is faster and smaller, and differentiable once;
    `inrun.ghost` expands it where a second derivative or forward mode is needed.

    Attention runs in `F.scaled_dot_product_attention`. Its fused kernels have no second derivative
    and no forward mode; code that needs them enters
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the call.
    """

    config: "Config"

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        reduction: str = "sum",
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of `targets` given `tokens`, in nats.

        tokens, targets: int64 [n, t]; `targets[n, t]` is the token that follows `tokens[n, t]`
        (nothing is shifted here), or -100 where no loss is taken. Returns a scalar for "sum", [n,
        t] with zeros at ignored positions for "none". The dtype is fp32 whatever autocast did to
        the logits; a float64 model gives float64.
        """
        if reduction not in ("sum", "none"):
            raise ValueError(
                f"reduction is {reduction!r}; known: 'sum', 'none'. For a mean, divide the sum by "
                "the number of targets that are not -100: the divisor is then visible to whoever "
                "attributes the loss."
            )
        if targets.shape != tokens.shape:
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}, tokens {tuple(tokens.shape)}; "
                "they must agree"
            )
        if reduction == "sum" and self.config.fused_head:
            hidden = self.features(tokens, document_ids)
            return inrun_kernels.cross_entropy_sum(
                hidden, self.head_weight, targets, ignore_index=IGNORED_TARGET
            )
        logits = self(tokens, document_ids)
        if logits.dtype != torch.float64:
            logits = logits.float()
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED_TARGET,
            reduction=reduction,
        )
        return losses.view(targets.shape) if reduction == "none" else losses

    def features(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """tokens int64 [n, t] -> what enters the head, [n, t, d]. `document_ids` as in
        `forward`.
        """
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """[v, d]."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """tokens int64 [n, t], t <= block_size -> logits [n, t, v].

        document_ids, int [n, t]: attention stays inside positions of equal id, so that packed
        documents do not see each other. Positions keep running through the sample: a document's
        logits depend on where it lies, not on its neighbours.
        """
        return F.linear(self.features(tokens, document_ids), self.head_weight)

    def compile(self, *args, **kwargs) -> None:
        """`nn.Module.compile`, for the features that `loss` calls as well."""
        super().compile(*args, **kwargs)
        compiled = torch.compile(self.features, *args, **kwargs)
        self.features = compiled  # type: ignore[method-assign]  # the same method, compiled

    def num_parameters(self) -> int:
        """Number of trained numbers, a tied weight counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def check_tokens(tokens: Tensor, block_size: int, document_ids: Tensor | None) -> None:
    """Contract of every `forward`; raises ValueError."""
    if tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be int64 [n, t], got {tokens.dtype} {tuple(tokens.shape)}")
    if tokens.shape[1] > block_size:
        raise ValueError(
            f"{tokens.shape[1]} tokens per sample, but the model has block_size={block_size}; cut "
            "the samples or build the model with a larger block_size"
        )
    if document_ids is not None and document_ids.shape != tokens.shape:
        raise ValueError(
            f"document_ids have shape {tuple(document_ids.shape)}, tokens "
            f"{tuple(tokens.shape)}; they must agree"
        )


def document_mask(document_ids: Tensor | None) -> Tensor | None:
    """Causal attention that stays inside a document: bool [n, 1, t, t], True where attention is
    allowed.

    document_ids: int [n, t]; positions of a sample with equal ids form one document, adjacent or
    not. None means one document per sample, for which the kernel's own causal mode is faster than
    any mask.
    """
    if document_ids is None:
        return None
    t = document_ids.shape[1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    causal = torch.ones(t, t, dtype=torch.bool, device=document_ids.device).tril()
    return (same & causal)[:, None]


def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """[n, t, 3 d] -> queries, keys, values, each [n, h, t, c]; the last axis of `qkv` is ordered
    (q|k|v, head, c).
    """
    n, t, width = qkv.shape
    q, k, v = qkv.view(n, t, 3, n_head, width // (3 * n_head)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Causal softmax attention. q, k, v: [n, h, t, c]; mask as from `document_mask`. Returns [n, t,
    h c].
    """
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
    )
    return mixed.transpose(1, 2).flatten(2)


class Config:
    """Base of the config dataclasses: the shape of a transformer with one fused qkv."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    d_model: int
    fused_head: bool

    @property
    def d_mlp(self) -> int:
        """Width of a block's MLP: 4 d, where a family's config does not say otherwise."""
        return 4 * self.d_model

    def __post_init__(self):
        for field in fields(cast(Any, self)):  # a subclass is a dataclass
            value, kind = getattr(self, field.name), cast(Any, field.type)
            if not fits(value, kind):
                raise TypeError(
                    f"{type(self).__name__}.{field.name} = {value!r}: expected {kind.__name__}"
                )
            if kind is int and value < 1:
                raise ValueError(
                    f"{type(self).__name__}.{field.name} = {value}: expected at least 1"
                )
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_head={self.n_head}")


def padded_vocab(n_vocab: int, multiple: int = VOCAB_MULTIPLE) -> int:
    """The smallest multiple of `multiple` that holds `n_vocab` token ids (50257 -> 50304): faster
    matrix products.

    The rows past `n_vocab` are ordinary outputs: they take part in the softmax and training pushes
    their probability to zero. Their cost at initialisation is log(padded / n_vocab), 0.0009 nats
    for GPT-2's tokenizer.
    """
    return math.ceil(n_vocab / multiple) * multiple


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Optimizer param groups: matrices and tables are decayed, vectors (biases, norms) are not.

    A tied weight is listed once; frozen parameters are left out. Both groups are always there, the
    decayed one first.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def flops_per_token(config: Config, context: int | None = None) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 L d T.

    The convention of PaLM (Chowdhery et al. 2022, appendix B) and nanoGPT: a multiply-add is 2, the
    backward costs twice the forward, and attention counts the full T x T square (a causal kernel
    computes about half of it). N counts the weights of matrix products only: 4 d^2 + 2 d d_mlp per
    layer and the head, v d, padding rows included. Look-ups, norms, biases, activations and the
    softmax are left out. T is `context`, by default block_size.
    """
    d = config.d_model
    layer = 4 * d * d + 2 * d * config.d_mlp
    matmul_weights = config.n_layer * layer + config.vocab_size * d
    tokens = config.block_size if context is None else context
    return 6 * matmul_weights + 12 * config.n_layer * d * tokens


def load_named(model: M, tensors: Mapping[str, Tensor], source: Mapping[str, str]) -> M:
    """Copy `tensors` (named as in the model's own state dict, all of them) into `model`, in their
    dtype and device.

    source: the checkpoint's name of each tensor, for messages. Raises ValueError on a wrong shape
    or mixed dtypes.
    """
    for name, own in model.state_dict().items():
        if tensors[name].shape != own.shape:
            raise ValueError(
                f"{source[name]} gives shape {tuple(tensors[name].shape)}, the config wants "
                f"{tuple(own.shape)}; "
                "set vocab_size, block_size, d_model and n_layer to the checkpoint's"
            )
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
    if len(kinds) > 1:
        raise ValueError(
            f"the checkpoint mixes {sorted(map(str, kinds))}; cast it to one dtype and device first"
        )
    dtype, device = kinds.pop()
    model = model.to(device=device, dtype=dtype)
    model.load_state_dict(tensors)
    return model


def take(checkpoint: dict[str, Tensor], name: str) -> Tensor:
    """Remove and return a tensor of a checkpoint; raises KeyError with the names that are there."""
    if name not in checkpoint:
        raise KeyError(
            f"the checkpoint has no {name!r}; left over are {sorted(checkpoint)[:8]} ..."
        )
    return checkpoint.pop(name)
