# SPDX-License-Identifier: Apache-2.0
import doctest
import importlib
import pkgutil

import pytest

import monai_llmboost.data

MODULES = ["monai_llmboost.arguments"] + [
    module.name for module in pkgutil.walk_packages(monai_llmboost.data.__path__, "monai_llmboost.data.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_class_has_an_example():
    public = [getattr(monai_llmboost.data, name) for name in monai_llmboost.data.__all__]
    without = [each.__name__ for each in public if isinstance(each, type) and ">>>" not in (each.__doc__ or "")]
    assert without == []
