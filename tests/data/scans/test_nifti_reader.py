# SPDX-License-Identifier: Apache-2.0
import gzip
import itertools
import os
import tracemalloc
import zlib

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage, LoadImaged
from nifti_files import AFFINE, SIZE, patched, save, voxels

from monai_llmboost.data import BoundedNiftiReader, RefusedScan

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def read(path, **options):
    reader = BoundedNiftiReader(**options)
    return reader.get_data(reader.read(path))


def refused(path, **options):
    with pytest.raises(RefusedScan) as caught:
        read(path, **options)
    return str(caught.value)


def numbers(dtype, size=SIZE):
    """Numbers over all of a type's range, so that a wrong sign, width or rounding shows."""
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return (rng.standard_normal(size) * 1e6).astype(dtype)
    info = np.iinfo(dtype)
    array = rng.integers(info.min, info.max, size, dtype=dtype, endpoint=True)
    if info.bits == 64:
        array[0, 0, 0] = 2**60 + 2**36 + 1  # by way of float64, another float32 than directly
    return array


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_affine_equal_nibabel(tmp_path, dtype):
    """In either byte order, scaled or not, NIfTI-1 and -2, compressed or not."""
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    scalings = ((1, 0), (0.123, -1024), (-3, 0.5), (np.nan, 3))
    for order, kind, (slope, inter), suffix in itertools.product("<>", kinds, scalings, (".nii", ".nii.gz")):
        header = kind.header_class(endianness=order)
        header.set_data_dtype(dtype)
        stored = kind(numbers(dtype).astype(np.dtype(dtype).newbyteorder(order)), AFFINE, header)
        content = bytearray(stored.to_bytes())
        place, width = (112, "f4") if kind is nibabel.Nifti1Image else (176, "f8")
        scaling = np.array([slope, inter], np.dtype(width).newbyteorder(order)).tobytes()
        content[place : place + len(scaling)] = scaling
        path = tmp_path / f"x{suffix}"
        path.write_bytes(gzip.compress(bytes(content)) if suffix.endswith("gz") else content)
        expected = nibabel.load(path)
        array, meta = read(path)
        assert array.dtype == np.float32
        assert array.flags.writeable
        assert expected.dataobj.slope == (1 if np.isnan(slope) else np.float32(slope) if width == "f4" else slope)
        assert np.array_equal(array, expected.get_fdata().astype(np.float32)), (order, kind, slope, suffix)
        assert np.array_equal(meta["affine"], expected.affine)
        assert bool(meta["warnings"]) == bool(np.isnan(slope))


def test_result_equals_that_of_the_reader_of_monai(tmp_path):
    path = save(tmp_path / "x.nii.gz", voxels((*SIZE, 1)))
    ours, theirs = LoadImage(reader=BoundedNiftiReader())(path), LoadImage(reader="NibabelReader")(path)
    assert torch.equal(ours, theirs[..., 0])
    for key in ("affine", "original_affine", "spatial_shape", "space"):
        assert np.array_equal(np.asarray(ours.meta[key]), np.asarray(theirs.meta[key])), key
    plain = LoadImage(reader="NibabelReader")(save(tmp_path / "plain.nii"))
    assert np.isnan(ours.meta["original_channel_dim"])
    assert np.isnan(plain.meta["original_channel_dim"])


def test_free_text_of_the_header_is_not_copied(tmp_path):
    path = patched(tmp_path / "x.nii", (148, np.frombuffer(b"Doe, Jane 1970", "u1"), "u1"))
    assert nibabel.load(path).header["descrip"].item() == b"Doe, Jane 1970"
    assert "Doe" not in repr(read(path)[1])


def test_load_image_raises_the_refusal_although_other_readers_accept_the_file(tmp_path):
    path = save(tmp_path / "x.nii", np.where(voxels() == voxels()[0, 0, 0], np.nan, 1).astype("f4"))
    assert LoadImage(reader="NibabelReader")(path).isnan().any(), "another reader takes it"
    with pytest.raises(RefusedScan, match="NaN or infinite"):
        LoadImage(reader=BoundedNiftiReader())(path)


def test_load_image_raises_unexpected_errors(tmp_path, monkeypatch):
    path = save(tmp_path / "x.nii")
    monkeypatch.setattr(np, "frombuffer", lambda *_: 1 / 0)
    with pytest.raises(RefusedScan, match="division by zero"):
        LoadImage(reader=BoundedNiftiReader())(path)


def test_several_volumes_need_a_choice(tmp_path):
    four = np.stack([voxels(seed=seed) for seed in range(3)], -1)
    for path in (save(tmp_path / "x.nii", four), save(tmp_path / "x.nii.gz", four)):
        assert "expected one volume, got 3" in refused(path)
        assert "(volume=K in Python), from 0 to 2" in refused(path)
        for volume in range(3):
            array, meta = read(path, volume=volume)
            assert np.array_equal(array, four[..., volume])
            assert list(meta["spatial_shape"]) == list(SIZE)
        assert "volume to be from 0 to 2, got 3" in refused(path, volume=3)
    loaded = LoadImaged("image", reader="monai_llmboost.data.BoundedNiftiReader", volume=1)({"image": path})
    assert np.array_equal(loaded["image"], four[..., 1])


def test_damage_after_the_chosen_volume_is_found(tmp_path):
    four = np.stack([voxels(seed=seed) for seed in range(3)], -1)
    packed = bytearray(gzip.compress(save(tmp_path / "x.nii", four).read_bytes(), compresslevel=0))
    packed[-20] ^= 0xFF  # in the last volume
    (tmp_path / "x.nii.gz").write_bytes(packed)
    assert "CRC" in refused(tmp_path / "x.nii.gz", volume=0)


def test_flipped_bits_in_a_compressed_file_are_found(tmp_path):
    """Stored rather than compressed, so that flipping a voxel's bits leaves a stream that can be unpacked."""
    larger = voxels((40, 40, 40))  # nibabel would meet the end of a smaller file while it looks for the header
    packed = bytearray(gzip.compress(save(tmp_path / "x.nii", larger).read_bytes(), compresslevel=0))
    packed[-20] ^= 0xFF
    (tmp_path / "x.nii.gz").write_bytes(packed)
    assert np.asarray(nibabel.load(tmp_path / "x.nii.gz").dataobj).shape == larger.shape, "nibabel takes it"
    assert "CRC" in refused(tmp_path / "x.nii.gz")


def test_every_truncation_of_a_compressed_file_is_found(tmp_path):
    content = save(tmp_path / "x.nii.gz").read_bytes()
    for length in range(0, len(content), 13):
        (tmp_path / "cut.nii.gz").write_bytes(content[:length])
        assert "expected" in refused(tmp_path / "cut.nii.gz")
    for length in range(len(content) - 8, len(content)):  # only the checksum and the length are cut
        (tmp_path / "cut.nii.gz").write_bytes(content[:length])
        assert "cut short" in refused(tmp_path / "cut.nii.gz")


def test_gzip_stream_of_several_members_is_one_file(tmp_path):
    content = save(tmp_path / "x.nii").read_bytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert np.array_equal(read(tmp_path / "x.nii.gz")[0], voxels())


def test_few_trailing_bytes_are_accepted_and_many_are_not(tmp_path):
    content = save(tmp_path / "x.nii").read_bytes()
    for pack, name in ((bytes, "y.nii"), (gzip.compress, "y.nii.gz")):
        (tmp_path / name).write_bytes(pack(content + bytes(1 << 20)))
        assert np.array_equal(read(tmp_path / name)[0], voxels())
        (tmp_path / name).write_bytes(pack(content + bytes((1 << 20) + 1)))
        assert "not what it says" in refused(tmp_path / name)


def test_max_voxels(tmp_path):
    path = save(tmp_path / "x.nii.gz")
    assert f"at most 503 voxels, its header says 504 (shape {SIZE}): if this is right" in refused(path, max_voxels=503)
    assert read(path, max_voxels=504)[0].shape == SIZE


def peak(path):
    """MiB that reading takes at most, by Python's and NumPy's own count, and what came of it."""
    tracemalloc.start()
    try:
        result = BoundedNiftiReader().read(path)
        return tracemalloc.get_traced_memory()[1] / (1 << 20), result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk", [1, 3, SIZE[0], 2 * SIZE[0], SIZE[0] * SIZE[1], 2 * SIZE[0] * SIZE[1] + 1])
@pytest.mark.parametrize("dtype", ["<i2", "<f8"])
def test_the_size_of_parts_changes_nothing(tmp_path, monkeypatch, chunk, dtype):
    """Parts are rows or planes; the last ones may be smaller."""
    path = save(tmp_path / "x.nii.gz", numbers(dtype))
    whole, _ = read(path)
    monkeypatch.setattr("monai_llmboost.data.scans.nifti.reader.CHUNK_VOXELS", chunk)
    parts, _ = read(path)
    assert np.array_equal(parts, whole)
    assert parts.flags.c_contiguous, "so that no later step copies it"


def test_memory_is_bounded_by_the_volume(tmp_path):
    """The float32 volume and a few chunks, not compressed, decompressed and scaled data at the same time."""
    array = np.zeros((256, 256, 256), np.int16)
    for path in (save(tmp_path / "x.nii", array), save(tmp_path / "x.nii.gz", array)):
        used, result = peak(path)
        assert isinstance(result, tuple)
        assert used < 64 + 16


def test_gzip_bombs_need_no_memory(tmp_path):
    huge = patched(tmp_path / "huge.nii.gz", (40, [3, 32767, 32767, 32767, 1, 1, 1, 1], "i2"))
    empty = patched(tmp_path / "empty.nii.gz", (40, [3, 1000, 1000, 1000, 1, 1, 1, 1], "i2"))
    plain = save(tmp_path / "x.nii").read_bytes()
    (tmp_path / "long.nii.gz").write_bytes(gzip.compress(plain + bytes(60 << 20), compresslevel=1))
    for path, reason in ((huge, "at most"), (empty, "cannot hold them"), (tmp_path / "long.nii.gz", "what it says")):
        used, result = peak(path)
        assert isinstance(result, RefusedScan)
        assert reason in str(result)
        assert used < 12


def test_pair_of_files_is_one_scan(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(voxels(), AFFINE), tmp_path / "x.hdr")
    header, image = tmp_path / "x.hdr", tmp_path / "x.img"
    for files in (header, image, [header, image]):
        assert np.array_equal(read(files)[0], voxels())
    assert "expected one NIfTI file, got 2" in refused([header, save(tmp_path / "y.nii")])
    image.write_bytes(image.read_bytes()[:-1])
    assert "expected 504 bytes by its header, got 503" in refused(header)
    image.unlink()
    assert "the .img of x.hdr is missing" in refused(header)
    header.unlink()
    image.write_bytes(b"x")
    assert "the .hdr of x.img is missing" in refused(image)


def test_several_files_are_refused(tmp_path):
    paths = [save(tmp_path / f"{name}.nii.gz") for name in "abc"]
    reason = (
        "got 3 as channels of one image, which is not supported here: give one of them, combine them into a 4-D file"
    )
    assert reason in refused(paths)
    assert "got 2 as channels" in refused([paths[0], paths[0]]), "one file twice is no single channel"
    assert "MONAI's own LoadImage" in refused(paths)
    with pytest.raises(RefusedScan, match="as channels of one image"):
        LoadImage(reader=BoundedNiftiReader())(paths)
    assert "got none" in refused([])


def test_missing_file_is_refused(tmp_path):
    assert "a file that is there, got none" in refused(tmp_path / "nothing.nii")


def test_pipe_is_not_read(tmp_path):
    """It could wait for ever; here, so that this test cannot, something is in it."""
    os.mkfifo(tmp_path / "x.nii")
    pipe = os.open(tmp_path / "x.nii", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(pipe, bytes(1000))
        assert "a regular file" in refused(tmp_path / "x.nii")
    finally:
        os.close(pipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volume": -1}, "volume must be a whole number from 0, not -1"),
        ({"volume": "1"}, "volume must be a whole number from 0, not '1'"),
        ({"volume": True}, "volume must be a whole number from 0, not True"),
        ({"max_voxels": 0}, "max_voxels must be a whole number from 1, not 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        BoundedNiftiReader(**options)


def test_voxels_are_read_in_parts_in_the_order_of_arrays(tmp_path, monkeypatch):
    """Parts of planes, of rows, and rows that are longer than a part."""
    for parts in (1, 4, 20, 100, 1 << 20):
        monkeypatch.setattr("monai_llmboost.data.scans.nifti.reader.CHUNK_VOXELS", parts)
        array, _ = read(save(tmp_path / "x.nii.gz", voxels()))
        assert array.flags.c_contiguous
        assert np.array_equal(array, voxels())


def test_errors_of_a_gzip_stream_are_those_of_the_standard_library(tmp_path):
    packed = gzip.compress(save(tmp_path / "x.nii").read_bytes(), mtime=0)
    path = tmp_path / "x.nii.gz"
    checksum, reserved = bytearray(packed), bytearray(packed)
    checksum[-8] ^= 1
    reserved[12:40] = bytes(28)
    for content in (checksum, reserved, packed + b"garbage", packed + b"\x1f", packed[:-4], gzip.compress(packed)[:9]):
        path.write_bytes(content)
        with pytest.raises((EOFError, OSError, zlib.error)) as expected, gzip.open(path) as file:
            file.read()
        message = refused(path)
        assert str(expected.value) in message or "cut short" in message or "damaged" in message
    header = packed[:3] + b"\x02" + packed[4:10] + b"ab" + packed[10:]  # a checksum of the header, which gzip ignores
    path.write_bytes(header)
    assert np.array_equal(read(path)[0], read(tmp_path / "x.nii")[0])
