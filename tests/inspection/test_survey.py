# SPDX-License-Identifier: Apache-2.0
import base64
import io
import json
import os

import dicom_files
import nibabel
import numpy as np
import pytest
from PIL import Image
from scan_lists import ct, make_list, mask, mr, save, write_list

from monai_llmboost.data import ScanReader
from monai_llmboost.data.labelled import LabelledCase, read_cases
from monai_llmboost.inspection import survey_cases
from monai_llmboost.inspection.measure import measure, read_volume
from monai_llmboost.inspection.survey import choose_pictured


def survey(path, **options):
    return survey_cases(read_cases(path), progress=False, **options)


def test_measures_are_those_of_the_voxels(tmp_path):
    volume = mr(0)
    # i runs to the head, j to the left, k to the front.
    affine = np.array([[0, -2.0, 0, 5], [0, 0, 3, 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    save(tmp_path / "a.nii", volume, affine=affine)
    one = measure(read_volume(str(tmp_path / "a.nii"), ScanReader()))
    assert (one.format, one.modality, one.orientation) == ("NIfTI", "", "SLA")
    assert (one.shape, one.spacing_mm) == ((16, 12, 14), (2.0, 3.0, 1.0))
    assert one.size_mm == (32, 36, 14)
    assert (one.minimum, one.maximum) == (volume.min(), volume.max())
    assert one.mean == pytest.approx(volume.mean(dtype=float), rel=1e-6)
    assert one.sd == pytest.approx(volume.std(dtype=float), rel=1e-6)
    assert one.percentiles == pytest.approx(np.percentile(volume, (0.5, 50, 99.5)), rel=1e-6)
    assert one.whole < 0.01
    assert not one.plain_background
    assert one.header["type of the voxels"] == "float32"


def test_the_foreground_of_ct_is_above_air(tmp_path):
    one = measure(read_volume(str(save(tmp_path / "a.nii", ct(0), (2, 2, 5))), ScanReader()))
    assert (one.modality, one.above) == ("CT", -500)
    assert one.foreground_mm == (20, 20, 30)
    assert -200 < one.foreground_range[0] < one.foreground_range[1] < 300


def test_the_background_of_a_mask_is_its_smallest_value(tmp_path):
    one = measure(read_volume(str(save(tmp_path / "a.nii", mask(1))), ScanReader()))
    assert (one.plain_background, one.above, one.values, one.whole) == (True, 0, 2, 1)
    assert one.foreground_mm == (4, 4, 4)


def test_a_background_within_the_range_is_found_at_the_corners(tmp_path):
    volume = np.zeros((14, 14, 14), np.float32)
    volume[3:9, 3:10, 3:11] = np.random.default_rng(0).normal(0, 1, (6, 7, 8))
    one = measure(read_volume(str(save(tmp_path / "a.nii", volume)), ScanReader()))
    assert (one.plain_background, one.above) == (True, 0)
    assert one.foreground_mm == (6, 7, 8)


def test_one_image_has_one_digest_in_every_format_and_orientation(tmp_path):
    volume = dicom_files.random_volume()
    dicom_files.write_series(tmp_path / "dicom", volume, affine=dicom_files.AXIAL)
    image = nibabel.Nifti1Image(volume, dicom_files.AXIAL)
    nibabel.save(image, tmp_path / "same.nii.gz")
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt("SAR"))
    nibabel.save(turned, tmp_path / "turned.nii")
    save(tmp_path / "other.nii", dicom_files.random_volume(seed=5), affine=dicom_files.AXIAL)
    places = ("dicom", "same.nii.gz", "turned.nii", "other.nii")
    found = [measure(read_volume(str(tmp_path / place), ScanReader())) for place in places]
    assert len({one.digest for one in found[:3]}) == 1
    assert found[3].digest != found[0].digest
    assert [one.format for one in found] == ["DICOM", "NIfTI", "NIfTI", "NIfTI"]
    assert found[0].modality == "CT"
    assert found[0].spacing_mm == pytest.approx(found[2].spacing_mm)


def test_fields_of_a_dicom_header_name_no_patient(tmp_path):
    volume = dicom_files.random_volume()
    dicom_files.write_series(tmp_path / "dicom", volume, Manufacturer="Maker", KVP="120", EchoTime="")
    header = measure(read_volume(str(tmp_path / "dicom"), ScanReader())).header
    assert header["Manufacturer"] == "Maker"
    assert header["KVP"] == 120
    assert "EchoTime" not in header
    assert not {str(value) for value in dicom_files.SECRETS.values()} & {str(value) for value in header.values()}


def test_bad_scans_do_not_stop_the_others(tmp_path):
    path = make_list(tmp_path, count=6)
    (tmp_path / "s1.nii.gz").write_bytes(b"no scan at all")
    content = (tmp_path / "s2.nii.gz").read_bytes()
    (tmp_path / "s2.nii.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "s3.nii.gz").unlink()
    save(tmp_path / "s4.nii.gz", np.full((9, 9, 9), 7, np.int16))
    found = survey(path)
    assert [record.refused_kind for record in found] == ["", "format", "damaged", "unread", "constant", ""]
    assert found[3].missing == ("image",)
    assert "its file is missing" in found[3].refused
    assert found[4].refused == "every voxel is 7"


def test_a_survey_is_resumed(tmp_path, monkeypatch):
    path, file = make_list(tmp_path, count=5), tmp_path / "out" / "survey.json"
    read, first = [], survey(path, file=file)
    monkeypatch.setattr(
        "monai_llmboost.inspection.survey.read_volume",
        lambda source, reader: read.append(source) or read_volume(source, reader),
    )
    assert survey(path, file=file) == first
    assert read == []
    save(tmp_path / "s3.nii.gz", mr(50))
    again = survey(path, file=file)
    assert read == [str(tmp_path / "s3.nii.gz")]
    assert [a == b for a, b in zip(first, again)] == [True, True, True, False, True]
    os.utime(tmp_path / "s1.nii.gz", ns=(1, 1))
    survey(path, file=file)
    assert len(read) == 2


def test_an_interrupted_survey_keeps_what_was_read(tmp_path, monkeypatch):
    path, file = make_list(tmp_path, count=5), tmp_path / "survey.json"
    whole = survey(path)

    def stop(source, reader):
        if "s3" in source:
            raise KeyboardInterrupt
        return read_volume(source, reader)

    monkeypatch.setattr("monai_llmboost.inspection.survey.read_volume", stop)
    with pytest.raises(KeyboardInterrupt):
        survey(path, file=file)
    assert len(json.loads(file.read_text())["cases"]) == 3
    monkeypatch.undo()
    assert [one.channels for one in survey(path, file=file)] == [one.channels for one in whole]


@pytest.mark.parametrize("content", ["", "[]", '{"format": 0, "cases": []}', '{"format": 1, "cases": [{}]}'])
def test_another_survey_file_is_read_again(tmp_path, content):
    path, file = make_list(tmp_path, count=2), tmp_path / "survey.json"
    file.write_text(content)
    assert [record.refused for record in survey(path, file=file)] == ["", ""]


def test_processes_read_the_same(tmp_path):
    path = make_list(tmp_path, count=5)
    assert [one.channels for one in survey(path, workers=2)] == [one.channels for one in survey(path)]


def channels(folder, second=(1.0, 1.0, 1.0), shift=0.0, lost=()):
    rows = []
    for number in range(4):
        save(folder / f"t1-{number}.nii", mr(number))
        affine = np.diag([*second, 1.0])
        affine[0, 3] = shift
        save(folder / f"flair-{number}.nii", mr(number + 20), affine=affine)
        flair = "" if number in lost else f"flair-{number}.nii"
        rows.append({"image_t1": f"t1-{number}.nii", "image_flair": flair, "label": "ab"[number % 2]})
    return write_list(folder, rows)


def test_channels_may_have_other_grids_but_not_other_places(tmp_path):
    found = survey(channels(tmp_path / "near", second=(1.2, 1.2, 1.2)))
    assert {record.refused for record in found} == {""}
    assert found[0].channels[1].spacing_mm == pytest.approx((1.2, 1.2, 1.2))
    far = survey(channels(tmp_path / "far", shift=200))
    assert {(record.refused_kind, record.cover) for record in far} == {("channels", 0.0)}


def test_a_missing_channel_is_refused_or_filled(tmp_path):
    path = channels(tmp_path, lost=(2,))
    assert [record.refused_kind for record in survey(path)] == ["", "", "channels", ""]
    filled = survey(path, missing="zeros")
    assert [record.refused for record in filled] == [""] * 4
    assert filled[2].missing == ("image_flair",)
    assert filled[2].channels[1] is None


def test_a_case_whose_crop_fails_is_refused(tmp_path):
    make_list(tmp_path, count=3)
    save(tmp_path / "empty.nii", np.zeros((14, 16, 12), np.uint8))
    box = np.zeros((14, 16, 12), np.uint8)
    box[2:8, 4:8, 3:6] = 1
    save(tmp_path / "box.nii", box)
    rows = [
        {"image": f"s{n}.nii.gz", "label": "ab"[n % 2], "mask": name} for n, name in enumerate(["box.nii", "empty.nii"])
    ]
    found = survey(write_list(tmp_path, rows, "masks.csv"))
    assert found[0].mask_mm == (6, 4, 3)
    assert "the mask is empty" in found[1].refused
    rows = [
        {"image": f"s{n}.nii.gz", "label": "ab"[n % 2], "centre_x": x, "centre_y": 5, "centre_z": 5}
        for n, x in enumerate([5, 500])
    ]
    found = survey(write_list(tmp_path, rows, "centres.csv"))
    assert found[0].refused == ""
    assert "is not in the scan" in found[1].refused


def test_thumbnails_are_small_pictures_of_some_cases(tmp_path):
    cases = [LabelledCase(str(n), (str(n),), "a" if n < 300 else "b") for n in range(310)]
    chosen = choose_pictured(cases)
    assert len([name for name in chosen if int(name) < 300]) == 30
    assert {str(n) for n in range(300, 310)} <= chosen
    (record, _) = survey(make_list(tmp_path, count=2, spacing=(1, 1, 6)))
    picture = Image.open(io.BytesIO(base64.b64decode(record.thumbnail)))
    assert picture.height == 84
