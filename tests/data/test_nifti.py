# SPDX-License-Identifier: Apache-2.0
import gzip
import re

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from monai_llmboost.data import CheckVolumed, NiftiVolumes, find_nifti

SIZE = (6, 5, 4)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)


@pytest.fixture
def transform():
    return Compose(
        [
            LoadImaged("image", reader="NibabelReader"),
            EnsureChannelFirstd("image"),
            CheckVolumed("image"),
            Orientationd("image", axcodes="RAS", labels=None),
        ]
    )


def only_case(path, transform):
    (item,) = list(NiftiVolumes(path, transform, img_size=SIZE))
    return item


def test_finds_folders_files_and_patterns(tmp_path, volume):
    for name in ("a/scan.nii.gz", "b/scan.nii.gz", "b/deep/UPPER.NII", "b/notes.txt", "odd [name] ü.nii"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("x")
        else:
            save(tmp_path / name.replace("UPPER.NII", "upper.nii"), volume)
    (tmp_path / "b/deep/upper.nii").rename(tmp_path / "b/deep/UPPER.NII")
    assert list(find_nifti(tmp_path)) == ["a/scan.nii.gz", "b/deep/UPPER.NII", "b/scan.nii.gz", "odd [name] ü.nii"]
    assert list(find_nifti(tmp_path / "a" / "scan.nii.gz")) == ["scan.nii.gz"]
    assert list(find_nifti(tmp_path / "odd [name] ü.nii")) == ["odd [name] ü.nii"]
    assert list(find_nifti(tmp_path / "*" / "scan*")) == ["a/scan.nii.gz", "b/scan.nii.gz"]
    assert list(find_nifti(f"{tmp_path}/**/*.NII")) == ["b/deep/UPPER.NII"]


def test_brackets_of_a_folder_are_taken_literally(tmp_path, volume):
    save(tmp_path / "scan[1]" / "right.nii", volume)
    save(tmp_path / "scan1" / "wrong.nii", volume)
    assert list(find_nifti(tmp_path / "scan[1]" / "*.nii")) == ["right.nii"]


def test_nothing_found(tmp_path):
    for where in (tmp_path, tmp_path / "nothing", tmp_path / "*.nii"):
        with pytest.raises(FileNotFoundError, match=r"no NIfTI files .* give a folder, a file or a pattern"):
            find_nifti(where)


def test_a_volume_comes_as_a_plain_tensor(tmp_path, volume, transform):
    item = only_case(save(tmp_path / "x.nii.gz", volume), transform)
    assert item["refused"] == ""
    assert type(item["image"]) is torch.Tensor
    assert np.array_equal(item["image"][0], volume)


def test_orientation_is_undone(tmp_path, volume, transform):
    turned = np.array([[0, -1, 0, 9], [0, 0, 2, 1], [3, 0, 0, 5], [0, 0, 0, 1.0]])
    item = only_case(save(tmp_path / "x.nii", volume, turned), transform)
    assert np.array_equal(item["image"][0], volume.transpose(1, 2, 0)[::-1])


def bad_cases(volume):
    nan = volume.astype(np.float32)
    nan[0, 0, 0] = np.nan
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

    def without_x(path):
        content = bytearray(save(path, volume).read_bytes())
        content[280:296] = bytes(16)  # srow_x: the first row of the affine
        path.write_bytes(content)

    return {
        "nan": (lambda p: save(p, nan), "expected finite voxels, 1 are NaN or infinite"),
        "constant": (lambda p: save(p, np.full(SIZE, 7, np.uint8)), "expected an image, every voxel is 7"),
        "hounsfield": (
            lambda p: save(p, volume.astype(np.int16) - 1000),
            "voxels from 0 to 255, as in training, got -1000",
        ),
        "scaled": (lambda p: save(p, (volume / 255).astype(np.float32)), "perhaps scaled before"),
        "slice": (lambda p: save(p, volume[:, :, 0]), r"expected a volume, got an image of shape \(6, 5\)"),
        "thin": (lambda p: save(p, volume[:, :, :1]), r"expected a volume, got an image of shape \(6, 5, 1\)"),
        "series": (lambda p: save(p, np.stack([volume] * 3, -1)), "expected one volume, got 3"),
        "colour": (lambda p: save(p, np.zeros(SIZE, dtype)), "expected one number per voxel, got colour"),
        "complex": (lambda p: save(p, volume.astype(np.complex64)), "expected one number per voxel, got complex64"),
        "singular": (without_x, "an affine that can be inverted"),
        "text": (lambda p: p.write_text("hello"), "file"),
        "empty": (lambda p: p.write_bytes(b""), "file"),
        "short": (lambda p: p.write_bytes(save(p, volume).read_bytes()[:-40]), "Expected|expected"),
    }


@pytest.mark.parametrize("name", bad_cases(np.zeros(SIZE, np.uint8)))
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_a_bad_file_costs_one_case(tmp_path, volume, transform, name):
    write, reason = bad_cases(volume)[name]
    write(tmp_path / "bad.nii")
    save(tmp_path / "good.nii", volume)
    bad, good = NiftiVolumes(tmp_path, transform, img_size=SIZE)
    assert good["refused"] == ""
    assert bad["case"] == "bad.nii"
    assert re.search(reason, bad["refused"]), bad["refused"]
    assert bad["image"].shape == (1, *SIZE)
    assert "\n" not in bad["refused"]


def test_flipped_bits_in_a_compressed_file_are_noticed(tmp_path, volume, transform):
    """Stored rather than compressed, so that flipping a voxel's bits leaves a stream that can be unpacked."""
    larger = np.tile(volume, (4, 4, 4))  # nibabel would meet the end of a smaller file while it looks for the header
    plain = save(tmp_path / "x.nii", larger).read_bytes()
    packed = bytearray(gzip.compress(plain, compresslevel=0))
    packed[-20] ^= 0xFF
    (tmp_path / "x.nii").unlink()
    (tmp_path / "x.nii.gz").write_bytes(packed)
    assert np.asarray(nibabel.load(tmp_path / "x.nii.gz").dataobj).shape == larger.shape, "nibabel takes it"
    assert "CRC" in only_case(tmp_path / "x.nii.gz", transform)["refused"]


def test_a_stream_longer_than_its_header_says_is_not_unpacked_to_its_end(tmp_path, volume, transform):
    plain = save(tmp_path / "x.nii", volume).read_bytes()
    (tmp_path / "x.nii").unlink()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(plain + bytes(50_000_000)))
    assert "not what it says" in only_case(tmp_path / "x.nii.gz", transform)["refused"]


def test_a_header_that_asks_for_too_much_is_refused_before_memory_is_taken(tmp_path, volume, transform):
    path = save(tmp_path / "bomb.nii", volume)
    content = bytearray(path.read_bytes())
    content[40:56] = np.array([3, 32767, 32767, 32767, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "voxels" in only_case(tmp_path / "bomb.nii.gz", transform)["refused"]


def test_other_intensities_can_be_asked_for(volume):
    scan = torch.as_tensor(volume[None].astype(np.float32)) * 10 - 1000
    assert CheckVolumed("image", intensity_range=(-1000, 400), clip_intensities=True)({"image": scan})["image"] is scan
    with pytest.raises(ValueError, match="voxels from -1000 to 400"):
        CheckVolumed("image", intensity_range=(-1000, 400))({"image": scan})
    with pytest.raises(ValueError, match="a volume with 2 channel"):
        CheckVolumed("image", channels=2)({"image": scan})
    with pytest.raises(ValueError, match=r"intensity_range as \[low, high\], got \[3, 1\]"):
        CheckVolumed("image", intensity_range=(3, 1))
