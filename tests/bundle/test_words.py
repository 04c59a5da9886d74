# SPDX-License-Identifier: Apache-2.0
"""Text among the options comes out of MONAI's config language as it was typed."""

import json

import pytest
from conftest import BUNDLE
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from monai_llmboost.bundle import bundle_path, config_values, merged, monai_arguments, parsed, typed_values

CONFIGS = bundle_path(BUNDLE) / "configs"
ODD = [
    "ck #1", "#", "a::b", "@x", "a@b", "%y", "%x.json#k", "$HOME", "$import os", "$'x'", "a'b\"c", "a\\b\\", "[x]",
    "['a']", "a,b", "a b", " a", "é 中", "x\udcffy", "line\nbreak", "-x", "--x", "1e5", "2026_11_27", "007", "None",
    "True", "true", "null", "a: b", "{x}", "(1, 2)", "@::q", "%#z", "a#b@c%d$e", "~", ".", "import os",
]  # fmt: skip


@pytest.fixture(scope="module")
def content():
    return merged([CONFIGS / "train.json", CONFIGS / "inference.json"])


@pytest.mark.parametrize("text", ODD)
def test_text_survives_from_the_shell_to_the_object(content, text):
    keys = ("ckpt_dir", "block", "position", "salt", "output_dir")
    typed = typed_values(content, dict.fromkeys(keys, text))
    assert typed == dict.fromkeys(keys, text)
    parser = ConfigParser(
        {**dict.fromkeys(keys, ""), "file": "$@ckpt_dir + '/model.pt'", "made": {"_target_": "dict", "a": "@block"}}
    )
    parser.update(json.loads(json.dumps(config_values(content, typed))))
    assert [parser.get_parsed_content(key) for key in keys] == [text] * len(keys)
    assert parser.get_parsed_content("file") == f"{text}/model.pt"
    assert parser.get_parsed_content("made") == {"a": text}
    parser = ConfigParser({"dataset_dir": ""})
    parser.update(config_values(content, {"dataset_dir": [text, "b"]}))
    assert parser.get_parsed_content("dataset_dir") == [text, "b"]


def test_plain_text_is_left_as_it_is(content):
    values = {
        "ckpt_dir": "/a/b-c_d.e (1)",
        "epochs": 3,
        "network": "$torch.compile(@network_def)",
        "size": "@patch_size",
    }
    assert config_values(content, values) == values


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("epochs", "3", 3),
        ("epochs", "$2 + 1", "$2 + 1"),
        ("intensity_range", "[-160,240]", [-160, 240]),
        ("resume", "true", True),
        ("volume", "None", None),
        ("volume", "2", 2),
        ("block_dtype", "$torch.bfloat16", "$torch.bfloat16"),
        ("network_def#pool", "mean", "mean"),
        ("network_def::pool", "'5'", "5"),
        ("train#note", "a #1", "a #1"),
        ("train_transforms#cast#keys", "['image', 'x']", ["image", "x"]),
        ("train#dataset#root", "a #1", "a #1"),
        ("dataset_dir", "['a', 'b #1']", ["a", "b #1"]),
        ("dataset_dir", "[a, b]", "[a, b]"),
        ("position", "None", "None"),
    ],
)
def test_what_is_no_text_is_a_python_literal(content, key, text, value):
    assert typed_values(content, {key: text}) == {key: value}


@pytest.mark.parametrize(
    "text",
    [
        "3", "-3", "1e-4", "007", "1_000", "0x1f", "1+2j", "2026-11-27", "True", "None", "word", "a-b", "a.b", "a b",
        "-x", "[1, 2]", "[a, b]", "[a, 'b', [c]]", "(a,)", "()", "{a: b}", "{a: [b, True]}", "{a, a}", "[-x]", "[a.b]",
        "[a-b]", "f(a)", "[f(a)]", "lambda a: a", "[a for a in b]", "f'{a}'", "b'x'", "'5'", '"a b"', "'a' 'b'", "[x",
        "$x", "@x", "%x", "a, b", "1, 2", "*a", "a=b", "...", "[...]", "a\nb", "é", "[é]", "if", "[]", "~", "not a",
        "[not a]", "[1:2]",
    ],
)  # fmt: skip
def test_what_is_no_text_is_read_as_monais_command_line_reads_it(text):
    assert parsed(text) == DefaultParseValue(text)


@pytest.mark.parametrize("text", ["{{}: 1}", "[" * 10_000, "a\0b"])
def test_what_python_cannot_parse_is_text(text):
    assert parsed(text) == text


def test_a_list_of_names_is_a_path_where_there_is_such_a_one(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "['a']").mkdir()
    assert typed_values(content, {"dataset_dir": "['a']"}) == {"dataset_dir": "['a']"}


@pytest.mark.parametrize(("text", "words"), [("", "nothing"), ("  ", "blanks")])
def test_empty_text_is_refused(content, text, words):
    with pytest.raises(ValueError, match=f"--ckpt_dir needs a text, not {words}"):
        typed_values(content, {"ckpt_dir": text})


def test_monais_arguments_hold_text_encoded_and_its_own_options_as_they_are():
    arguments = monai_arguments(BUNDLE, "train", output_dir="a #1", tracking="ml#flow", run_name="run #2", epochs=2)
    assert ConfigParser({"x": arguments["output_dir"]}).get_parsed_content("x") == "a #1"
    assert ConfigParser({"x": arguments["run_name"]}).get_parsed_content("x") == "run #2"
    assert (arguments["tracking"], arguments["epochs"]) == ("ml#flow", 2)
