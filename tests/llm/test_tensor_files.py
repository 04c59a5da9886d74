# SPDX-License-Identifier: Apache-2.0
"""Named tensors out of one file: which bytes are read, and what a file that is not what it says is refused with."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_llmboost.llm.donor.tensor_files import LocalBytes, SafetensorsFile

BIG = 25 * 2**20  # bytes of one tensor of the big file


class Counting(LocalBytes):
    """A file that writes down what is read of it, as (offset, length)."""

    def __init__(self, path):
        super().__init__(path)
        self.reads = []

    def read_into(self, offset, buffer, progress=lambda count: None):
        self.reads.append((offset, len(buffer)))
        super().read_into(offset, buffer, progress)


def write(path, header, data=b"", length=None):
    """A safetensors file by hand: header as an object or as bytes, and its length as it is or as it is given."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def opened(path):
    return SafetensorsFile(LocalBytes(path))


@pytest.fixture
def five(tmp_path):
    """Five tensors of 400 bytes, side by side from a to e."""
    tensors = {name: torch.randn(10, 10) for name in "abcde"}
    save_file(tensors, tmp_path / "five.safetensors")
    return tmp_path / "five.safetensors", tensors


@pytest.mark.parametrize(
    ("names", "runs"),
    [("a", [400]), ("bcd", [1200]), ("dbc", [1200]), ("abde", [800, 800]), ("ace", [400] * 3), ("", [])],
)
def test_adjacent_tensors_are_read_together(five, names, runs):
    path, tensors = five
    source = Counting(path)
    file = SafetensorsFile(source)
    assert file.names() == list("abcde")
    (first, eight), (behind, header) = source.reads
    assert (first, eight, behind, 8 + header) == (0, 8, 8, path.stat().st_size - 2000)
    source.reads.clear()
    came = []
    found = file.read(names, came.append)
    assert list(found) == list(names)
    assert all(torch.equal(found[name], tensors[name]) for name in names)
    assert [length for _, length in source.reads] == runs
    assert sum(came) == sum(runs) == file.num_bytes(names)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2]


def test_every_dtype_is_as_the_safetensors_library_reads_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {str(d): torch.randint(0, 2, (3, 5), generator=generator).to(d) for d in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "words": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "all.safetensors", metadata={"format": "pt"})
    theirs, ours = load_file(tmp_path / "all.safetensors"), opened(tmp_path / "all.safetensors").read(tensors)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].is_contiguous()
        assert torch.equal(ours[name].view(torch.uint8) if tensor.ndim else ours[name],
                           tensor.view(torch.uint8) if tensor.ndim else tensor)  # fmt: skip


def test_unaligned_data(tmp_path):
    """A header of odd length, and a tensor of three bytes before one of four-byte numbers: a second read, no copy."""
    wide = torch.randn(5, 2)
    header = {
        "narrow": entry(0, 3, "U8", [3]),
        "wide": entry(3, 43, shape=[5, 2]),
        "next": entry(43, 51, "F64", [1]),
    }
    data = bytes([1, 2, 3]) + wide.numpy().tobytes() + torch.tensor([7.0], dtype=torch.float64).numpy().tobytes()
    raw = json.dumps(header).encode()
    path = write(tmp_path / "odd.safetensors", raw + b" " * (1 - len(raw) % 2), data)
    source = Counting(path)
    found = SafetensorsFile(source).read(header)
    assert found["narrow"].tolist() == [1, 2, 3]
    assert torch.equal(found["wide"], wide)
    assert found["next"].item() == 7
    assert [length for _, length in source.reads[2:]] == [3, 48]
    assert all(tensor.data_ptr() % tensor.itemsize == 0 for tensor in found.values())


def test_a_layer_from_shards(llama, llama_folder):
    """Shards as `transformers` writes them, a layer in several of them; and what was read can be written again."""
    index = json.loads((llama_folder / "model.safetensors.index.json").read_text())["weight_map"]
    state = llama.state_dict()
    names = [name for name in index if ".layers.1." in name]
    found = {}
    for file in {index[name] for name in names}:
        source = Counting(llama_folder / file)
        here = [name for name in names if index[name] == file]
        found |= SafetensorsFile(source).read(here)
        assert sum(length for _, length in source.reads[2:]) == sum(state[name].nbytes for name in here)
    assert len(found) == 9
    assert all(torch.equal(found[name], state[name]) for name in names)
    save_file(found, llama_folder / "again.safetensors")
    assert torch.equal(load_file(llama_folder / "again.safetensors")[names[0]], state[names[0]])


def test_missing_tensors_are_refused(five):
    with pytest.raises(ValueError, match=r"five\.safetensors lacks the tensors \['f', 'g'\]: index and weights"):
        opened(five[0]).read(["a", "g", "f"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x80\x81", "its header is not JSON"),
        (b'{"a": ', "its header is not JSON"),
        (b"[" * 100_000, "its header is not JSON"),
        (b"[]", "its header is a list, not an object"),
        ({"a": 1}, "has an invalid tensor"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "has an invalid tensor .*data_offsets"),
        ({"a": entry(0, 8, dtype=4)}, "has an invalid tensor"),
        ({"a": entry(0, 8, shape=2)}, "has an invalid tensor"),
        ({"a": entry(0, 8, shape=[-1, -2])}, r"has an invalid tensor \(shape \[-1, -2\]"),
        ({"a": entry(0, 8, shape=[2.0])}, r"has an invalid tensor \(shape \[2\.0\]"),
        ({"a": entry(0, 8, shape=[True, 2])}, r"has an invalid tensor \(shape \[True, 2\]"),
        ({"a": entry(0, 8, shape=[3])}, r"has an invalid tensor \(8 bytes for F32 of shape \[3\]\)"),
        ({"a": entry(0, 0, shape=[0, 2**62, 2**62])}, "a shape of 3 axes that no tensor can have"),
        ({"a": entry(0, 4, shape=[1] * 65)}, "a shape of 65 axes"),
        ({"a": entry(8, 0, shape=[0])}, "has an invalid tensor"),
        ({"a": entry(-8, 0)}, "has an invalid tensor"),
        ({"a": {**entry(0, 8), "data_offsets": [0, 8, 8]}}, "has an invalid tensor"),
        ({"a": {**entry(0, 8), "data_offsets": ["0", "8"]}}, "has an invalid tensor"),
        ({"a": entry(0, 8), "b": entry(4, 8)}, "a gap or an overlap before b"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "a gap or an overlap before b"),
        ({"b": entry(4, 8)}, "a gap or an overlap before b"),
        ({"a": entry(0, 12)}, "it is truncated, with 78 bytes of 82"),
        ({"a": entry(0, 4)}, "bytes, but .* by its header"),
    ],
)
def test_an_inconsistent_header_is_refused(tmp_path, header, message):
    path = write(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=rf"^cannot read bad\.safetensors: .*{message}.*\. Download it again$"):
        opened(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is truncated, with 0 bytes in all"),
        (b"1234567", "it is truncated, with 7 bytes in all"),
        (bytes([100, 0, 0, 0, 0, 0, 0, 0]) + b"{}", "it is truncated within its header, with 10 bytes of 108"),
        (b"\xff" * 20, "its header has 18446744073709551615 bytes, more than"),
        (b"<!DOCTYPE html>", "its header has .* bytes, more than"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read bad\.safetensors: {message}.*\. Download it again"):
        opened(tmp_path / "bad.safetensors")


def test_a_file_truncated_after_its_header_was_read(five):
    path, _ = five
    file = opened(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert file.read("a")
    with pytest.raises(ValueError, match=r"cannot read five\.safetensors: it is truncated at \d+ bytes"):
        file.read("e")
    with pytest.raises(ValueError, match="it is truncated, with"):
        opened(path)


def test_a_dtype_that_torch_does_not_have(tmp_path):
    """It is no reason to refuse the tensors beside it."""
    header = {"a": entry(0, 4), "b": entry(4, 8, "F4", [8])}
    file = opened(write(tmp_path / "new.safetensors", header, bytes(8)))
    assert file.read("a")["a"].tolist() == [0]
    with pytest.raises(
        ValueError, match=r"b in new\.safetensors has an unsupported dtype 'F4': choose .* in one of F64, "
    ):
        file.read("ab")


def test_a_damaged_header_is_a_valueerror_whatever_the_damage(five):
    path, tensors = five
    whole = path.read_bytes()
    header = len(whole) - 2000
    source = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(source.randrange(1, 4)):
            content[source.randrange(header)] = source.randrange(256)
        path.write_bytes(content)
        try:
            opened(path).read(tensors)
        except ValueError as error:
            assert "five.safetensors" in str(error)


MEASURED = """
import re, sys, torch
from pathlib import Path
from monai_llmboost.llm.donor.tensor_files import LocalBytes, SafetensorsFile

def peak_memory():  # not of getrusage, which hands on the parent's peak
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def read_so_far():
    return int(re.search(r"rchar: (\\d+)", Path("/proc/self/io").read_text())[1])

torch.empty(8, dtype=torch.uint8).numpy()
held = torch.ones(int(sys.argv[2]), dtype=torch.uint8)  # so that no earlier peak hides what is measured
memory, read = peak_memory(), read_so_far()
tensors = SafetensorsFile(LocalBytes(Path(sys.argv[1]))).read(["b", "c"])
print(peak_memory() - memory, read_so_far() - read, tensors["c"][-1].item())
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="a system without /proc/self/io")
def test_bytes_read_by_the_system(tmp_path):
    """Of a file of 100 MiB two tensors, 50 MiB: no more is read than these, and no more memory taken."""
    path, wanted = tmp_path / "big.safetensors", 2 * BIG
    save_file({name: torch.full((BIG // 4,), float(i)) for i, name in enumerate("abcd", 1)}, path)
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(path), str(2 * wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    path.unlink()
    assert done.returncode == 0, done.stderr
    memory, read, value = (float(word) for word in done.stdout.split())
    assert value == 3
    assert wanted <= read <= 1.01 * wanted
    assert 0.9 * wanted <= memory <= 1.2 * wanted
