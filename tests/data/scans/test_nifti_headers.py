# SPDX-License-Identifier: Apache-2.0
import gzip
import re

import nibabel
import numpy as np
import pytest
from nifti_files import (
    AFFINE,
    PIXDIM,
    QFORM_CODE,
    QUATERN_B,
    SFORM_CODE,
    SIZE,
    SROW_X,
    UNITS,
    VOX_OFFSET,
    patched,
    save,
    voxels,
)

from monai_llmboost.data.scans.nifti.headers import nifti_header, nifti_scan

NAN = np.nan


def test_a_scan_is_told_by_its_header(tmp_path):
    scan = nifti_scan(save(tmp_path / "x.nii.gz", np.stack([voxels()] * 3, -1)), "name")
    assert (scan.name, scan.format, scan.shape) == ("name", "NIfTI", (*SIZE, 3))
    assert np.allclose(scan.spacing_mm, (3, 1, 2))
    assert scan.orientation == "SLA" == "".join(nibabel.aff2axcodes(AFFINE))
    assert (scan.files, scan.warnings, scan.refused) == ((tmp_path / "x.nii.gz",), (), "")


def test_the_files_of_a_pair_are_one_scan(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(voxels(), AFFINE), tmp_path / "x.hdr")
    files = (tmp_path / "x.hdr", tmp_path / "x.img")
    assert nifti_scan(files[0], "x").files == nifti_scan(files[1], "x").files == files
    packed = tmp_path / "x.img.gz"
    packed.write_bytes(gzip.compress(files[1].read_bytes()))
    files[1].unlink()
    assert nifti_scan(files[0], "x").files == (files[0], packed)


def both(sform_code, qform_code, **changes):
    """A header with these codes and a qform that is no sform."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(SIZE)
    header.set_data_dtype("u1")
    header.set_sform(AFFINE, 1)
    header.set_qform(np.array([[2, 0, 0, -3], [0, 0, 3, 2], [0, -4, 0, 7], [0, 0, 0, 1.0]]), 1)
    header["sform_code"], header["qform_code"] = sform_code, qform_code
    for field, value in changes.items():
        header[field] = value
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4) + voxels().tobytes("F")


@pytest.mark.parametrize("changes", [{}, {"pixdim": [-1, 2, 3, 4, 1, 1, 1, 1]}, {"pixdim": [0, 2, 3, 4, 1, 1, 1, 1]}])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (0, 0), (0, 4), (5, 0), (77, 1)])
def test_the_affine_is_chosen_as_nibabel_chooses_it(tmp_path, codes, changes):
    path = tmp_path / "x.nii"
    path.write_bytes(both(*codes, **changes))
    assert np.array_equal(nifti_header(path).affine, nibabel.load(path).affine)


TINY = np.diag([1e-6, 1e-6, 1e-6, 1])
SHEAR = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
QFORM_ONLY = ((SFORM_CODE, 0, "i2"), (QFORM_CODE, 1, "i2"))
NO_FORM = ((SFORM_CODE, 0, "i2"), (QFORM_CODE, 0, "i2"))


@pytest.mark.parametrize(
    ("changes", "affine", "warning"),
    [
        ([], AFFINE, None),
        (NO_FORM, None, "no sform and no qform, so its orientation is unknown: LAS is taken"),
        ([(SROW_X, NAN, "f4"), (QFORM_CODE, 1, "i2")], AFFINE, "its sform has NaN .* the qform is taken"),
        ([(PIXDIM + 4, 0, "f4")], AFFINE, "its pixdim has no usable voxel sizes: those of the sform are taken"),
        ([(PIXDIM + 4, NAN, "f4")], AFFINE, "its pixdim has no usable voxel sizes"),
        ([(QFORM_CODE, 1, "i2"), (SROW_X + 12, 19, "f4")], None, r"sform \(SLA\) and qform \(SLA\) lie up to 10 mm"),
        ([(QFORM_CODE, 1, "i2"), (SROW_X + 12, 9.0001, "f4")], None, None),
        ([(UNITS, 1, "u1")], AFFINE, "lengths are in metres, which cannot be: taken as 3 x 1 x 2 mm"),
        ([(UNITS, 0, "u1")], AFFINE, None),
    ],
)
def test_an_odd_affine_is_warned_of(tmp_path, changes, affine, warning):
    path = patched(tmp_path / "x.nii", *changes)
    header = nifti_header(path)
    assert header.affine.shape == (4, 4)
    if affine is not None:
        assert np.allclose(header.affine, affine, atol=1e-5)
    assert len(header.warnings) == bool(warning), header.warnings
    if warning:
        assert re.search(warning, header.warnings[0]), header.warnings


@pytest.mark.parametrize(
    ("changes", "affine", "reason"),
    [
        ([(SROW_X, [0, 0, 0, 1], "f4")], AFFINE, "an affine that can be inverted"),
        ([], TINY, "voxels of 0.001 to 100 mm, got 1e-06 x 1e-06 x 1e-06 mm: perhaps metres or micrometres"),
        ([], np.diag([1, 1, 1000, 1.0]), "voxels of 0.001 to 100 mm, got 1 x 1 x 1000 mm"),
        ([(UNITS, 3, "u1")], np.diag([500, 500, 800, 1.0]), "lengths in mm, its header says micrometres"),
        ([(UNITS, 1, "u1")], np.diag([5e-4, 5e-4, 8e-4, 1.0]), "lengths in mm, its header says metres"),
        ([(SROW_X, NAN, "f4")], AFFINE, "a finite sform, got NaN"),
        ([(SROW_X, np.inf, "f4"), (QFORM_CODE, 1, "i2"), (PIXDIM + 8, 0, "f4")], AFFINE, "a finite sform"),
        ([*QFORM_ONLY, (PIXDIM + 4, 0, "f4")], AFFINE, "voxel sizes above 0 mm, its header says .0.0, 1.0, 2.0"),
        ([*NO_FORM, (PIXDIM + 12, NAN, "f4")], AFFINE, "voxel sizes above 0 mm, its header says .3.0, 1.0, nan"),
        ([*QFORM_ONLY, (QUATERN_B, [1, 1, 1], "f4")], AFFINE, "a qform that is a rotation"),
        ([*QFORM_ONLY, (QUATERN_B, NAN, "f4")], AFFINE, "a qform that is a rotation"),
        ([(VOX_OFFSET, 0, "f4")], AFFINE, "voxels from byte 352 on, its header says byte 0"),
        ([(VOX_OFFSET, NAN, "f4")], AFFINE, "voxels from byte 352 on, its header says byte nan"),
        ([(0, 999, "i4")], AFFINE, "expected 348 as the length of its header"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(tmp_path, changes, affine, reason):
    scan = nifti_scan(patched(tmp_path / "x.nii", *changes, affine=affine), "x")
    assert re.search(reason, scan.refused), scan.refused
    assert scan.shape == ()


def test_a_shear_is_kept_and_told(tmp_path):
    (warning,) = nifti_header(save(tmp_path / "x.nii", affine=SHEAR)).warnings
    assert "sheared by 16.7 degrees" in warning


def test_a_rotation_by_odd_angles_is_no_shear(tmp_path):
    """Nor do sform and qform disagree by what float32 rounds, far from the origin."""
    turned = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([0.4, 0.5, 6]), 500)
    image = nibabel.Nifti1Image(voxels((90, 90, 90)), turned)
    image.set_qform(turned, 1)
    nibabel.save(image, tmp_path / "x.nii")
    assert nifti_header(tmp_path / "x.nii").warnings == ()


def test_damaged_headers_never_do_more_than_refuse(tmp_path):
    """One byte of a good header replaced after another, by values that are odd in many fields."""
    good = save(tmp_path / "x.nii").read_bytes()
    path = tmp_path / "bad.nii"
    outcomes = set()
    for place in range(348):
        for value in (0x7F, 0xFF):
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            scan = nifti_scan(path, "x")
            assert bool(scan.refused) != bool(scan.shape)
            outcomes.add(bool(scan.refused))
    assert outcomes == {True, False}
