"""The texts of a report: best, worst and random chunks, with their words' values where known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inrun.report.facts import within_step
from inrun.store import StoreError, ValueStore, sql_text

if TYPE_CHECKING:
    from inrun.data.corpus import Corpus

Row = dict[str, Any]

#: how many of each kind, for each target
CARDS = 12
#: characters of a text that are kept
LONGEST = 8_000
#: what is known of a chunk and shown on its card
SHOWN = ("domain", "kind", "label", "source")


def cards(store: ValueStore, method: str, corpus: Corpus | None, count: int = CARDS) -> list[Row]:
    """Chunks as cards: id, about, documents, pieces of text, and by target value and rank.

    For each target the `count` best and worst by the mean value within the step, those by the sum,
    and as many at random, the same for all targets.

    Returns an empty list where nobody knows the texts.
    """
    known = store.sql("SELECT * FROM samples LIMIT 0").column_names if _has_samples(store) else []
    if corpus is None and "text" not in known:
        return []
    ranked = {target: _ranked(store, target, method) for target in store.targets}
    chosen: set[int] = set()
    for rows in ranked.values():
        for key in ("within", "value"):
            order = sorted(rows, key=lambda i: (rows[i][key], i))
            chosen.update(order[:count] + order[-count:])
    ids = np.array(sorted(next(iter(ranked.values()))))
    random = np.random.default_rng(0).choice(ids, min(count, len(ids)), replace=False)
    chosen.update(random.tolist())
    about = _about(store, known, sorted(chosen))
    tokens = _token_values(store, method, sorted(chosen))
    return [
        {
            "id": i,
            "random": i in set(random.tolist()),
            "about": {key: str(about[i][key]) for key in SHOWN if about[i].get(key) is not None},
            "documents": list(map(str, about[i].get("doc_ids") or [])),
            "steps": [ranked[store.targets[0]][i]["first"], ranked[store.targets[0]][i]["last"]],
            "values": {target: _numbers(rows[i]) for target, rows in ranked.items()},
            **_text(about[i], corpus, tokens.get(i, {})),
        }
        for i in sorted(chosen)
    ]


def _has_samples(store: ValueStore) -> bool:
    try:
        store.sql("SELECT 1 FROM samples LIMIT 0")
    except StoreError:
        return False
    return True


def _ranked(store: ValueStore, target: str, method: str) -> dict[int, Row]:
    """Sample -> value (sum), within (mean within the step), uses, first and last step, rank."""
    rows = store.sql(
        f"WITH w AS ({within_step(target, method)}), v AS (SELECT sample_id, sum(value) AS value, "
        "avg(within) AS within, count(*) AS uses, min(step) AS first, max(step) AS last FROM w "
        "GROUP BY sample_id) SELECT *, count(*) OVER () AS samples, "
        "row_number() OVER (ORDER BY within DESC, sample_id) AS rank FROM v"
    )
    return {row["sample_id"]: row for row in rows.to_pylist()}


def _numbers(row: Row) -> Row:
    return {key: row[key] for key in ("value", "within", "uses", "rank", "samples")}


def _about(store: ValueStore, known: list[str], ids: list[int]) -> dict[int, Row]:
    if not known:
        return {i: {"sample_id": i} for i in ids}
    listed = ", ".join(map(str, ids))
    rows = store.sql(f"SELECT * FROM samples WHERE sample_id IN ({listed})").to_pylist()
    return {i: {"sample_id": i} for i in ids} | {row["sample_id"]: row for row in rows}


def _token_values(store: ValueStore, method: str, ids: list[int]) -> dict[int, dict[str, list]]:
    """Sample -> target -> value of each predicted token, summed over the sample's uses."""
    listed = ", ".join(map(str, ids))
    try:
        rows = store.sql(
            'SELECT sample_id, target, "values" FROM tokens WHERE '
            f"method = {sql_text(method)} AND sample_id IN ({listed})"
        ).to_pylist()
    except StoreError:  # the run valued no tokens
        return {}
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        own = found.setdefault(row["sample_id"], {})
        new = np.asarray(row["values"], dtype=np.float64)
        own[row["target"]] = own[row["target"]] + new if row["target"] in own else new
    return {i: {name: v.tolist() for name, v in own.items()} for i, own in found.items()}


def _text(about: Row, corpus: Corpus | None, values: dict[str, list[float]]) -> Row:
    """`text`, and where tokens have values `pieces` and for each piece and target its `words`."""
    if about.get("text") is not None:
        return {"text": str(about["text"])[:LONGEST]}
    assert corpus is not None, "cards are made where texts are known"
    if not values:
        return {"text": corpus.text(about["sample_id"])[:LONGEST]}
    tokens = corpus[[about["sample_id"]]][0].tolist()
    pieces, ends = pieces_of(tokens, corpus.tokenizer.decode)
    words = {}
    for name, each in values.items():
        # a value belongs to the token that was predicted, so the first token has none
        padded = np.concatenate([np.zeros(len(tokens) - len(each)), each])
        words[name] = np.add.reduceat(padded, [0, *ends[:-1]]).tolist()
    return {"text": "".join(pieces)[:LONGEST], "pieces": pieces, "words": words}


def pieces_of(tokens: list[int], decode: Any) -> tuple[list[str], list[int]]:
    """Texts of single tokens, or of as many as make whole characters, and where each ends.

    >>> pieces_of([104, 195, 169], lambda ids: bytes(ids).decode("utf-8", "replace"))
    (['h', 'é'], [1, 3])
    """
    pieces, ends, start = [], [], 0
    for end in range(1, len(tokens) + 1):
        piece = decode(tokens[start:end])
        # a character has at most four bytes; what is cut by the chunk's border stays broken
        if "\ufffd" not in piece or end - start >= 4 or end == len(tokens):
            pieces.append(piece)
            ends.append(end)
            start = end
    return pieces, ends
