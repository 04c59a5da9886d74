# SPDX-License-Identifier: Apache-2.0
"""`monai-llmboost predict` over every real volume at hand: each file accounted for, each answer or reason right."""

import json
import math
import re
from collections import Counter

import pytest
from conftest import SMALL

from monai_llmboost.data import find_scans
from monai_llmboost.inference.run import run_predict

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
# Wide enough for CT and MR, so that a refusal is about the file and not about the option.
WINDOW = {"intensity_range": [-1024, 3000], "clip_intensities": True}
NETWORK = {key: value for key, value in SMALL.items() if key != "batch_size"}
# What was expected, what came, what to do.
THREE_PARTS = r"expected [^:]+, [^:]+: .+"
ONE_SLICE, THIN = "got one: a single slice is no volume", "too small to be predicted"
SEVERAL, LABELS = "choose one with --volume K", r"use the range -1024 to 3000, got 0 to [1-7]\b"
OLD, TREE = "dicom/pydicom_compressed_endian", "dicom/pydicom_dicomdir_multiseries"
PREDICTED = {
    "dicom/ct_philips_headphantom_multiseries/S2010",
    "dicom/enhanced/In/Philips/IM_0027_fMAP.dcm_11fb4710",  # magnitude
    "dicom/enhanced/In/Philips/IM_0027_fMAP.dcm_6082187e",  # field map
    *(f"dicom/enhanced/In/Siemens/XA10/6_{time}.dcm" for time in (1, 2, 3, 4)),
    "dicom/enhanced/Ref/Philips_WIP_B0_NS_801_e1.nii",
    "dicom/enhanced/Ref/Philips_WIP_B0_NS_801_e2_fieldmaphz.nii",
    "dicom/mr_torchio_17slices",
    f"{TREE}/98892001/CT5N",
    "nifti/monai/anatomical.nii",
    "nifti/monai/test_0000_ep2d_diff_tra_7.nii.gz",
    "nifti/monai/test_0000_t2_tse_tra_4.nii.gz",
    *(f"nifti/niivue/{name}.nii.gz" for name in ("AIL", "FLAIR", "mean_func", "minimal", "shear")),
    "nifti/sct_spine_mr/t1/t1w.nii.gz",
    "nifti/sct_spine_mr/t2/t2.nii.gz",
    "nifti/sct_spine_mr/t2/t2_fake_lesion.nii.gz",
    "nifti/sct_spine_mr/t2s/t2s.nii.gz",
    "nifti/sct_spine_mr/t2s/t2s_uncropped.nii.gz",
    *(f"nifti/totalsegmentator/example_{name}.nii.gz" for name in ("ct", "ct_sm", "mr_sm")),
    # Maps of so many labels that they cannot be distinguished from images.
    *(f"nifti/totalsegmentator/example_{name}.nii.gz" for name in ("seg", "seg_fast_force_split", "seg_mr")),
}
REFUSED = {
    "nifti/monai/anatomical_label.nii.gz": LABELS,
    "nifti/nibabel/example4d.nii.gz": rf"got 2 \(shape \(128, 96, 24, 2\)\): {SEVERAL} .*, from 0 to 1",
    "nifti/nibabel/example_nifti2.nii.gz": rf"got 2 \(shape \(32, 20, 12, 2\)\): {SEVERAL} .*, from 0 to 1",
    "nifti/niivue/complex.nii.gz": "one number per voxel, got complex64",
    "nifti/niivue/draw.nii.gz": LABELS,
    "nifti/niivue/lesion.nii.gz": LABELS,
    "nifti/niivue/low_res.nii.gz": f"4 x 4 x 4 voxels, got 7 x 5 x 3: {THIN}",
    "nifti/sct_spine_mr/t1/t1w_seg-manual.nii.gz": LABELS,
    **{
        f"nifti/sct_spine_mr/t2/{name}.nii.gz": LABELS
        for name in (
            "labels", "t2_fake_lesion_lesion_seg", "t2_fake_lesion_sc_seg", "t2_seg-deepseg_rootlets-manual",
            "t2_seg-manual", "t2_seg-manual_labeled",
        )
    },
    **{
        f"nifti/sct_spine_mr/t2s/t2s_{name}.nii.gz": LABELS
        for name in ("gmseg_manual", "seg-deepseg", "seg", "uncropped_gmseg_manual")
    },
    "dicom/ct_dicomseg_dcmqi/24x38x3/image": f"got 24 x 38 x 3: {THIN}",
    "dicom/ct_dicomseg_dcmqi/24x38x3/multiframe/mf.dcm": f"got 24 x 38 x 3: {THIN}",
    "dicom/ct_dicomseg_dcmqi/ct-3slice": f"got 512 x 512 x 3: {THIN}",
    "dicom/ct_philips_headphantom_multiseries/S1000/I10": ONE_SLICE,  # a scout
    "dicom/enhanced/Ref/Siemens_REST1_w_SMS_PF7-8_6.nii": rf"got 4 \(shape \(64, 64, 6, 4\)\): {SEVERAL} .* 3",
    **{f"{OLD}/{name}.dcm": ONE_SLICE for name in ("693_J2KI", "CT_small", "J2K_pixelrep_mismatch", "MR_small")},
    f"{OLD}/no_meta.dcm": "a DICOM file, got a file of an unknown kind",  # a byte stands before its first element
    OLD: "position of every slice, got none for 2 of 2",  # a whole body from the front, as pictures
    "dicom/mr_4d_and_mosaic/ge_4d_epi": rf"got 3 \(shape \(64, 64, 32, 3\)\): {SEVERAL} .* 2",
    "dicom/mr_4d_and_mosaic/siemens_mosaic_cmrr_hf": rf"got 2 .*: {SEVERAL} .* 1",
    "dicom/mr_4d_and_mosaic/siemens_mosaic_ep2d": rf"got 2 .*: {SEVERAL} .* 1",
    **{f"{TREE}/77654033/{name}": ONE_SLICE for name in ("CR1/6154", "CR2/6247", "CR3/6278")},  # radiographs
    f"{TREE}/77654033/CT2": r"slices 1\.25 mm apart, missing: 161, between 17106 and 17136",  # images 18 and 180
    **{f"{TREE}/98892001/CT2N/{name}": ONE_SLICE for name in (6293, 6924)},  # two scouts at a right angle
    **{f"{TREE}/98892003/MR1/{name}": ONE_SLICE for name in (15820, 4919, 5641)},  # localizers
    **{f"{TREE}/98892003/MR2/{name}": ONE_SLICE for name in (15970, 4950, 4981, 5011, 6273, 6605, 6935)},
    # Projections of an angiogram from seven sides.
    **{f"{TREE}/98892003/MR700/{name}": ONE_SLICE for name in (4467, 4528, 4558, 4588, 4618, 4648, 4678)},
}  # fmt: skip
# Each skipped file is of exactly one of these kinds: a pattern for its path, how many there are, the reason.
SKIPPED = [
    (r".*/(LICENSE(\.txt)?|LICENSE_dcm_qa\.txt|COPYING|README\.(txt|md))", 14, "^a text file$"),
    (r"dicom/enhanced/Ref/.*\.(json|bval|bvec)", 10, "^a text file$"),
    (r".*\.nrrd", 2, "^an NRRD image: convert it to NIfTI$"),
    (r"nifti/niivue/mha\.mha", 1, "^a MetaImage: convert it to NIfTI$"),
    (rf"{TREE}/DICOMDIR", 1, "^an index of DICOM files: the files themselves are searched$"),
    (r"dicom/ct_philips_.*/DIRFILE", 3, "^a DICOMDIR: files are found by looking at them"),
    (r"dicom/ct_philips_.*/S4010/I[456]0", 3, "one grey value per voxel, got colours$"),  # "Exam Summary"
    (rf"dicom/ct_dicomseg_.*/label\.seg|{OLD}/liver_1frame\.dcm", 2, "a scan, got a segmentation$"),
    (rf"{OLD}/(badVR|rtdose)\.dcm", 2, "a scan, got a radiotherapy dose$"),
    (rf"{OLD}/693_UNCI\.dcm", 1, r"^a copy of 693_J2KI\.dcm$"),
    (rf"{OLD}/MR_small_(?!padded).*\.dcm", 6, r"^a copy of MR_small\.dcm$"),
    (rf"{OLD}/MR_(small_padded|truncated)\.dcm", 2, r"^a damaged copy of MR_small\.dcm$"),  # too long, too short
    (rf"{OLD}/image_dfl\.dcm", 1, "that is not deflated as a whole: save it in another syntax$"),
    (rf"{OLD}/meta_missing_tsyntax\.dcm", 1, r"another DICOM object \(of no known kind\)$"),  # it has no dataset
    (rf"{OLD}/no_meta_group_length\.dcm", 1, "expected rows, columns and bits"),  # it has no pixels either
]


@pytest.fixture(scope="module")
def volumes(real_data):
    return real_data / "volumes"


@pytest.fixture(scope="module")
def written(trained_bundle, volumes, tmp_path_factory):
    """Cases and skipped files of one run over everything, which predicts some and refuses others."""
    output = tmp_path_factory.mktemp("all")
    inputs = [str(volumes / "nifti"), str(volumes / "dicom")]
    result = run_predict(trained_bundle, output, "none", dataset_dir=inputs, report=False, **WINDOW, **NETWORK)
    assert result.status == 1
    predictions, run = (json.loads((output / name).read_text()) for name in ("predictions.json", "run.json"))
    cases = predictions["cases"]
    refused = sum(bool(case["refused"]) for case in cases)
    skipped = {file["file"]: file["reason"] for file in predictions["skipped"]}
    counts = {"predicted": len(cases) - refused, "refused": refused, "skipped": len(skipped)}
    assert run["cases"] == counts
    return {case["case"]: case for case in cases}, skipped


def test_every_file_is_of_one_case_or_skipped(written, volumes):
    """A file of several volumes is of a case for each, and these are different volumes."""
    cases, skipped = written
    scans, _ = find_scans([volumes / "nifti", volumes / "dicom"])
    assert sorted(scan.name for scan in scans) == sorted(cases)
    owners = {}
    for scan in scans:
        for path in scan.files:
            owners.setdefault(str(path), []).append(scan)
    everything = {str(path) for path in volumes.rglob("*") if path.is_file()}
    assert set(owners) | set(skipped) == everything
    assert not set(owners) & set(skipped)
    shared = {path: several for path, several in owners.items() if len(several) > 1}
    assert [path.rpartition("/")[2] for path in shared] == ["IM_0027_fMAP.dcm"]
    for several in shared.values():
        assert all(len(scan.files) == 1 for scan in several)
        assert len({scan.stack for scan in several}) == len(several)


def test_every_predicted_case_has_probabilities(written):
    cases, _ = written
    predicted = {name: case for name, case in cases.items() if not case["refused"]}
    assert set(predicted) == PREDICTED
    for name, case in predicted.items():
        values = case["probabilities"]
        assert len(values) == 2 and all(map(math.isfinite, values)), name
        assert sum(values) == pytest.approx(1, abs=1e-6), name
        assert case["predicted"] == ("shell", "ring")[values[1] > values[0]], name
        assert re.fullmatch("[0-9a-f]{64}", case["input_sha256"]), name
    # The one volume that is there as DICOM and as NIfTI, converted by other software.
    dicom, nifti = (
        predicted[f"dicom/enhanced/{name}"]["probabilities"]
        for name in ("In/Philips/IM_0027_fMAP.dcm_6082187e", "Ref/Philips_WIP_B0_NS_801_e2_fieldmaphz.nii")
    )
    assert dicom == pytest.approx(nifti, abs=1e-5)
    assert len({tuple(case["probabilities"]) for case in predicted.values()}) >= len(predicted) - 1, "no two else"


def test_every_refused_case_has_its_reason(written):
    cases, _ = written
    refused = {name: case for name, case in cases.items() if case["refused"]}
    assert set(refused) == set(REFUSED)
    for name, case in refused.items():
        assert re.fullmatch(THREE_PARTS, case["refused"]), (name, case["refused"])
        assert re.search(REFUSED[name], case["refused"]), (name, case["refused"])
        assert not case["probabilities"] and not case["predicted"], name


def test_every_skipped_file_has_its_reason(written, volumes):
    _, skipped = written
    seen = Counter()
    for path, reason in skipped.items():
        below = path.removeprefix(f"{volumes}/")
        ((pattern, words),) = ((pattern, words) for pattern, _, words in SKIPPED if re.fullmatch(pattern, below))
        assert re.search(words, reason), (below, reason)
        seen[pattern] += 1
    assert seen == {pattern: count for pattern, count, _ in SKIPPED}
