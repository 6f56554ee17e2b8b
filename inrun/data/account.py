"""Where the documents of a corpus went: those that were read = those used + those left out.

`counts` of a manifest: `documents` were read, `used` have tokens in a chunk, `skipped` were left
out for a reason, `in_no_chunk` began after the last whole chunk of their domain.
"""

from collections.abc import Mapping
from typing import Any

REASONS = {
    "empty": "empty",
    "null": "null",
    "one_token": "of one token",
    "invalid_utf8": "not UTF-8",
    "not_tokenisable": "refused by the tokenizer",
    "other_domain": "of other domains",
    "over_limit": "over max_bytes_per_domain",
}
NAMES_SHOWN = 5


def account(manifest: Mapping[str, Any]) -> str:
    """One line: documents, how many were used, and why the others were not.

    >>> account({"counts": {"documents": 5, "used": 2, "in_no_chunk": 1, "skipped": {"empty": 2}}})
    '5 documents: 2 used, 2 left out (empty), 1 in no chunk (after the last one of its domain)'
    """
    counts = manifest["counts"]
    parts = [f"{counts['used']:,} used"] if "used" in counts else []  # not in older corpora
    parts += [
        f"{number:,} left out ({REASONS.get(reason, reason)})"
        for reason, number in counts["skipped"].items()
        if number
    ]
    if counts.get("in_no_chunk"):
        parts.append(f"{counts['in_no_chunk']:,} in no chunk (after the last one of its domain)")
    line = f"{counts['documents']:,} documents: {', '.join(parts)}"
    if counts.get("unlabelled"):
        line += f"; {counts['unlabelled']:,} without a domain"
    if manifest.get("stopped_at_max_tokens"):
        line += "; stopped at max_tokens, what follows was not read"
    if missing := manifest.get("domains_not_found"):
        line += f"; no document of {_some(missing)}"
    if passed := manifest.get("passed_over"):
        line += f"; passed over: {_some([f'{name} ({why})' for name, why in passed.items()])}"
    return line


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
