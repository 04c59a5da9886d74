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

from monai_llmboost.data.scans.nifti.headers import read_nifti_header, read_nifti_scan

NAN = np.nan


def test_scan_is_described_by_its_header(tmp_path):
    scan = read_nifti_scan(save(tmp_path / "x.nii.gz", np.stack([voxels()] * 3, -1)), "name")
    assert (scan.name, scan.format, scan.shape) == ("name", "NIfTI", (*SIZE, 3))
    assert np.allclose(scan.spacing_mm, (3, 1, 2))
    assert scan.orientation == "SLA" == "".join(nibabel.aff2axcodes(AFFINE))
    assert (scan.files, scan.warnings, scan.refused) == ((tmp_path / "x.nii.gz",), (), "")


def test_files_of_a_pair_are_one_scan(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(voxels(), AFFINE), tmp_path / "x.hdr")
    files = (tmp_path / "x.hdr", tmp_path / "x.img")
    assert read_nifti_scan(files[0], "x").files == read_nifti_scan(files[1], "x").files == files
    packed = tmp_path / "x.img.gz"
    packed.write_bytes(gzip.compress(files[1].read_bytes()))
    files[1].unlink()
    assert read_nifti_scan(files[0], "x").files == (files[0], packed)


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
def test_affine_is_chosen_as_by_nibabel(tmp_path, codes, changes):
    path = tmp_path / "x.nii"
    path.write_bytes(both(*codes, **changes))
    assert np.array_equal(read_nifti_header(path).affine, nibabel.load(path).affine)


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
def test_unusual_affine_gives_a_warning(tmp_path, changes, affine, warning):
    path = patched(tmp_path / "x.nii", *changes)
    header = read_nifti_header(path)
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
def test_impossible_headers_are_refused(tmp_path, changes, affine, reason):
    scan = read_nifti_scan(patched(tmp_path / "x.nii", *changes, affine=affine), "x")
    assert re.search(reason, scan.refused), scan.refused
    assert scan.shape == ()


TURNED = nibabel.affines.from_matvec(np.diag([-1.0, 1, -1]) @ np.diag([1, 1.2, 2]), [9, -14, 16])  # by 180 degrees


def with_qform(path, affine, *changes, image=nibabel.Nifti1Image, order="<"):
    """A file whose sform and qform are the same, with changes: (field of the header, index, value)."""
    header = image.header_class(endianness=order)
    header.set_data_dtype("u1")
    made = image(voxels(), affine, header)
    made.set_qform(affine, 1)
    made.set_sform(affine, 1)
    content = bytearray(made.to_bytes())
    header = image.header_class(bytes(content[: 348 if image is nibabel.Nifti1Image else 540]), check=False)
    for field, index, value in changes:
        if index is None:
            header[field] = value
        else:
            header[field][index] = value
    content[: len(header.binaryblock)] = header.binaryblock
    path.write_bytes(content)
    return path


def scaled(affine, excess):
    """The quaternion of an affine, made longer so that its square is 1 + excess."""
    header = nibabel.Nifti2Header()
    header.set_qform(affine, 1)
    return [(f"quatern_{part}", None, header[f"quatern_{part}"] * (1 + excess) ** 0.5) for part in "bcd"]


NO_SFORM = [("sform_code", None, 0)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("image", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("excess", [3.9e-7, 1e-5, 1e-4, 9e-4])
def test_quaternion_too_long_by_rounding_is_normalised(tmp_path, excess, image, order):
    path = with_qform(tmp_path / "x.nii", TURNED, *NO_SFORM, *scaled(TURNED, excess), image=image, order=order)
    header = read_nifti_header(path)
    assert np.allclose(header.affine, TURNED, atol=1e-6)
    (warning,) = header.warnings
    assert "the quaternion of its qform is too long" in warning
    assert "it is normalised" in warning


def test_quaternion_gives_a_warning_only_if_used(tmp_path):
    path = with_qform(tmp_path / "x.nii", TURNED, *scaled(TURNED, 1e-4))
    assert read_nifti_header(path).warnings == ()
    path = with_qform(tmp_path / "x.nii", TURNED, *NO_SFORM, *scaled(TURNED, 0))
    assert read_nifti_header(path).warnings == ()


@pytest.mark.parametrize("excess", [2e-3, 0.1, 2])
def test_quaternion_that_is_not_a_rotation_is_refused(tmp_path, excess):
    path = with_qform(tmp_path / "x.nii", TURNED, *NO_SFORM, *scaled(TURNED, excess))
    assert "expected a qform that is a rotation, got broken numbers" in read_nifti_scan(path, "x").refused


FLAT = {
    "all zeros": [("srow_x", None, 0), ("srow_y", None, 0), ("srow_z", None, 0)],
    "zeros but for the place": [(f"srow_{row}", slice(0, 3), 0) for row in "xyz"],
    "a row of zeros": [("srow_y", None, 0)],
    "a column of zeros": [(f"srow_{row}", 2, 0) for row in "xyz"],
    "two rows alike": [("srow_y", None, [-1, 0, 0, 9])],
    "directions in one plane": [
        (f"srow_{row}", None, to) for row, to in zip("xyz", ([1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 2, 0]))
    ],
    "NaN": [("srow_x", 1, np.nan)],
}  # fmt: skip


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", FLAT)
def test_unusable_sform_is_replaced_by_a_usable_qform(tmp_path, name, order):
    path = with_qform(tmp_path / "x.nii", TURNED, *FLAT[name], order=order)
    header = read_nifti_header(path)
    assert np.allclose(header.affine, TURNED, atol=1e-6)
    (warning,) = header.warnings
    assert re.search(r"its sform (cannot be inverted|has NaN).*: the qform is taken", warning)


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize(
    "changes",
    [[("qform_code", None, 0)], [("pixdim", 2, 0)], [("quatern_b", None, 3.0)], [("qoffset_x", None, np.nan)]],
)
def test_unusable_sform_without_usable_qform_is_refused(tmp_path, name, changes):
    path = with_qform(tmp_path / "x.nii", TURNED, *FLAT[name], *changes)
    assert re.search("an affine that can be inverted|a finite sform", read_nifti_scan(path, "x").refused)


def test_singular_sform_and_rounded_qform_give_two_warnings(tmp_path):
    path = with_qform(tmp_path / "x.nii", TURNED, *FLAT["all zeros"], *scaled(TURNED, 1e-4))
    assert [warning.partition(" ")[2][:5] for warning in read_nifti_header(path).warnings] == ["sform", "quate"]


MIRRORED = TURNED @ np.diag([1, 1, -1, 1])


@pytest.mark.parametrize(
    ("value", "affine", "warning"),
    [
        (1, TURNED, None),
        (-1, MIRRORED, None),
        (0, TURNED, None),
        (1.0004, TURNED, "its pixdim[0] is 1.0004, which must be 1 or -1: 1 is taken"),
        (-0.9999, MIRRORED, "its pixdim[0] is -0.9999, which must be 1 or -1: -1 is taken"),
        (7, TURNED, "its pixdim[0] is 7, which must be 1 or -1: 1 is taken"),
        (np.nan, TURNED, "its pixdim[0] is nan, which must be 1 or -1: 1 is taken"),
    ],
)
def test_sign_of_the_third_axis(tmp_path, value, affine, warning):
    header = read_nifti_header(with_qform(tmp_path / "x.nii", TURNED, *NO_SFORM, ("pixdim", 0, value)))
    assert np.allclose(header.affine, affine, atol=1e-6)
    assert header.warnings == ((warning,) if warning else ())


def test_ambiguous_sign_of_the_third_axis_is_refused(tmp_path):
    """nibabel makes 1 of it, the reference library -1: left and right would be exchanged."""
    path = with_qform(tmp_path / "x.nii", TURNED, *NO_SFORM, ("pixdim", 0, -3))
    assert (
        "expected pixdim[0] to be 1 or -1, got -3, of which some readers make 1" in read_nifti_scan(path, "x").refused
    )
    path = with_qform(tmp_path / "x.nii", TURNED, ("pixdim", 0, -3))
    assert np.allclose(read_nifti_header(path).affine, TURNED), "the sform does not need it"


@pytest.mark.parametrize("codes", [[], [("qform_code", None, 0)]])
def test_negative_voxel_sizes(tmp_path, codes):
    path = with_qform(tmp_path / "x.nii", TURNED, *NO_SFORM, *codes, ("pixdim", 2, -1.2))
    header = read_nifti_header(path)
    assert np.array_equal(header.affine, nibabel.load(path).affine)
    assert "its pixdim has negative voxel sizes: they are taken without their sign" in header.warnings
    path = with_qform(tmp_path / "x.nii", TURNED, ("pixdim", 2, -1.2))
    assert read_nifti_header(path).warnings == (), "the sform does not need them"


@pytest.mark.parametrize(
    ("changes", "shape", "warning"),
    [
        ([("dim", 0, 4), ("dim", 4, 1)], SIZE, None),
        ([("dim", 0, 7), ("dim", slice(4, 8), 1)], SIZE, None),
        ([("dim", 0, 4), ("dim", 4, 0)], SIZE, "0 is taken as 1 behind the third axis"),
        ([("dim", 0, 7), ("dim", slice(4, 8), 0)], SIZE, "0 is taken as 1 behind the third axis"),
        ([("dim", 0, 3), ("dim", slice(4, 8), 0)], SIZE, None),
        ([("dim", 0, 3), ("dim", slice(4, 8), 99)], SIZE, None),
    ],
)
def test_axes_after_the_third(tmp_path, changes, shape, warning):
    header = read_nifti_header(with_qform(tmp_path / "x.nii", TURNED, *changes))
    assert header.shape == shape
    assert len(header.warnings) == bool(warning)
    assert warning is None or warning in header.warnings[0]


@pytest.mark.parametrize(
    ("offset", "outcome"),
    [
        (352.0, ()),
        (351.9999, ("its header says that voxels begin at byte 351.9999: 352 is taken",)),
        (352.25, "expected voxels from a whole byte on, its header says byte 352.25"),
        (348.0, "expected voxels from byte 352 on, its header says byte 348"),
    ],
)
def test_offset_of_the_voxels(tmp_path, offset, outcome):
    scan = read_nifti_scan(with_qform(tmp_path / "x.nii", TURNED, ("vox_offset", None, offset)), "x")
    assert outcome in scan.refused if isinstance(outcome, str) else scan.refused == ""
    assert isinstance(outcome, str) or scan.warnings == outcome


@pytest.mark.parametrize(("units", "warned"), [(0, False), (2, False), (10, False), (8, False), (5, True), (12, True)])
def test_units(tmp_path, units, warned):
    header = read_nifti_header(with_qform(tmp_path / "x.nii", TURNED, ("xyzt_units", None, units)))
    assert any("a unit that the standard does not have" in said for said in header.warnings) == warned
    assert np.allclose(header.affine, TURNED)


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.NII.GZ"])
@pytest.mark.parametrize(("times", "word"), [(2, "twice"), (3, "more often")])
def test_nested_gzip_is_refused(tmp_path, times, word, name):
    content = save(tmp_path / "plain.nii").read_bytes()
    for _ in range(times):
        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    reason = rf"compressed once, got one that is compressed {word} \(gzip within gzip, {times} times\): unpack it"
    assert re.search(reason, read_nifti_scan(tmp_path / name, "x").refused)


def test_nested_gzip_is_distinguished_from_damage(tmp_path):
    packed = gzip.compress(save(tmp_path / "plain.nii").read_bytes())
    (tmp_path / "x.nii.gz").write_bytes(packed[:20])
    assert "a gzip stream that is damaged or cut short" in read_nifti_scan(tmp_path / "x.nii.gz", "x").refused
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(packed[:20]))
    assert "compressed" in read_nifti_scan(tmp_path / "x.nii.gz", "x").refused


def test_voxels_of_a_pair_compressed_twice_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(voxels(), AFFINE), tmp_path / "x.hdr")
    image = tmp_path / "x.img"
    (tmp_path / "x.img.gz").write_bytes(gzip.compress(gzip.compress(image.read_bytes())))
    image.unlink()
    assert "compressed twice" in read_nifti_scan(tmp_path / "x.hdr", "x").refused


def test_shear_is_kept_with_a_warning(tmp_path):
    (warning,) = read_nifti_header(save(tmp_path / "x.nii", affine=SHEAR)).warnings
    assert "sheared by 16.7 degrees" in warning


def test_rotation_is_no_shear(tmp_path):
    """Nor do sform and qform disagree by what float32 rounds, far from the origin."""
    turned = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([0.4, 0.5, 6]), 500)
    image = nibabel.Nifti1Image(voxels((90, 90, 90)), turned)
    image.set_qform(turned, 1)
    nibabel.save(image, tmp_path / "x.nii")
    assert read_nifti_header(tmp_path / "x.nii").warnings == ()


def test_damaged_headers_are_refused_without_other_errors(tmp_path):
    """One byte of a good header replaced after another, by values that are odd in many fields."""
    good = save(tmp_path / "x.nii").read_bytes()
    path = tmp_path / "bad.nii"
    outcomes = set()
    for place in range(348):
        for value in (0x7F, 0xFF):
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            scan = read_nifti_scan(path, "x")
            assert bool(scan.refused) != bool(scan.shape)
            outcomes.add(bool(scan.refused))
    assert outcomes == {True, False}
