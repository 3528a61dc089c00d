"""The examples in the docstrings of `experiments.data`."""

import doctest
import importlib
import pkgutil

import pytest

import experiments.data

MODULES = [
    module.name
    for module in pkgutil.walk_packages(experiments.data.__path__, "experiments.data.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
