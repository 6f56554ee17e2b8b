"""One sample for any model: what its forward asks for, by the arguments' names.

Every tensor has the samples' axis first, so that a batch is the samples put one behind the other.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.survey.arguments import EXTRA, MAKERS, SOUND, VIDEO, Asked

Sample = dict[str, Any]


def batch(samples: list[Sample]) -> Sample:
    """The samples one behind the other, along axis 0."""
    return {
        name: torch.cat([s[name] for s in samples]) if isinstance(value, Tensor) else value
        for name, value in samples[0].items()
    }


def candidates(asked: Asked) -> Iterator[tuple[str, Callable[[int, int], Sample]]]:
    """(words, (seed, placeholders) -> sample): the fullest first, down to the main input alone."""
    given = inspect.signature(asked.model.forward).parameters
    needed = [
        n for n, p in given.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    main = asked.model.main_input_name
    main = [main] if isinstance(main, str) else list(main)
    known = [n for n in given if n in MAKERS]
    seen: list[set[str]] = []
    plain = set(known) - (VIDEO | SOUND if "pixel_values" in given else set())
    for words, wanted in (
        ("", plain),
        ("", plain - EXTRA),
        ("", plain - SOUND),
        ("text only", {"input_ids", "attention_mask", "labels", "token_type_ids"} & set(known)),
        ("", {*needed, *main, "labels"} & set(known)),
        ("no labels", plain - EXTRA - {"labels"}),
        ("no labels", {*needed, *main} & set(known)),
    ):
        wanted |= {n for n in asked.fixed if n in given}
        if not wanted or wanted in seen:
            continue
        seen.append(wanted)
        names = [n for n in given if n in wanted]
        yield words, _maker(asked, names)
        if "input_features" in names:
            yield words, _maker(replace(asked, turned=True), names)


def _maker(asked: Asked, names: list[str]) -> Callable[[int, int], Sample]:
    def make(seed: int, images: int) -> Sample:
        now = replace(asked, seed=seed, images=images)
        made = {}
        for name in names:
            value = fixed(now, name) if name in now.fixed else MAKERS[name](now)
            if value is not None:
                made[name] = value
        return made

    return make


def fixed(asked: Asked, name: str) -> Any:
    """An argument that `special.py` gives: a shape (numbers), a tensor, or a value as it is."""
    what = asked.fixed[name]
    if callable(what):
        return what(asked)
    if isinstance(what, tuple):
        return asked.normal(*what)
    if isinstance(what, list):
        return torch.tensor([what])
    return what


def placeholders(error: BaseException) -> int | None:
    """How many features a model had for a text with another number of placeholders."""
    found = re.search(r"features:? ?(\d+)", str(error)) or re.search(
        r"number of features ?\(?(\d+)", str(error)
    )
    return int(found.group(1)) if found and "token" in str(error) else None
