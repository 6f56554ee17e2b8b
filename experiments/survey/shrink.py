"""A config of any model type, made small: the walk over its attributes, by their names.

What stands here is general. What one type needs beside it is in `special.py`.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

WIDTH, HEADS, HEAD, VOCAB, SIDE, PATCH = 64, 4, 16, 160, 32, 8

#: (pattern of the whole name, number that takes the place of a larger one)
NUMBERS: tuple[tuple[str, int], ...] = (
    (r"num_kv_shared_layers", 0),
    (r".*vocab_size.*|n_words|max_num_classes", VOCAB),
    (r".*(num_key_value_heads|num_kv_heads|n_kv_head|num_kv_head|kv_heads)", 2),
    (r"qk_head_dim", 2 * HEAD),
    (r".*(head_dim|attention_head_size|dim_head|head_size|d_kv|kv_channels|d_head)", HEAD),
    (r"rotary_dim", HEAD),
    (r".*(num_heads|attention_heads|n_heads?|num_attn_heads|index_n_heads)", HEADS),
    (r".*lora_rank|.*_rank", 16),
    (r".*n_group|topk_group|.*num_expert_group", 1),
    (r"n_groups|.*_n_groups", 1),
    (r".*(experts_per_tok|experts_per_token|moe_topk|moe_k|top_k_experts|router_topk)", 2),
    (r".*shared_experts|.*num_shared_experts", 1),
    (r".*(num_experts|num_local_experts|n_routed_experts|moe_num_experts|expert_num).*", 4),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r".*(num_mem_blocks)", 1),
    (r"(.*_)?(num_hidden_layers|n_layers?|num_layers|depth|layers|num_blocks|.*_layers)", 2),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|n_inner|d_inner|ffn_hidden_size).*", 96),
    (r".*(feed_forward|feedforward|linear_units).*", 96),
    (r"(.*_)?(state_size|d_state|ssm_state_size)", 8),
    (r".*(image_size|img_size|input_size|crop_size)", SIDE),
    (r".*patch_size", PATCH),
    (r"(.*_)?(num_mel_bins|n_mel_bins|mel_dim|n_mels|num_mels)", 16),
    (r".*(num_queries|num_query_tokens|num_latents|n_latents|num_object_queries|query_num)", 8),
    (r".*(chunk_size|block_size|attention_window)", 8),
    (r".*(position_embeddings|n_positions|max_source_positions|max_target_positions)", 128),
    (r"max_seq_len|max_length|context_length|model_max_length", 128),
    (
        r".*(hidden_size|d_model|n_embd|embed_dim|embedding_size|hidden_dim|_dim|_hidden|_width"
        r"|embed_dim|projection_size|proj_size|output_size|embedding_dim|_units|pooler_output_size)",
        WIDTH,
    ),
    (r".*hidden_sizes?.*|dim|width|emb_dim|embed_dims?|inner_dim", WIDTH),
    (r".*channels.*|.*num_filters", WIDTH),
    (r"upsample_groups", WIDTH),
    (r".*num_embeddings|codebook_size|num_embeds", 32),
)
#: probabilities of leaving something out, and what draws masks: none of it
RANDOM = re.compile(
    r".*(drop|jitter|mask_time_prob|mask_feature_prob|gp_dropout|noise_scale|spec_augment).*"
)
#: what belongs to widths though its number is small
HEADED = re.compile(r".*(head|kv|state|chunk|block_size|window|group|patch|quer|latent).*")
#: ids of tokens
TOKEN = re.compile(r".*(token_id|token_index|_token_ids)")
#: what a model needs and its config leaves open
MISSING = {
    "vocab_size": VOCAB,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "pad_token_id": 1,
    "prediction_length": 4,
}
#: kinds of layers, of which each is kept once
KINDS = re.compile(r".*(layer_types?|layers_block_type|block_types?|layers_type|indexer_types).*")


def shrink(config: Any, special: Mapping[str, Any] | None = None, narrow: bool = True) -> Any:
    """The config, changed in place and in its parts: small widths, few layers, nothing random.

    Args:
        config: of transformers, with its defaults.
        narrow: False keeps widths and images: few layers and words only.
        special: dotted name -> value, set at the end.
    """
    for _, part in parts(config):
        _shrink_one(part, narrow)
    for path, value in (special or {}).items():
        value = value() if callable(value) else value
        *before, last = path.split(".")
        part = config
        for step in before:
            part = getattr(part, step)
        _put(part, last, value)
    return config


def parts(config: Any, name: str = "") -> Sequence[tuple[str, Any]]:
    """(dotted name, config) of the config and of all configs inside."""
    from transformers import PreTrainedConfig

    found = [(name, config)]
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found += parts(value, f"{name}.{key}".strip("."))
    return found


def _shrink_one(config: Any, narrow: bool) -> None:
    """Numbers by their names, then what must agree with them."""
    before = dict(vars(config))
    for name, value in before.items():
        if name.startswith("_") or name == "id2label" or name == "label2id":
            continue
        if RANDOM.fullmatch(name):
            _put(config, name, _nothing(value))
        elif isinstance(value, bool) or value is None or TOKEN.fullmatch(name):
            continue
        elif isinstance(value, int):
            _put(config, name, number(name, value, narrow))
        elif (
            narrow
            and isinstance(value, (list, tuple))
            and value
            and all(type(v) is int for v in value)
        ):
            _put(config, name, type(value)(numbers(name, value)))
    _kinds_of_layers(config, before)
    _agree(config, before)
    _tokens(config)
    _rope(config)


def setting(config: Any, name: str, default: Any = None) -> Any:
    """An attribute; the default where there is none, it is None, or layers differ in it."""
    try:
        value = getattr(config, name, None)
    except Exception:
        return default
    return default if value is None else value


def narrow_stages(given: Any) -> bool:
    """Whether a model has several stages, each with a number of its own."""
    return isinstance(given, (list, tuple)) and bool(given) and type(given[0]) is int


def _agree(config: Any, before: Mapping[str, Any]) -> None:
    """Numbers that follow from others, and those without a default."""
    for name in before:
        if name.endswith(("num_key_value_heads", "num_kv_heads")):
            queries = name.replace("key_value", "attention").replace("num_kv", "num_attention")
            if before.get(queries) in (before[name], None) and type(before[name]) is int:
                _put(config, name, setting(config, queries, HEADS))
    stages = before.get("num_heads") or before.get("num_attention_heads")
    if narrow_stages(stages) and type(before.get("embed_dim")) is int:
        _put(config, "embed_dim", 16 * stages[0])
    if narrow_stages(before.get("depths")) and type(before.get("window_size")) is int:
        _put(config, "window_size", 2)
        for side in ("image_size", "pretrain_image_size"):
            if type(before.get(side)) is int:
                _put(config, side, 4 * 2 ** len(before["depths"]))
    inner = setting(config, "mamba_expand", setting(config, "expand"))
    width = setting(config, "hidden_size", setting(config, "d_model"))
    for many, each in (
        ("mamba_n_heads", "mamba_d_head"),
        ("mamba_num_heads", "mamba_head_dim"),
        ("num_heads", "head_dim"),
    ):
        if inner and width and type(before.get(many)) is int and type(before.get(each)) is int:
            _put(config, many, int(inner * width) // setting(config, each))
    if type(before.get("mamba_d_ssm")) is int:
        _put(config, "mamba_d_ssm", int(inner * width))
    for name, value in before.items():
        if value is None and name in MISSING:
            _put(config, name, MISSING[name])
        if value is None and name.endswith("image_token_index"):
            _put(config, name, VOCAB - 5)


def number(name: str, value: int, narrow: bool = True) -> int:
    """A smaller one, by the first pattern that the name fits."""
    for pattern, small in NUMBERS:
        if not narrow and small not in (1, 2, 4, 8, VOCAB):
            continue
        if not narrow and HEADED.fullmatch(name):
            return value
        if re.fullmatch(pattern, name):
            return min(value, small)
    return value


def numbers(name: str, values: Sequence[int]) -> list[int]:
    """Widths are divided by one power of two, depths are 1, everything else stays."""
    if re.fullmatch(r".*(depths|blocks|layers|num_block_repeats|stage_numb_of_layers).*", name):
        return [min(v, 1) for v in values]
    if re.fullmatch(r".*(hidden_sizes|channels|dims?|embed_dims|sizes_per|widths|filters).*", name):
        if len(set(values)) == 1:
            return [number(name, v) for v in values]
        common, factor = gcd(*values), 1
        while common % (2 * factor) == 0 and min(values) // (2 * factor) >= 16:
            factor *= 2
        return [v // factor for v in values]
    if re.fullmatch(r".*(image_size|img_size|input_size|crop_size)", name):
        return [SIDE for _ in values]
    if re.fullmatch(r".*patch_size", name):
        return [min(v, PATCH) for v in values]
    return list(values)


def _kinds_of_layers(config: Any, before: Mapping[str, Any]) -> None:
    """Each kind of layer once, and as many layers as that makes."""
    lists = {
        name: value
        for name, value in before.items()
        if KINDS.fullmatch(name) and isinstance(value, (list, tuple)) and len(value) > 1
    }
    if not lists:
        return
    layers = max(2, *(len(set(map(str, value))) for value in lists.values()))
    for name, value in lists.items():
        kept = list(dict.fromkeys(value))
        _put(config, name, [*kept, *kept * layers][:layers])
    for name in ("num_hidden_layers", "n_layers", "num_layers"):
        if isinstance(before.get(name), int):
            _put(config, name, layers)


def _tokens(config: Any) -> None:
    """Ids of special tokens inside the small vocabulary, all different."""
    vocab = getattr(config, "vocab_size", None)
    most = vocab if isinstance(vocab, int) and vocab > 32 else VOCAB
    taken: set[int] = set()
    for name, value in dict(vars(config)).items():
        if not name.endswith(("token_id", "token_index")) or type(value) is not int:
            continue
        if not 0 <= value < most or (value in taken and value > 16):
            value = next(v for v in range(most - 1, 0, -1) if v not in taken)
            _put(config, name, value)
        taken.add(value)


def _rope(config: Any) -> None:
    """Sections and factors of rotary embeddings that fit the small heads."""
    width = setting(config, "hidden_size", setting(config, "d_model", WIDTH))
    heads = setting(config, "num_attention_heads", HEADS)
    head = setting(config, "head_dim")
    if not isinstance(head, int):
        head = width // heads if isinstance(width, int) and isinstance(heads, int) else HEAD

    sectioned = _mentions(config, "mrope_section")

    def fitted(given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        share = given.get("partial_rotary_factor") or 1.0
        half = max(1, int(head * share) // 2)
        made = {key: fitted(value) for key, value in given.items()}
        rotary = "rope_type" in made or "rope_theta" in made
        if "mrope_section" in made or (sectioned and rotary):
            sections = made.get("mrope_section") or [2, 3, 3]
            small = [max(1, half * s // sum(sections)) for s in sections]
            small[0] += half - sum(small)
            made["mrope_section"] = small
        for key in ("short_factor", "long_factor"):
            if key in made:
                made[key] = [1.0 + 0.1 * k for k in range(half)]
        return made

    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(getattr(config, name, None), dict):
            _put(config, name, fitted(getattr(config, name)))


def _mentions(config: Any, words: str) -> bool:
    """Whether the model's code beside the config mentions this setting."""
    try:
        beside = importlib.import_module(
            type(config).__module__.replace("configuration_", "modeling_")
        )
    except ImportError:
        return False
    return words in inspect.getsource(beside)


def _nothing(value: Any) -> Any:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return type(value)(0)
    if isinstance(value, (list, tuple)):
        return type(value)(_nothing(v) for v in value)
    return value


def _put(config: Any, name: str, value: Any) -> None:
    setattr(config, name, value)
