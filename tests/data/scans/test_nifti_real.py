# SPDX-License-Identifier: Apache-2.0
"""Every file of the real NIfTI data, each looked at by hand: what it is, and what is to become of it."""

import re

import nibabel
import numpy as np
import pytest

from monai_llmboost.data import RefusedScan, ScanReader, find_scans

UNSCALED = "gives no scaling"
# Name: shape, orientation, and the words of each of its warnings.
READ = {
    "monai/anatomical.nii": ((33, 41, 25), "LAS", ()),
    "monai/anatomical_label.nii.gz": ((33, 41, 25), "LAS", ()),
    "monai/test_0000_ep2d_diff_tra_7.nii.gz": ((84, 128, 19), "LAS", ()),
    "monai/test_0000_t2_tse_tra_4.nii.gz": ((384, 384, 19), "LAS", ()),
    "nibabel/example4d.nii.gz": ((128, 96, 24, 2), "LAS", ()),
    "nibabel/example_nifti2.nii.gz": ((32, 20, 12, 2), "LAS", ()),
    "niivue/AIL.nii.gz": ((79, 67, 64), "AIL", ()),
    "niivue/FLAIR.nii.gz": ((124, 160, 140), "RAS", ()),
    "niivue/draw.nii.gz": ((79, 67, 64), "AIL", ()),
    "niivue/lesion.nii.gz": ((124, 160, 140), "RAS", ()),
    "niivue/low_res.nii.gz": ((7, 5, 3), "RAS", ()),
    "niivue/mean_func.nii.gz": ((64, 64, 36), "RAS", ()),
    "niivue/minimal.nii.gz": ((64, 64, 10), "LAS", (UNSCALED, "orientation is unknown")),
    "niivue/shear.nii.gz": ((306, 422, 54), "RAS", (r"sheared by 18\.5 degrees", r"\(RAS\) and qform \(RAS\) lie")),
    "sct_spine_mr/t1/t1w.nii.gz": ((42, 76, 77), "RAS", ()),
    "sct_spine_mr/t1/t1w_seg-manual.nii.gz": ((42, 76, 77), "RAS", ()),
    "sct_spine_mr/t2/labels.nii.gz": ((60, 55, 52), "PSR", (UNSCALED,)),
    "sct_spine_mr/t2/t2.nii.gz": ((60, 55, 52), "PSR", ()),
    "sct_spine_mr/t2/t2_fake_lesion.nii.gz": ((99, 99, 29), "PSR", ()),
    "sct_spine_mr/t2/t2_fake_lesion_lesion_seg.nii.gz": ((99, 99, 29), "PSR", ()),
    "sct_spine_mr/t2/t2_fake_lesion_sc_seg.nii.gz": ((99, 99, 29), "PSR", ()),
    "sct_spine_mr/t2/t2_seg-deepseg_rootlets-manual.nii.gz": ((60, 55, 52), "PSR", ()),
    "sct_spine_mr/t2/t2_seg-manual.nii.gz": ((60, 55, 52), "PSR", ()),
    "sct_spine_mr/t2/t2_seg-manual_labeled.nii.gz": ((60, 55, 52), "PSR", ()),
    "sct_spine_mr/t2s/t2s.nii.gz": ((49, 54, 9), "LAS", ()),
    "sct_spine_mr/t2s/t2s_gmseg_manual.nii.gz": ((49, 54, 9), "LAS", ()),
    "sct_spine_mr/t2s/t2s_seg-deepseg.nii.gz": ((49, 54, 9), "LAS", ()),
    "sct_spine_mr/t2s/t2s_seg.nii.gz": ((49, 54, 9), "LAS", ()),
    "sct_spine_mr/t2s/t2s_uncropped.nii.gz": ((320, 320, 11), "LAS", ()),
    "sct_spine_mr/t2s/t2s_uncropped_gmseg_manual.nii.gz": ((320, 320, 11), "LAS", (UNSCALED,)),
    "totalsegmentator/example_ct.nii.gz": ((122, 101, 112), "RAS", ()),
    "totalsegmentator/example_ct_sm.nii.gz": ((122, 101, 30), "RAS", ()),
    "totalsegmentator/example_mr_sm.nii.gz": ((117, 91, 20), "LPS", ()),
    "totalsegmentator/example_seg.nii.gz": ((122, 101, 30), "RAS", ()),
    "totalsegmentator/example_seg_fast_force_split.nii.gz": ((122, 101, 112), "RAS", ()),
    "totalsegmentator/example_seg_mr.nii.gz": ((117, 91, 20), "LPS", ()),
}
REFUSED = {"niivue/complex.nii.gz": "one number per voxel, got complex64"}
SKIPPED = {
    "monai/LICENSE": "a text file",
    "nibabel/COPYING": "a text file",
    "niivue/FLAIR.nrrd": "an NRRD image: convert it to NIfTI",
    "niivue/LICENSE": "a text file",
    "niivue/mha.mha": "a MetaImage: convert it to NIfTI",
    "sct_spine_mr/LICENSE": "a text file",
    "totalsegmentator/LICENSE": "a text file",
}


@pytest.fixture
def folder(real_data):
    return real_data / "volumes" / "nifti"


def test_real_files_are_read_as_by_nibabel_or_refused_or_skipped(folder):
    scans, skipped = find_scans(folder)
    assert {str(file.path.relative_to(folder)): file.reason for file in skipped} == SKIPPED
    assert {scan.name for scan in scans} == {*READ, *REFUSED}
    for scan in scans:
        if scan.refused:
            assert re.search(REFUSED[scan.name], scan.refused)
            continue
        shape, orientation, warnings = READ[scan.name]
        assert (scan.shape, scan.orientation) == (shape, orientation), scan.name
        assert len(scan.warnings) == len(warnings), scan
        assert all(re.search(words, said) for words, said in zip(warnings, scan.warnings)), scan
        expected = nibabel.load(folder / scan.name)
        values = expected.get_fdata().astype(np.float32)
        volumes = range(shape[3]) if len(shape) > 3 else [None]
        for volume in volumes:
            reader = ScanReader(volume=volume)
            array, meta = reader.get_data(reader.read(scan.files))
            assert np.array_equal(array, values if volume is None else values[..., volume]), scan.name
            assert np.array_equal(meta["affine"], expected.affine)
            assert np.allclose(np.linalg.norm(meta["affine"][:3, :3], axis=0), scan.spacing_mm)
            assert meta["warnings"].splitlines() == list(scan.warnings)


def test_files_with_several_volumes_need_a_choice(folder):
    for name in ("nibabel/example4d.nii.gz", "nibabel/example_nifti2.nii.gz"):
        reader = ScanReader()
        with pytest.raises(RefusedScan, match="expected one volume, got 2"):
            reader.get_data(reader.read(folder / name))
