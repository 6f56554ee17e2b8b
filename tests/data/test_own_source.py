"""A source of documents, and one of labelled data, that are written outside the package."""

import numpy as np
import pytest

from inrun.config import ConfigError
from inrun.data.config import SOURCES, DataConfig, source
from inrun.data.corpus import Corpus
from inrun.data.documents import Document
from inrun.data.labelled import LABELLED, ProblemConfig, sample_problem
from inrun.data.prepare import prepare

POEM = "The rose is red, the violet is blue, and this is verse number "


@pytest.fixture
def poems():
    with SOURCES.restored():

        @source("poems", lambda config: {"edition": config.revision}, needs_path=False)
        def poems(config, cache):
            for k in range(40):
                yield Document(f"{POEM}{k}. " * 3, "poetry", f"poem/{k}")

        yield
    with pytest.raises(ConfigError, match="no source of documents 'poems'"):
        DataConfig(source="poems")


def test_an_own_source_is_prepared_as_the_others(poems, tmp_path):
    config = DataConfig(source="poems", tokenizer="bytes", block_size=32, threads=1)
    folder = prepare(config, tmp_path)
    corpus = Corpus.open(folder, "train")
    assert corpus.domains == ["poetry"]
    assert POEM[:20] in corpus.text(0)
    assert prepare(config, tmp_path) == folder
    other = DataConfig(**{**vars(config), "revision": "second"})
    assert prepare(other, tmp_path) != folder, "another fingerprint is another corpus"


def test_own_labelled_data_is_sampled_as_the_others():
    with LABELLED.restored():

        @LABELLED.register("line")
        def line(path, root):
            x = np.arange(60, dtype=np.float64)[:, None]
            return x, 2 * x[:, 0], 0

        config = ProblemConfig("line", train=20, validation=10, test=10, flipped=0.1)
        problem = sample_problem(config, seed=0)
        assert (problem.name, problem.classes, len(problem.train)) == ("line", 0, 20)
        assert problem.wrong.sum() == 2
    with pytest.raises(ValueError, match="no source of labelled data 'line'"):
        ProblemConfig("line")
