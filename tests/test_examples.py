"""The examples in docstrings say what they say they do."""

import doctest
import importlib
import pkgutil

import pytest

import ophjax

MODULES = sorted(found.name for found in pkgutil.walk_packages(ophjax.__path__, "ophjax."))


def examples(module):
    return [found for found in doctest.DocTestFinder().find(module) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["ophjax.keys", "ophjax.transforms.reversal", "ophjax.transforms.centroids"])
def test_every_transform_has_an_example(name):
    assert examples(importlib.import_module(name))
