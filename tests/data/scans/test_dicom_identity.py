# SPDX-License-Identifier: Apache-2.0
"""Patients and series of slices, as in public reports of volumes that were silently mixed or halved."""

import math
import re

import numpy as np
import pytest
from dicom_files import (
    AXIAL,
    OTHER,
    VOLUME,
    assert_are,
    assert_refused_once,
    moved,
    random_volume,
    scans_in,
    tags,
    uid,
    voxels,
    write_series,
)
from pydicom import dcmread
from pydicom.uid import generate_uid

from monai_llmboost.data.scans import find_scans

OWNERS = {
    "patients": ({"PatientID": "A"}, {"PatientID": "B"}, "PatientID"),
    "names": ({"PatientName": "A"}, {"PatientName": "B"}, "PatientName"),
    "studies": ({"StudyInstanceUID": uid("A")}, {"StudyInstanceUID": uid("B")}, "StudyInstanceUID"),
    "numbers": ({"SeriesNumber": 4}, {"SeriesNumber": 5}, "SeriesNumber"),
    "both": (
        {"PatientID": "A", "SeriesNumber": 4},
        {"PatientID": "B", "SeriesNumber": 5},
        "PatientID and SeriesNumber",
    ),
}


@pytest.mark.parametrize("place", [24, 0, 100], ids=["after", "same", "far"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", OWNERS)
def test_scans_of_two_patients_with_one_series_uid_are_two(tmp_path, name, named, place):
    first, second, by = OWNERS[name]
    series = {"SeriesInstanceUID": uid("series") if named else ""}
    write_series(tmp_path / "a", VOLUME, AXIAL, **first, **series)
    write_series(tmp_path / "b", OTHER, moved(place), series="other", **second, **series)
    scans = scans_in(tmp_path)
    assert_are(scans, VOLUME, OTHER)
    assert [scan.name for scan in scans] == ["a", "b"]
    if named:
        (warning,) = {warning for scan in scans for warning in scan.warnings}
        assert re.fullmatch(f"one of 2 stacks of its series, separated by {by}", warning)


@pytest.mark.parametrize("name", OWNERS)
def test_interleaved_slices_of_two_patients_are_refused_once(tmp_path, name):
    first, second, _ = OWNERS[name]
    write_series(tmp_path, VOLUME, AXIAL, change=lambda data, k: tags(**(second if k % 2 else first))(data, k))
    assert_refused_once(scans_in(tmp_path), "expected one patient, study and series in an even stack")


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName"])
def test_another_patient_in_every_file_is_refused_once(tmp_path, keyword):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(**{keyword: lambda k: f"p{k}"}))
    assert_refused_once(
        scans_in(tmp_path), f"images of one {keyword} under one SeriesInstanceUID, got 12 among 12 files"
    )


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "FrameOfReferenceUID"])
def test_values_that_differ_in_every_file_are_ignored(tmp_path, keyword):
    number = keyword == "SeriesNumber"
    values = {"SeriesNumber": 1, keyword: lambda k: k if number else generate_uid(entropy_srcs=[str(k)])}
    write_series(tmp_path, VOLUME, AXIAL, change=tags(**values))
    (scan,) = scans_in(tmp_path)
    assert_are([scan], VOLUME)
    assert re.search(r"12 (files|frames of reference)", " ".join(scan.warnings))


def test_slice_without_patient_between_two_patients_is_refused(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(PatientID=lambda k: "AAAAA BBBBBB"[k].strip()))
    assert_refused_once(scans_in(tmp_path), "images of one PatientID")


def test_blank_patient_in_a_series_of_one_patient_is_the_same(tmp_path):
    blank = tags(PatientID=lambda k: "" if k == 3 else "A", SeriesNumber=lambda k: "" if k % 2 else 1)
    write_series(tmp_path, VOLUME, AXIAL, change=blank)
    assert_are(scans_in(tmp_path), VOLUME)


def test_slices_without_series_uid_join_the_series_that_they_fit(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(SeriesInstanceUID=lambda k: "" if k in (0, 5) else uid("series")))
    (scan,) = scans_in(tmp_path)
    assert_are([scan], VOLUME)
    assert scan.warnings == ("some of its files have no SeriesInstanceUID: 2",)


@pytest.mark.parametrize("numbers", [0, 12], ids=["restart", "continue"])
def test_folders_separate_series_without_uid(tmp_path, numbers):
    blank = {"SeriesInstanceUID": ""}
    write_series(tmp_path / "a", VOLUME, AXIAL, **blank)
    write_series(tmp_path / "b", OTHER, AXIAL, series="other", first=numbers, **blank)
    assert_are(scans_in(tmp_path), VOLUME, OTHER)


def test_series_without_uid_in_two_folders_is_one_if_numbered_in_order(tmp_path):
    for k, path in enumerate(write_series(tmp_path / "x", VOLUME, AXIAL, SeriesInstanceUID="")):
        (tmp_path / str(k // 6)).mkdir(exist_ok=True)
        path.rename(tmp_path / str(k // 6) / path.name)
    assert_are(scans_in(tmp_path), VOLUME)
    for path in tmp_path.rglob("*.dcm"):
        data = dcmread(path)
        data.InstanceNumber = 1
        data.save_as(path)
    assert_refused_once(scans_in(tmp_path), "got slices in 2 folders, no SeriesInstanceUID and no numbers in a row")


PASSES = {
    "acquisition": ("AcquisitionNumber", 1, 2),
    "time": ("AcquisitionTime", "120000", "121500"),
    "time position": ("TemporalPositionIdentifier", 1, 2),
    "kernel": ("ConvolutionKernel", "soft", "sharp"),
    "echo": ("EchoTime", "4", "9"),
    "contrast": ("ContrastBolusAgent", "none", "iodine"),
    "kind": ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
}


@pytest.mark.parametrize("gap", [1.0, 0.7], ids=["between", "off the middle"])
@pytest.mark.parametrize("name", PASSES)
def test_interleaved_acquisitions_are_two_scans(tmp_path, name, gap):
    keyword, one, two = PASSES[name]
    write_series(tmp_path, VOLUME, AXIAL, **{keyword: one})
    write_series(tmp_path, OTHER, moved(gap), first=12, **{keyword: two})
    scans = scans_in(tmp_path)
    assert_are(scans, VOLUME, OTHER)
    assert {scan.warnings for scan in scans} == {(f"one of 2 stacks of its series, separated by {keyword}",)}


def test_interleaved_acquisitions_numbered_in_order_are_refused_once(tmp_path):
    turns = tags(AcquisitionNumber=lambda k: k % 2, InstanceNumber=lambda k: k)
    write_series(tmp_path, VOLUME, AXIAL, change=turns)
    assert_refused_once(scans_in(tmp_path), "of one scan, got 2 that interleave, by AcquisitionNumber")


def test_passes_shown_only_by_numbers_are_refused_once(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL)
    write_series(tmp_path, OTHER, moved(1), first=12)
    assert_refused_once(scans_in(tmp_path), "of one scan, got 2 that interleave, by their image numbers")


@pytest.mark.parametrize("turns", [2, 3])
@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "AcquisitionTime", "TriggerTime"])
def test_mr_packages_are_one_volume(tmp_path, keyword, turns):
    change = tags(Modality="MR", InstanceNumber=lambda k: k, **{keyword: lambda k: str(120001 + k % turns)})
    write_series(tmp_path, VOLUME, AXIAL, change=change)
    (scan,) = scans_in(tmp_path)
    assert_are([scan], VOLUME)
    assert scan.warnings == ()


def test_mr_packages_numbered_one_by_one_are_one_volume_with_a_warning(tmp_path):
    change = tags(Modality="MR", AcquisitionNumber=lambda k: k % 2, InstanceNumber=lambda k: k // 2 + 6 * (k % 2))
    write_series(tmp_path, VOLUME, AXIAL, change=change)
    (scan,) = scans_in(tmp_path)
    assert_are([scan], VOLUME)
    assert scan.warnings == ("its slices were taken in turns over the same extent: read as one volume",)


def test_consecutive_scans_with_different_kernels_are_two(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, ConvolutionKernel="soft")
    write_series(tmp_path, OTHER, moved(24), first=12, ConvolutionKernel="sharp")
    assert_are(scans_in(tmp_path), VOLUME, OTHER)


def test_echo_times_that_differ_by_rounding_are_one_volume(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(EchoTime=lambda k: "13.40" if k < 6 else "13.41"))
    assert_are(scans_in(tmp_path), VOLUME)


@pytest.mark.parametrize("turn", [1e-5, 1e-4, 1e-3])
def test_directions_that_alternate_by_rounding_are_one_volume(tmp_path, turn):
    def change(data, k):
        a = turn * (-1) ** k
        cosines = (math.cos(a), math.sin(a), 0, -math.sin(a), math.cos(a), 0)
        data.ImageOrientationPatient = [f"{c:.9f}" for c in cosines]

    write_series(tmp_path, VOLUME, AXIAL, change=change)
    assert_are(scans_in(tmp_path), VOLUME)


@pytest.mark.parametrize(
    "pattern", [lambda k: k % 2, lambda k: k % 3, lambda k: k // 2 % 2, lambda k: k == 5, lambda k: k < 4]
)
def test_alternating_pixel_spacing_is_refused_once(tmp_path, pattern):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(PixelSpacing=lambda k: ["0.9", "0.71" if pattern(k) else "0.7"]))
    assert_refused_once(scans_in(tmp_path), "differ by more than a tenth of a pixel, in one even stack")


@pytest.mark.parametrize(("spacing", "digits"), [(0.625, 1), (0.625, 2), (2.5, 0), (0.3333, 2), (1.171875, 1)])
def test_rounded_positions_fit_their_line(tmp_path, spacing, digits):
    volume = random_volume((9, 8, 33))

    def change(data, k):
        data.ImagePositionPatient = ["-16", "-20", f"{-100 + spacing * k:.{digits}f}"]

    write_series(tmp_path, volume, AXIAL, change=change)
    (scan,) = scans_in(tmp_path)
    assert scan.refused == ""
    assert scan.spacing_mm[2] == pytest.approx(spacing, rel=0.01)
    assert "tilted" not in " ".join(scan.warnings)
    np.testing.assert_array_equal(voxels(scan), volume)


@pytest.mark.parametrize("lost", [1, 16, 31])
@pytest.mark.parametrize(("spacing", "digits"), [(0.625, 1), (2.5, 0), (0.625, 3), (1, 1)])
def test_missing_slice_is_found_among_rounded_positions(tmp_path, spacing, digits, lost):
    volume = random_volume((9, 8, 33))

    def change(data, k):
        data.ImagePositionPatient = ["-16", "-20", f"{-100 + spacing * k:.{digits}f}"]
        return k != lost

    write_series(tmp_path, volume, AXIAL, change=change)
    assert_refused_once(scans_in(tmp_path), "missing: 1|at equal distances")


def test_too_coarse_positions_are_refused(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(ImagePositionPatient=lambda k: ["0", "0", f"{0.4 * k:.0f}"]))
    assert_refused_once(scans_in(tmp_path), "12 slices at 5 positions")


def test_air_slices_with_one_sop_uid_are_no_copies(tmp_path):
    volume = VOLUME.copy()
    volume[:, :, 8:] = 0
    write_series(tmp_path, volume, AXIAL, SOPInstanceUID=uid("one for all"))
    (scan,) = scans_in(tmp_path)
    assert_are([scan], volume)
    assert scan.warnings == ()


def test_same_images_with_two_pseudonyms_are_two_cases(tmp_path):
    write_series(tmp_path / "a", VOLUME, AXIAL, PatientID="A")
    write_series(tmp_path / "b", VOLUME, AXIAL, PatientID="B")
    assert_are(scans_in(tmp_path), VOLUME, VOLUME)


def test_damaged_copy_elsewhere_hides_nothing(tmp_path):
    paths = write_series(tmp_path / "scan", VOLUME, AXIAL)
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "x").write_bytes(paths[4].read_bytes()[:-60])
    (scan,), skipped = find_scans(tmp_path)
    assert scan.name == "scan"
    assert_are([scan], VOLUME)
    assert [file.reason for file in skipped] == [f"a damaged copy of {paths[4].name}"]


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"])
@pytest.mark.parametrize("lost", [0, 5, 11])
def test_image_without_size_refuses_its_series(tmp_path, keyword, lost):
    write_series(tmp_path, VOLUME, AXIAL, change=lambda data, k: delattr(data, keyword) if k == lost else None)
    assert_refused_once(scans_in(tmp_path), f"expected {keyword} of an image, got none: it is damaged")


TURNS = {"two": lambda k: k % 2, "three": lambda k: k % 3, "four": lambda k: k % 4, "pairs": lambda k: k // 2}
ENDS = {"the last": lambda k: int(k == 11), "the last two": lambda k: int(k > 9), "thirds": lambda k: k // 4}
EACH = {"each": lambda k: k}


@pytest.mark.parametrize("known", ["all", "no study", "no number"])
@pytest.mark.parametrize("name", [*TURNS, *ENDS, *EACH])
def test_different_series_uids_in_a_scan_numbered_in_order_are_refused(tmp_path, name, known):
    which = (TURNS | ENDS | EACH)[name]
    values = {"SeriesNumber": None if known == "no number" else 4}
    if known == "no study":
        values["StudyInstanceUID"] = ""
    write_series(tmp_path, VOLUME, AXIAL, change=tags(SeriesInstanceUID=lambda k: uid(str(which(k))), **values))
    (scan,) = scans_in(tmp_path)
    if not scan.refused:
        assert_are([scan], VOLUME)


@pytest.mark.parametrize("name", TURNS)
def test_alternating_studies_and_patients_in_a_scan_numbered_in_order_are_refused(tmp_path, name):
    def change(data, k):
        own = str(TURNS[name](k))
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID"):
            setattr(data, keyword, uid(keyword + own))
        data.PatientID, data.SeriesNumber = own, int(own) + 1

    write_series(tmp_path, VOLUME, AXIAL, change=change)
    if name == "pairs":  # they do not interleave, and all tags show six scans
        assert [scan.shape for scan in scans_in(tmp_path)] == [(9, 8, 2)] * 6
    else:
        assert_refused_once(scans_in(tmp_path), "expected one patient, study and series in an even stack")


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SeriesNumber", "Modality"])
@pytest.mark.parametrize("which", [lambda k: k % 2, lambda k: k == 11], ids=["alternating", "the last"])
@pytest.mark.parametrize("uids", ["blank", "new"])
def test_blank_uid_among_files_with_different_series_uids(tmp_path, keyword, which, uids):
    def change(data, k):
        data.SeriesNumber = 4
        data.SeriesInstanceUID = "" if uids == "blank" else uid(str(k))
        if which(k):
            setattr(data, keyword, None)

    write_series(tmp_path, VOLUME, AXIAL, change=change)
    (scan,) = scans_in(tmp_path)
    if not scan.refused:
        assert_are([scan], VOLUME)


@pytest.mark.parametrize("which", [lambda k: k % 2, lambda k: k == 11], ids=["alternating", "the last"])
def test_blank_series_uids_in_another_folder(tmp_path, which):
    def change(data, k):
        if which(k):
            data.SeriesInstanceUID = ""

    for k, path in enumerate(write_series(tmp_path / "x", VOLUME, AXIAL, change=change)):
        if which(k):
            (tmp_path / "y").mkdir(exist_ok=True)
            path.rename(tmp_path / "y" / path.name)
    assert_refused_once(scans_in(tmp_path), "expected one patient, study and series in an even stack")


@pytest.mark.parametrize("number", [3, None], ids=["numbers continue", "no numbers"])
@pytest.mark.parametrize("place", [24, 1], ids=["after", "between"])
def test_two_series_are_two_even_if_evenly_spaced_together(tmp_path, place, number):
    shared = {} if number else {"InstanceNumber": None}
    write_series(tmp_path / "a", VOLUME, AXIAL, "a", SeriesNumber=2, **shared)
    write_series(tmp_path / "b", OTHER, moved(place), "b", first=12, SeriesNumber=3, **shared)
    if place == 1 and not number:  # only the UIDs, which may be wrong, separate the slices
        assert_refused_once(scans_in(tmp_path), "expected one patient, study and series in an even stack")
    else:
        assert_are(scans_in(tmp_path), VOLUME, OTHER)


def test_single_slices_of_several_series_stay_separate(tmp_path):
    for i in range(3):
        write_series(tmp_path, VOLUME[..., :1], moved(30 * i), f"scout {i}", SeriesNumber=i)
    write_series(tmp_path, VOLUME, moved(-40), "scan", SeriesNumber=7)
    kinds = [scan.refused_kind for scan in scans_in(tmp_path)]
    assert sorted(kinds) == ["", "single-slice", "single-slice", "single-slice"]


@pytest.mark.parametrize("names", [("Doe^John", "DOE^JOHN"), ("Doe^John^^", "Doe^John"), (" Doe", "Doe ")])
def test_spellings_of_a_name_are_one_patient(tmp_path, names):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(PatientID="", PatientName=lambda k: names[k % 2]))
    assert_are(scans_in(tmp_path), VOLUME)


@pytest.mark.parametrize("written", ["0 1e1 2e1 3e1 45 55", "0 1e+01 2E1 30 4.5e1 5.5e1"])
def test_positions_in_exponents_are_exact(tmp_path, written):
    places = tags(ImagePositionPatient=lambda k: ["0", "0", written.split()[k]])
    write_series(tmp_path, random_volume(), AXIAL, change=places)
    (scan,) = scans_in(tmp_path)
    assert scan.refused_kind == "uneven-slices"


def test_whole_numbers_next_to_fractions_are_exact(tmp_path):
    """A slice shifted by 1 mm is not on a line rounded to whole numbers."""
    shifted = tags(ImagePositionPatient=lambda k: [str(int(k == 11)), "0", f"{2.5 * k:g}"])
    write_series(tmp_path, VOLUME, np.diag([-0.7, -0.9, 2.5, 1]), change=shifted)
    (scan,) = scans_in(tmp_path)
    assert scan.refused_kind == "uneven-slices"


def test_slice_separated_by_its_folder_is_missing(tmp_path):
    write_series(tmp_path / "a", VOLUME, AXIAL, SeriesInstanceUID="")
    lost = tags(PatientID=lambda k: "" if k == 11 else "A")
    write_series(tmp_path / "b", OTHER, moved(24), "other", SeriesInstanceUID="", PatientID="A", change=lost)
    refused = [scan.refused for scan in scans_in(tmp_path)]
    assert len(refused) == 2
    assert sum("expected one patient, study and series in an even stack" in reason for reason in refused) == 1
