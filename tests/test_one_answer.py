# SPDX-License-Identifier: Apache-2.0
"""One volume, one answer: as array, as NIfTI in three orientations and as DICOM, by each of the ways to ask."""

import csv
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import PRECISION, SMALL
from dicom_files import write_series
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Resized, ScaleIntensityRanged
from torch.nn import functional as F

from monai_llmboost.bundle import run_bundle
from monai_llmboost.inference.run import run_predict

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
NETWORK = {key: value for key, value in SMALL.items() if key != "batch_size"}
SAME = min(max(PRECISION, 1e-5), 1.5e-3)


def network_of(bundle):
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "inference.json"), str(bundle / "configs" / "arms" / "none.json")])
    parser.update(NETWORK)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    return network


@torch.no_grad()
def predict_array(network, values, affine, intensity_range):
    """Without MONAI's transforms: turned by numpy, resized by torch."""
    turn = nibabel.io_orientation(affine)
    ras = torch.from_numpy(np.ascontiguousarray(nibabel.apply_orientation(values, turn), dtype=np.float32))
    low, high = intensity_range
    image = (F.interpolate(ras[None, None], (28, 28, 28), mode="trilinear") - low) / (high - low)
    return network(image.clip(0, 1)).softmax(1)[0].tolist()


@torch.no_grad()
def predict_in_own_pipeline(network, source, intensity_range):
    pipeline = Compose(
        [
            LoadImaged("image", reader="monai_llmboost.data.ScanReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Resized("image", spatial_size=(28, 28, 28), mode="trilinear"),
            ScaleIntensityRanged("image", *intensity_range, 0, 1, clip=True),
        ]
    )
    return network(pipeline({"image": source})["image"][None].as_tensor()).softmax(1)[0].tolist()


def written_in_every_way(folder, values, affine):
    """The volume as NIfTI in three orientations, plain and packed, and as a DICOM series."""
    for axes in ("RAS", "LPI", "ASL"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
        )
        turned = nibabel.Nifti1Image(values, affine).as_reoriented(turn)
        assert "".join(nibabel.aff2axcodes(turned.affine)) == axes
        nibabel.save(turned, folder / f"{axes}.nii{'.gz' if axes == 'LPI' else ''}")
    write_series(folder / "dicom", values, affine)
    return {**{axes: next(folder.glob(f"{axes}.*")) for axes in ("RAS", "LPI", "ASL")}, "dicom": folder / "dicom"}


def all_answers(bundle, folder, sources, tmp_path, intensity_range):
    """The probabilities of every file in the folder through the command and the bundle, and of each source alone."""
    options = {"intensity_range": intensity_range, "clip_intensities": True, "report": False, **NETWORK}
    assert (
        run_predict(bundle, tmp_path / "command", "none", dataset_dir=[str(folder)], num_workers=0, **options).status
        == 0
    )
    run_bundle(
        bundle, "inference", "none", False, dataset_dir=str(folder), output_dir=str(tmp_path / "bundle"), **options
    )
    network, answers = network_of(bundle), {}
    for way in ("command", "bundle"):
        with (tmp_path / way / "predictions.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                assert not row["refused"], row
                answers[way, row["case"]] = [float(row["p_shell"]), float(row["p_ring"])]
    for name, source in sources.items():
        answers["pipeline", name] = predict_in_own_pipeline(network, str(source), intensity_range)
    return network, answers


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:FutureWarning")
def test_a_volume_made_by_code(trained_bundle, tmp_path):
    values = np.random.default_rng(3).integers(-200, 1200, (21, 17, 13)).astype(np.int16)
    values[3:9, 2:6, 8:] += 900  # nothing of it is symmetric
    tilted = nibabel.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.9, 1.3, 2.5])
    affine = nibabel.affines.from_matvec(tilted, [11.0, -22.0, 33.0])
    folder = tmp_path / "scans"
    folder.mkdir()
    sources = written_in_every_way(folder, values, affine)
    network, answers = all_answers(trained_bundle, folder, sources, tmp_path, [-200, 1500])
    expected = predict_array(network, values, affine, [-200, 1500])
    assert 0.02 < expected[0] < 0.98
    assert len(answers) == 12
    for asked, answer in answers.items():
        assert answer == pytest.approx(expected, abs=SAME), asked
    upside_down = predict_array(network, values[:, :, ::-1], affine, [-200, 1500])
    assert abs(upside_down[0] - expected[0]) > 3 * SAME, "a wrong orientation would be noticed"


@pytest.mark.parametrize(
    "name", ["monai/anatomical.nii", "totalsegmentator/example_ct_sm.nii.gz", "sct_spine_mr/t2/t2.nii.gz"]
)
def test_a_real_nifti_volume(trained_bundle, tmp_path, real_data, name):
    image = nibabel.load(real_data / "volumes" / "nifti" / name)
    values = np.round(image.get_fdata()).astype(np.int16)
    folder = tmp_path / "scans"
    folder.mkdir()
    sources = written_in_every_way(folder, values, image.affine)
    window = [float(values.min()), float(values.max())]
    network, answers = all_answers(trained_bundle, folder, sources, tmp_path, window)
    expected = predict_array(network, values, image.affine, window)
    assert len(answers) == 12
    for asked, answer in answers.items():
        assert answer == pytest.approx(expected, abs=SAME), asked


@pytest.mark.parametrize("name", ["mr_torchio_17slices", "ct_philips_headphantom_multiseries/S2010"])
def test_a_real_dicom_series(trained_bundle, tmp_path, real_data, name):
    """Converted to NIfTI by SimpleITK alone, none of whose geometry is ours."""
    import SimpleITK

    source = real_data / "volumes" / "dicom" / name
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copytree(source, folder / "dicom")
    converted = reader.Execute()
    for axes in ("LPS", "RAI", "ASR"):
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(converted, axes), str(folder / f"{axes}.nii"))
    image = nibabel.load(folder / "LPS.nii")
    values = np.asarray(image.dataobj)
    window = [float(values.min()), float(values.max())]
    sources = {axes: folder / f"{axes}.nii" for axes in ("LPS", "RAI", "ASR")} | {"dicom": source}
    network, answers = all_answers(trained_bundle, folder, sources, tmp_path, window)
    expected = predict_array(network, values, image.affine, window)
    assert len(answers) == 4 * 3
    for asked, answer in answers.items():
        assert answer == pytest.approx(expected, abs=SAME), asked
