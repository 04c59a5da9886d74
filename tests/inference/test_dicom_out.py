# SPDX-License-Identifier: Apache-2.0
import os
import re
import stat
import sys
from dataclasses import replace

import highdicom
import nibabel
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
from pydicom.uid import EnhancedMRImageStorage

from monai_llmboost.data import DicomSeriesReader
from monai_llmboost.data.scans.dicom.paths import get_reader_paths
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans
from monai_llmboost.inference.dicom.maker import refused_by_highdicom
from monai_llmboost.inference.dicom.map import write_parametric_map
from monai_llmboost.inference.dicom.objects import DicomObjects
from monai_llmboost.inference.dicom.report import write_structured_report
from monai_llmboost.inference.dicom.sources import SourceImages
from monai_llmboost.inference.rows import Row

NAMES = ["liver", "kidney", "größer \\ 肝臓", "x" * 100]
PROBABILITIES = [0.1, 1 / 3, 0.5666666507720947, 0.0]


def break_rules(data, keyword, value):
    delattr(data, keyword)
    with pydicom.config.disable_value_validation():
        setattr(data, keyword, value)


def relevance(shape=SIZE):
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def report(path, files, **changes):
    arguments = {"class_names": NAMES, "probabilities": PROBABILITIES, "predicted": NAMES[2], "algorithm": ALGORITHM}
    source = SourceImages(files, changes.pop("frames", ()))
    write_structured_report(path, source, **{**arguments, **changes})
    return highdicom.sr.srread(path)


def pmap(path, files, values, affine, **changes):
    source = SourceImages(files, changes.pop("frames", ()))
    write_parametric_map(path, source, values, affine, **{"label": "network", "algorithm": ALGORITHM, **changes})
    return highdicom.pm.ParametricMap.from_file(path)


def texts(content, code):
    return [item.TextValue for item in highdicom.sr.utils.find_content_items(content, name=code, recursive=True)]


def placed(written):
    """Each voxel of a map by its place in LPS+ mm, as highdicom's volumes have it."""
    volume = written.get_volume()
    index = np.indices(volume.spatial_shape).reshape(3, -1).T
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3], volume.array.ravel()


def assert_same_field(written, values, affine):
    """Every voxel of the map is at its place with its value, in whatever order it is stored."""
    places, found = placed(written)
    index = np.indices(values.shape).reshape(3, -1).T
    expected = index @ (np.diag([-1, -1, 1, 1]) @ affine)[:3, :3].T + in_lps(affine, 0, 0, 0)
    distance = np.linalg.norm(places[:, None] - expected[None], axis=2)
    nearest = distance.argmin(axis=1)
    assert sorted(nearest) == list(range(values.size))
    assert distance.min(axis=1).max() < 1e-4  # mm
    assert np.array_equal(found, values.ravel()[nearest])


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "series", oblique())


def test_report_holds_the_prediction(tmp_path, series, caplog):
    caplog.set_level("INFO")  # as MONAI's logging configs do
    written = report(tmp_path / "out" / "report.dcm", series, warnings=["something is odd"])
    first, *groups = written.content.get_image_measurement_groups()
    codes = pydicom.sr.codedict.codes
    assert [evaluation.value.meaning for evaluation in first.get_qualitative_evaluations()] == ["größer / 肝臓"]
    found = [(group.finding_type.meaning, group.get_measurements()[0]) for group in groups]
    assert [name for name, _ in found] == ["liver", "kidney", "größer / 肝臓", "x" * 61 + "..."]
    assert [measurement.value for _, measurement in found] == PROBABILITIES
    assert {measurement.name for _, measurement in found} == {codes.DCM.Probability}
    assert {measurement.unit for _, measurement in found} == {codes.UCUM.NoUnits}
    assert first.get_qualitative_evaluations()[0].value == groups[2].finding_type
    assert len({group.finding_type.value for group in groups}) == 4
    root = written.content[0]
    comments = texts(root, codes.DCM.Comment)
    assert comments == ["For research only; not for diagnosis.", "Which organ it is", "something is odd"]
    assert texts(root, codes.DCM.AlgorithmName) == ["a network"] * 5
    parameters = texts(root, codes.DCM.AlgorithmParameters)
    assert parameters[:2] == [f"weights sha256: {'a1' * 32}", "block fingerprint: b2b2"]
    (observer,) = written.content.get_observer_contexts(codes.DCM.Device)
    assert observer.observer_identifying_attributes.serial_number == "a1" * 32
    flags = written.CompletionFlag, written.VerificationFlag, written.PreliminaryFlag, written.ContentQualification
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY", "RESEARCH")
    assert not caplog.records


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_objects_belong_to_patient_and_study_and_refer_to_every_image(tmp_path, modality):
    series = write_series(tmp_path / "series", oblique(), modality)
    images = {(STUDY, SERIES, f"{SERIES}.{k + 1}", pydicom.dcmread(series[0]).SOPClassUID) for k in range(SIZE[2])}
    written = report(tmp_path / "report.dcm", series)
    assert set(written.get_evidence()) == images
    library = highdicom.sr.utils.find_content_items(written.content[0], value_type="IMAGE", recursive=True)
    assert [item.referenced_sop_instance_uid for item in library] == [f"{SERIES}.{k + 1}" for k in range(SIZE[2])]
    mapped = pmap(tmp_path / "map.dcm", series, relevance(), oblique())
    (referred,) = mapped.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == SERIES
    instances = {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence}
    assert instances == {uid for _, _, uid, _ in images}
    for path in ("report.dcm", "map.dcm"):
        data = pydicom.dcmread(tmp_path / path)
        assert {keyword: str(data[keyword].value) for keyword in SECRETS} == SECRETS
        assert (data.StudyInstanceUID, data.StudyID, data.AccessionNumber) == (STUDY, "s1", "a1")
        assert data.SeriesInstanceUID != SERIES
        assert "PixelData" not in data
    uids = {uid for data in (written, mapped) for uid in (data.SOPInstanceUID, data.SeriesInstanceUID)}
    assert len(uids) == 4
    assert mapped.FrameOfReferenceUID == FRAME
    for uid in uids:
        assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid) and pydicom.uid.UID(uid).is_valid


@pytest.mark.parametrize("left_handed", [False, True])
def test_map_lies_where_the_affine_says(tmp_path, series, left_handed):
    affine = oblique(left_handed)
    files = write_series(tmp_path / "series", affine)
    values = relevance()
    written = pmap(tmp_path / "map.dcm", files, values, affine)
    assert_same_field(written, values, affine)
    assert written.DimensionOrganizationType == "3D"
    for group in written.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        k = int(source.ReferencedSOPInstanceUID.rpartition(".")[2]) - 1
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, in_lps(affine, 0, 0, k), atol=1e-4)
    (measures,) = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert float(measures.SpacingBetweenSlices) == pytest.approx(2.5)  # whatever the source says
    (mapping,) = written.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == "Saliency"


def test_map_is_placed_alike_by_another_library(tmp_path, series):
    """GDCM reads no floating point pixels, so it is given the same functional groups as an MR of integers."""
    values, affine = relevance(), oblique()
    pmap(tmp_path / "map.dcm", series, values, affine)
    data = pydicom.dcmread(tmp_path / "map.dcm")
    stored = np.frombuffer(data.FloatPixelData, "<f4")
    del data.FloatPixelData
    data.add_new("PixelData", "OW", np.round(stored * 65535).astype("<u2").tobytes())
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    data.save_as(tmp_path / "mr.dcm")
    read = SimpleITK.ReadImage(tmp_path / "mr.dcm", SimpleITK.sitkFloat32)
    for voxel in np.ndindex(*SIZE):
        place = read.TransformIndexToPhysicalPoint([int(x) for x in (*voxel[:2], SIZE[2] - 1 - voxel[2])])
        assert np.allclose(place, in_lps(affine, *voxel), atol=1e-4)
    found = SimpleITK.GetArrayFromImage(read)[::-1].T / 65535
    assert np.allclose(found, values, atol=1e-5)


def test_map_on_tilted_slices(tmp_path, series):
    affine = oblique()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    files = write_series(tmp_path / "series", affine)
    written = pmap(tmp_path / "map.dcm", files, relevance(), affine)
    assert "DimensionOrganizationType" not in written  # no rectangular grid
    found = [group.PlanePositionSequence[0].ImagePositionPatient for group in written.PerFrameFunctionalGroupsSequence]
    expected = [in_lps(affine, 0, 0, k) for k in reversed(range(SIZE[2]))]
    assert np.allclose(found, expected, atol=1e-4)


def test_map_on_a_grid_of_its_own(tmp_path, series):
    affine = oblique() @ np.diag([2.0, 2, 3, 1])
    values = relevance((3, 3, 2))
    assert_same_field(pmap(tmp_path / "map.dcm", series, values, affine), values, affine)


def test_multiframe_source(tmp_path):
    """Geometry frame by frame, and another echo at the same places that the scan has nothing to do with."""
    frames = write_multiframe(tmp_path / "multi.dcm", oblique(), echoes=2)
    scan = next(s for s in find_dicom_scans([tmp_path / "multi.dcm"], str)[0] if not s.refused)
    mine = [number for number, (echo, _) in enumerate(frames, 1) if echo == 0]
    nibabel.save(nibabel.Nifti1Image(relevance(), oblique()), tmp_path / "map.nii")
    made = DicomObjects(tmp_path, {"weights": {"sha256": "c3"}})(scan, predicted_row({"network": "map.nii"}), NAMES)
    written = highdicom.pm.ParametricMap.from_file(tmp_path / made["network"])
    assert_same_field(written, relevance(), oblique())
    groups = written.PerFrameFunctionalGroupsSequence
    referred = [item for group in groups for item in group.DerivationImageSequence[0].SourceImageSequence]
    numbers = [int(item.ReferencedFrameNumber) for item in referred]
    assert len(numbers) == SIZE[2] and (set(numbers) == set(mine) or not set(numbers) & set(mine))
    echo = frames[numbers[0] - 1][0]
    assert [frames[number - 1] for number in numbers] == [(echo, k) for k in reversed(range(SIZE[2]))]
    report_written = highdicom.sr.srread(tmp_path / made["report"])
    (library,) = highdicom.sr.utils.find_content_items(report_written.content[0], value_type="IMAGE", recursive=True)
    assert sorted(library.referenced_frame_numbers) == sorted(numbers)


def test_the_same_again_has_the_same_uid(tmp_path, series):
    def without_times(data):
        data = pydicom.Dataset(data)
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
            delattr(data, keyword)
        for item in data.ContributingEquipmentSequence:
            item.pop("ContributionDateTime", None)
        return data

    for write, change in (
        (report, {"probabilities": [0.2, 0.3, 0.5, 0.0]}),
        (report, {"algorithm": {**ALGORITHM, "weights_sha256": "d4" * 32}}),
        (report, {"warnings": ["odd"]}),
        (pmap, {"affine": oblique(left_handed=True)}),
        (pmap, {"values": relevance() / 2}),
        (pmap, {"label": "other"}),
    ):
        more = {} if write is report else {"values": relevance(), "affine": oblique()}
        one, again, other = (
            write(tmp_path / name, series, overwrite=True, **{**more, **changes})
            for name, changes in (("1.dcm", {}), ("2.dcm", {}), ("3.dcm", change))
        )
        assert without_times(pydicom.dcmread(tmp_path / "1.dcm")) == without_times(pydicom.dcmread(tmp_path / "2.dcm"))
        assert one.SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID
        assert one.SeriesInstanceUID != other.SeriesInstanceUID


def test_what_may_be_empty_may_be_left_out(tmp_path):
    def strip(data, k):
        for keyword in (*SECRETS, "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            delattr(data, keyword)
        del data.SliceThickness, data.SpacingBetweenSlices
        data.ImageOrientationPatient = [float(x) + 1e-6 * k for x in data.ImageOrientationPatient]

    files = write_series(tmp_path / "series", oblique(), change=strip)
    assert report(tmp_path / "report.dcm", files).StudyID == ""
    written = pmap(tmp_path / "map.dcm", files, relevance(), oblique())
    assert_same_field(written, relevance(), oblique())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data, k: data.pop("FrameOfReferenceUID"),
            r"a DICOM image lacks FrameOfReferenceUID, .*: correct the file",
        ),
        (lambda data, k: setattr(data, "StudyInstanceUID", ""), "a DICOM image lacks StudyInstanceUID"),
        (
            lambda data, k: setattr(data, "SeriesInstanceUID", f"1.9.{k}"),
            "the images belong to 5 series: give the files",
        ),
        (
            lambda data, k: data.pop("PixelSpacing"),
            r"highdicom refuses .* \(AttributeError: there is no PixelSpacing\)",
        ),
        (lambda data, k: setattr(data, "PatientSex", "SECRET"), r"refuses .* \(ValueError: \): correct"),
        (lambda data, k: break_rules(data, "PatientBirthDate", "SECRET"), r"refuses .* \(ValueError: .*\): correct"),
        (lambda data, k: setattr(data, "SOPClassUID", "1.9.9"), r"highdicom refuses .* \(KeyError: \)"),
    ],
)
def test_poor_sources_are_refused_in_plain_words(tmp_path, change, message, caplog):
    files = write_series(tmp_path / "series", oblique(), change=change)
    with pytest.raises(ValueError, match=message) as error:
        write_parametric_map(tmp_path / "map.dcm", SourceImages(files), relevance(), oblique(), "network", ALGORITHM)
    assert "secret" not in str(error.value).lower()
    assert not caplog.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series"]


def test_invalid_values_are_copied_and_not_quoted(tmp_path, caplog):
    files = write_series(
        tmp_path / "series", oblique(), change=lambda data, k: break_rules(data, "PatientID", "x" * 70)
    )
    report(tmp_path / "report.dcm", files)
    pmap(tmp_path / "map.dcm", files, relevance(), oblique())
    assert not caplog.records
    for name in ("report.dcm", "map.dcm"):
        assert b"x" * 70 in (tmp_path / name).read_bytes()


def test_mistakes_of_ours_are_not_the_source_s():
    with pytest.raises(AttributeError, match="no attribute 'absent'"), refused_by_highdicom():
        highdicom.absent  # noqa: B018
    with pytest.raises(OSError, match="disk"), refused_by_highdicom():
        raise OSError("disk full")


def test_wrong_arguments(tmp_path, series):
    with pytest.raises(
        ValueError, match=r"the probabilities .* are not those of 4 classes: give one from 0 to 1 for each"
    ):
        report(tmp_path / "x.dcm", series, probabilities=[0.5])
    with pytest.raises(ValueError, match="are not those of 4 classes"):
        report(tmp_path / "x.dcm", series, probabilities=[0.5, float("nan"), 0.1, 0.1])
    with pytest.raises(ValueError, match="unknown predicted class 'spleen'; choose from"):
        report(tmp_path / "x.dcm", series, predicted="spleen")
    with pytest.raises(ValueError, match="there are no DICOM files of a scan: give at least one"):
        report(tmp_path / "x.dcm", [])
    (tmp_path / "no.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"no.dcm is no DICOM file: give"):
        report(tmp_path / "x.dcm", [tmp_path / "no.dcm"])
    with pytest.raises(ValueError, match=r"an array of shape \(7, 6\) is no map of finite numbers \(i, j, k\): give"):
        pmap(tmp_path / "x.dcm", series, relevance()[..., 0], oblique())
    with pytest.raises(ValueError, match="no map of finite numbers"):
        pmap(tmp_path / "x.dcm", series, np.full(SIZE, np.nan), oblique())
    with pytest.raises(ValueError, match=r"an affine is no .* that can be inverted: .*; give the scan's"):
        pmap(tmp_path / "x.dcm", series, relevance(), np.full((4, 4), np.nan))
    skewed = oblique()
    skewed[:3, 1] += 0.1 * skewed[:3, 0]
    with pytest.raises(
        ValueError, match=r"rows and columns are not at right angles, the cosine is .*: DICOM has no such"
    ):
        pmap(tmp_path / "x.dcm", series, relevance(), skewed)


def test_files_appear_whole_and_are_not_overwritten(tmp_path, series, monkeypatch):
    path = tmp_path / "report.dcm"
    umask = os.umask(0o027)
    try:
        report(path, series)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"report.dcm is there already: give another path, or overwrite=True"):
        report(path, series, warnings=["other"])
    with pytest.raises(ValueError, match="is there already"):
        report(path / "below" / "report.dcm", series)
    assert path.read_bytes() == before

    def fails(self, where, **options):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pydicom.Dataset, "save_as", fails)
    with pytest.raises(OSError, match="disk full"):
        report(path, series, warnings=["other"], overwrite=True)
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.iterdir()) == ["report.dcm", "series"]
    monkeypatch.undo()
    assert report(path, series, warnings=["other"], overwrite=True).SOPInstanceUID.encode() not in before


def test_without_highdicom(tmp_path, series, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    message = r"DICOM objects need highdicom, which is not installed: pip install 'monai-llmboost\[dicom\]'"
    with pytest.raises(ImportError, match=message):
        write_structured_report(tmp_path / "x.dcm", SourceImages(series), NAMES, PROBABILITIES, NAMES[0], ALGORITHM)
    with pytest.raises(ImportError, match=message):
        DicomObjects(tmp_path, {"weights": {"sha256": "c3"}})


def predicted_row(saliency=None, warnings=()):
    answer = {"probabilities": PROBABILITIES, "predicted": NAMES[2]}
    return Row("case", answer=answer, warnings=list(warnings), saliency=saliency or {})


def test_objects_need_provenance(tmp_path):
    with pytest.raises(ValueError, match="there is no provenance: give what run_provenance returns"):
        DicomObjects(tmp_path)


def test_objects_of_a_case(tmp_path, series):
    (scan,) = find_dicom_scans(series, lambda path: "a folder/case")[0]
    maps = {}
    for name in ("network", "before_booster"):
        maps[name] = f"saliency/{name}.nii.gz"
        (tmp_path / "saliency").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(relevance(), oblique()), tmp_path / maps[name])
    row = predicted_row({**maps, "preview": "saliency/preview.png"}, ["odd"])
    provenance = {
        "bundle": "a bundle",
        "bundle_version": "3.4",
        "weights": {"file": "/secret/model.pt", "sha256": "e5" * 32},
        "block": {"block": "some", "fingerprint": "f6f6"},
        "task": "Organs",
    }
    write = DicomObjects(tmp_path, provenance)
    made = write(scan, row, NAMES)
    where = "dicom/a folder/case/"
    assert made == {name: f"{where}{name}.dcm" for name in ("report", "network", "before_booster")}
    written = highdicom.sr.srread(tmp_path / made["report"])
    codes = pydicom.sr.codedict.codes
    assert texts(written.content[0], codes.DCM.AlgorithmParameters)[:2] == [
        f"weights sha256: {'e5' * 32}",
        "block fingerprint: f6f6",
    ]
    assert written.SoftwareVersions[0] == "3.4"
    quantities = []
    for name in maps:
        mapped = highdicom.pm.ParametricMap.from_file(tmp_path / made[name])
        assert_same_field(mapped, relevance(), oblique())
        (mapping,) = mapped.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        quantities.append(mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning)
        assert b"/secret" not in (tmp_path / made[name]).read_bytes()
    assert quantities == ["Saliency", "Gradient-weighted class activation"]

    assert write(scan, replace(row, warnings=[]), NAMES) == made  # of an interrupted run: its own are replaced
    assert highdicom.sr.srread(tmp_path / made["report"]).SOPInstanceUID != written.SOPInstanceUID
    (tmp_path / made["report"]).write_bytes(series[0].read_bytes())
    with pytest.raises(ValueError, match="is there already"):
        write(scan, row, NAMES)
    (tmp_path / made["report"]).write_text("a note")
    with pytest.raises(ValueError, match="is there already"):
        write(scan, row, NAMES)


def test_real_series(tmp_path, real_data):
    root = real_data / "volumes" / "dicom"
    folders = ("mr_torchio_17slices", "ct_philips_headphantom_multiseries/S2010", "ct_dicomseg_dcmqi", "enhanced/In")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "DIRFILE"]
    scans = [scan for scan in find_dicom_scans(files, lambda path: str(path.relative_to(root)))[0] if not scan.refused]
    assert len(scans) >= 10
    reader = DicomSeriesReader()
    for number, scan in enumerate(scans):
        array, meta = reader.get_data(reader.read(get_reader_paths(scan)))
        folder = tmp_path / str(number)
        made = report(folder / "report.dcm", scan.files)
        assert len(made.get_evidence()) == len(scan.files), scan.name
        step = np.maximum(np.array(array.shape) // 5, 1)  # a coarse grid, which is compared voxel by voxel
        affine = meta["affine"] @ np.diag([*step, 1.0])
        values = relevance(tuple(np.array(array.shape) // step))
        assert_same_field(pmap(folder / "coarse.dcm", scan.files, values, affine), values, affine)
        full = pmap(folder / "map.dcm", scan.files, np.ones(array.shape, np.float32), meta["affine"])
        assert (full.Columns, full.Rows, full.NumberOfFrames) == array.shape
        assert full.FrameOfReferenceUID == pydicom.dcmread(scan.files[0], stop_before_pixels=True).FrameOfReferenceUID


@pytest.mark.parametrize("volume", [0, 1, 2])
def test_objects_of_a_volume_in_time_refer_to_its_own_images(tmp_path, volume):
    def later(data, k, time):
        data.InstanceNumber = time * SIZE[2] + k + 1
        data.SOPInstanceUID = f"{data.SOPInstanceUID}.{time}"

    for time in range(3):
        for path in write_series(tmp_path / "made", oblique(), "MR", lambda data, k, time=time: later(data, k, time)):
            path.rename(tmp_path / f"{time}-{path.name}")
    (scan,) = find_dicom_scans(tmp_path.glob("*.dcm"), str)[0]
    assert scan.shape == (*SIZE, 3)
    write = DicomObjects(tmp_path / "out", facts={"weights": {"sha256": "c3"}}, volume=volume)
    made = write(scan, predicted_row(), NAMES)
    referred = highdicom.sr.srread(tmp_path / "out" / made["report"]).get_evidence()
    assert {str(uids[2]).rsplit(".", 1)[1] for uids in referred} == {str(volume)}
    assert len(referred) == SIZE[2]


@pytest.mark.parametrize("name", ["ge_4d_epi", "siemens_mosaic_cmrr_hf"])
def test_objects_of_a_real_volume_in_time(tmp_path, real_data, name):
    files = (real_data / "volumes" / "dicom" / "mr_4d_and_mosaic" / name).rglob("*.dcm")
    (scan,) = find_dicom_scans(files, lambda path: "case")[0]
    reader = DicomSeriesReader(volume=1)
    array, meta = reader.get_data(reader.read(get_reader_paths(scan)))
    step = np.array(array.shape) // 5
    affine, values = meta["affine"] @ np.diag([*step, 1.0]), relevance(tuple(np.array(array.shape) // step))
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "map.nii")
    write = DicomObjects(tmp_path, {"weights": {"sha256": "c3"}}, volume=1)
    made = write(scan, predicted_row({"network": "map.nii"}), NAMES)
    assert_same_field(highdicom.pm.ParametricMap.from_file(tmp_path / made["network"]), values, affine)
    referred = highdicom.sr.srread(tmp_path / made["report"]).get_evidence()
    assert len(referred) == len(scan.files) // scan.shape[3]
