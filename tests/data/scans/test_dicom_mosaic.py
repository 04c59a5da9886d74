# SPDX-License-Identifier: Apache-2.0
import struct

import nibabel
import numpy as np
import pytest
from dicom_files import OBLIQUE, dataset, random_volume, save
from pydicom.uid import MRImageStorage

from monai_llmboost.data.scans import RefusedScan, ScanReader, find_scans

SHAPE = (6, 5, 7)  # voxels (i, j, k)
# Results of dcm2niix 1.0.20220720 for the real ones: shape, affine to RAS+ mm, mean.
REAL = {
    "siemens_mosaic_ep2d": (
        (64, 64, 36, 2),
        [[-3.2031, 0, 0, 102.5], [0, 3.1786, -0.445, -71.3781], [0, 0.3959, 3.5724, -73.5795]],
        110.3191,
    ),
    "siemens_mosaic_cmrr_hf": (  # stored from above
        (64, 64, 40, 2),
        [[-3.2031, 0, 0, 102.5], [0, 3.1619, -0.5756, -71.6627], [0, 0.5121, 3.5537, -88.1993]],
        1341.3875,
    ),
    "ge_4d_epi": (
        (64, 64, 32, 3),
        [[-3.75, 0, 0, 120.4656], [0, 3.75, 0, -118.125], [0, 0, 3, -44.7454]],
        15.4768,
    ),
}


def csa(**tags):
    """Return Siemens' CSA2 header with text values: https://nipy.org/nibabel/dicom/siemens_csa.html"""
    head = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, values in tags.items():
        texts = [str(value).encode() for value in values]
        kind = b"UN" if isinstance(values[0], str) else b"FD"
        head += struct.pack("<64si4s3i", name.encode(), len(texts), kind, 3, len(texts), 77)
        for text in texts:
            head += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + bytes(-len(text) % 4)
    return head


def write_mosaic(path, volume, affine=OBLIQUE, reverse=False, change=None, **tags):
    """Write all slices of a volume as tiles of one image, as Siemens does; with ``reverse``, from last to first."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    columns, rows, count = volume.shape
    side = int(np.ceil(np.sqrt(count)))
    picture = np.zeros((side * rows, side * columns), volume.dtype)
    order = range(count - 1, -1, -1) if reverse else range(count)
    for tile, k in enumerate(order):
        row, column = tile // side * rows, tile % side * columns
        picture[row : row + rows, column : column + columns] = volume[:, :, k].T
    data = dataset(picture, sop_class=MRImageStorage, instance=path.name, Modality="MR")
    along = lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)
    normal = np.cross(*along.T)
    first = lps[:3, 3] + order[0] * lps[:3, 2]
    corner = first - (side - 1) / 2 * (columns * lps[:3, 0] + rows * lps[:3, 1])
    centres = [lps[:3, 3] + k * lps[:3, 2] + columns / 2 * lps[:3, 0] + rows / 2 * lps[:3, 1] for k in range(count)]
    protocol = "\n".join(
        f"sSliceArray.asSlice[{k}].sPosition.d{axis}\t = \t{x:.9f}"
        for k, centre in enumerate(centres)
        for axis, x in zip(("Sag", "Cor", "Tra"), centre)
    )
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    data.ImagePositionPatient = [f"{x:.10g}" for x in corner]
    data.ImageOrientationPatient = [f"{x:.10g}" for x in along.T.ravel()]
    data.PixelSpacing = [f"{sizes[1]:.10g}", f"{sizes[0]:.10g}"]
    data.SpacingBetweenSlices = f"{sizes[2]:.10g}"
    image = {"NumberOfImagesInMosaic": [count], "SliceNormalVector": list(-normal if reverse else normal)}
    series = {"MrPhoenixProtocol": [protocol]}
    if change:
        change(data, image, series)
    block = data.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa(**image))
    block.add_new(0x20, "OB", csa(**series))
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return save(data, path)


def only_scan(folder):
    ((scan,), _) = find_scans(folder)
    return scan


def read(path, volume=None):
    reader = ScanReader(volume=volume)
    return reader.get_data(reader.read(path))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [2, 4, 7, 9])
def test_mosaic_is_a_volume(tmp_path, reverse, count):
    volume = random_volume((6, 5, count))
    path = write_mosaic(tmp_path / "m.dcm", volume, reverse=reverse)
    scan = only_scan(tmp_path)
    assert (scan.shape, scan.refused, scan.warnings) == ((6, 5, count), "", ())
    array, meta = read(path)
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_allclose(meta["affine"], OBLIQUE, atol=1e-5)


WITHOUT = {
    "a protocol": lambda data, image, series: series.clear(),
    "a normal": lambda data, image, series: image.pop("SliceNormalVector"),
    "a distance": lambda data, image, series: delattr(data, "SpacingBetweenSlices"),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", WITHOUT)
def test_redundant_geometry_of_a_mosaic_may_be_absent(tmp_path, name, reverse):
    volume = random_volume(SHAPE)
    array, meta = read(write_mosaic(tmp_path / "m.dcm", volume, reverse=reverse, change=WITHOUT[name]))
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_allclose(meta["affine"], OBLIQUE, atol=1e-5)


def without_both(data, image, series):
    image.pop("SliceNormalVector")
    series.clear()


def turned(data, image, series):
    image["SliceNormalVector"] = [-x for x in image["SliceNormalVector"]]


REFUSED = {
    "no count": (lambda d, i, s: i.pop("NumberOfImagesInMosaic"), "expected the number of slices in a mosaic, got"),
    "no order": (without_both, "expected the order of slices in a mosaic, got none that is sure: export it as"),
    "two orders": (turned, r"expected one order of slices \(its protocol and its images disagree\)"),
    "two distances": (
        lambda d, i, s: setattr(d, "SpacingBetweenSlices", "2.7"),
        r"expected one distance of slices \(its protocol and its images disagree\)",
    ),
    "no distance": (
        lambda d, i, s: (s.clear(), delattr(d, "SpacingBetweenSlices")),
        "expected the distance of slices in a mosaic",
    ),
    "odd tiles": (lambda d, i, s: i.update(NumberOfImagesInMosaic=[17]), "5 x 5 tiles, got 15 rows and 18 columns"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_mosaic_with_ambiguous_geometry_is_refused(tmp_path, name):
    change, reason = REFUSED[name]
    write_mosaic(tmp_path / "m.dcm", random_volume(SHAPE), change=change)
    with pytest.raises(RefusedScan, match=reason):
        read(tmp_path / "m.dcm")
    assert only_scan(tmp_path).refused


def test_mosaics_of_several_time_points_are_one_scan_of_several_volumes(tmp_path):
    volume = random_volume(SHAPE)
    for t in range(3):
        tags = {"InstanceNumber": t + 1, "AcquisitionNumber": t + 1, "AcquisitionTime": f"12000{t}"}
        write_mosaic(tmp_path / f"{7 - t}.dcm", volume + t, **tags)
    scan = only_scan(tmp_path)
    assert (scan.shape, scan.refused, scan.warnings) == ((*SHAPE, 3), "", ())
    for t in range(3):
        np.testing.assert_array_equal(read(tmp_path, t)[0], volume + t)
    with pytest.raises(RefusedScan, match=r"expected one volume, got 3 .*: choose one with --volume K"):
        read(tmp_path)


def test_mosaics_of_several_echoes_are_separate_scans(tmp_path):
    volume = random_volume(SHAPE)
    for i in range(4):
        tags = {"InstanceNumber": i + 1, "AcquisitionNumber": i // 2 + 1, "EchoTime": str(10 + 20 * (i % 2))}
        write_mosaic(tmp_path / f"{i}.dcm", volume + i, **tags)
    scans, _ = find_scans(tmp_path)
    assert [(scan.shape, scan.refused) for scan in scans] == [((*SHAPE, 2), "")] * 2


def test_mosaics_with_different_series_numbers_are_separate_scans(tmp_path):
    volume = random_volume(SHAPE)
    for i in range(4):
        write_mosaic(tmp_path / f"{i}.dcm", volume + i, InstanceNumber=1, SeriesNumber=i + 1)
    scans, _ = find_scans(tmp_path)
    assert [(scan.shape, scan.refused) for scan in scans] == [(SHAPE, "")] * 4


def test_grid_of_another_vendor_is_refused(tmp_path):
    data = dataset(random_volume((12, 10, 1))[:, :, 0].T, sop_class=MRImageStorage, Manufacturer="UIH")
    data.add_new(0x00650010, "LO", "Image Private Header")
    data.add_new(0x00651050, "DS", "4")
    save(data, tmp_path / "x.dcm")
    assert "got a grid of slices (UIH): export it as separate slices" in only_scan(tmp_path).refused


@pytest.mark.parametrize("name", REAL)
def test_real_series_of_several_volumes_are_read_as_dcm2niix_reads_them(real_data, name):
    folder = real_data / "volumes" / "dicom" / "mr_4d_and_mosaic" / name
    shape, affine, mean = REAL[name]
    assert only_scan(folder).shape == shape
    volumes = [read(folder, t) for t in range(shape[3])]
    assert np.mean([array.mean(dtype=float) for array, _ in volumes]) == pytest.approx(mean, abs=1e-4)
    # Both grids have the same voxels, stored in another order.
    step = np.linalg.inv(volumes[0][1]["affine"]) @ np.array([*affine, [0, 0, 0, 1]])
    corners = nibabel.affines.apply_affine(step, [(0, 0, 0), [n - 1 for n in shape[:3]]])
    np.testing.assert_allclose(sorted(corners.tolist()), sorted(np.rint(corners).tolist()), atol=2e-3)
    np.testing.assert_allclose(np.abs(corners[0] - corners[1]), [n - 1 for n in shape[:3]], atol=2e-3)
