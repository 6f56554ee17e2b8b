"""What is read out of package archives: the offline corpus, the verses. Needs a registry the first
time.

The archives (about 35 MB, and 40 MB for the verses) are kept in $INRUN_CACHE or data/cache of the
repository.
"""

import shutil
from collections import defaultdict

import numpy as np
import pytest

from inrun.data import packages
from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.errors import SourceMalformed, SourceUnreachable
from inrun.data.noise import NOISE_KINDS
from inrun.data.offline import DOMAINS, read_offline
from inrun.data.prepare import prepare
from inrun.data.tokenizers import load_tokenizer
from inrun.data.verses import verse_passages


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
