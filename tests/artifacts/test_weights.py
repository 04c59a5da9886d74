# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save: whatever happens to one, it is refused in one sentence or gives exactly what was saved."""

import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from monai_llmboost.artifacts.weights import TensorArchive, load_weights


def read_archive(path):
    archive = TensorArchive(path)
    return archive.read(archive.names())


WAYS = {"load_weights": load_weights, "TensorArchive": read_archive}


@pytest.fixture(params=WAYS)
def read(request):
    return WAYS[request.param]


@pytest.fixture
def saved(tmp_path):
    """A small file of every sort of tensor: transposed, shared, empty, of two dtypes; and what is in it."""
    matrix = torch.randn(3, 4)
    tensors = {
        "matrix": matrix,
        "turned": matrix.t(),
        "row": matrix[1],
        "whole": torch.arange(5),
        "none": torch.empty(0),
    }
    torch.save(tensors, tmp_path / "x.bin")
    return tmp_path / "x.bin", tensors


def same(found, tensors):
    return list(found) == list(tensors) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


def refused_or_same(read, path, tensors):
    """Whether it was refused; anything but one sentence or the very tensors fails."""
    try:
        found = read(path)
    except ValueError as error:
        text = str(error)
        assert text.startswith("cannot read ")
        assert "\n" not in text
        assert "weights_only" not in text
        return True
    assert same(found, tensors)
    return False


def test_what_was_saved_comes_back(saved, read):
    path, tensors = saved
    assert same(read(path), tensors)


def test_a_copy_owns_its_memory(saved):
    path, _ = saved
    found = read_archive(path)
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert found["row"].untyped_storage().nbytes() == 16
    with pytest.raises(KeyError):
        TensorArchive(path).read(["unknown"])


def test_any_flipped_bit_of_any_byte(saved, read):
    path, tensors = saved
    whole = path.read_bytes()
    source = random.Random(0)
    flips = [(place, 1 << source.randrange(8)) for place in range(len(whole))]
    # In the directory this bit makes a folder of a member, of which torch would read nothing.
    flips += [(place, 0x10) for place in range(whole.find(b"PK\x01\x02"), len(whole))]
    refused = 0
    for place, bit in flips:
        content = bytearray(whole)
        content[place] ^= bit
        path.write_bytes(content)
        refused += refused_or_same(read, path, tensors)
    assert refused > len(whole) / 2, "most bytes count"


def test_any_cut(saved, read):
    path, tensors = saved
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 4), *range(len(whole) - 100, len(whole))]:
        path.write_bytes(whole[:size])
        assert refused_or_same(read, path, tensors), size


def test_something_before_or_behind(saved, read):
    path, tensors = saved
    whole = path.read_bytes()
    torch.save({"matrix": torch.zeros(3, 4)}, path)
    other = path.read_bytes()
    for content in (
        whole + b"\0",
        whole + b"\n",
        whole + b"\0" * 30,
        whole + other,
        other + whole,
        b"PK\x03\x04" + whole,
    ):
        path.write_bytes(content)
        assert refused_or_same(read, path, tensors)


def swap(content, one, other, times=None):
    """Exchange two byte strings of one length, at each place, or at those that ``times`` counts."""
    mark = b"\xff" * len(one)
    if times is None:
        return content.replace(one, mark).replace(other, one).replace(mark, other)
    parts = content.split(one), content.split(other)
    first, second = (len(one.join(split[: times + 1])) for split, one in zip(parts, (one, other)))
    changed = bytearray(content)
    changed[first : first + len(one)], changed[second : second + len(one)] = other, one
    return bytes(changed)


@pytest.mark.parametrize("where", ["contents", "names before them", "names in the directory", "names in both"])
def test_members_exchanged(tmp_path, read, where):
    path = tmp_path / "x.bin"
    tensors = {"a": torch.full((4,), 1.5), "b": torch.full((4,), 2.5)}
    torch.save(tensors, path)
    whole = path.read_bytes()
    names = b"x/data/0", b"x/data/1"
    content = {
        "contents": lambda: swap(whole, *(tensor.numpy().tobytes() for tensor in tensors.values())),
        "names before them": lambda: swap(whole, *names, times=0),
        "names in the directory": lambda: swap(whole, *names, times=1),
        "names in both": lambda: swap(whole, *names),
    }[where]()
    assert sum(old != new for old, new in zip(whole, content)) > 1
    path.write_bytes(content)
    assert refused_or_same(read, path, tensors)


class Evil:
    def __reduce__(self):
        return (exit, ("code of the checkpoint was run",))


def torchscript(path):
    """Its members, of which one is a program."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            archive.writestr(f"x/{name}", "content")


def without_checksums(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(1)}, path)
    finally:
        torch.serialization.set_crc32_options(True)


def zipped(path, compression=zipfile.ZIP_STORED):
    torch.save({"a": torch.ones(100)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


FOREIGN = {
    "empty": (lambda path: path.write_bytes(b""), r"it is empty"),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "it is a web page in place of the weights"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
                r"a Git LFS pointer .* Run `git lfs pull`"),
    "safetensors": (lambda path: save_file({"a": torch.ones(1)}, path), r"safetensors .* Let its name end in"),
    "text": (lambda path: path.write_text("no weights"), r"it is no file of torch\.save"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04N."), r"it is no file of torch\.save"),
    "a zip archive": (lambda path: zipfile.ZipFile(path, "w").writestr("a/b", "c"), "a zip archive, but not of torch"),
    "an empty archive": (lambda path: zipfile.ZipFile(path, "w").close(), r"it is no file of torch\.save"),
    "compressed": (lambda path: zipped(path, zipfile.ZIP_DEFLATED), "its directory describes .* as torch never does"),
    "code": (lambda path: torch.save({"a": Evil()}, path),
             r"it holds \w+\.(exit|Quitter), and only tensors, numbers and text are read\. Give a file"),
    "a module": (lambda path: torch.save(torch.nn.Linear(1, 1), path), r"it holds torch\.nn\.modules\.linear\.Linear"),
    "TorchScript": (torchscript, r"it is a TorchScript program, .* Save the state_dict"),
    "without checksums": (without_checksums, r"it was saved without checksums\. Save it with torch\.serialization"),
    "torch before 1.6": (
        lambda path: torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False),
        r"it is of torch before 1\.6, whose format has no checksum\. Convert it: python -c \"import torch; torch\.save",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_file_of_weights(tmp_path, read, kind):
    write, message = FOREIGN[kind]
    write(tmp_path / "x.bin")
    with pytest.raises(ValueError, match=rf"^cannot read \S*x\.bin: .*{message}") as caught:
        read(tmp_path / "x.bin")
    assert "\n" not in str(caught.value)
    if kind != "torch before 1.6":
        assert "weights_only" not in str(caught.value), "no advice to read it all the same"


def test_the_conversion_of_an_old_file_works(tmp_path, read):
    import re
    import subprocess
    import sys

    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="Convert it") as caught:
        read(path)
    code = re.search(r'python -c "(.*)"$', str(caught.value))[1]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    assert same(read(path), {"a": torch.ones(2)})


def test_an_archive_that_was_stored_again_is_read(tmp_path, read):
    zipped(tmp_path / "x.bin")
    assert same(read(tmp_path / "x.bin"), {"a": torch.ones(100)})


@pytest.mark.parametrize("name", ["möbel.pt", "two words.pt", "a.b.c.pt", "none"])
def test_names_of_files(tmp_path, read, name):
    torch.save({"a": torch.ones(2)}, tmp_path / name)
    assert same(read(tmp_path / name), {"a": torch.ones(2)})


def test_what_nobody_asks_for_is_not_read(tmp_path):
    """Damage in another layer of a large file does not matter, and is not looked for."""
    path = tmp_path / "x.bin"
    torch.save({"a": torch.full((100,), 1.5), "b": torch.full((100,), 2.5)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.full((1,), 2.5).numpy().tobytes(), b"\0\0\0\0", 1))
    archive = TensorArchive(path)
    assert torch.equal(archive.read(["a"])["a"], torch.full((100,), 1.5))
    with pytest.raises(ValueError, match=r"cannot read x\.bin: it is damaged, its checksum of b does not match"):
        archive.read(["b"])


@pytest.mark.parametrize("content", [[torch.ones(1)], {"model": {"a": torch.ones(1)}}, {1: torch.ones(1)}])
def test_tensors_by_name_and_nothing_else(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"expected tensors by name in x\.bin, got something else"):
        TensorArchive(tmp_path / "x.bin")


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")])
def test_tensors_without_all_their_numbers(tmp_path, tensor):
    torch.save({"a": torch.ones(1), "b": tensor}, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"x\.bin"):
        TensorArchive(tmp_path / "x.bin")


def test_numbers_and_text_are_read(tmp_path):
    content = {"epoch": 3, "best": {"value": 0.5}, "names": ["a", "b"], "flag": True, "none": None}
    torch.save(content, tmp_path / "x.pt")
    assert load_weights(tmp_path / "x.pt") == content


def test_a_missing_file_stays_a_missing_file(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "x.pt")
