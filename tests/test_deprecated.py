# SPDX-License-Identifier: Apache-2.0
"""Old names of what has moved work, with a warning that gives the new one."""

import importlib

import pytest

MOVED = {"monai_llmboost.llm": ["LowRankLinear", "lora_block"]}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in MOVED.items() for name in names])
def test_an_old_name_finds_what_has_moved(module, name):
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is deprecated: use monai_llmboost\."):
        found = getattr(importlib.import_module(module), name)
    assert found.__name__ == name


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module("monai_llmboost.llm").nothing  # noqa: B018
