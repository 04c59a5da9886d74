# SPDX-License-Identifier: Apache-2.0
"""Real DICOM files: each is read, refused or skipped for the right reason and with the right geometry."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread

from monai_llmboost.data.scans.dicom.headers import looks_like_dicom, read_header
from monai_llmboost.data.scans.dicom.paths import get_reader_paths
from monai_llmboost.data.scans.dicom.pixels import digest_pixels, read_volume
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans

ONE = "a single slice is no volume"
CT_MASK, PHANTOM = "ct_dicomseg_dcmqi", "ct_philips_headphantom_multiseries"
ENHANCED, OLD, TREE = "enhanced/In", "pydicom_compressed_endian", "pydicom_dicomdir_multiseries"
# By file or folder: shape and spacing (mm) for what is read, else the reason.
SCANS = {
    f"{CT_MASK}/24x38x3/image": ((24, 38, 3), (0.7, 0.7, 2.5)),
    f"{CT_MASK}/24x38x3/multiframe/mf.dcm": ((24, 38, 3), (0.7, 0.7, 2.5)),
    f"{CT_MASK}/ct-3slice": ((512, 512, 3), (0.810547, 0.810547, 1)),  # 1.25 mm thick, 1 mm apart
    f"{PHANTOM}/S1000/I10": ONE,  # a scout
    f"{PHANTOM}/S2010": ((512, 512, 28), (0.451171875, 0.451171875, 5)),
    **{f"{ENHANCED}/Siemens/XA10/6_{time}.dcm": ((64, 64, 6), (3.375, 3.375, 2.4)) for time in (1, 2, 3, 4)},
    "mr_torchio_17slices": ((88, 128, 17), (2, 2, 2)),
    f"{OLD}/693_J2KI.dcm": ONE,
    f"{OLD}/CT_small.dcm": ONE,
    f"{OLD}/J2K_pixelrep_mismatch.dcm": ONE,
    f"{OLD}/MR_small.dcm": ONE,
    OLD: "the position of every slice, got none for 2 of 2",  # NM: JPEG-lossy and JPEG2000, of one series
    "mr_4d_and_mosaic/ge_4d_epi": ((64, 64, 32, 3), (3.75, 3.75, 3)),
    "mr_4d_and_mosaic/siemens_mosaic_cmrr_hf": ((64, 64, 40, 2), (3.203125, 3.203125, 3.6)),
    "mr_4d_and_mosaic/siemens_mosaic_ep2d": ((64, 64, 36, 2), (3.203125, 3.203125, 3.6)),
    f"{TREE}/77654033/CR1/6154": ONE,  # radiographs
    f"{TREE}/77654033/CR2/6247": ONE,
    f"{TREE}/77654033/CR3/6278": ONE,
    f"{TREE}/77654033/CT2": "missing: 161, between 17106 and 17136 (202.5 mm)",  # InstanceNumber 18, 180, 181, 182
    f"{TREE}/98892001/CT2N/6293": ONE,  # two scouts at a right angle
    f"{TREE}/98892001/CT2N/6924": ONE,
    f"{TREE}/98892001/CT5N": ((16, 16, 5), (0.488281, 0.488281, 2.5)),
    **{f"{TREE}/98892003/MR1/{name}": ONE for name in (15820, 4919, 5641)},  # localizers
    **{f"{TREE}/98892003/MR2/{name}": ONE for name in (15970, 4950, 4981, 5011, 6273, 6605, 6935)},
    # Projections from seven directions, which other readers take for a volume.
    **{f"{TREE}/98892003/MR700/{name}": ONE for name in (4467, 4528, 4558, 4588, 4618, 4648, 4678)},
}
# Several scans under one name, which get a digest.
SEVERAL = {
    f"{ENHANCED}/Philips/IM_0027_fMAP.dcm": [((64, 64, 32), (4, 4, 4))] * 2,  # magnitude and field map
}
SKIPPED = {
    f"{CT_MASK}/24x38x3/seg/label.seg": "a segmentation",
    **{f"{PHANTOM}/{series}/DIRFILE": "a DICOMDIR" for series in ("S1000", "S2010", "S4010")},
    **{f"{PHANTOM}/S4010/{name}": "got colours" for name in ("I40", "I50", "I60")},
    f"{OLD}/693_UNCI.dcm": "a copy of 693_J2KI.dcm",
    **{
        f"{OLD}/MR_small_{name}.dcm": "a copy of MR_small.dcm"
        for name in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless")
    },
    f"{OLD}/MR_small_padded.dcm": "a damaged copy of MR_small.dcm",  # 128 bytes more than the header says
    f"{OLD}/MR_truncated.dcm": "a damaged copy of MR_small.dcm",
    f"{OLD}/badVR.dcm": "a radiotherapy dose",
    f"{OLD}/rtdose.dcm": "a radiotherapy dose",
    f"{OLD}/image_dfl.dcm": "not deflated as a whole",
    f"{OLD}/liver_1frame.dcm": "a segmentation",
    f"{OLD}/meta_missing_tsyntax.dcm": "another DICOM object (of no known kind)",
    f"{OLD}/no_meta_group_length.dcm": "expected rows, columns and bits of an image (RT Image Storage), got none",
    f"{TREE}/DICOMDIR": "a DICOMDIR",
}


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data / "volumes" / "dicom"


@pytest.fixture(scope="module")
def found(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and looks_like_dicom(path)]
    return find_dicom_scans(files, lambda path: path.relative_to(folder).as_posix())


def read(scan):
    reader = DicomSeriesReader()
    return reader.get_data(reader.read(get_reader_paths(scan)))


def assert_is(scan, expected):
    if isinstance(expected, str):
        assert expected in scan.refused, (scan.name, scan.refused)
        assert scan.shape == ()
    else:
        shape, spacing = expected
        assert (scan.refused, scan.shape) == ("", shape), scan.name
        assert scan.spacing_mm == pytest.approx(spacing, rel=1e-5), scan.name


def test_every_real_scan_is_found(found):
    scans, _ = found
    named = {scan.name: scan for scan in scans}
    assert set(SCANS) <= set(named)
    for name, expected in SCANS.items():
        assert_is(named.pop(name), expected)
    for name, several in SEVERAL.items():
        group = sorted((named.pop(key) for key in list(named) if key.startswith(f"{name}_")), key=lambda s: s.modality)
        assert len(group) == len(several)
        for scan, expected in zip(group, several):
            assert_is(scan, expected)
    assert not named


def test_every_other_real_file_is_skipped_with_its_reason(found, folder):
    _, skipped = found
    reasons = {file.path.relative_to(folder).as_posix(): file.reason for file in skipped}
    assert set(reasons) == set(SKIPPED)
    for name, reason in SKIPPED.items():
        assert reason in reasons[name], name


def without_padding(values, path):
    """Values in their unit with those that stand for no image at the lowest other one."""
    tags = ["PixelPaddingValue", "RescaleIntercept", "PixelRepresentation"]
    header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
    padding = header.get("PixelPaddingValue")
    if padding is None:
        return values.astype(np.float32)
    outside = values == padding + header.RescaleIntercept
    return np.where(outside, values[~outside].min(), values).astype(np.float32)


def test_found_scans_have_the_values_of_another_reader(found):
    """SimpleITK sorts nothing here: it is given one slice at a time."""
    for scan in found[0]:
        other = (f"{ENHANCED}/Philips", f"{CT_MASK}/24x38x3/multi", "mr_4d_and_mosaic")
        if scan.refused or scan.name.startswith(other):
            continue
        array, meta = read(scan)
        assert array.shape == scan.shape
        images = [sitk.ReadImage(str(path)) for path in scan.files]
        slices = np.concatenate([sitk.GetArrayFromImage(image) for image in images])
        np.testing.assert_array_equal(array, without_padding(slices.T, scan.files[0]), err_msg=scan.name)
        first = np.array(images[0].TransformContinuousIndexToPhysicalPoint((5.0, 3.0, 0.0)))
        np.testing.assert_allclose(meta["affine"][:3] @ [5, 3, 0, 1], first * [-1, -1, 1], atol=1e-4)


def in_grid_of(reference, array, affine):
    """A volume at the voxels of a reference; both hold the same voxels, perhaps in another order of storage."""
    step = np.linalg.inv(affine) @ reference.affine
    index = nibabel.affines.apply_affine(step, np.moveaxis(np.indices(reference.shape[:3]), 0, -1))
    assert np.abs(index - np.rint(index)).max() < 1e-3, "voxel centres are at the same places"
    return array[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))]


def test_siemens_time_points_equal_the_reference_conversion(found, folder):
    reference = nibabel.load(folder / "enhanced" / "Ref" / "Siemens_REST1_w_SMS_PF7-8_6.nii")
    for time in range(4):
        (scan,) = (scan for scan in found[0] if scan.name.endswith(f"XA10/6_{time + 1}.dcm"))
        np.testing.assert_array_equal(in_grid_of(reference, *affine_of(scan)), reference.dataobj[..., time])


def affine_of(scan):
    array, meta = read(scan)
    return array, meta["affine"]


def test_philips_magnitude_and_field_map_equal_the_reference_conversion(found, folder):
    scans = [scan for scan in found[0] if "IM_0027_fMAP" in scan.name]
    field, magnitude = sorted((affine_of(scan) for scan in scans), key=lambda scan: scan[0].min())
    reference = nibabel.load(folder / "enhanced" / "Ref" / "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii")
    np.testing.assert_allclose(in_grid_of(reference, *field), reference.dataobj, atol=0.01)  # of -500 to 500 Hz
    reference = nibabel.load(folder / "enhanced" / "Ref" / "Philips_WIP_B0_NS_801_e1.nii")
    # The conversion took the maker's private scale, which differs by one factor.
    factor = np.asarray(reference.dataobj).max() / magnitude[0].max()
    np.testing.assert_allclose(in_grid_of(reference, *magnitude) * factor, reference.dataobj, rtol=1e-5)


def test_slices_and_frames_equal_their_source_volume(found, folder):
    original = sitk.ReadImage(str(folder / CT_MASK / "24x38x3" / "nrrd" / "label.nrrd"))
    affine = np.diag([-0.7, -0.7, 2.5, 1])
    affine[:3, 3] = np.array(original.GetOrigin()) * [-1, -1, 1]
    for name in ("image", "multiframe/mf.dcm"):
        (scan,) = (scan for scan in found[0] if scan.name == f"{CT_MASK}/24x38x3/{name}")
        array, meta = read(scan)
        np.testing.assert_array_equal(array, sitk.GetArrayFromImage(original).T)
        np.testing.assert_allclose(meta["affine"], affine, atol=1e-5)


def test_compressed_files_equal_the_uncompressed_one(folder):
    plain = folder / OLD / "MR_small.dcm"
    for name in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "padded"):
        assert digest_pixels(folder / OLD / f"MR_small_{name}.dcm") == digest_pixels(plain), name
    assert digest_pixels(folder / OLD / "MR_truncated.dcm") == ""
    assert digest_pixels(folder / OLD / "CT_small.dcm") not in ("", digest_pixels(plain))


@pytest.mark.parametrize(
    "name", ["693_J2KI", "693_UNCI", "J2K_pixelrep_mismatch", "JPEG-lossy", "JPEG2000", "CT_small"]
)
def test_each_transfer_syntax_has_the_values_of_another_reader(folder, name):
    path = folder / OLD / f"{name}.dcm"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(read_volume(read_header(path))[0], without_padding(image.T, path))
