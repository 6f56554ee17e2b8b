"""Ids of samples: integers as they are, strings and bytes by a number of their own in the store."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from inrun.attributor.processes import Processes
from inrun.config import require

Name = str | bytes

_INT64 = np.iinfo(np.int64)


def ids_of(given: Any) -> np.ndarray:
    """One id per sample [n]: int64, or an array of objects that are all str or all bytes.

    Args:
        given: a tensor or array of integers, or an iterable of int, str or bytes.

    Raises:
        ValueError: ids of another or of several types, of another shape, none, or past int64.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray) or not isinstance(given, Iterable):
        return _of_array(np.asarray(given))
    if isinstance(given, Name):
        raise ValueError(f"ids={given!r}: give one id per sample, in a list")
    each = [x.item() if isinstance(x, np.generic | Tensor) and not x.ndim else x for x in given]
    kinds = {_kind(x) for x in each}
    if not each or len(kinds) > 1 or kinds - {int, str, bytes}:
        told = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise ValueError(
            f"ids must be integers, strings or bytes, one per sample [n] and all of one type, not "
            f"{told}. Next: str(id) of whatever tells your samples apart"
        )
    if kinds == {int}:
        for end in (max(each), min(each)):
            _refuse_past_int64(int(end))
        return np.array(each, np.int64)
    # objects: numpy's own strings end at the last character that is not null
    found = np.empty(len(each), object)
    found[:] = each
    return found


def _of_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"ids must be one per sample [n], not {array.dtype} of shape {array.shape}"
        )
    if np.issubdtype(array.dtype, np.integer):
        _refuse_past_int64(int(array.max()))
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"ids must be integers, strings or bytes, one per sample [n], not {array.dtype}, which "
            "tells large integers no longer apart (numpy makes it of integers past 2^63 - 1)"
        )
    return ids_of(array.tolist())


def _kind(x: Any) -> type:
    return next((kind for kind in (bool, int, str, bytes) if isinstance(x, kind)), type(x))


def _kind_of(ids: np.ndarray) -> type:
    return type(ids[0]) if ids.dtype == object else int


def _refuse_past_int64(number: int) -> None:
    if not _INT64.min <= number <= _INT64.max:
        raise ValueError(
            f"ids are kept as int64, {number} is past "
            + ("2^63 - 1" if number > 0 else "-2^63")
            + ". Next: cut hashes to 63 bits, `id >> 1`, or give them as strings, str(id)"
        )


class Numbering:
    """A number for each name, the same in every process: 0, 1, 2, ... in the order of the steps
    and, within one, of the processes. No two names have one number.

    Attributes:
        known: name -> number.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.known: dict[Name, int] = {}
        self._kept: set[Name] = set()
        self._kinds: set[type] = set()
        self._all_agree = False

    def load(self, names: Sequence[Name], numbers: Sequence[int]) -> None:
        """What a store has already."""
        self.known.update(zip(names, numbers))
        self._kinds.update(map(type, names[:1]))

    def kept(self, names: Iterable[Name]) -> None:
        """The store has these names by other ways."""
        self._kept.update(names)

    def check(self, ids: np.ndarray) -> None:
        """ValueError for ids of another type than before, or than the table of samples has."""
        self._kinds.add(_kind_of(ids))
        self._refuse_several(self._kinds)

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """int64 [n] of a step's ids; all processes call it together, at every step.

        Raises:
            ValueError: ids of another type than in another process.
        """
        if not self._all_agree:
            self._refuse_several({*self._kinds, *self.processes.gathered(_kind_of(ids))})
            self._all_agree = True
        if ids.dtype != object:
            return ids
        new = [name for name in dict.fromkeys(ids) if name not in self.known]
        if self.processes.total(torch.tensor(len(new))):
            for names in self.processes.gathered(new):
                for name in names:
                    self.known.setdefault(name, len(self.known))
        return np.array([self.known[name] for name in ids], np.int64)

    def to_keep(self, ids: np.ndarray) -> list[Name]:
        """Names of these ids that this process has not written yet; they count as written."""
        if ids.dtype != object:
            return []
        names = [name for name in dict.fromkeys(ids) if name not in self._kept]
        self._kept.update(names)
        return names

    def _refuse_several(self, kinds: set[type]) -> None:
        if len(kinds) > 1:
            told = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"ids of one run are of one type, also in the table of samples; here are {told}. "
                "Choose one"
            )

    def numbered(self, samples: pa.Table) -> pa.Table:
        """A table of samples whose `sample_id` are names, with numbers there and the names as `id`;
        another one as it is.

        Numbers follow the table's order, so that a resumed run finds them again.
        """
        column = samples["sample_id"] if "sample_id" in samples.column_names else None
        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
        if column is None or not any(is_kind(column.type) for is_kind in kinds):
            self._kinds.add(int)
            return samples
        require(
            "store",
            (
                "id" not in samples.column_names,
                "the table of samples has a column id beside names as sample_id, and the names are "
                "kept under id. Rename it",
            ),
        )
        names = column.to_pylist()
        self._kinds.update(map(type, names[:1]))
        for name in names:
            self.known.setdefault(name, len(self.known))
        self.kept(names)
        numbers = pa.array([self.known[name] for name in names], pa.int64())
        place = samples.schema.get_field_index("sample_id")
        plain = column.cast(pa.binary() if pa.types.is_binary(column.type) else pa.string())
        return samples.set_column(place, "sample_id", numbers).append_column("id", plain)
