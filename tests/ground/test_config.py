"""Dataclasses from mappings, what they demand, and the texts of their fields."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from inrun.config import ConfigError, build, fields_help, one_of, require


@dataclass(frozen=True)
class Window:
    """Of a filter."""

    width: int = 3
    """Samples under it,
    odd."""
    kind: Literal["box", "hann"] = "box"
    share: float = 0.5
    "Of the overlap."

    def __post_init__(self):
        require("window", (self.width % 2 == 1, f"width={self.width} must be odd"))


@dataclass(frozen=True)
class Wide(Window):
    reach: tuple[int, ...] = ()
    "In both directions."
    share: float = 0.25


@dataclass(frozen=True)
class Filter:
    windows: tuple[Window, ...] = ()
    first: Window | str = "none"
    other: str | None = None
    pair: tuple[int, float] = (1, 2.0)
    anything: Any = None
    named: dict[str, int] = field(default_factory=dict)


def test_texts_under_fields_are_read_inherited_ones_too():
    assert fields_help(Window) == {"width": "Samples under it, odd.", "share": "Of the overlap."}
    assert fields_help(Wide) == {
        "width": "Samples under it, odd.",
        "share": "Of the overlap.",
        "reach": "In both directions.",
    }
    assert fields_help(Filter) == {}


def test_class_without_source_has_no_texts():
    space: dict = {"dataclass": dataclass}
    exec('@dataclass\nclass Typed:\n    x: int = 0\n    "A number."\n', space)
    assert fields_help(space["Typed"]) == {}


def test_nested_values_are_built():
    given = {
        "windows": [{"width": 5}, {"share": 1}],
        "first": {"kind": "hann"},
        "pair": [3, 4],
        "anything": [1],
    }
    found = build(Filter, given)
    assert found.windows == (Window(5), Window(share=1.0))
    assert found.first == Window(kind="hann")
    assert found.pair == (3, 4.0)
    assert found.anything == [1]
    assert build(Filter, {"first": "default", "other": None}).first == "default"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windws": []}, r"unknown key 'windws'; known are windows, first, other"),
        ({"windows": 3}, r"config.windows: expected a list"),
        ({"windows": [{"width": 4}]}, r"window: width=4 must be odd"),
        ({"windows": [{"kind": "gauss"}]}, r"windows\[0\].kind: value='gauss': .* box, hann"),
        ({"windows": [{"width": True}]}, r"windows\[0\].width = True: expected int"),
        ({"first": 3}, r"""config\.first = 3: expected str; quote it: first='"3"'"""),
        ({"other": 3}, "config.other = 3: expected str"),
        ({"pair": [1]}, "config.pair: expected 2 entries"),
        ({"named": [1]}, "config.named: expected a mapping"),
        ([1], "expected a mapping with the keys of Filter"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_place(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Filter, values)


def test_first_demand_that_does_not_hold_is_told():
    require("run")
    require("run", (True, "never"), (1, "never"))
    with pytest.raises(ConfigError, match=r"^run: second$"):
        require("run", (True, "first"), ([], "second"), (False, "third"))
    with pytest.raises(ConfigError, match="run: device='tpu': choose one of cpu, cuda"):
        require("run", one_of("device", "tpu", ("cpu", "cuda")))
