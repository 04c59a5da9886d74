# SPDX-License-Identifier: Apache-2.0
"""Public classes and functions have an example in their docstring, and every example runs."""

import doctest
import importlib

import pytest
import torch
from torch import nn

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ROOMS = [f"monai_llmboost.{room}" for room in ("llm", "adapters", "boosters", "networks", "tasks", "engines")]
WITHOUT = {"Signature"}  # of a folder that has no examples


def public(room):
    module = importlib.import_module(room)
    return {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}


OBJECTS = {f"{room}.{name}": thing for room in ROOMS for name, thing in public(room).items()}


@pytest.mark.parametrize("name", OBJECTS)
def test_examples_run(name):
    thing = OBJECTS[name]
    room = importlib.import_module(name.rpartition(".")[0])
    names = {"torch": torch, "nn": nn, **{each: getattr(room, each) for each in room.__all__}}
    runner, said = doctest.DocTestRunner(optionflags=OPTIONS), []
    torch.manual_seed(0)
    examples = [test for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs=names) if test.examples]
    if isinstance(thing, type) and thing.__name__ not in WITHOUT:
        assert examples, f"{name} has no example"
    for test in examples:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
