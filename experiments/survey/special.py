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


SPECIAL: dict[str, Special] = {}
