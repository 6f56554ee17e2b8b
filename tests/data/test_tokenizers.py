"""Tokenizers out of package archives: published ids, and byte pair encoding done by hand."""

import itertools

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun.data import tokenizers
from inrun.data.errors import DataError
from inrun.data.tokenizers import GPT2_RANKS_SHA256, GPT2_WORDS, load_tokenizer, tokenizer_from_file


def test_gpt2_gives_the_published_ids(gpt2):
    assert (gpt2.n_vocab, gpt2.eot, gpt2.sha256) == (50257, 50256, GPT2_RANKS_SHA256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" the") == [262]
    assert gpt2.decode([50256]) == "<|endoftext|>"
    assert 50256 not in gpt2.encode("a<|endoftext|>b")


def test_pythia_gives_the_published_ids(offline_cache):
    pythia = load_tokenizer("pythia", offline_cache)
    assert (pythia.n_vocab, pythia.eot) == (50277, 0)
    assert pythia.encode("Hello world") == [12092, 1533]
    assert pythia.encode(" the") == [253]
    assert pythia.encode("The quick brown fox") == [510, 3158, 8516, 30013]
    assert pythia.encode("    ") == [50274]
    assert pythia.decode([0]) == "<|endoftext|>"
    assert 0 not in pythia.encode("a<|endoftext|>b")
    texts = ["one", "    two\n", "drei é"]
    assert pythia.encode_batch(texts, threads=1) == [pythia.encode(text) for text in texts]
    assert [pythia.decode(ids) for ids in pythia.encode_batch(texts, threads=1)] == texts


def merge_by_hand(ranks: dict[bytes, int], text: str) -> list[int]:
    """Byte-pair encoding as it is defined: in each word, merge the pair of lowest rank until there
    is none.
    """
    ids = []
    for word in regex.findall(GPT2_WORDS, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [
                (ranks[a + b], k)
                for k, (a, b) in enumerate(itertools.pairwise(parts))
                if a + b in ranks
            ]
            if not pairs:
                break
            k = min(pairs)[1]
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def test_gpt2_8k_is_byte_pair_encoding_with_the_first_8191_ranks(gpt2, gpt2_8k):
    assert (gpt2_8k.n_vocab, gpt2_8k.eot) == (8192, 8191)
    ranks = {gpt2._encoding.decode_single_token_bytes(rank): rank for rank in range(8191)}
    rng = np.random.default_rng(0)
    text = " ".join(
        rng.choice(
            [
                "The",
                "whale's",
                "unhappily",
                "éclair",
                "2026",
                "->",
                "\n\n",
                "日本",
                "electromagnetism",
            ],
            300,
        )
    )
    assert gpt2_8k.encode(text) == merge_by_hand(ranks, text)
    # and the oracle itself is right about the full encoding
    ranks = {gpt2._encoding.decode_single_token_bytes(rank): rank for rank in range(50256)}
    assert gpt2.encode(text) == merge_by_hand(ranks, text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_no_text_is_lost_by_any_tokenizer_of_gpt2s_family(text, gpt2, gpt2_8k):
    for tokenizer in (gpt2, gpt2_8k, load_tokenizer("bytes", "unused")):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.eot for i in ids)
        assert tokenizer.encode_batch([text, "x"], threads=2) == [ids, tokenizer.encode("x")]


@pytest.mark.parametrize("tail", ["", "tail"])
@pytest.mark.parametrize("blank", [" ", "\u3000"])
@pytest.mark.parametrize("name", ["bytes", "gpt2-2k"])
def test_a_million_of_white_space_is_tokenised(name, blank, tail, gpt2):
    text = f"head{blank * 1_200_000}{tail}"
    is_bytes = name == "bytes"
    tokenizer = (
        load_tokenizer(name, "unused") if is_bytes else tokenizer_from_file(name, gpt2.file_bytes)
    )
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch(["x", text, "y"], 2)[1] == ids


blank_texts = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "\n", "\t", "\x85", "\x1c", "\u2003", "\u180e", "\u200b", "\ufeff"]
        ).flatmap(lambda blank: st.integers(1, 9).map(lambda count: blank * count)),
        st.sampled_from(["a", "'s", "it's", "7", "!", "é", "日", "'"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(text=blank_texts)
def test_runs_that_are_taken_out_change_no_token(text, gpt2, gpt2_8k):
    for tokenizer in (gpt2, gpt2_8k):
        expected = tokenizer.encode(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizers, "LONG_BLANK", 3)
            assert tokenizer.encode(text) == expected
            assert tokenizer.encode_batch([text, "x", text], 1)[::2] == [expected] * 2


def test_a_tokenizer_can_be_rebuilt_from_its_file(gpt2_8k):
    again = tokenizer_from_file("gpt2-8k", gpt2_8k.file_bytes)
    assert (again.sha256, again.n_vocab) == (gpt2_8k.sha256, 8192)
    assert again.encode("the same ids") == gpt2_8k.encode("the same ids")
    small = tokenizer_from_file("gpt2-2k", gpt2_8k.file_bytes)
    assert (small.n_vocab, small.eot) == (2048, 2047)
    assert gpt2_8k.file_bytes.startswith(small.file_bytes)
    assert small.decode(small.encode("naïve – tokens")) == "naïve – tokens"


def test_bytes_are_the_first_256_ranks_of_gpt2(gpt2):
    assert gpt2.file_bytes.startswith(load_tokenizer("bytes", "unused").file_bytes)


def test_unknown_tokenizers_and_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="no tokenizer is called 'gpt4'"):
        load_tokenizer("gpt4", tmp_path)
    with pytest.raises(DataError, match="tokenizer_from"):
        load_tokenizer("gpt2", tmp_path, source="floppy")
