# SPDX-License-Identifier: Apache-2.0
import random
import re

import numpy as np
import pytest
from dicom_files import SECRETS, dataset, random_volume, save, uid, write_multiframe, write_series
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from monai_llmboost.data.scans.dicom.headers import looks_like_dicom, read_header
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans
from monai_llmboost.data.scans.scan import RefusedScan, SkippedFile

PLANE = np.arange(12, dtype=np.int16).reshape(3, 4)


def headless(data, path, implicit):
    """Write a file as before DICOM Part 10, with elements from the first byte on."""
    plain = Dataset()
    plain.update(data)
    plain.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return path


@pytest.mark.parametrize("implicit", [True, False])
def test_old_files_without_preamble_are_recognised_and_read(tmp_path, implicit):
    (path, *_) = write_series(tmp_path, random_volume())
    old = headless(dcmread(path), tmp_path / "old", implicit)
    assert old.read_bytes()[128:132] != b"DICM"
    assert looks_like_dicom(path)
    assert looks_like_dicom(old)
    (new_header,), (old_header,) = read_header(path), read_header(old)
    assert old_header.position == new_header.position
    assert old_header.series_uid == new_header.series_uid == uid("series")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello " * 40,
        bytes(200),
        b"\x08\x00" + b"\xff" * 200,
        b"\x08\x00\x05\x00" + b"\xff" * 200,
        b"\x1f\x8b" * 99,
    ],
    ids=["empty", "text", "zeros", "odd element", "long element", "gzip"],
)
def test_other_content_is_not_dicom(tmp_path, content):
    (tmp_path / "x.dcm").write_bytes(content)
    assert not looks_like_dicom(tmp_path / "x.dcm")
    assert isinstance(read_header(tmp_path / "x.dcm"), SkippedFile)


def without_pixels(sop_class):
    data = dataset(PLANE, sop_class=sop_class)
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelData"):
        delattr(data, keyword)
    return data


OTHERS = {
    "segmentation": (lambda: dataset(PLANE, sop_class=SegmentationStorage), "got a segmentation"),
    "dose": (lambda: dataset(PLANE, sop_class=RTDoseStorage), "got a radiotherapy dose"),
    "map": (lambda: dataset(PLANE, sop_class=ParametricMapStorage), "got a parametric map"),
    "report": (lambda: without_pixels(BasicTextSRStorage), r"another DICOM object \(Basic Text SR Storage\)"),
    "directory": (lambda: without_pixels(MediaStorageDirectoryStorage), "a DICOMDIR"),
    "colour": (
        lambda: dataset(PLANE, PhotometricInterpretation="RGB", SamplesPerPixel=3),
        "one grey value per voxel, got colours",
    ),
    "palette": (
        lambda: dataset(PLANE, PhotometricInterpretation="PALETTE COLOR"),
        "one grey value per voxel, got colours",
    ),
    "one bit": (lambda: dataset(PLANE, BitsAllocated=1, BitsStored=1, HighBit=0), "8 or 16 bits per voxel, got 1"),
    "long": (lambda: dataset(PLANE.astype(np.int32)), "8 or 16 bits per voxel, got 32"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_dicom_objects_are_skipped_with_a_reason(tmp_path, name):
    make, reason = OTHERS[name]
    skipped = read_header(save(make(), tmp_path / "other.dcm"))
    assert isinstance(skipped, SkippedFile)
    assert re.search(reason, skipped.reason), skipped.reason


def test_deflated_files_are_not_decompressed(tmp_path):
    data = dataset(PLANE)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert "not deflated as a whole" in read_header(save(data, tmp_path / "x.dcm")).reason


def test_damaged_files_raise_nothing_and_leak_no_patient_data(tmp_path, caplog):
    """Changed bytes and truncated files give a volume or a reason."""
    (path, *_) = write_series(tmp_path, random_volume((4, 3, 2)))
    multi = write_multiframe(tmp_path / "multi.dcm", random_volume((4, 3, 2)))
    chance = random.Random(0)
    outcomes: set[str] = set()
    reader = DicomSeriesReader()
    for original in (path, multi):
        content = original.read_bytes()
        for _ in range(80):
            broken = bytearray(content[: chance.choice([len(content), chance.randrange(140, len(content))])])
            for _ in range(3):
                broken[chance.randrange(132, len(broken))] = chance.randrange(256)
            (tmp_path / "broken.dcm").write_bytes(bytes(broken))
            scans, skipped = find_dicom_scans([tmp_path / "broken.dcm"], str)
            assert len(scans) + len(skipped) >= 1
            try:
                reader.get_data(reader.read(tmp_path / "broken.dcm"))
            except RefusedScan as refused:
                outcomes.add(str(refused))
            told = (repr((scans, skipped)) + " ".join(outcomes) + caplog.text).lower()
            assert not any(secret.lower() in told for secret in SECRETS.values())
    assert len(outcomes) > 3, "the damage has an effect"


def test_text_instead_of_a_uid_is_dropped(tmp_path, caplog):
    """After a damaged length of a UID, the next tags are read as a part of it."""
    words = "1.2.3\0Secret^Name"
    with disable_value_validation():
        tags = dict.fromkeys(("SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"), words)
        write_series(tmp_path, random_volume(), change=lambda data, k: [setattr(data, *tag) for tag in tags.items()])
        save(without_pixels(words), tmp_path / "other.dcm")
    scans, skipped = find_dicom_scans(tmp_path.iterdir(), str)
    assert [(scan.series_uid, scan.modality, scan.refused) for scan in scans] == [("", "", "")]
    assert len(skipped) == 1
    assert "Secret" not in repr((scans, skipped, read_header(tmp_path / "series-001.dcm"))) + caplog.text


def test_header_has_the_values_of_the_file(tmp_path):
    data = dataset(
        PLANE.astype(np.uint16), instance="7", ImagePositionPatient=["1.5", "-2", "3"], PixelSpacing=["0.5", "0.25"],
        ImageOrientationPatient=["1", "0", "0", "0", "1", "0"], RescaleSlope="2", RescaleIntercept="-1024",
        RescaleType="HU", EchoTime="3.5", PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    (header,) = read_header(save(data, tmp_path / "x"))
    own = header.identity
    assert (own.study_uid, own.series_uid, own.series_number) == (uid("study"), uid("series"), "")
    assert own.frame_of_reference == uid("frame of reference")
    assert header == SliceHeader(
        path=tmp_path / "x", frame=0, frames=1, identity=own, sop_uid=uid("series/7"), instance_number=None,
        modality="CT", rows=3, columns=4, position=(1.5, -2, 3), rounding_mm=(0.05, 0.5, 0.5),
        orientation=(1, 0, 0, 0, 1, 0),
        pixel_spacing=(0.5, 0.25), slope=2, intercept=-1024, units=("", "HU"), bits_stored=16, signed=False,
        inverted=True, padding=None, corner=None, discriminating=(("EchoTime", "3.5"),), problem="",
    )  # fmt: skip


def test_patients_are_comparable_but_anonymous(tmp_path):
    names = {"PatientID": "secret-id", "PatientName": "Secret^Name"}
    first, same = (read_header(save(dataset(PLANE, **names), tmp_path / str(i)))[0].identity for i in range(2))
    (other,) = read_header(save(dataset(PLANE, **{**names, "PatientID": "other"}), tmp_path / "other"))
    (blank,) = read_header(save(dataset(PLANE, **{**names, "PatientID": ""}), tmp_path / "blank"))
    assert first == same
    assert first.patient_id != other.identity.patient_id
    assert first.patient_name == other.identity.patient_name
    assert blank.identity.patient_id == ""
    for digest in (first.patient_id, first.patient_name):
        assert re.fullmatch("[0-9a-f]{16}", digest)
        assert not any(word.encode().hex() in digest for word in names.values())


def test_each_frame_has_a_header(tmp_path):
    frames = read_header(write_multiframe(tmp_path / "m.dcm", random_volume((4, 3, 3)), order=[2, 0, 1]))
    assert [part.frame for part in frames] == [0, 1, 2]
    assert [dict(part.discriminating)["DimensionIndexValues"] for part in frames] == [(1,), (1,), (1,)], (
        "place is not among it"
    )
    assert len({part.position for part in frames}) == 3
    assert {part.intercept for part in frames} == {-1024}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RescaleSlope": "0"}, "a finite slope and intercept"),
        ({"BitsStored": 12, "HighBit": 15}, "12 bits up to bit 15"),
        ({"PixelData": b"\0" * 20}, r"expected 24 bytes of pixels (1 x 3 x 4, 16 bits), got 20"),
        ({"PixelData": b"\0" * 28}, r"expected 24 bytes of pixels (1 x 3 x 4, 16 bits), got 28"),
        ({"NumberOfFrames": 2}, "expected 48 bytes of pixels (2 x 3 x 4, 16 bits), got 24"),
        ({"PixelRepresentation": None}, "expected PixelRepresentation, signed or unsigned, got none"),
    ],
)
def test_untrustworthy_values_are_a_problem_of_the_slice(tmp_path, changes, reason):
    (header,) = read_header(save(dataset(PLANE, **changes), tmp_path / "x.dcm"))
    assert reason in header.problem


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("ImagePositionPatient", ["0", "0", "7.25"]),
        ("ImageOrientationPatient", ["1", "0", "0", "0", "7.25", "0"]),
        ("PixelSpacing", ["7.25", "1"]),
        ("RescaleSlope", "7.25"),
        ("RescaleIntercept", "7.25"),
    ],
)
@pytest.mark.parametrize(("written", "what"), [(b"7,25", "decimal commas"), (b"x.25", "something else")])
def test_invalid_numbers_are_named(tmp_path, keyword, values, written, what):
    path = save(dataset(PLANE, **{keyword: values}), tmp_path / "x.dcm")
    path.write_bytes(path.read_bytes().replace(b"7.25", written))
    (header,) = read_header(path)
    assert header.problem == f"expected numbers in {keyword}, got {what}: export it again"


def test_implicit_syntax(tmp_path):
    data = dataset(PLANE)
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    (header,) = read_header(save(data, tmp_path / "x.dcm"))
    assert (header.rows, header.columns) == (3, 4)
