"""The examples in the docstrings of every module of the library."""

import doctest
import importlib
import pkgutil

import pytest

import lowrank_jax

MODULES = ["lowrank_jax"] + [
    module.name for module in pkgutil.walk_packages(lowrank_jax.__path__, "lowrank_jax.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [
        test
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) > 20
