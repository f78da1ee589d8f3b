"""The examples in the docstrings of `model` run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import model

MODULES = sorted(module.name for module in pkgutil.walk_packages(model.__path__, "model."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_entry_points_have_an_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {
        test.name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples
    }
    assert {"model.xclip.XClip", "model.scoring.ScoreHead", "model.tokenization.Tokenizer"} <= with_examples
