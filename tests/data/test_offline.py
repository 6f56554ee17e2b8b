"""What is read out of package archives: tokenizers, the offline corpus, the verses. Needs a
registry the first time.

The archives (about 35 MB, and 40 MB for the verses) are kept in $INRUN_CACHE or data/cache of the
repository.
"""

import itertools
import shutil
from collections import defaultdict

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun.data import packages
from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.errors import DataError, SourceMalformed, SourceUnreachable
from inrun.data.noise import NOISE_KINDS
from inrun.data.offline import DOMAINS, read_offline
from inrun.data.prepare import prepare
from inrun.data.tokenizers import GPT2_RANKS_SHA256, GPT2_WORDS, load_tokenizer, tokenizer_from_file
from inrun.data.verses import verse_passages


@pytest.fixture(scope="session")
def offline_cache(request):
    """The archives, fetched once. Skips where no registry is reachable and the cache is not
    filled.
    """
    cache = packages.cache_root(request.config.rootpath / "data")
    try:
        packages.fetch(list(packages.pins()), cache)
    except SourceUnreachable as error:
        pytest.skip(f"package archives are neither cached nor downloadable: {error}")
    return cache


@pytest.fixture(scope="session")
def gpt2(offline_cache):
    return load_tokenizer("gpt2", offline_cache)


@pytest.fixture(scope="session")
def gpt2_8k(offline_cache):
    return load_tokenizer("gpt2-8k", offline_cache)


def test_every_pin_is_an_exact_version_with_a_hash():
    pins = packages.pins()
    lines = [
        line
        for line in packages.REQUIREMENTS.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert len(pins) == len(lines) >= 12
    assert {pin.group for pin in pins.values()} == {"corpus", "images", "tokenizers", "verses"}
    assert {domain.package for domain in DOMAINS} - {""} == {
        p.name for p in pins.values() if p.group == "corpus"
    }


def test_an_archive_with_another_hash_is_not_used_and_pip_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "mlx_whisper-0.4.3-py3-none-any.whl").write_bytes(b"not that wheel")
    with pytest.raises(
        SourceUnreachable, match=r"(?s)could not download mlx-whisper==0\.4\.3.*INRUN_CACHE"
    ):
        load_tokenizer("gpt2", tmp_path)


def test_the_cache_folder_can_be_moved_by_an_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("INRUN_CACHE", str(tmp_path / "elsewhere"))
    assert packages.cache_root("data") == tmp_path / "elsewhere"
    monkeypatch.delenv("INRUN_CACHE")
    assert packages.cache_root("x") == packages.Path("x/cache")


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


@pytest.fixture(scope="session")
def offline_documents(offline_cache):
    by_domain = defaultdict(list)
    for document in read_offline(offline_cache, (), 0, seed=0):
        by_domain[document.domain].append(document)
    return by_domain


def test_the_offline_corpus_has_its_domains_and_sizes(offline_documents):
    size = {
        name: sum(len(d.text.encode()) for d in documents)
        for name, documents in offline_documents.items()
    }
    assert list(size) == [domain.name for domain in DOMAINS]
    assert len(size) >= 8
    assert sum(size.values()) > 60e6
    assert min(size.values()) > 200e3
    ids = [d.doc_id for documents in offline_documents.values() for d in documents]
    assert len(set(ids)) == len(ids)
    assert all(
        d.text.strip() and len(d.text) <= 12_000
        for documents in offline_documents.values()
        for d in documents
    )


@pytest.mark.parametrize(
    ("domain", "phrase"),
    [
        ("novels", "Call me Ishmael."),
        ("bible-kjv", "1:1 In the beginning God created the heaven and the earth."),
        ("wiki-fr-es", "Liverpool es una ciudad"),
        (
            "dictionary",
            "entity (noun): that which is perceived or known or inferred to have its own "
            "distinct existence",
        ),
        ("medical-icd10", "A00.0 Cholera due to Vibrio cholerae 01, biovar cholerae"),
        (
            "legal-licences",
            "Permission to use, copy, modify, and/or distribute this software for any purpose",
        ),
        ("legal-constitution", "WE, THE PEOPLE OF INDIA"),
        ("manual-cloud", "aws chime invite-users"),
        ("dialogue", "A: My system is overheating.\nB: Ensure air vents aren't blocked"),
        ("javascript", "function $RootScopeProvider()"),
        ("python-stdlib", "class JSONDecodeError(ValueError)"),
    ],
)
def test_a_domain_holds_what_its_name_says(offline_documents, domain, phrase):
    assert any(phrase in document.text for document in offline_documents[domain])


def test_a_byte_limit_keeps_a_prefix_of_the_same_random_order(offline_cache, offline_documents):
    some = list(read_offline(offline_cache, ("novels",), 500_000, seed=0))
    assert some == offline_documents["novels"][: len(some)]
    size = sum(len(d.text.encode()) for d in some)
    assert 500_000 <= size < 500_000 + 4 * 12_000
    assert len({d.doc_id.split("/")[1] for d in some}) > 5  # out of many books, not the first one
    other = list(read_offline(offline_cache, ("novels",), 500_000, seed=1))
    assert [d.doc_id for d in other] != [d.doc_id for d in some]


def test_an_unknown_domain_is_refused(tmp_path):
    with pytest.raises(SourceMalformed, match=r"no domain \['tweets'\]"):
        next(read_offline(tmp_path, ("tweets",), 0, 0))


def test_two_builds_of_the_offline_corpus_are_equal(offline_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("INRUN_CACHE", str(offline_cache))
    config = DataConfig(
        name="tiny",
        tokenizer="gpt2-8k",
        block_size=64,
        max_bytes_per_domain=120_000,
        noise=0.1,
        threads=2,
    )
    first = prepare(config, tmp_path / "one")
    second = prepare(DataConfig(**{**vars(config), "threads": 1}), tmp_path / "two")
    for split in ("train", "val", "test"):
        assert Corpus.open(first, split, verify="hash").digest == Corpus.open(second, split).digest
    train = Corpus.open(first)
    assert set(train.domains) == {domain.name for domain in DOMAINS}
    share = 1 - train.ids(kind="clean").size / len(train)
    # per domain half a chunk too few, or one noise document (up to 4 * 65 characters, a token each
    # at worst) too many
    assert 0.1 - 0.5 * len(DOMAINS) / len(train) <= share <= 0.1 + 4 * len(DOMAINS) / len(train)
    assert set(train.chunks["kind"].to_pylist()) == {"clean", *NOISE_KINDS}
    assert train.manifest["settings"]["fingerprint"]["python-stdlib"].startswith("CPython 3.")
    # nothing but the folder is needed to show a chunk
    moved = shutil.move(first, tmp_path / "moved")
    monkeypatch.setenv("INRUN_CACHE", str(tmp_path / "empty"))
    assert "Question" not in Corpus.open(moved).text(0)


def test_verses_are_aligned_across_four_translations(offline_cache):
    passages = list(verse_passages(offline_cache, verses_per_passage=4))
    first = passages[0]
    assert first.name == "01:001:01-04"
    assert first.texts["kjv"].startswith(
        "In the beginning God created the heaven and the earth. And the earth was without"
    )
    assert first.texts["ylt"].startswith(
        "In the beginning of God`s preparing the heavens and the earth"
    )
    assert len({passage.name for passage in passages}) == len(passages)
    assert sum(len(passage.texts["kjv"]) for passage in passages) > 4e6
    assert max(passage.last_verse - passage.first_verse for passage in passages) < 8

    def overlap(passage, translation):
        a, b = (set(passage.texts[name].lower().split()) for name in ("kjv", translation))
        return len(a & b) / len(a | b)

    # misaligned verses share about 0.12 of their words; a translation of the same verse shares much
    # more
    mean = {name: np.mean([overlap(p, name) for p in passages]) for name in ("asv", "web", "ylt")}
    assert mean["asv"] > mean["web"] > mean["ylt"] > 0.35


def test_verses_of_fewer_translations_can_be_asked_for(offline_cache):
    passage = next(verse_passages(offline_cache, 1, translations=("kjv", "web")))
    assert set(passage.texts) == {"kjv", "web"}
    assert passage.texts["kjv"] == "In the beginning God created the heaven and the earth."
    with pytest.raises(SourceMalformed, match="no translation"):
        next(verse_passages(offline_cache, 1, translations=("niv",)))
    with pytest.raises(ValueError, match="verses_per_passage"):
        next(verse_passages(offline_cache, 0))
