# SPDX-License-Identifier: Apache-2.0
import nibabel
import numpy as np
import pytest
from dicom_files import OBLIQUE, random_volume, uid, write_series
from monai.data import DataLoader, Dataset
from monai.transforms import LoadImaged
from nifti_files import AFFINE, save, voxels

from monai_llmboost.data import RefusedScan, find_scans

DICOM = random_volume((9, 8, 6))


def load(source, **options):
    return LoadImaged("image", reader="monai_llmboost.data.ScanReader", **options)({"image": source})["image"]


def test_format_selects_the_reader(tmp_path):
    save(tmp_path / "n.nii.gz")
    files = write_series(tmp_path / "series", DICOM)
    for source in (tmp_path / "n.nii.gz", str(tmp_path / "n.nii.gz"), [tmp_path / "n.nii.gz"]):
        assert np.array_equal(load(source), voxels())
        assert np.allclose(load(source).affine, AFFINE)
    write_series(tmp_path / "two", DICOM, series="first")
    write_series(tmp_path / "two", DICOM + 1, series="second", first=50)
    sources = [tmp_path / "series", str(tmp_path / "series"), [str(file) for file in files]]
    for source in [*sources, f"{tmp_path / 'two'}::{uid('first')}"]:
        assert np.array_equal(load(source), DICOM)
        assert np.allclose(load(source).affine, OBLIQUE, atol=1e-4)


def test_content_decides_not_the_name(tmp_path):
    save(tmp_path / "n.nii").rename(tmp_path / "n.dcm")
    assert np.array_equal(load(tmp_path / "n.dcm"), voxels())
    files = write_series(tmp_path / "series", DICOM, suffix=".nii.gz")
    assert np.array_equal(load(files), DICOM)


def test_existing_file_with_colons_in_its_name_is_read(tmp_path):
    save(tmp_path / "a.nii").rename(tmp_path / "a::b.nii")
    assert np.array_equal(load(tmp_path / "a::b.nii"), voxels())


def test_found_scans_can_be_read(tmp_path):
    save(tmp_path / "n.nii.gz")
    write_series(tmp_path / "series", DICOM)
    for scan in find_scans(tmp_path)[0]:
        image = load(list(scan.files))
        assert image.shape == scan.shape
        assert np.allclose(np.linalg.norm(image.affine[:3, :3], axis=0), scan.spacing_mm)


def test_options_are_passed_to_the_readers(tmp_path):
    save(tmp_path / "n.nii", np.stack([voxels(seed=seed) for seed in range(3)], -1))
    write_series(tmp_path / "series", DICOM)
    assert np.array_equal(load(tmp_path / "n.nii", volume=2), voxels(seed=2))
    with pytest.raises(RefusedScan, match="at most 10 voxels"):
        load(tmp_path / "n.nii", volume=2, max_voxels=10)
    with pytest.raises(RefusedScan):
        load(tmp_path / "series", min_slices=7)
    with pytest.raises(ValueError, match="gantry_tilt"):
        load(tmp_path / "series", gantry_tilt="guess")


def test_load_image_raises_the_refusal(tmp_path):
    """LoadImage would try other readers if ``read`` raised it."""
    files = write_series(tmp_path / "series", DICOM)
    files[2].unlink()
    with pytest.raises(RefusedScan, match="missing"):
        load(tmp_path / "series")
    with pytest.raises(RefusedScan, match="a file that is there, got none"):
        load(tmp_path / "nothing.nii")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RefusedScan, match="got a PNG picture"):
        load(tmp_path / "x.png")
    (tmp_path / "x.dcm").write_bytes(b"hello")
    with pytest.raises(RefusedScan, match="DICOM"):
        load(tmp_path / "x.dcm")


def test_files_of_several_scans_are_refused(tmp_path):
    with pytest.raises(RefusedScan, match="expected one NIfTI file, got 2"):
        load([save(tmp_path / "a.nii"), save(tmp_path / "b.nii")])
    with pytest.raises(RefusedScan, match="expected the files of a scan, got none"):
        load([])


def test_scans_with_different_warnings_can_be_collated(tmp_path):
    """In a plain DataLoader: one has an orientation code, the other has none."""
    volume = np.random.default_rng(0).integers(0, 255, (6, 5, 4)).astype(np.uint8)
    for name, code in (("known", 1), ("unknown", 0)):
        image = nibabel.Nifti1Image(volume, np.eye(4))
        image.set_sform(np.eye(4), code=code)
        image.set_qform(None, code=0)
        nibabel.save(image, tmp_path / f"{name}.nii")
    load = LoadImaged("image", reader="monai_llmboost.data.ScanReader")
    items = [{"image": str(tmp_path / f"{name}.nii")} for name in ("known", "unknown")]
    (batch,) = DataLoader(Dataset(items, load), batch_size=2)
    assert batch["image"].shape == (2, 6, 5, 4)
    known, unknown = batch["image"].meta["warnings"]
    assert (known, "orientation is unknown" in unknown) == ("", True)
