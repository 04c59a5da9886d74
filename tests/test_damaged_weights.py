# SPDX-License-Identifier: Apache-2.0
"""Each kind of file of weights, each through what reads it: any flipped byte is refused or changes nothing."""

import json
import random
from dataclasses import replace

import pytest
import torch
from conftest import llama_config
from ignite.engine import Engine
from torch import nn

from monai_llmboost.engines import TrainedWeights, TrainingCheckpoints
from monai_llmboost.llm import BlockGeometry, random_layer, read_block, read_layers, write_block
from monai_llmboost.llm.donor.meta import META

GEOMETRY = BlockGeometry(width=4, mlp_width=4, num_heads=2, num_kv_heads=1, head_size=2, norm_eps=1e-5)
PLACES = 600  # that are tried, of each file; all of them in a smaller one


def training(folder, epochs, resume=False):
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    validation = Engine(lambda engine, batch: None)

    def step(engine, batch):
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        validation.state.metrics["auc"] = 0.5

    trainer = Engine(step)
    keep = {"model": network, "optimizer": optimizer}
    TrainingCheckpoints(folder, keep, validation, "auc", resume=resume).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return network


def best_weights(folder):
    training(folder, 1)

    def read():
        network = nn.Linear(2, 2)
        TrainedWeights(folder, network).load()
        return dict(network.state_dict())

    return folder / "model.pt", read


def last_weights(folder):
    training(folder, 1)

    def read():
        network = nn.Linear(2, 2)
        TrainedWeights(folder, network, "last").load()
        return dict(network.state_dict())

    return folder / "last.pt", read


def resumed(folder):
    """A run of one epoch is resumed with nothing to do, so that the file stays as it is."""
    training(folder, 1)
    return folder / "last.pt", lambda: dict(training(folder, 1, resume=True).state_dict())


def tensors_of(donor):
    return {**donor.layers[0].tensors, "final": donor.final_norm.get("weight", torch.empty(0))}


def hugging_face(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**llama_config(GEOMETRY, num_layers=1, vocab_size=3, pad_token_id=0)))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(llama_config(GEOMETRY, num_layers=1)))
    return folder / "pytorch_model.bin", lambda: tensors_of(read_layers(folder))


def meta(folder):
    tensors = random_layer(GEOMETRY, 1).layers[0].tensors
    torch.save({f"layers.0.{name}": tensors[ours] for name, ours in META.items()}, folder / "consolidated.00.pth")
    numbers = {"dim": 4, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(numbers))
    return folder / "consolidated.00.pth", lambda: tensors_of(read_layers(folder))


def block_file(folder):
    file = folder / "block.safetensors"
    write_block(replace(random_layer(GEOMETRY, 1), final_norm={"weight": torch.ones(4)}), file)
    return file, lambda: tensors_of(read_block(file))


KINDS = {
    "model.pt": best_weights,
    "last.pt": last_weights,
    "last.pt on --resume": resumed,
    "pytorch_model.bin": hugging_face,
    "consolidated.00.pth": meta,
    "block file": block_file,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path, kind):
    file, read = KINDS[kind](tmp_path)
    whole, right = file.read_bytes(), read()
    source = random.Random(0)
    places = range(len(whole)) if len(whole) <= PLACES else sorted(source.sample(range(len(whole)), PLACES))
    refused = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << source.randrange(8)
        file.write_bytes(content)
        try:
            found = read()
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found.keys() == right.keys()
            assert all(torch.equal(found[name], right[name]) for name in right), place
    assert refused > len(places) / 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"x" * 100])
def test_another_file_in_its_place(tmp_path, kind, content):
    file, read = KINDS[kind](tmp_path)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=file.name) as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [best_weights, last_weights, resumed])
def test_a_checkpoint_of_another_build(tmp_path, read):
    file, again = read(tmp_path)
    torch.save([torch.ones(1)], file)
    with pytest.raises(ValueError, match=rf"{file.name} (holds no weights by their names|is not what a training left)"):
        again()
