"""An argument of a model's forward each: what is given for it, by its name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.survey.shrink import PATCH, SIDE, VOCAB, parts, setting

TEXT = 12


@dataclass(frozen=True)
class Asked:
    """What a sample is made for."""

    model: nn.Module
    head: str
    fixed: Mapping[str, Any]
    """name of an argument -> its shape of one sample, or None to leave it out"""
    seed: int = 0
    images: int = 0
    """placeholders of images or sounds in the text"""
    turned: bool = False
    """sounds as [bins, frames]"""

    @property
    def random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def setting(self, *names: str, default: Any = None, where: str = "") -> Any:
        """The first of these attributes that the config or a part of it has."""
        for name in names:
            for place, part in parts(self.model.config):
                if where in place and setting(part, name) is not None:
                    return setting(part, name)
        return default

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=self.random, dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (1, *shape), generator=self.random)


def _words(asked: Asked) -> tuple[int, int]:
    """Lowest id and end of the ids that stand for nothing special."""
    vocab = asked.setting("vocab_size", "n_words", default=VOCAB)
    vocab = min(vocab, VOCAB) if isinstance(vocab, int) else VOCAB
    return (20, vocab - 30) if vocab >= 80 else (min(4, vocab - 2), vocab)


def _classes(asked: Asked) -> int:
    return getattr(asked.model.config, "num_labels", None) or 2


def _ids(asked: Asked) -> Tensor:
    ids = asked.integers(*_words(asked), TEXT)
    if asked.images:
        mark = asked.setting(
            "image_token_id",
            "image_token_index",
            "audio_token_id",
            "audio_token_index",
            "video_token_id",
            "speech_token_id",
        )
        ids = torch.cat([ids[:, :2], torch.full((1, asked.images), mark), ids[:, 2:]], 1)
    return ids


def _marks(asked: Asked) -> Tensor:
    return torch.ones_like(_ids(asked))


def _types(asked: Asked) -> Tensor:
    return torch.zeros_like(_ids(asked))


def _labels(asked: Asked) -> Tensor | None:
    head = asked.head
    if head in ("causal LM", "image-text", "multimodal", "pretraining"):
        if head == "pretraining" and asked.model.main_input_name != "input_ids":
            return None
        return _ids(asked)
    if head in ("masked LM", "tokens"):
        span = (0, _classes(asked)) if head == "tokens" else _words(asked)
        return asked.integers(*span, _ids(asked).shape[1])
    if head in ("seq2seq", "speech seq2seq"):
        return asked.integers(*_words(asked), 6)
    if head in ("images", "audio", "sequences", "videos"):
        return asked.integers(0, _classes(asked))
    if head == "CTC":
        return asked.integers(5, 20, 2)
    return None


def _decoder_ids(asked: Asked) -> Tensor | None:
    if not asked.setting("is_encoder_decoder") and "decoder_input_ids" not in asked.fixed:
        return None
    if asked.head in ("seq2seq", "speech seq2seq"):
        return None  # made of the labels
    return asked.integers(*_words(asked), 6)


def _side(asked: Asked) -> tuple[int, int]:
    side = asked.setting("image_size", "img_size", "input_size", default=SIDE)
    if isinstance(side, dict):
        side = (side.get("height", SIDE), side.get("width", SIDE))
    return (side, side) if isinstance(side, int) else (side[0], side[-1])


def _channels(asked: Asked) -> int:
    for _, part in parts(asked.model.config):
        for name in ("num_channels", "in_channels", "in_chans", "channels"):
            value = getattr(part, name, None)
            if type(value) is int and value <= 4:
                return value
    return 3


def _grid(asked: Asked) -> Tensor:
    return torch.tensor([[1, 4, 4]])


def _patches(asked: Asked) -> bool:
    given = inspect.signature(asked.model.forward).parameters
    return "image_grid_thw" in given or "grid_thw" in given


def _pixels(asked: Asked) -> Tensor:
    channels = _channels(asked)
    if _patches(asked):
        side = asked.setting("patch_size", "spatial_patch_size", where="vision", default=None)
        side = side or asked.setting("patch_size", "spatial_patch_size", default=PATCH)
        deep = asked.setting("temporal_patch_size", default=1)
        return torch.randn(
            16, channels * deep * side * side, generator=asked.random, dtype=torch.float64
        )
    if asked.head == "videos" or (asked.setting("num_frames", "tubelet_size") and _is_video(asked)):
        return _frames(asked)
    return asked.normal(channels, *_side(asked))


def _hidden(asked: Asked) -> Tensor | None:
    return _pixels(asked) if _patches(asked) else None


def _is_video(asked: Asked) -> bool:
    return asked.model.config.model_type in ("timesformer", "vivit", "videomae")


def _frames(asked: Asked) -> Tensor:
    frames = asked.setting("num_frames", "frames_per_clip", default=4)
    return asked.normal(frames, _channels(asked), *_side(asked))


def _sound(asked: Asked) -> Tensor:
    bins = asked.setting(
        "num_mel_bins",
        "n_mels",
        "feature_size",
        "mel_dim",
        "input_feat_size",
        "num_mel_channels",
        "n_mel_bins",
        "feat_dim",
        "input_dim",
        default=16,
    )
    frames = asked.setting("max_source_positions", default=None)
    if asked.setting("feature_projection_input_dim"):
        bins = asked.setting("feature_projection_input_dim")
    if (
        isinstance(frames, int)
        and asked.setting("num_mel_bins")
        and not asked.setting("input_feat_per_channel")
    ):
        return asked.normal(bins, 2 * frames)
    if asked.setting("input_feat_per_channel"):
        bins = asked.setting("input_feat_per_channel")
    return asked.normal(bins, 40) if asked.turned else asked.normal(40, bins)


def _frame_marks(asked: Asked) -> Tensor:
    sound = _sound(asked)
    return torch.ones(1, sound.shape[-1] if asked.turned else sound.shape[1], dtype=torch.long)


def _wave(asked: Asked) -> Tensor:
    if asked.setting(
        "conv_stride", "feat_extract_norm", "upsampling_ratios", "downsampling_ratios"
    ) is None and asked.setting("num_mel_bins"):
        return asked.normal(asked.setting("max_length", default=40), asked.setting("num_mel_bins"))
    if asked.setting("audio_channels", "sampling_rate") and not asked.setting("conv_dim"):
        return asked.normal(1, 960)
    return asked.normal(1600)


def _boxes(asked: Asked) -> Tensor:
    corners = asked.integers(0, 40, _ids(asked).shape[1], 4)
    corners[..., 2:] += 40
    return corners


#: name of an argument of `forward` -> what is given for it
MAKERS: dict[str, Callable[[Asked], Any]] = {
    "input_ids": _ids,
    "attention_mask": _marks,
    "token_type_ids": _types,
    "mm_token_type_ids": lambda asked: (
        _ids(asked) == asked.setting("image_token_id", "image_token_index", default=-1)
    ).long(),
    "decoder_input_ids": _decoder_ids,
    "labels": _labels,
    "pixel_values": _pixels,
    "pixel_values_videos": _frames,
    "hidden_states": _hidden,
    "image_grid_thw": _grid,
    "grid_thw": _grid,
    "input_features": _sound,
    "input_values": _wave,
    "bbox": _boxes,
    "input_features_mask": _frame_marks,
    "feature_attention_mask": _frame_marks,
    "qformer_input_ids": _ids,
    "qformer_attention_mask": _marks,
    "image_sizes": lambda asked: torch.tensor([_side(asked)]),
}
#: arguments that a first attempt may do without
SOUND = {"input_features", "input_values", "input_features_mask", "feature_attention_mask"}
VIDEO = {"pixel_values_videos"}
EXTRA = {"token_type_ids", "mm_token_type_ids", "bbox", "image_sizes", "attention_mask"}
