"""Which model types there are, and which class of each is surveyed."""

import importlib
import inspect
from typing import Any

#: name in the table -> mapping of transformers; of a type that several name, the first one is taken
HEADS = {
    "causal LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "multimodal": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "images": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "CTC": "MODEL_FOR_CTC_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "sequences": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "tokens": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "videos": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "universal segmentation": "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    "depth": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
    "pretraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "masks": "MODEL_FOR_MASK_GENERATION_MAPPING_NAMES",
    "backbone": "MODEL_FOR_BACKBONE_MAPPING_NAMES",
}


def types() -> list[str]:
    """All model types of the installed transformers that have a model of their own.

    Configs without one belong to a part of another type's model, which is built with it.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    named = {name for mapping in HEADS.values() for name in getattr(modeling_auto, mapping, ())}
    return sorted(named & set(CONFIG_MAPPING_NAMES))


def config_of(model_type: str) -> Any:
    """A config of the type with its defaults."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]()


def classes_of(model_type: str, config: Any) -> list[tuple[str, type]]:
    """(head, class) of the type, those of `HEADS` first; then any model that takes the config."""
    import transformers
    from transformers.models.auto import modeling_auto

    found = []
    for head, mapping in HEADS.items():
        names = getattr(modeling_auto, mapping, {}).get(model_type, ())
        for name in [names] if isinstance(names, str) else names:
            if (cls := getattr(transformers, name, None)) is not None:
                found.append((head, cls))
    return found or [("part", cls) for cls in _taking(type(config))]


def _taking(config: type) -> list[type]:
    """Models beside the config's class that are made from such a config."""
    from transformers import PreTrainedModel

    try:
        beside = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    except ImportError:
        return []
    return [
        cls
        for _, cls in inspect.getmembers(beside, inspect.isclass)
        if issubclass(cls, PreTrainedModel)
        and cls.__module__ == beside.__name__
        and not cls.__name__.endswith("PreTrainedModel")
        and cls.config_class is config
    ]
