"""What one model type needs beside the general walk over its config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Special:
    """Exceptions of a type."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """dotted name in the config -> value"""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """argument of forward -> what is given: a shape (tuple), values (list), anything else as it is;
    None leaves it out"""
    head: str = ""
    """of `zoo.HEADS`; empty: the first that runs"""
    images: int = 0
    """placeholders of images or sounds in the text of a sample"""
    eager: bool = False
    """plain attention"""
    leave_out: str = ""
    """why it is not built"""


def resnet() -> Any:
    """A small backbone in the place of one that needs timm."""
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def hgnet(place: str = "") -> dict[str, Any]:
    """Channels of all stages, divided alike."""
    return {
        f"{place}stem_channels": [3, 8, 12],
        f"{place}stage_in_channels": [12, 32, 128, 256],
        f"{place}stage_mid_channels": [12, 24, 48, 96],
        f"{place}stage_out_channels": [32, 128, 256, 512],
        f"{place}hidden_sizes": [32, 128, 256, 512],
    }


SERIES = {
    "past_values": (16,),
    "past_time_features": (16, 0),
    "past_observed_mask": [1.0] * 16,
    "future_values": (4,),
    "future_time_features": (4, 0),
}
SERIES_CONFIG = {"context_length": 9}
NO_DOUBLE = "computes in float32 in places whatever its weights are, and torch does not mix them"

SPECIAL: dict[str, Special] = {
    "autoformer": Special(config=SERIES_CONFIG, inputs=SERIES),
    "informer": Special(config=SERIES_CONFIG, inputs=SERIES),
    "time_series_transformer": Special(config=SERIES_CONFIG, inputs=SERIES),
    "bit": Special(config={"num_groups": 4}),
    "blip_2_qformer": Special(inputs={"query_embeds": (8, 64), "encoder_hidden_states": (6, 64)}),
    "blt": Special(config={"encoder_hash_byte_group_vocab": 50}),
    "chameleon": Special(config={"vocabulary_map": {"<image>": 150}}),
    "conditional_detr": Special(config={"backbone_config": resnet}),
    "dab-detr": Special(config={"backbone_config": resnet}),
    "deformable_detr": Special(config={"backbone_config": resnet}),
    "detr": Special(config={"backbone_config": resnet}),
    "table-transformer": Special(config={"backbone_config": resnet}),
    "d_fine": Special(config=hgnet("backbone_config.") | {"encoder_in_channels": [128, 256, 512]}),
    "deimv2": Special(config=hgnet("backbone_config.") | {"encoder_in_channels": [128, 256, 512]}),
    "hgnet_v2": Special(config=hgnet()),
    "decision_transformer": Special(
        inputs={
            "states": (5, 17),
            "actions": (5, 4),
            "rewards": (5, 1),
            "returns_to_go": (5, 1),
            "timesteps": [0, 1, 2, 3, 4],
            "attention_mask": [1, 1, 1, 1, 1],
        }
    ),
    "efficientnet": Special(
        config={"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
    ),
    "hunyuan_v1_dense": Special(config={"head_dim": 16}),
    "hunyuan_vl": Special(config={"text_config.head_dim": 16}),
    "hunyuan_vl_text": Special(config={"head_dim": 16}),
    "fun_asr_nano_encoder": Special(inputs={"input_features": (40, 112)}),
    "granite_speech5_ctc": Special(inputs={"input_features": (40, 64), "attention_mask": None}),
    "granite_speech5_encoder": Special(inputs={"input_features": (40, 64)}),
    "hunyuan_v1_moe": Special(config={"head_dim": 16}),
    "ministral": Special(config={"head_dim": 16}),
    "nemotron": Special(config={"head_dim": 16}),
    "inkling2": Special(leave_out=NO_DOUBLE),
    "inkling2_text": Special(leave_out=NO_DOUBLE),
    "mra": Special(leave_out=NO_DOUBLE),
    "efficientloftr": Special(inputs={"pixel_values": (2, 3, 32, 32)}),
    "lightglue": Special(inputs={"pixel_values": (2, 3, 32, 32)}),
    "superglue": Special(inputs={"pixel_values": (2, 3, 32, 32)}),
    "layoutlmv3": Special(config={"coordinate_size": 8, "shape_size": 16}),
    "lilt": Special(config={"hidden_size": 96}),
    "lxmert": Special(inputs={"visual_feats": (6, 64), "visual_pos": (6, 4)}),
    "patchtst": Special(inputs={"past_values": (32, 1)}),
    "patchtsmixer": Special(inputs={"past_values": (32, 1)}),
    "muse_spark_audio": Special(inputs={"input_values": (1920,)}),
}
