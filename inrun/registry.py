"""One table for each kind of thing that can be added from outside: name, or class, -> entry.

    FILTERS: Registry[str, Callable] = Registry("filter")

    @FILTERS.register("median")
    def median(values): ...

    FILTERS["median"]                      # the function
    FILTERS["mean"]                        # error: no filter 'mean'; known are median

A key is registered once. A second entry under it is refused, and the error tells where the first
one was registered. The same function again is no second entry: a notebook's cell may be run twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
E = TypeVar("E")


class RegisteredTwiceError(ValueError):
    """Two different entries were registered under one key."""


class Registry(Mapping[K, V], Generic[K, V]):
    """Key -> entry, in the order of registration; a mapping that is filled by `register` or `add`.

    Args:
        kind: what an entry is, for messages ("baseline").
        error: what is raised for an unknown key; takes one message.
        hint: what to do about an unknown key, appended to the message; `{key}` stands for the key.
    """

    def __init__(self, kind: str, error: type[Exception] = ValueError, hint: str = "") -> None:
        self.kind, self.error, self.hint = kind, error, hint
        self._entries: dict[K, V] = {}
        self._places: dict[K, str] = {}
        self._origins: dict[K, tuple[str, str] | None] = {}

    def register(self, key: K) -> Callable[[E], E]:
        """Decorator: the function or class below becomes the entry of `key`."""

        def add(entry: E) -> E:
            self.add(key, entry)  # type: ignore[arg-type]  # E is V; kept apart to return its type
            return entry

        return add

    def add(self, key: K, entry: V, made_by: Any = None) -> V:
        """Register `entry`, and return it.

        Args:
            made_by: the function or class that the entry was made from, if it is neither itself.

        Raises:
            RegisteredTwiceError: another entry has this key.
        """
        source = entry if made_by is None else made_by
        place, origin = _place(source), _origin(source)
        if key in self._entries and (origin is None or origin != self._origins[key]):
            raise RegisteredTwiceError(
                f"two entries for the {self.kind} {_shown(key)}: one at {self._places[key]}, one "
                f"at {place}; give one of them another name"
            )
        self._entries[key], self._places[key], self._origins[key] = entry, place, origin
        return entry

    def __getitem__(self, key: K) -> V:
        if key not in self._entries:
            raise self.error(self.refusal(key))
        return self._entries[key]

    def __setitem__(self, key: K, entry: V) -> None:
        """Exchange the entry of a known key, as a test that puts something in its stead does."""
        self[key]
        self._entries[key] = entry

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry, or `default` where there is none."""
        return self._entries.get(key, default)

    def for_class(self, cls: type) -> V:
        """The entry of `cls` or of the nearest of its base classes, where keys are classes."""
        for base in cls.__mro__:
            if base in self._entries:
                return self._entries[base]
        raise self.error(self.refusal(cls))

    def refusal(self, key: object) -> str:
        """The message about an unknown key: the known ones, and the hint."""
        known = ", ".join(sorted(_name(known) for known in self._entries))
        message = f"no {self.kind} {_shown(key)}; known are {known or 'none'}"
        return f"{message}. {self.hint.format(key=_name(key))}" if self.hint else message

    def place(self, key: K) -> str:
        """Where an entry comes from: "module:line" of a function, "module.Class" of a class."""
        self[key]
        return self._places[key]

    @contextmanager
    def restored(self) -> Iterator[Registry[K, V]]:
        """Forgets at exit what was registered inside; for tests and for extensions on trial."""
        entries, places, origins = dict(self._entries), dict(self._places), dict(self._origins)
        try:
            yield self
        finally:
            self._entries, self._places, self._origins = entries, places, origins

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _name(key: object) -> str:
    return key.__name__ if isinstance(key, type) else str(key)


def _shown(key: object) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)


def _origin(source: Any) -> tuple[str, str] | None:
    """Module and qualified name of a function or class; None for a lambda and anything else."""
    name = getattr(source, "__qualname__", None)
    if name is None or "<lambda>" in name:
        return None
    return source.__module__, name


def _place(source: Any) -> str:
    if (code := getattr(source, "__code__", None)) is not None:
        return f"{source.__module__}:{code.co_firstlineno}"
    if isinstance(source, type):
        return f"{source.__module__}.{source.__qualname__}"
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}"
