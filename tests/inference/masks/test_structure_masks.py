# SPDX-License-Identifier: Apache-2.0
"""Masks of single cases: the place that their headers give, and their names."""

import gzip

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from nifti_files import AFFINE, QFORM_CODE, QUATERN_B, SFORM_CODE, SIZE, patched, save, voxels

from monai_llmboost.data import LoadScansd, RefusedScan, ScanReader
from monai_llmboost.inference import ScanCases, StructureMasks
from monai_llmboost.inference.nifti import PLACE_FIELDS
from monai_llmboost.networks.class_names import ClassNames


@pytest.fixture
def network():
    network = torch.nn.Identity()
    network.class_names = ClassNames(2, ["background", "core"])
    return network


def open_cases(folder):
    reader = ScanReader()
    return ScanCases(folder, Compose([LoadScansd("image", reader)]), (1, *SIZE), reader)


def record(masks, cases, number=0):
    """Record a case with a mask, and return its answer."""
    case = cases.read(number)
    assert not case.refused
    output = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(number))
    return masks.record(cases.scans[number], case, output)


@pytest.mark.parametrize("name", ["scan", "scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("endianness", "<>")
def test_the_header_of_a_scan_is_read_whatever_its_name(network, tmp_path, name, packed, endianness):
    header = nibabel.Nifti1Header(endianness=endianness)
    image = nibabel.Nifti1Image(voxels(), AFFINE, header)
    image.set_sform(AFFINE, code="scanner")
    image.set_qform(AFFINE, code="mni")
    (tmp_path / "in").mkdir()
    content = image.to_bytes()
    (tmp_path / "in" / name).write_bytes(gzip.compress(content) if packed else content)
    masks = StructureMasks(network, tmp_path / "out", probabilities=True)
    answer = record(masks, open_cases(tmp_path / "in"))
    for file in (answer["mask"], *answer["probability_files"].values()):
        own = nibabel.load(tmp_path / "out" / file).header
        assert all(np.array_equal(own[field], image.header[field]) for field in PLACE_FIELDS)
        assert np.array_equal(own["pixdim"][:4], image.header["pixdim"][:4])


def test_a_scan_that_is_gone_refuses_its_case_only(network, tmp_path):
    path = patched(tmp_path / "in.nii")
    cases = open_cases(path)
    case = cases.read(0)
    path.unlink()
    with pytest.raises(RefusedScan, match="expected a file that is there, got none") as error:
        StructureMasks(network, tmp_path / "out").record(cases.scans[0], case, torch.rand(2, *SIZE))
    assert error.value.may_pass and not (tmp_path / "out").exists()


def test_a_quaternion_that_reading_normalises(network, tmp_path):
    affine = np.diag([-1.0, -1, 2, 1])
    quaternion = np.array([0, 0, 1 + 1e-4]) ** 0.5
    changes = (SFORM_CODE, 0, "i2"), (QFORM_CODE, 1, "i2"), (QUATERN_B, quaternion, "f4")
    cases = open_cases(patched(tmp_path / "in.nii", *changes, affine=affine))
    image = nibabel.load(tmp_path / "out" / record(StructureMasks(network, tmp_path / "out"), cases)["mask"])
    assert np.allclose(image.affine, affine, atol=1e-5)
    assert np.allclose(image.header.get_qform(), affine, atol=1e-5)


def test_processes_give_different_names_without_seeing_each_other(network, tmp_path):
    for name in ("a.nii", "a.nii.gz", "b.nii", "sub/a.nii"):
        save(tmp_path / "in" / name)
    cases = open_cases(tmp_path / "in")
    found = {}
    for number, scan in enumerate(cases.scans):
        masks = StructureMasks(network, tmp_path / f"rank-{number}", cases=cases)
        found[scan.name] = record(masks, cases, number)["mask"]
    assert len(set(found.values())) == 4
    assert found["b.nii"] == "masks/b.nii.gz" and found["sub/a.nii"] == "masks/sub/a.nii.gz"
    again = StructureMasks(network, tmp_path / "rank-0", cases=cases)
    assert [record(again, cases, number)["mask"] for number in range(4)] == [*found.values()]
    # A run of fewer cases does not overwrite the mask of another one.
    masks = StructureMasks(network, tmp_path / "out")
    files = {record(masks, open_cases(tmp_path / "in" / name))["mask"] for name in ("a.nii", "a.nii.gz")}
    assert len(files) == 2 and "masks/a.nii.gz" in files
