# SPDX-License-Identifier: Apache-2.0
"""Masks of a run on its page and as DICOM Segmentations."""

import re
import shutil

import highdicom
import nibabel
import numpy as np
import pytest
from dicom_files import write_series
from test_predict_masks import (  # noqa: F401
    ORIGINAL,
    SHAPE,
    STRUCTURES,
    bundle,
    centred,
    phantom,
    pytestmark,
    turn,
)

from monai_llmboost.artifacts.contours import COLOURS, volume_text
from monai_llmboost.inference.dicom.codes import COLUMNS
from monai_llmboost.inference.run import run_predict

CODES = {"category": "SCT,123037004,Anatomical Structure", "type": "SCT,64033007,Kidney"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The phantom as NIfTI, as an oblique series and as a tilted one."""
    folder = tmp_path_factory.mktemp("scans")
    nibabel.save(nibabel.Nifti1Image(phantom(ORIGINAL, SHAPE)[0], ORIGINAL), folder / "original.nii.gz")
    oblique = centred(turn(25, 0, 1) @ turn(-15, 1, 2) @ np.diag([1.25, 1.25, 1.5]), (56, 52, 44))
    write_series(folder / "oblique", phantom(oblique, (56, 52, 44))[0], oblique)
    tilted = oblique.copy()
    tilted[:3, 2] += 0.3 * oblique[:3, 1]
    write_series(folder / "tilted", phantom(tilted, (56, 52, 44))[0], tilted, series="tilted")
    return folder


@pytest.fixture(scope="module")
def options(scans, tmp_path_factory):
    codes = tmp_path_factory.mktemp("codes") / "codes.csv"
    codes.write_text(f"{','.join(COLUMNS)}\nshell,{CODES['category']},{CODES['type']}\n")
    return {"dataset_dir": [str(scans)], "dicom": True, "codes": str(codes), "view": ["oblique"]}


@pytest.fixture(scope="module")
def predicted(bundle, options, tmp_path_factory):  # noqa: F811
    output = tmp_path_factory.mktemp("predicted") / "out"
    result = run_predict(bundle, output, None, **options)
    assert result.counts == {"predicted": 3, "refused": 0, "skipped": 0}
    return output, {row.case.removesuffix(".nii.gz"): row for row in result.rows}


def test_the_segmentation_of_a_series_is_its_mask(predicted):
    output, rows = predicted
    row = rows["oblique"]
    assert row.dicom == {"segmentation": "dicom/oblique/segmentation.dcm"}
    written = highdicom.seg.segread(output / row.dicom["segmentation"])
    image = nibabel.load(output / row.mask)
    mask, lps = np.asarray(image.dataobj), np.diag([-1, -1, 1, 1]) @ image.affine
    for number, (name, (value, _)) in enumerate(STRUCTURES.items(), 1):
        description = written.get_segment_description(number)
        assert description.segment_label == name
        assert description.segmented_property_type.meaning == ("Kidney" if name == "shell" else "Anatomical Structure")
        volume = written.get_volume(segment_numbers=[number], combine_segments=True)
        # Voxels of the file in voxels of the mask: whole numbers, and the same set.
        found = np.argwhere(volume.array) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        voxels = (found - lps[:3, 3]) @ np.linalg.inv(lps[:3, :3]).T
        assert np.abs(voxels - np.rint(voxels)).max() < 0.01
        assert set(map(tuple, np.rint(voxels).astype(int))) == set(map(tuple, np.argwhere(mask == value)))
        assert np.abs(voxels.mean(axis=0) - np.argwhere(mask == value).mean(axis=0)).max() < 0.01


def test_a_resampled_series_has_a_mask_and_says_why_it_has_no_segmentation(predicted):
    rows = predicted[1]
    row = rows["tilted"]
    assert row.mask and not row.dicom
    assert any(text.startswith("no DICOM objects: plane 0 of the volume") for text in row.warnings)
    assert not rows["original"].dicom and not rows["original"].warnings


def test_the_page_shows_contours_and_volumes(predicted):
    output, rows = predicted
    page = (output / "report.html").read_text()
    assert page.count('src="data:image/webp;base64,') == 3
    legend = re.search(r'<ul class="legend">.*?</ul>', page)[0]
    assert [legend.index(text) for text in (COLOURS[0], "shell", COLOURS[1], "core")] == sorted(
        legend.index(text) for text in (COLOURS[0], "shell", COLOURS[1], "core")
    )
    for row in rows.values():
        assert f'href="./{row.mask}"' in page
        for name, mm3 in row.answer["volume_mm3"].items():
            assert f'data-of="{name}">{volume_text(mm3)}</td>' in page
    assert 'href="./dicom/oblique/segmentation.dcm"' in page
    assert "three planes</button>" in page


def test_a_lost_segmentation_is_written_again_as_the_same_object(predicted, bundle, options, tmp_path):  # noqa: F811
    output = tmp_path / "out"
    shutil.copytree(predicted[0], output)
    file = output / "dicom" / "oblique" / "segmentation.dcm"
    before = highdicom.seg.segread(file).SOPInstanceUID
    pictures = re.findall(r'src="data:image/webp[^"]*"', (output / "report.html").read_text())
    file.unlink()
    again = run_predict(bundle, output, None, **options)
    assert {row.case for row in again.rows if row.run == 2} == {"oblique"}
    assert highdicom.seg.segread(file).SOPInstanceUID == before
    assert re.findall(r'src="data:image/webp[^"]*"', (output / "report.html").read_text()) == pictures


def test_a_wrong_table_of_codes_stops_before_the_first_case(bundle, options, tmp_path):  # noqa: F811
    codes = tmp_path / "codes.csv"
    codes.write_text(f"{','.join(COLUMNS)}\nliver,{CODES['category']},{CODES['type']}\n")
    with pytest.raises(ValueError, match="'liver' is no structure of the network: choose from shell, core"):
        run_predict(bundle, tmp_path / "out", None, **{**options, "codes": str(codes)})
    assert not (tmp_path / "out" / "masks").exists()
