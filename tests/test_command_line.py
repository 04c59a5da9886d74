# SPDX-License-Identifier: Apache-2.0
"""`monai-llmboost`: verbs, exit codes, one sentence for a mistake."""

import importlib.metadata
import io
import json
import shlex
import sys

import pytest
from conftest import BUNDLE
from fire.parser import DefaultParseValue

import monai_llmboost
from monai_llmboost.__main__ import main
from monai_llmboost.command_line.options import BundleCommand, options_of_bundle, split_options


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line in this process: exit code, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["monai-llmboost", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return run


def test_version(command):
    assert command("--version") == (0, f"{monai_llmboost.__version__}\n", "")
    assert importlib.metadata.version("monai-llmboost") == monai_llmboost.__version__


@pytest.mark.parametrize("verb", ["extract", "info", "donors", "bundle", "run", "predict", "cost", "study", "demo"])
def test_help(command, verb):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert f"monai-llmboost {verb}" in out
    assert verb in command("--help")[1]


def test_extract(command, llama_folder, tmp_path):
    out = tmp_path / "block.safetensors"
    code, said, _ = command("extract", llama_folder, "--layer", 0, "--out", out)
    assert code == 0
    assert "layer 0 of 3 of tiny-llama (counted from 0), width 24, 5,232 weights" in " ".join(said.split())
    before = out.stat().st_mtime_ns
    code, said, _ = command("extract", llama_folder, "--layer", -3, "--out", out)
    assert (code, out.stat().st_mtime_ns) == (0, before), "what is there already is not made again"
    assert "already exists; --overwrite extracts it again" in " ".join(said.split())
    code, _, said = command("extract", llama_folder, "--out", out)
    assert code == 1
    assert said == (
        f"monai-llmboost: {out} exists already and holds other layers or bits: choose another --out, or give "
        "--overwrite\n"
    )
    assert command("extract", llama_folder, "--out", out, "--overwrite")[0] == 0
    assert "layers 1, 2 of 3" in command("extract", llama_folder, "--layer", "1:", "--out", out, "--overwrite")[1]


def test_info(command, llama_folder, tmp_path):
    (llama_folder / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "block.safetensors"
    command("extract", llama_folder, "--out", out)
    code, said, _ = command("info", out)
    assert code == 0
    for words in ("tiny-llama", "mit", "2 of 3", "5,232 in float32", "4 heads of 8 on 2", "RMSNorm before", "passed"):
        assert words in said
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    code, _, said = command("info", out)
    assert (code, "was altered, its weights are not those that were extracted" in said) == (1, True)


def test_donors(command):
    code, said, _ = command("donors")
    assert code == 0
    for words in ("HuggingFaceTB/SmolLM2-135M", "apache-2.0", "meta-llama/Llama-3.1-8B", "gated", "4096"):
        assert words in said


def test_bundle(command, tmp_path):
    code, said, _ = command("bundle", "--to", tmp_path / "mine")
    assert code == 0
    assert "python -m monai.bundle run" in said
    metadata = json.loads((tmp_path / "mine" / "configs" / "metadata.json").read_text())
    assert metadata["version"] == "0.1.0"
    code, _, said = command("bundle", "--to", tmp_path / "other", "--name", "unknown")
    assert (code, f"one of {BUNDLE}" in said) == (1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "train", "--epoch", "3"], "did you mean --epochs?"),
        (["run", "train", "--epochs"], "options of the bundle as --key value, got '--epochs'"),
        (["run", "train", "epochs", "3"], "options of the bundle as --key value, got 'epochs'"),
        (["run", "train", "--bundle", "nowhere"], "there is no bundle 'nowhere'"),
        (
            ["run", "train", "--arm", "both"],
            "unknown arm 'both'; choose from lora, mlp, none, pretrained, pretrained-trained, random",
        ),
        (["run", "train", "--epochs", "two"], "epochs must be a whole number from 1, not 'two': correct --epochs"),
        (
            ["run", "train", "--arm", "none", "--booster#gate", "True"],
            "--booster#gate changes nothing in train.json, none.json: booster must be an object",
        ),
        (
            ["cost", "--booster#gate", "True"],
            "--booster#gate changes nothing in train.json, none.json: booster must be an object",
        ),
        (
            ["extract", "nowhere", "--out", "x.safetensors"],
            "give a model folder, a GGUF file, or a hub id such as owner/name",
        ),
        (["extract", ".", "--out", "x.bin"], "does not end in .safetensors: give --out"),
        (
            ["extract", "nowhere", "--layer", "last", "--out", "x.safetensors"],
            "no model at 'nowhere': give a model folder",
        ),
        (["info", "nowhere.safetensors"], "no block file at nowhere.safetensors"),
        (["demo", "--output", "."], "already exists"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_1(command, words, message):
    code, _, said = command(*words)
    assert code == 1
    assert said.startswith("monai-llmboost: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["run"], ["extract", "x"], ["unknown"], ["demo", "--epochs", "many"]])
def test_a_wrong_usage_is_status_2(command, words):
    assert command(*words)[0] == 2


def test_values_are_python_literals_as_in_monai():
    words = ["--a", "3", "--b=[1,2]", "--c", "true", "--d", "0.5", "--e", "text", "--f=-1", "--g", "True"]
    assert options_of_bundle(words) == {"a": 3, "b": [1, 2], "c": True, "d": 0.5, "e": "text", "f": -1, "g": True}


@pytest.fixture
def typed_command(monkeypatch):
    """What a verb's command line becomes: Typer's values, and the bundle's options as they were typed."""
    seen = {}

    def run(*words):
        import typer
        from typer.testing import CliRunner

        app = typer.Typer()

        @app.command(cls=BundleCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
        def verb(
            context: typer.Context,
            word: str = typer.Argument("none"),
            out: str = typer.Option("x", "--out", "-o"),
            many: list[str] = typer.Option([], "--many"),  # noqa: B008
            flag: bool = typer.Option(False, "--flag"),
            switch: bool = typer.Option(True),
        ):
            seen.update(word=word, out=out, many=many, flag=flag, switch=switch, args=context.args)

        result = CliRunner().invoke(app, list(words))
        return result.exit_code, seen, " ".join(result.output.split())

    return run


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["--a", "-old"], {"a": "-old"}),
        (["--a", "-o1", "-o", "y"], {"a": "-o1"}),
        (["--a=--b", "--c=-o"], {"a": "--b", "c": "-o"}),
        (["--a", "x=y", "--b=c=d"], {"a": "x=y", "b": "c=d"}),
        (["--a#b::c", "1"], {"a#b::c": "1"}),
        (["--a", "", "--b="], {"a": "", "b": ""}),
        (["--a", "one", "--many", "1", "--b", "two", "--many", "2"], {"a": "one", "b": "two"}),
        (["--a", "-5", "--b", "-"], {"a": "-5", "b": "-"}),
        (["--a", "1", "--b#c=2", "--a=3", "--b::c", "4"], {"a": "3", "b::c": "4"}),
    ],
)
def test_values_of_the_bundles_options_are_no_options_of_the_verb(typed_command, words, typed):
    for order in (["word", *words], [*words, "word"]):
        code, seen, said = typed_command(*order)
        assert code == 0, said
        assert seen["word"] == "word" and seen["out"] == ("y" if "-o" in words else "x") and not seen["flag"]
        assert split_options(seen["args"])[0] == typed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "--flag"], "--out needs a value, got --flag: give one, or --out=VALUE"),
        (["--out", "--a", "1"], "--out needs a value, got --a"),
        (["-o"], "-o needs a value, got nothing"),
        (["--out="], "--out needs a value, got an empty one"),
        (["--out", " "], "--out needs a value, got an empty one"),
        (["--flag", "True"], "--flag takes no value, got 'True': leave it out"),
        (["--switch", "false"], "--switch takes no value, got 'false'"),
    ],
)
def test_a_mistake_in_the_verbs_own_options_is_named(typed_command, words, message):
    code, _, said = typed_command(*words)
    assert code == 2
    assert message in said.replace("│ ", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "--seed", "1"], "got '--epochs' and then '--seed=1': give the value"),
        (["--epochs", "--arm", "none"], "got '--epochs' and no value: give the value"),
        (["--epochs", "1", "--epochs", "two"], "epochs must be a whole number from 1, not 'two'"),
        (["--loss", "$nothing.at.all"], "an expression of the configs is wrong (name 'nothing' is not defined)"),
        (["--booster", "None"], "--booster None would change nothing, because MONAI ignores None"),
        (["--train_transforms#augment", "None"], "--train_transforms#augment None would change nothing"),
        (["--ckpt_dir="], "--ckpt_dir needs a text, not nothing: give one"),
        (["--name", "x"], "the bundle has no option --name"),
        (["--job", "x"], "the bundle has no option --job"),
        (["--overlays", "x"], "the bundle has no option --overlays"),
        (["--lora_rank", "3"], "--lora_rank has no effect: nothing in train with these options uses it"),
        (["--dataset_dir", "images"], "--dataset_dir has no effect: the data set 'phantom' is made by code and read"),
        (["--download", "True"], "--download has no effect: the data set 'phantom' is made by code"),
        (["--residual", "None"], "unknown residual 'None'; choose from inner"),
    ],
)
# What MONAI says of itself on every normal run.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:monai")
def test_a_mistake_in_the_bundles_options_is_named(command, words, message):
    code, _, said = command("run", "train", *words)
    assert (code, message in said) == (1, True), said


@pytest.mark.parametrize("words", [["--dataset_dir", "images"], ["--download", "True"], ["--lora_rank", "3"]])
@pytest.mark.parametrize("verb", ["study", "cost"])
def test_options_without_effect_are_refused_by_every_verb(command, tmp_path, verb, words):
    places = ["--output", tmp_path / "out"] if verb == "study" else []
    code, _, said = command(verb, *places, *words)
    assert code == (2 if verb == "study" else 1)
    assert f"{words[0]} has no effect" in said
    assert not (tmp_path / "out").exists()


def test_a_place_that_monais_command_would_misread_is_run_by_ours(command, tmp_path):
    assert "monai-llmboost run train --bundle" in " ".join(command("bundle", "--to", tmp_path / "mine #1")[1].split())


@pytest.mark.parametrize("name", ["1e3", "2026_11_27", "None", "(1)", "-x", "~", "mine"])
def test_the_command_that_is_shown_for_a_copy_finds_it(command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, out, _ = command("bundle", f"--to={name}")
    assert status == 0
    words = shlex.split(out.partition("run it with python -m monai.bundle run ")[2])
    assert words[::2] == ["--config_file", "--bundle_root"]
    assert (tmp_path / words[1]).is_file()
    for word in words[1::2]:
        assert DefaultParseValue(word) == word and not word.startswith(("-", "~"))


def test_an_output_that_knows_fewer_characters_costs_no_run(tmp_path, monkeypatch):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding="ascii", write_through=True))
    (tmp_path / "é٣.nii").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["monai-llmboost", "predict", "--dry-run", "--input", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert b"\\xe9\\u0663.nii" in written.getvalue()
