"""From a mapping (composed configuration, JSON) to dataclasses, strictly, and what dataclasses say.

`build` refuses an unknown key or a wrong type, and names the known ones. `require` is for what a
dataclass demands of its values. `fields_help` reads the text of each field: a plain string that
stands directly under it.

    @dataclass(frozen=True)
    class Options:
        \"\"\"How to smooth.\"\"\"

        width: int = 3
        "Samples under the window, odd."

        def __post_init__(self):
            require("smooth", (self.width % 2 == 1, f"width={self.width} must be odd"))

    build(Options, {"width": 5})       # Options(width=5)
    build(Options, {"widht": 5})       # ConfigError: config: unknown key 'widht'; known are width
    fields_help(Options)               # {"width": "Samples under the window, odd."}
"""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be meant: unknown key, wrong type, impossible value."""


def require(where: str, *demands: tuple[object, str]) -> None:
    """ConfigError with the first message whose condition does not hold.

    Args:
        where: whose demands they are: the beginning of the message.
        demands: (condition, what must be so).
    """
    for holds, message in demands:
        if not holds:
            raise ConfigError(f"{where}: {message}")


def one_of(name: str, value: object, choices: Iterable[object]) -> tuple[bool, str]:
    """A demand for `require`: `value` is among `choices`."""
    known = list(choices)
    return value in known, f"{name}={value!r}: choose one of {', '.join(map(str, known))}"


def fields_help(cls: type) -> dict[str, str]:
    """Field name -> its text, for the fields of a dataclass that have one, inherited ones included.

    The text is the string literal directly under the field, as one line. It is read from the
    source: a class without source (typed into a prompt) has no texts.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found.update(_texts(base))
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if f.name in found}


def _texts(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
        (body,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, below in zip(body.body, body.body[1:]):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            texts[field.target.id] = " ".join(below.value.value.split())
    return texts


def build(cls: type[T], values: Any, where: str = "config") -> T:
    """A `cls` from `values`, nested dataclasses and tuples of them included.

    Args:
        cls: a dataclass.
        values: field name -> value; fields with defaults may be left out.
        where: the place of `values` in the whole configuration, for messages.

    Raises:
        ConfigError: unknown or missing key, wrong type, or what the dataclass itself refuses.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: expected a mapping with the keys of {cls.__name__}, got {values!r}"
        )
    refuse_unknown(cls, values, where)
    required = [
        f.name for f in _given(cls) if f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    kinds = typing.get_type_hints(cls)
    converted = {
        key: _convert(kinds[key], value, f"{where}.{key}") for key, value in values.items()
    }
    try:
        return cls(**converted)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def build_kind(base: type[T], kinds: Mapping[str, type], values: Any, where: str = "config") -> T:
    """One of several dataclasses: by its name, or by a mapping with `kind` and its fields.

    Args:
        base: what they have in common; an object of it is returned as it is.
        kinds: name -> dataclass, a subclass of `base`.

    Raises:
        ConfigError: no such kind, or what `build` refuses.
    """
    if isinstance(values, base):
        return values
    given = dict(values) if isinstance(values, Mapping) else {"kind": values}
    kind = given.pop("kind", None)
    known = isinstance(kind, str) and kind in kinds
    choices = ", ".join(map(repr, kinds))
    require(where, (known, f"{values!r}: choose one of {choices}, or a mapping with its kind"))
    return build(kinds[kind], given, f"{where} ({kind})")


def refuse_unknown(cls: type, keys: Iterable[str], where: str) -> None:
    """ConfigError if a key is no field of the dataclass `cls`; it names the known ones."""
    known = [field.name for field in _given(cls)]
    if unknown := sorted(set(keys) - set(known), key=str):
        raise ConfigError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; known are {', '.join(known)}"
        )


def fits(value: Any, kind: type) -> bool:
    """Whether `value` may stand where a plain type is asked for.

    A bool is an int in Python, but not here; an int is a fine float. Anything else is a typo in a
    config file.
    """
    accepted = (float, int) if kind is float else (kind,)
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def _given(cls: Any) -> list[dataclasses.Field]:
    """The fields that whoever builds a `cls` may give."""
    return [field for field in dataclasses.fields(cls) if field.init]


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if hasattr(kind, "from_config"):  # a class of which there are several kinds
        return kind.from_config(value, where)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    if origin in (types.UnionType, typing.Union):
        return _one_kind(arguments, value, where)
    if origin is typing.Literal:
        require(where, one_of("value", value, arguments))
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return dict(value)
    if not fits(value, kind):
        quoted = f"""; quote it: {where.rpartition(".")[2]}='"{value}"'""" if kind is str else ""
        raise ConfigError(f"{where} = {value!r}: expected {kind.__name__}{quoted}")
    return float(value) if kind is float else value


def _one_kind(kinds: tuple, value: Any, where: str) -> Any:
    """The value as the first of these types that takes it; the last one's refusal if none does."""
    if value is None and type(None) in kinds:
        return None
    *first, last = [kind for kind in kinds if kind is not type(None)]
    for kind in first:
        try:
            return _convert(kind, value, where)
        except ConfigError:
            continue
    return _convert(last, value, where)


def _tuple(kinds: tuple, value: Any, where: str) -> tuple:
    if hasattr(kinds[0], "from_config") and not isinstance(value, (list, tuple)):
        value = [value]  # one of a kind stands for a list of it
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"{where}: expected {len(kinds)} entries, got {value!r}")
    return tuple(
        _convert(kind, part, f"{where}[{k}]") for k, (kind, part) in enumerate(zip(kinds, value))
    )
