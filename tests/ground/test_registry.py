"""One registry class: what it finds, what it refuses, and where it says a thing comes from."""

import pytest

from inrun.registry import RegisteredTwiceError, Registry


class UnknownShape(LookupError):
    """For the registry of this file."""


@pytest.fixture
def shapes():
    shapes = Registry("shape", error=UnknownShape, hint="Write one for {key}.")

    @shapes.register("disc")
    def disc(r):
        return 3 * r * r

    shapes.add("point", 0)
    return shapes


def test_entries_are_found_by_name_in_the_order_of_registration(shapes):
    assert shapes["disc"](2) == 12
    assert list(shapes) == ["disc", "point"]
    assert dict(shapes.items())["point"] == 0
    assert "cube" not in shapes
    assert len(shapes) == 2


def test_unknown_name_is_refused_with_the_known_ones_and_the_hint(shapes):
    with pytest.raises(
        UnknownShape, match=r"no shape 'cube'; known are disc, point. Write one for cube\."
    ):
        shapes["cube"]
    with pytest.raises(ValueError, match="no colour 'red'; known are none"):
        Registry("colour")["red"]


def test_get_gives_the_default_where_there_is_no_entry(shapes):
    assert shapes.get("disc") is shapes["disc"]
    assert shapes.get("cube") is None
    assert shapes.get("cube", 3) == 3


def test_second_entry_is_refused_with_both_places(shapes):
    with pytest.raises(
        RegisteredTwiceError,
        match=r"shape 'disc': one at tests.ground.test_registry:\d+, one at tests.ground.test_reg",
    ):
        shapes.register("disc")(lambda r: r)
    with pytest.raises(RegisteredTwiceError, match="'point'"):
        shapes.add("point", 1)


def test_the_same_function_again_takes_its_own_place(shapes):
    for k in (1, 2):

        @shapes.register("cell")
        def cell(k=k):
            return k

    assert shapes["cell"]() == 2


def test_place_tells_module_and_line_or_class(shapes):
    class Square:
        pass

    shapes.register("square")(Square)
    assert shapes.place("disc").startswith("tests.ground.test_registry:")
    assert shapes.place("point").startswith("tests.ground.test_registry:")
    assert shapes.place("square").endswith("<locals>.Square")
    assert shapes.add("table", (1, 2), made_by=Square) == (1, 2)
    assert shapes.place("table") == shapes.place("square")


def test_a_known_entry_can_be_exchanged_and_an_unknown_one_not(shapes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(shapes, "point", 7)
        assert shapes["point"] == 7
    assert shapes["point"] == 0
    with pytest.raises(UnknownShape):
        shapes["cube"] = 1


def test_classes_are_found_by_their_nearest_base():
    rules = Registry("rule")
    rules.add(dict, "mapping")
    rules.add(object, "anything")

    class Mine(dict):
        pass

    assert rules.for_class(Mine) == "mapping"
    assert rules.for_class(int) == "anything"
    with pytest.raises(ValueError, match="no rule int; known are none"):
        Registry("rule").for_class(int)


def test_what_is_registered_on_trial_is_forgotten(shapes):
    with shapes.restored():
        shapes.add("cube", 8)
        assert "cube" in shapes
    assert list(shapes) == ["disc", "point"]
    shapes.add("cube", 9)
