# SPDX-License-Identifier: Apache-2.0
"""GGUF files: what is read of one, and what a file that is not what it says is refused with."""

import builtins
import random
import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

from monai_llmboost.llm.donor.gguf.file import GgufFile
from monai_llmboost.llm.donor.tensor_files import LocalBytes


class Counting(LocalBytes):
    """A file that writes down what is read of it, as (offset, length)."""

    def __init__(self, path):
        super().__init__(path)
        self.reads = []

    def read_into(self, offset, buffer, progress=lambda count: None):
        self.reads.append((offset, len(buffer)))
        super().read_into(offset, buffer, progress)


def write(path, tensors, vocabulary=0, **metadata):
    """A file of float tensors (by dtype) and of raw bytes with their type, and of metadata by key."""
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        key = key.replace("__", ".")
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    if vocabulary:
        writer.add_token_list([f"word {i}" for i in range(vocabulary)])
        writer.add_token_scores([0.5] * vocabulary)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(path):
    return GgufFile(LocalBytes(path))


@pytest.fixture
def three(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).half(), "c": torch.randn(2, 3, 4)}
    return write(tmp_path / "x.gguf", tensors, vocabulary=50, general__name="tiny"), tensors


def test_tensors_and_metadata(three):
    path, tensors = three
    file = opened(path)
    assert file.names() == list("abc")
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["general.name"] == "tiny"
    assert file.metadata["tokenizer.ggml.tokens"] is None, "a vocabulary is not kept"
    found = file.read(["c", "a", "b"])
    assert list(found) == ["c", "a", "b"]
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )
    assert file.num_bytes("ab") == 60 + 14
    with pytest.raises(ValueError, match=r"x\.gguf lacks the tensors \['z'\]"):
        file.read(["z"])


def test_values_of_the_metadata(tmp_path):
    values = {"a": True, "b": 7, "c": 1e-5, "d": "text", "e": [1, 0, 1], "f": [0.5, 1.5], "g": ["x", "y"]}
    metadata = opened(write(tmp_path / "x.gguf", {"a": torch.ones(1)}, **values)).metadata
    assert {key: metadata[key] for key in values} == {**values, "g": None}


def test_only_the_header_and_the_requested_bytes_are_read(tmp_path):
    big = {name: torch.full((50_000,), float(i)) for i, name in enumerate("abcd")}
    source = Counting(write(tmp_path / "x.gguf", big, vocabulary=20_000))
    file = GgufFile(source)
    header = sum(length for _, length in source.reads)
    source.reads.clear()
    came = []
    assert torch.equal(file.read(["c"], came.append)["c"], big["c"])
    assert source.reads == [(file.entries["c"].begin, 200_000)]
    assert sum(came) == 200_000
    assert header < file.entries["a"].begin + 2**19


QUANTISED = [
    kind for kind in GGMLQuantizationType if kind.name not in ("F64", "F32", "F16", "BF16") and kind.name[0] != "I"
]
QUANTISED += [kind for kind in GGMLQuantizationType if kind.name.startswith("IQ")]


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_quantised_types_equal_the_packages_values(tmp_path, kind):
    values, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 0x58, (3, 2 * size), dtype=np.uint8)  # scales of 16 bits stay finite
    path = write(tmp_path / "x.gguf", {"before": torch.ones(3), "w": (raw, kind), "behind": torch.ones(3)})
    try:
        truth = dequantize(raw, kind)
    except NotImplementedError:
        with pytest.raises(ValueError, match=rf"w in x\.gguf has the type {kind.name}, which cannot be dequantised"):
            opened(path).read(["w"])
        return
    found = opened(path).read(["w", "behind"])
    assert found["w"].dtype == torch.float32
    assert found["w"].shape == (3, 2 * values)
    assert torch.equal(found["w"], torch.from_numpy(truth))
    assert torch.equal(found["behind"], torch.ones(3))


def test_bfloat16_stays_bfloat16(tmp_path):
    weights = torch.randn(4, 32).bfloat16()
    raw = quantize(weights.float().numpy(), GGMLQuantizationType.BF16)
    path = write(tmp_path / "x.gguf", {"w": (raw, GGMLQuantizationType.BF16)})
    assert torch.equal(opened(path).read(["w"])["w"], weights)


def test_offsets_equal_those_of_the_package(three):
    path, _ = three
    ours = {name: (entry.begin, entry.end) for name, entry in opened(path).entries.items()}
    theirs = {one.name: (one.data_offset, one.data_offset + one.n_bytes) for one in GGUFReader(path).tensors}
    assert ours == theirs


def test_without_the_package(three, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: real("no such package" if name.startswith("gguf") else name, *rest)
    )
    with pytest.raises(ImportError, match=r"pip install 'monai-llmboost\[gguf\]'"):
        opened(three[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"", "it is truncated within its header"),
        (lambda raw: raw[:20], "it is truncated within its header"),
        (lambda raw: raw[:-40], "it is truncated, with"),
        (lambda raw: raw + bytes(100), "by its header"),
        (lambda raw: b"<htm" + raw[4:], "it is not a GGUF file"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (
            lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:],
            "of version 1, which is not supported: convert the model again",
        ),
        (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], "is a big-endian GGUF file"),
        (
            lambda raw: raw[:8] + struct.pack("<Q", 2**60) + raw[16:],
            "an invalid number of tensors, 1152921504606846976",
        ),
        (
            lambda raw: raw[:16] + struct.pack("<Q", 2**60) + raw[24:],
            "an invalid number of metadata, 1152921504606846976",
        ),
        (lambda raw: raw.replace(b"general.name", b"general.nam\xff"), "a name that is not UTF-8"),
    ],
)
def test_a_damaged_file_is_refused(three, change, message):
    path, _ = three
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"x\.gguf.*{message}") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_header_is_a_valueerror_whatever_the_damage(three):
    """GGUF has no checksum: damaged bytes may be read, but reading never crashes, hangs or takes all memory."""
    path, _ = three
    whole = path.read_bytes()
    header = opened(path).entries["a"].begin
    source = random.Random(0)
    for place in range(header):
        content = bytearray(whole)
        content[place] ^= 1 << source.randrange(8)
        path.write_bytes(content)
        try:
            file = opened(path)
            file.read(file.names())
        except ValueError as error:
            assert "x.gguf" in str(error)


def test_a_file_truncated_at_any_byte_is_refused(three):
    path, _ = three
    whole = path.read_bytes()
    end = max(entry.end for entry in opened(path).entries.values())
    for size in range(end):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.gguf"):
            opened(path)
