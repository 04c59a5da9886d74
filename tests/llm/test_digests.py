# SPDX-License-Identifier: Apache-2.0
"""Digests that were published with a model's files: a file that does not have its own is refused."""

import hashlib
import json
import os
import time

import pytest
import torch
from conftest import llama_config
from safetensors.torch import save_file

from monai_llmboost.llm import read_layers
from monai_llmboost.llm.donor import digests


@pytest.fixture
def files(llama, geometry):
    """The content of a model's files by name."""
    from safetensors.torch import save

    weights = save({name: tensor.clone() for name, tensor in llama.state_dict().items()})
    return {"config.json": json.dumps(llama_config(geometry)).encode(), "model.safetensors": weights}


def git(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def cache(files, folder):
    """As the hub's cache: blobs by their digests, links by their names."""
    (folder / "blobs").mkdir(parents=True)
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else git(content)
        (folder / "blobs" / digest).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def downloaded(files, folder):
    """As `hf download --local-dir` leaves it."""
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else git(content)
        (notes / f"{name}.metadata").write_text(f"{'a' * 40}\n{digest}\n{time.time()}\n")
    return folder


def listed(files, folder):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


PLACES = {
    "the hub's cache": (cache, "the hub's cache"),
    "a download": (downloaded, "the download metadata"),
    "a list": (listed, "SHA256SUMS"),
}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("place", PLACES)
def test_a_file_with_another_digest_is_refused(place, name, files, tmp_path):
    make, source = PLACES[place]
    folder = make(files, tmp_path / "model")
    assert read_layers(folder).num_layers == 3
    path = folder / name
    content = bytearray(files[name])
    content[content.find(b"layers") if name == "config.json" else -3] ^= 1
    before = path.stat().st_mtime
    path.write_bytes(content)
    os.utime(path, (before, before))
    digests._compute_digest.cache_clear()  # it identifies files by their modification time
    with pytest.raises(
        ValueError, match=rf"cannot read {name}: its sha(1|256) digest differs from the one in {source}"
    ):
        read_layers(folder)


def test_a_file_modified_after_the_download_is_not_checked(files, llama, tmp_path):
    folder = downloaded(files, tmp_path / "model")
    state = {name: tensor + 1 for name, tensor in llama.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    later = time.time() + 100
    os.utime(folder / "model.safetensors", (later, later))
    (layer,) = read_layers(folder).layers
    assert torch.equal(layer.tensors["up.weight"], state["model.layers.2.mlp.up_proj.weight"])


def test_checksum_list_of_meta(meta_folder, tmp_path):
    folder = meta_folder
    content = (folder / "params.json").read_bytes()
    (folder / "checklist.chk").write_text(f"{hashlib.md5(content).hexdigest()}  params.json\n")
    assert read_layers(folder).num_layers == 3
    (folder / "params.json").write_bytes(content.replace(b"1e-05", b"1e-04"))
    with pytest.raises(
        ValueError, match=r"cannot read params\.json: its md5 digest differs from the one in checklist\.chk"
    ):
        read_layers(folder)


@pytest.fixture
def meta_folder(tmp_path):
    from test_checkpoint import write_meta

    from monai_llmboost.llm import BlockGeometry, random_layer

    geometry = BlockGeometry(width=32, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8, norm_eps=1e-5)
    return write_meta(tmp_path / "meta", random_layer(geometry, 1).layers[0].tensors, geometry, parts=1)


def test_a_large_file_is_not_read_whole(files, tmp_path, monkeypatch):
    folder = listed(files, tmp_path / "model")
    monkeypatch.setattr(digests, "LARGEST", 100)
    monkeypatch.setattr(digests, "_compute_digest", lambda *_: pytest.fail("it was read"))
    assert read_layers(folder)


def test_a_mirror_names_files_by_their_content_alone(files, tmp_path):
    folder = cache(files, tmp_path / "model")
    plain = hashlib.sha1(files["config.json"]).hexdigest()
    (folder / "config.json").unlink()
    (folder.parents[1] / "blobs" / plain).write_bytes(files["config.json"])
    (folder / "config.json").symlink_to(f"../../blobs/{plain}")
    assert read_layers(folder)
