# SPDX-License-Identifier: Apache-2.0
import errno
import shutil

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import OBLIQUE, dataset, random_volume, save, uid, write_multiframe, write_series
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Orientationd

from monai_llmboost.data.scans.dicom.paths import get_reader_paths
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans
from monai_llmboost.data.scans.scan import RefusedScan

VOLUME = random_volume()  # (9, 8, 6)
NAME = "monai_llmboost.data.scans.dicom.reader.DicomSeriesReader"
READERS = {"name": lambda: NAME, "class": lambda: DicomSeriesReader, "instance": DicomSeriesReader}


def read(path, **options):
    reader = DicomSeriesReader(**options)
    return reader.get_data(reader.read(path))


def assert_reads_as(path, values, affine=OBLIQUE, **options):
    array, meta = read(path, **options)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.asarray(values, np.float32))
    np.testing.assert_allclose(meta["affine"], affine, atol=1e-6)
    return meta


@pytest.mark.parametrize("how", READERS)
def test_dicom_equals_nifti_of_the_same_volume(tmp_path, how):
    write_series(tmp_path / "dicom", VOLUME)
    nibabel.save(nibabel.Nifti1Image(VOLUME, OBLIQUE), tmp_path / "same.nii")
    nifti = LoadImage(reader="NibabelReader")(tmp_path / "same.nii")
    (dicom,) = LoadImaged(["image"], reader=READERS[how]())({"image": tmp_path / "dicom"}).values()
    assert torch.equal(dicom.as_tensor(), nifti.as_tensor())
    assert dicom.dtype == nifti.dtype
    torch.testing.assert_close(dicom.affine, nifti.affine, atol=1e-6, rtol=0)
    for key in ("affine", "original_affine", "spatial_shape", "original_channel_dim"):
        assert type(dicom.meta[key]) is type(nifti.meta[key]), key
        np.testing.assert_allclose(dicom.meta[key], nifti.meta[key], atol=1e-6, err_msg=key)
    assert dicom.meta["space"] == nifti.meta["space"]
    assert (dicom.meta["series_uid"], dicom.meta["modality"], dicom.meta["warnings"]) == (uid("series"), "CT", "")
    assert "secret" not in repr(dicom.meta).lower()


def test_accepted_inputs(tmp_path):
    paths = write_series(tmp_path / "in" / "the" / "depths", VOLUME)
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / "the" / "empty").touch()
    shutil.copy(paths[0], tmp_path / "in" / "DICOMDIR")
    save(dataset(np.zeros((2, 2), np.uint8), sop_class="1.2.840.10008.1.3.10"), tmp_path / "in" / "DICOMDIR")
    for given in (tmp_path / "in", str(tmp_path / "in"), paths, [str(path) for path in paths[::-1]],
                  f"{tmp_path}/in::{uid('series')}", [f"{path}::{uid('series')}" for path in paths]):  # fmt: skip
        assert_reads_as(given, VOLUME)


def test_load_image_raises_the_refusal(tmp_path):
    """LoadImage ignores errors of ``read`` and lets other readers guess."""
    write_series(tmp_path, VOLUME, change=lambda data, k: k != 2)
    with pytest.raises(RefusedScan, match=r"slices 2\.5 mm apart, missing: 1"):
        LoadImage(reader=NAME)(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected DICOM files, got nothing at .*gone: give a folder or files"):
        LoadImage(reader=NAME)(tmp_path / "gone")


def test_several_volumes_are_listed_to_choose_one(tmp_path):
    write_series(tmp_path, VOLUME, series="one")
    write_series(tmp_path, VOLUME + 1, series="two")
    with pytest.raises(
        RefusedScan, match=r"expected one volume, got 2: \w{8} \(CT, 9x8x6\), \w{8} .*choose one"
    ) as raised:
        read(tmp_path)
    assert_reads_as(f"{tmp_path}::{uid('two')}", VOLUME + 1)
    digest = str(raised.value).split("got 2: ")[1][:8]
    assert read(f"{tmp_path}::{digest}")[1]["series_uid"] in (uid("one"), uid("two"))
    with pytest.raises(RefusedScan, match=r"expected the volume 1.2.3, got \w{8} \(CT, 9x8x6\).* after ::"):
        read(f"{tmp_path}::1.2.3")


def test_nothing_to_read(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(RefusedScan, match="a DICOM volume, got no DICOM files, none of them part of one: give"):
        read(tmp_path)
    with pytest.raises(RefusedScan, match=r"expected a DICOM volume, got 1 .*, the first: .* does not begin as one"):
        read(tmp_path / "x.txt")


def test_each_found_scan_can_be_read(tmp_path):
    """Two echoes as slices, and three time points in one shuffled file, in one folder."""
    files = write_series(tmp_path, VOLUME, EchoTime="4") + write_series(tmp_path, VOLUME + 1, first=50, EchoTime="9")
    times = np.stack([VOLUME, VOLUME + 2, VOLUME + 3], axis=-1)
    files.append(write_multiframe(tmp_path / "m.dcm", times, order=np.random.default_rng(1).permutation(18)))
    scans, _ = find_dicom_scans(files, str)
    arrays = [read(get_reader_paths(scan))[0] for scan in scans]
    expected = [VOLUME, VOLUME + 1, *(times[..., t] - 1024 for t in range(3))]
    assert len(arrays) == 5
    for volume in expected:
        assert sum(np.array_equal(array, volume) for array in arrays) == 1


def tilted(shift_mm):
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    affine[:2, 2] = shift_mm
    return affine


def plane_through(affine, shape):
    """Return whole numbers that grow linearly in space, which linear interpolation reproduces exactly."""
    x, y, z = np.einsum("ab,b...->a...", affine, [*np.indices(shape), np.ones(shape)])[:3]
    return 8 * x + 4 * y + 2 * z


@pytest.mark.parametrize("shift_mm", [(0, 1.0), (0.5, -1.5), (-0.25, 0)])
def test_tilted_series_is_resampled_onto_a_rectangular_grid(tmp_path, shift_mm):
    affine, shape = tilted(shift_mm), (9, 8, 6)
    write_series(tmp_path, plane_through(affine, shape).astype(np.int16), affine)
    array, meta = read(tmp_path)
    axes = meta["affine"][:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag([1, 4, 9]), atol=1e-6)
    truth = plane_through(meta["affine"], array.shape)
    inside = np.isclose(array, truth, atol=1e-3)
    assert ((array == array.min()) | inside).all()
    for k in range(6):  # only the border without a neighbour is lost
        assert inside[:, :, k].sum() >= (shape[0] - 1) * (shape[1] - 1)
    corners = nibabel.affines.apply_affine(affine, [(i, j, k) for i in (0, 8) for j in (0, 7) for k in (0, 5)])
    places = nibabel.affines.apply_affine(np.linalg.inv(meta["affine"]), corners)
    assert (places > -1e-6).all()
    assert (places < np.array(array.shape) - 1 + 1e-6).all()
    assert len(meta["warnings"].splitlines()) == 2
    assert meta["warnings"].splitlines()[1] == "resampled onto a rectangular grid"
    assert tuple(meta["spatial_shape"]) == array.shape


def test_tilted_series_can_be_sheared_or_refused(tmp_path):
    affine = tilted((0, 1.0))
    write_series(tmp_path, VOLUME, affine)
    meta = assert_reads_as(tmp_path, VOLUME, affine, gantry_tilt="shear")
    assert meta["warnings"] == "its slices are tilted by 18.4 degrees (gantry tilt)"
    with pytest.raises(RefusedScan, match=r"got a gantry tilt of 18.4 degrees: allow it with gantry_tilt='resample'"):
        read(tmp_path, gantry_tilt="refuse")
    assert_reads_as(write_series(tmp_path / "straight", VOLUME)[0].parent, VOLUME, gantry_tilt="refuse")


def test_tilt_that_needs_too_much_memory_is_refused(tmp_path):
    write_series(tmp_path, VOLUME, tilted((0, 1e8)))
    with pytest.raises(RefusedScan, match=r"a tilt that a grid of 1073741824 voxels can hold"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gantry_tilt": "ignore"}, "unknown gantry_tilt 'ignore'; choose from resample, shear, refuse"),
        ({"min_slices": 1}, "min_slices must be a whole number from 2, not 1: a single slice is not a volume"),
        ({"min_slices": "3"}, "min_slices must be a whole number from 2, not '3'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        DicomSeriesReader(**options)


def test_verify_suffix_checks_the_content(tmp_path):
    paths = write_series(tmp_path / "a", VOLUME, suffix="")
    (tmp_path / "b.dcm").write_text("hello")
    reader = DicomSeriesReader()
    assert all(reader.verify_suffix(given) for given in (paths, paths[0], tmp_path / "a", f"{tmp_path}::1.2"))
    assert not any(reader.verify_suffix(given) for given in (tmp_path / "b.dcm", tmp_path / "gone"))


def test_workers_of_a_dataloader(tmp_path):
    for case in range(3):
        write_series(tmp_path / str(case), VOLUME + case)
    transform = Compose(
        [LoadImaged("image", reader=NAME), EnsureChannelFirstd("image"), Orientationd("image", "LPS", labels=None)]
    )
    items = Dataset([{"image": tmp_path / str(case)} for case in range(3)], transform)
    (batch,) = DataLoader(items, batch_size=3, num_workers=2)
    expected = np.stack([VOLUME + case for case in range(3)])[:, None, ::-1, ::-1]
    assert np.array_equal(batch["image"].numpy(), expected)


def test_unreadable_slice_is_a_reason_that_may_pass(tmp_path, monkeypatch):
    paths = write_series(tmp_path, VOLUME)

    def gone(path, *args, **kwargs):
        if path == paths[2]:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **kwargs)

    opened = type(tmp_path).open
    monkeypatch.setattr(type(tmp_path), "open", gone)
    reader = DicomSeriesReader()
    with pytest.raises(
        RefusedScan, match=r"cannot be read: Input/output error \(series-\d+.dcm\): try again"
    ) as refused:
        reader.get_data(reader.read(paths))
    assert refused.value.may_pass
