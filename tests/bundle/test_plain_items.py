# SPDX-License-Identifier: Apache-2.0
"""Items of configs without MONAI: the values that MONAI's parser gives, or none."""

import json

import pytest
from monai.bundle import ConfigParser

from monai_llmboost.bundle.content import merged
from monai_llmboost.bundle.find import arms_of, job_configs, networks_of, package_bundles
from monai_llmboost.bundle.plain_items import Component, NotPlainError, PlainItems

CONTENT = {
    "imports": ["$import os", "$from math import prod as max"],
    "size": 28,
    "size_mm": [1.5, 2],
    "names": {"a": 1, "b": "two"},
    "text": "a @size b",
    "nothing": None,
    "one": "@size",
    "below": "@names#b",
    "below2": "$@names::a + 1",
    "shape": "$[1] + [@size] * 3",
    "longer": "$@size_mm[0] * @size",
    "part": "$@size_mm[1:] if @size > 3 and not @nothing else ()",
    "values": "$list(@names.values()) + [len(@names)]",
    "literal": "$'ck \\x231'",
    "within": {"x": "@shape", "y": ["$@size // 4", {"z": "@one"}]},
    "length": {"_target_": "builtins.len", "obj": "@names"},
    "parts": {
        "on": {"_target_": "builtins.dict", "a": "@size"},
        "off": {"_target_": "builtins.dict", "_disabled_": True},
        "off2": {"_target_": "builtins.dict", "_disabled_": "$@size > 3"},
        "off3": {"_target_": "builtins.dict", "_disabled_": "True "},
        "on2": {"_target_": "builtins.dict", "_disabled_": "$@size < 3"},
    },
    "several": [{"_target_": "builtins.dict", "_disabled_": True}, 1],
    "all_parts": "$list(@parts.values())",
}
PLAIN = [
    "size", "names", "text", "nothing", "one", "below", "below2", "shape", "longer", "part", "values", "literal",
    "within", "several",
]  # fmt: skip


@pytest.fixture
def parser():
    return ConfigParser(CONTENT)


@pytest.mark.parametrize("key", PLAIN)
def test_values_are_those_of_monai(parser, key):
    assert PlainItems(CONTENT).value(key) == parser.get_parsed_content(key)


def test_disabled_components_are_left_out_as_by_monai(parser):
    items = PlainItems(CONTENT)
    assert list(items.value("parts")) == list(parser.get_parsed_content("parts")) == ["on", "on2"]
    first, _ = items.value("all_parts")
    assert isinstance(first, Component)
    assert (first.target, first.argument("a"), first.argument("b", 3)) == ("builtins.dict", 28, 3)
    assert items.value("parts#off") is None
    with pytest.raises(NotPlainError, match=r"parts#on has the arguments \['a'\]"):
        first.check_arguments("b")


@pytest.mark.parametrize(
    "value",
    [
        "@missing", "@size#more", "@#size", "%size", "name #1", "$'#1'", "$os.getcwd()", "$max(@size_mm)", "$1 +",
        "$@size.bit_length()", "$str(@parts)", "$'%s' % @parts", "$@length + 1", "$list(@parts.values()) == [1, 2]",
        "$not @length",
        "$[@length] == [3]", "$len(@length)", "$@names.pop('a')", "$list(@names.items(), x=1)", "$1 / 0", "@item",
        "$[x for x in @size_mm]", "$(lambda: 1)()", "$import os", "$f'{@size}'", "$__import__('os')", "@",
    ],
)  # fmt: skip
def test_what_only_monai_knows_is_refused(value):
    with pytest.raises(NotPlainError):
        PlainItems({**CONTENT, "item": value}).value("item")


def _jobs():
    for bundle in package_bundles():
        for job in ("train", "inference"):
            for network in (None, *networks_of(bundle)):
                for arm in arms_of(bundle)[:1]:
                    yield pytest.param(job_configs(bundle, job, arm, network), id=f"{bundle.name}-{job}-{network}")


@pytest.mark.parametrize("configs", list(_jobs()))
def test_items_of_the_bundles_are_those_of_monai(configs):
    content = {**merged(configs), "_meta_": json.loads((configs[0].parent / "metadata.json").read_text())}
    items, parser = PlainItems(content), ConfigParser(content)
    compared = 0
    for key, raw in content.items():
        if isinstance(raw, dict) and "_target_" in raw:
            continue  # MONAI creates what even a disabled one refers to
        try:
            repr(value := items.value(key))  # refused where there are components in it
        except NotPlainError:
            continue
        assert value == parser.get_parsed_content(key), key
        compared += 1
    assert compared > 20
