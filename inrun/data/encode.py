"""Documents in batches, which of them can be used, and their token ids."""

from collections.abc import Iterable, Iterator

from inrun.data.documents import Document
from inrun.data.errors import DataError
from inrun.data.tokenizers import Tokenizer

BATCH_DOCUMENTS, BATCH_CHARACTERS, BATCH_MOST = 256, 2_000_000, 100_000
BY_SETTING = ("null", "other_domain", "over_limit")  # why documents are skipped, not for their text
#: raised while a text is encoded, and not because of it
NOT_OF_A_TEXT = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in batches. Those that a setting leaves out do not count: what noise is made of is
    the same with them and without them.
    """
    batch: list[Document] = []
    wanted, characters = 0, 0
    for document in documents:
        batch.append(document)
        wanted += document.skip not in BY_SETTING
        characters += len(document.text)
        full = wanted == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS
        if full or len(batch) == BATCH_MOST:
            yield batch
            batch, wanted, characters = [], 0, 0
    if batch:
        yield batch


def unusable(text: str) -> str:
    """Why a text cannot be used, "" where it can."""
    if not text.strip():
        return "empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return "invalid_utf8"
    return ""


def encode(tokenizer: Tokenizer, documents: list[Document], threads: int) -> list[list[int] | None]:
    """Token ids of each document, None for one that the tokenizer fails on.

    Raises DataError if it fails on every one of several.
    """
    texts = [document.text for document in documents]
    try:
        return [*tokenizer.encode_batch(texts, threads)]
    except BaseException as error:  # a panic of native code is not an Exception
        if isinstance(error, NOT_OF_A_TEXT):
            raise
        found = [_encode_one(tokenizer, text) for text in texts]
        if len(found) > 1 and not any(found):
            raise DataError(
                f"tokenizer {tokenizer.name} fails on every document, the first of them "
                f"{documents[0].doc_id} ({type(error).__name__}: {error}). Next: another tokenizer"
            ) from error
        return found


def _encode_one(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text)
    except BaseException as error:
        if isinstance(error, NOT_OF_A_TEXT):
            raise
        return None
