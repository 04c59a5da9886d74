# SPDX-License-Identifier: Apache-2.0
"""Label maps as DICOM Segmentations lie where their scans lie, and say what their segments are."""

import json
import stat

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_sources import (
    ALGORITHM,
    FRAME,
    SECRETS,
    SERIES,
    SIZE,
    STUDY,
    in_lps,
    oblique,
    write_multiframe,
    write_series,
)
from pydicom.sr.coding import Code

from monai_llmboost.artifacts.contours import COLOURS, colours_of
from monai_llmboost.data import DicomSeriesReader
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans
from monai_llmboost.inference.dicom.codes import COLUMNS, Segment, segments_of
from monai_llmboost.inference.dicom.segmentation import write_seg
from monai_llmboost.inference.dicom.sources import SourceImages

STRUCTURES = {2: "größer \\ 肝臓", 1: "spleen", 7: "absent"}
SEGMENTS = segments_of(STRUCTURES, colours_of(STRUCTURES))
LIVER = {
    "name": "spleen",
    **{"category_scheme": "SCT", "category_value": "123037004", "category_meaning": "Anatomical Structure"},
    **{"type_scheme": "SCT", "type_value": 78961009, "type_meaning": "Spleen", "colour": "#00ff00"},
}


def label_map():
    values = np.zeros(SIZE, np.uint8)
    values[1:5, 2, 1:4] = 2  # touches neither the first nor the last slice
    values[6, 0, 2] = values[5, 0, 3] = 1
    return values


def seg(path, files, values, affine, **changes):
    source = SourceImages(files, changes.pop("frames", ()))
    write_seg(path, source, values, affine, **{"segments": SEGMENTS, "algorithm": ALGORITHM, **changes})
    return highdicom.seg.segread(path)


def places_of(written, number):
    """Places in LPS+ mm of the voxels of a segment, as highdicom's volumes have them."""
    volume = written.get_volume(segment_numbers=[number], combine_segments=True)
    return np.argwhere(volume.array) @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def assert_same_places(written, values, affine):
    lps = np.diag([-1, -1, 1, 1]) @ affine
    for number, value in enumerate(STRUCTURES, 1):
        expected = np.argwhere(values == value) @ lps[:3, :3].T + lps[:3, 3]
        found = places_of(written, number) if len(expected) else np.empty((0, 3))
        assert len(found) == len(expected)
        if len(expected):
            distance = np.linalg.norm(found[:, None] - expected[None], axis=2)
            assert sorted(distance.argmin(axis=1)) == list(range(len(expected)))
            assert distance.min(axis=1).max() < 1e-4  # mm
            assert np.allclose(found.mean(axis=0), expected.mean(axis=0), atol=1e-4)


def along(i, j, k):
    """Affine whose voxel axes run along these LPS directions, with three spacings."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.array([i, j, k], float).T @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = -30.25, 41.5, 12.125
    return affine


GRIDS = {
    "axial": along((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "reversed": along((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "sagittal": along((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "oblique": oblique(),
    "oblique reversed": oblique(left_handed=True),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("labelmap", [False, True])
def test_segments_lie_where_the_reader_found_them(tmp_path, name, labelmap):
    """The label map is on the grid that the reader returns, whose k may run against the series."""
    files = write_series(tmp_path / "series", GRIDS[name], modality="MR" if labelmap else "CT")
    reader = DicomSeriesReader()
    volume, metadata = reader.get_data(reader.read(files))
    assert volume.shape == SIZE
    affine = metadata["affine"]
    written = seg(tmp_path / "seg.dcm", files, label_map(), affine, labelmap=labelmap)
    assert written.SegmentationType == ("LABELMAP" if labelmap else "BINARY")
    assert_same_places(written, label_map(), affine)
    # Each frame has exactly the position of the image that it refers to.
    positions = {data.SOPInstanceUID: data.ImagePositionPatient for data in map(pydicom.dcmread, files)}
    for group in written.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        assert group.PlanePositionSequence[0].ImagePositionPatient == positions[source.ReferencedSOPInstanceUID]
    assert len(written.PerFrameFunctionalGroupsSequence) == (3 if labelmap else 3 + 2)  # others are empty


def test_segments_on_the_frames_of_one_volume_of_a_multi_frame_image(tmp_path):
    frames = write_multiframe(tmp_path / "multi.dcm", oblique(), echoes=2)
    scan = next(s for s in find_dicom_scans([tmp_path / "multi.dcm"], str)[0] if not s.refused)
    mine = [number for number, (echo, _) in enumerate(frames, 1) if echo == 1]
    written = seg(tmp_path / "seg.dcm", scan.files, label_map(), oblique(), frames=mine)
    assert_same_places(written, label_map(), oblique())
    groups = written.PerFrameFunctionalGroupsSequence
    referred = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    found = [frames[int(item.ReferencedFrameNumber) - 1] for item in referred]
    assert {echo for echo, _ in found} == {1}
    for (_, k), group in zip(found, groups):
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, in_lps(oblique(), 0, 0, k), atol=1e-4)


def test_another_library_reads_the_same_voxels(tmp_path):
    files = write_series(tmp_path / "series", oblique())
    one = segments_of({2: "liver"}, {2: COLOURS[0]})
    values = np.where(label_map() == 2, 2, 0)
    seg(tmp_path / "seg.dcm", files, values, oblique(), segments=one)
    read = SimpleITK.ReadImage(tmp_path / "seg.dcm")
    voxels = SimpleITK.GetArrayFromImage(read)
    # It unpacks whole bytes of 8 voxels only, and leaves those of the last byte undefined (SimpleITK 2.5).
    voxels.ravel()[voxels.size // 8 * 8 :] = 0
    lps = np.diag([-1, -1, 1, 1]) @ oblique()
    inside = [read.TransformIndexToPhysicalPoint(tuple(map(int, at))) for at in np.argwhere(voxels.T > 0)]
    expected = np.argwhere(values) @ lps[:3, :3].T + lps[:3, 3]
    distance = np.linalg.norm(np.array(inside)[:, None] - expected[None], axis=2)
    assert len(inside) == len(expected) and distance.min(axis=1).max() < 1e-3


def test_segments_are_described_and_the_object_belongs_to_the_source(tmp_path):
    files = write_series(tmp_path / "series", oblique())
    (tmp_path / "codes.json").write_text(json.dumps([LIVER]))
    segments = segments_of(STRUCTURES, colours_of(STRUCTURES), tmp_path / "codes.json")
    written = seg(tmp_path / "out" / "seg.dcm", files, label_map(), oblique(), segments=segments)
    first, second, third = (written.get_segment_description(number) for number in written.segment_numbers)
    assert [item.segment_label for item in (first, second, third)] == ["größer / 肝臓", "spleen", "absent"]
    assert (
        first.segmented_property_category
        == first.segmented_property_type
        == Code("123037004", "SCT", "Anatomical Structure")
    )
    assert second.segmented_property_type == Code("78961009", "SCT", "Spleen")
    green = highdicom.color.CIELabColor.from_dicom_value(tuple(second.RecommendedDisplayCIELabValue)).to_rgb()
    assert np.allclose(green, (0, 255, 0), atol=2)
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, first.SegmentAlgorithmType) == ("monai-llmboost", "AUTOMATIC")
    assert "weights sha256=" + ALGORITHM["weights_sha256"] in algorithm.AlgorithmParameters
    data = pydicom.dcmread(tmp_path / "out" / "seg.dcm")
    assert {keyword: str(data[keyword].value) for keyword in SECRETS} == SECRETS
    assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == (STUDY, FRAME)
    assert data.SeriesInstanceUID != SERIES
    (referred,) = data.ReferencedSeriesSequence
    assert len(referred.ReferencedInstanceSequence) == SIZE[2]
    assert stat.S_IMODE((tmp_path / "out" / "seg.dcm").stat().st_mode) & 0o400
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seg.dcm"]  # no temporary file stays


def test_an_empty_label_map_is_written(tmp_path):
    files = write_series(tmp_path / "series", oblique())
    written = seg(tmp_path / "seg.dcm", files, np.zeros(SIZE, np.uint8), oblique())
    assert len(written.segment_numbers) == len(STRUCTURES)
    assert not written.pixel_array.any()


def test_the_same_again_has_the_same_uid(tmp_path):
    files = write_series(tmp_path / "series", oblique())
    shifted = np.roll(label_map(), 1, axis=0)
    renamed = [*SEGMENTS[:2], Segment(7, "other")]
    first = seg(tmp_path / "0.dcm", files, label_map(), oblique())
    for number, (values, changes) in enumerate(
        ((label_map(), {}), (shifted, {}), (label_map(), {"segments": renamed}))
    ):
        written = seg(tmp_path / f"{number}.dcm", files, values, oblique(), overwrite=True, **changes)
        same = number == 0
        assert (written.SOPInstanceUID == first.SOPInstanceUID) is same
        assert (written.SeriesInstanceUID == first.SeriesInstanceUID) is same
    with pytest.raises(ValueError, match="is there already"):
        seg(tmp_path / "0.dcm", files, label_map(), oblique())


def test_tilted_slices_are_written_as_they_are_and_refused_once_resampled(tmp_path):
    tilted = oblique()
    tilted[:3, 2] += 0.3 * tilted[:3, 1]
    files = write_series(tmp_path / "series", tilted)
    written = seg(tmp_path / "seg.dcm", files, label_map(), tilted)
    assert len(written.PerFrameFunctionalGroupsSequence) == 5
    reader = DicomSeriesReader()
    volume, metadata = reader.get_data(reader.read(files))
    assert volume.shape != SIZE
    with pytest.raises(ValueError, match=r"plane 0 of the volume \(8 x 8 x 5\) lies on no image of the series"):
        seg(tmp_path / "2.dcm", files, np.zeros(volume.shape, np.uint8), metadata["affine"])
    with pytest.raises(ValueError, match="lies on no image"):
        seg(tmp_path / "2.dcm", files, label_map(), np.diag([2, 1, 1, 1]) @ tilted)
    assert not (tmp_path / "2.dcm").exists()


def test_a_label_map_with_other_values_is_refused(tmp_path):
    files = write_series(tmp_path / "series", oblique())
    with pytest.raises(ValueError, match=r"has the value 9, the segments \[2, 1, 7\]: describe all"):
        seg(tmp_path / "seg.dcm", files, np.full(SIZE, 9, np.uint8), oblique())
    with pytest.raises(ValueError, match="float64 is no label map"):
        seg(tmp_path / "seg.dcm", files, np.zeros(SIZE), oblique())
    with pytest.raises(ValueError, match=r"values \[1, 1\]: give different ones"):
        seg(tmp_path / "seg.dcm", files, label_map(), oblique(), segments=[Segment(1, "a"), Segment(1, "b")])
    with pytest.raises(ValueError, match="lacks FrameOfReferenceUID"):
        bare = write_series(tmp_path / "bare", oblique(), change=lambda data, k: delattr(data, "FrameOfReferenceUID"))
        seg(tmp_path / "seg.dcm", bare, label_map(), oblique())
    with pytest.raises(ValueError, match="no position, orientation or pixel spacing"):
        bare = write_series(tmp_path / "bare", oblique(), change=lambda data, k: delattr(data, "PixelSpacing"))
        seg(tmp_path / "seg.dcm", bare, label_map(), oblique())


def test_codes_from_a_csv(tmp_path):
    (tmp_path / "codes.csv").write_text(
        ",".join(COLUMNS) + "\nspleen,SCT,123037004,Anatomical Structure,SCT,78961009,Spleen\n"
    )
    first, second, _ = segments_of(STRUCTURES, colours_of(STRUCTURES), tmp_path / "codes.csv")
    assert (first.value, first.name, first.kind.meaning) == (2, STRUCTURES[2], "Anatomical Structure")
    assert (second.value, second.kind, second.colour) == (1, Code("78961009", "SCT", "Spleen"), COLOURS[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "liver"}, "entry 1: 'liver' is no structure of the network: choose from .*spleen"),
        ({"type_meaning": " "}, r"entry 1 \(spleen\): type_meaning is empty"),
        ({"category_value": "12345678901234567"}, "category_value is '12345678901234567': .* at most 16 characters"),
        ({"type_scheme": "a\\b"}, "no backslash"),
        ({"colour": "green"}, "the colour is 'green': give it as #rrggbb"),
        ({"type_value": ...}, "entry 1: there is no type_value: give name, category_scheme"),
    ],
)
def test_a_wrong_table_of_codes_is_refused(tmp_path, change, message):
    row = {key: value for key, value in {**LIVER, **change}.items() if value is not ...}
    (tmp_path / "codes.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=message):
        segments_of(STRUCTURES, colours_of(STRUCTURES), tmp_path / "codes.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "codes a.json cannot be read: .* give a CSV or JSON file in UTF-8"),
        ("a.json", "[]", "codes a.json has no entries"),
        ("a.csv", "name,type_value\n", "codes a.csv has no entries"),
        ("a.json", json.dumps([LIVER, LIVER]), "entry 2: 'spleen' is there twice"),
    ],
)
def test_a_table_that_is_no_table_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        segments_of(STRUCTURES, colours_of(STRUCTURES), tmp_path / name)
