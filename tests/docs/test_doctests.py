"""Every public name has an example in its docstring, and the example runs."""

import doctest
import inspect

import pytest

import inrun


@pytest.mark.parametrize("name", inrun.__all__)
def test_the_docstring_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write a folder
    thing = getattr(inrun, name)
    names = dict(vars(inspect.getmodule(thing)))
    found = doctest.DocTestFinder().find(thing, name, globs=names)
    assert any(test.name == name and test.examples for test in found), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
