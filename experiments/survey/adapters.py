"""peft's adapters on a small Llama, each type with its defaults shrunk to the small widths."""

import dataclasses
from typing import Any

import torch

from experiments.survey import zoo
from experiments.survey.arguments import Asked
from experiments.survey.build import Built, check, made
from experiments.survey.inputs import candidates
from experiments.survey.outputs import CannotBuild, named
from experiments.survey.shrink import shrink
from experiments.survey.special import Special

PREFIX = "peft/"
#: options of peft's configs that an adapter gets where it has them
SMALL: dict[str, Any] = {
    "r": 4,
    "hybrid_r": 2,
    "rank": 4,
    "target_modules": ["q_proj", "v_proj"],
    "num_virtual_tokens": 4,
    "encoder_hidden_size": 16,
    "adapter_len": 4,
    "adapter_layers": 2,
    "block_size": 16,
    "n_frequency": 20,
    "theta_d_length": 64,
    "num_vectors": 16,
    "vector_length": 16,
    "topk": 2,
    "gralora_k": 2,
    "effective_rank": 8,
    "group_size": 16,
    "shadow_hidden_size": 32,
    "shadow_intermediate_size": 48,
    "shadow_num_attention_heads": 4,
    "num_B": 2,
}
#: what one adapter needs beside them
OWN: dict[str, dict[str, Any]] = {
    # its penalty on weights belongs to no sample: made too small to matter
    "ADALORA": {"r": None, "init_r": 4, "target_r": 2, "total_step": 10, "orth_reg_weight": 1e-30},
    "BOFT": {"boft_block_size": 8},
    "OFT": {"r": 0, "oft_block_size": 16},
    "ADAPTION_PROMPT": {"target_modules": None},
    "IA3": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "LN_TUNING": {"target_modules": None},
    "CPT": {
        "num_virtual_tokens": None,
        "cpt_token_ids": [21, 22, 23, 24],
        "cpt_mask": [1, 1, 1, 1],
        "cpt_tokens_type_mask": [1, 2, 3, 4],
    },
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [25, 30, 40, 50]},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "POLY": {"n_tasks": 2, "n_skills": 2},
}
#: variants of LoRA that are options, not types
VARIANTS = {
    "LORA+dora": {"use_dora": True},
    "LORA+rslora": {"use_rslora": True},
    "LORA+bias": {"bias": "lora_only"},
    "LORA+experts": {"target_parameters": ["mlp.experts.gate_up_proj"], "target_modules": None},
}


def adapters() -> list[str]:
    """Names of all types of the installed peft, and of the variants; none without peft."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError:
        return []
    return [PREFIX + t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING] + [PREFIX + v for v in VARIANTS]


def build_adapter(name: str, row: dict[str, Any]) -> Built:
    """The adapted model with its samples; trained is what peft leaves trainable.

    Raises:
        CannotBuild: peft does not take the small config, or the model does not run.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = name.removeprefix(PREFIX)
    plain = kind.partition("+")[0]
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(plain)]
    base = "mixtral" if "experts" in kind else "llama"
    row |= {"head": "adapter", "model": cls.__name__}
    _, causal = zoo.classes_of(base, zoo.config_of(base))[0]
    try:
        model = made(causal, shrink(zoo.config_of(base)), Special())
        config = cls(**options(cls, OWN.get(plain, {}) | VARIANTS.get(kind, {})))
        adapted = peft.get_peft_model(model, config).double()
        shake(adapted)
        _, make = next(iter(candidates(Asked(model, "causal LM", {}))))
        fixed = (
            {"task_ids": torch.zeros(1, dtype=torch.long)}
            if "TASK" in plain or plain == "POLY"
            else {}
        )
        built = Built(adapted, lambda seed, images: make(seed, images) | fixed)
        check(built)
    except CannotBuild:
        raise
    except Exception as error:
        raise CannotBuild(named(error)) from None
    return built


def options(cls: type, own: dict[str, Any]) -> dict[str, Any]:
    """Small numbers for the fields that the config has; no dropout."""
    fields = {f.name for f in dataclasses.fields(cls)}
    found = {name: value for name, value in SMALL.items() if name in fields}
    found |= {name: 0.0 for name in fields if name.endswith("dropout")}
    found |= {"task_type": "CAUSAL_LM"} | own
    return {name: value for name, value in found.items() if value is not None}


def shake(model: torch.nn.Module) -> None:
    """Move what is trained a little: many adapters begin at 0, and half of them has no gradient."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and p.is_floating_point():
                p.add_(0.05 * torch.randn_like(p))
