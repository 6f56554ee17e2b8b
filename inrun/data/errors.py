"""What can go wrong between a source of text and a batch of tokens, by name. Each message says
where and what to do next.
"""


class DataError(RuntimeError):
    """Base of all errors of the data layer."""


class SourceUnreachable(DataError):
    """A hub or a package registry cannot be reached from here."""


class SourceMalformed(DataError):
    """A file of documents is missing, unreadable or not in the layout it should have."""


class CorpusIncomplete(DataError):
    """There is no finished corpus at this place: never prepared, or a preparation was
    interrupted.
    """


class ShardDamaged(DataError):
    """A file of the corpus is missing, or its size or sha256 is not the one in the manifest."""


class TokenOutOfRange(DataError):
    """A shard holds a token id that the corpus' vocabulary, or the model's, does not have."""


class TokenizerMismatch(DataError):
    """The model or the caller expects another tokenizer than the one the corpus was made with."""
