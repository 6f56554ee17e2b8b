"""Tables of which bags of rows are added up: torch.nn.EmbeddingBag."""

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.rules.factors import Factor, Rows, by_sample
from inrun.rules.registry import NoRule, refuse, rule

Bags = tuple[Tensor, Tensor, Tensor]


@rule(F.embedding_bag, argument="weight")
def embedding_bag_weight(
    n: int,
    b: Tensor,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    *rest,
    **options,
) -> Factor:
    if mode == "max":
        raise NoRule  # which row counts differs by feature
    names = ("sparse", "per_sample_weights", "include_last_offset", "padding_idx")
    options |= dict(zip(names, rest))
    per_sample_weights, padding_idx = (options.get(name) for name in (names[1], names[3]))
    last = bool(options.get("include_last_offset"))
    places, ids, share = _bags(input, len(b), offsets, last)
    share = share.to(b.dtype)
    if per_sample_weights is not None:
        share = share * per_sample_weights.reshape(-1)
    if padding_idx is not None:
        share = share * (ids != padding_idx % weight.shape[0])
    if mode == "mean":
        counted = (share != 0).to(b.dtype)
        sizes = torch.zeros(len(b), dtype=b.dtype, device=b.device).index_add_(0, places, counted)
        share = share / sizes.clamp(min=1)[places]
    table, rows = _rectangular(places, ids, share, len(b))
    # [bags, longest] of each; the bags of a sample stand together
    found = rows.unsqueeze(-1) * b[:, None]
    return Rows(
        by_sample(table, n).reshape(n, -1),
        by_sample(found, n).reshape(n, -1, b.shape[-1]),
        tuple(weight.shape),
    )


def _bags(input: Tensor, bags: int, offsets: Tensor | None, last: bool) -> Bags:
    """(bag, row of the table, 1) of every place that is looked up."""
    ids = input.reshape(-1)
    if offsets is None:
        places = torch.arange(bags, device=ids.device).repeat_interleave(input.shape[1])
    else:
        starts = offsets[:-1] if last else offsets
        at = torch.arange(len(ids), device=ids.device, dtype=starts.dtype)
        places = torch.searchsorted(starts.contiguous(), at, right=True) - 1
    return places, ids, torch.ones(len(ids), device=ids.device)


def _rectangular(places: Tensor, ids: Tensor, share: Tensor, bags: int) -> tuple[Tensor, Tensor]:
    """Ids and shares [bags, longest] of bags of several lengths; what is not filled has share 0."""
    lengths = torch.bincount(places, minlength=bags)
    longest = int(lengths.max()) if len(places) else 0
    starts = lengths.cumsum(0) - lengths
    column = torch.arange(len(ids), device=ids.device) - starts[places]
    table, rows = ids.new_zeros(bags, longest), share.new_zeros(bags, longest)
    table[places, column], rows[places, column] = ids, share
    return table, rows


@refuse(F.embedding_bag)
def scaled_by_the_batch(input, weight, *args, **kwargs) -> str | None:
    names = ("offsets", "max_norm", "norm_type", "scale_grad_by_freq")
    given = dict(zip(names, args)) | kwargs
    return frequency_scale(bool(given.get("scale_grad_by_freq")))


def frequency_scale(asked: bool) -> str | None:
    """Why such a table has no per-sample gradient, None where it is not asked for."""
    if not asked:
        return None
    return (
        "an embedding with scale_grad_by_freq=True divides a row's gradient by how often the whole "
        "batch looks it up, so a sample has no gradient of its own; leave the option out"
    )
