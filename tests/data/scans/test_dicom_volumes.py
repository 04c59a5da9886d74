# SPDX-License-Identifier: Apache-2.0
"""Separation of volumes when tags vary for other reasons."""

import numpy as np
import pytest
from dicom_files import (
    AXIAL,
    OBLIQUE,
    OTHER,
    VOLUME,
    assert_are,
    assert_refused_once,
    item,
    moved,
    random_volume,
    scans_in,
    tags,
    uid,
    voxels,
    write_multiframe,
    write_series,
)  # fmt: skip
from pydicom.uid import EnhancedMRImageStorage

from monai_llmboost.data.scans import ScanReader
from monai_llmboost.data.scans.dicom.paths import get_reader_paths

MR = {"Modality": "MR"}
HALF = np.diag([-0.7, -0.9, 1.0, 1])
ROUNDED = {
    "in turns": lambda k: f"13.4{k % 2}",
    "in halves": lambda k: f"13.4{k // 6}",
    "in another way of writing": lambda k: "13.4" if k % 2 else "13.40",
    "in each slice": lambda k: f"{13.4 + 0.001 * k:.3f}",
}


@pytest.mark.parametrize("keyword", ["EchoTime", "InversionTime", "FlipAngle", "ReconstructionDiameter", "KVP"])
@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_measured_values_do_not_separate(tmp_path, name, keyword):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(**MR, **{keyword: ROUNDED[name]}))
    assert_are(scans_in(tmp_path), VOLUME)


@pytest.mark.parametrize("name", ROUNDED)
def test_two_echoes_one_rounded(tmp_path, name):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(**MR, EchoTime=ROUNDED[name]))
    write_series(tmp_path, OTHER, AXIAL, first=12, change=tags(**MR, EchoTime="26.8"))
    scans = scans_in(tmp_path)
    assert_are(scans, VOLUME, OTHER)
    assert all("separated by EchoTime" in scan.warnings[0] for scan in scans)


def test_close_echo_times_separate_slices_at_the_same_positions(tmp_path):
    for i, volume in enumerate((VOLUME, OTHER)):
        write_series(tmp_path, volume, AXIAL, first=12 * i, change=tags(**MR, EchoTime=f"{50 + 0.5 * i}"))
    assert_are(scans_in(tmp_path), VOLUME, OTHER)


@pytest.mark.parametrize(
    "jitter", [lambda k: k % 2, lambda k: k // 6, lambda k: k % 3], ids=["turns", "halves", "thirds"]
)
def test_time_points_with_varying_times_are_separated_by_instance_number(tmp_path, jitter):
    volumes = [random_volume((9, 8, 12), seed=i) for i in range(3)]
    for i, volume in enumerate(volumes):
        times = lambda k, i=i: str(40 * i + (jitter(k) if i else 0))  # noqa: E731
        write_series(tmp_path, volume, AXIAL, first=12 * i, change=tags(**MR, TriggerTime=times))
    (scan,) = scans_in(tmp_path)
    assert scan.shape == (9, 8, 12, 3)
    for i, volume in enumerate(volumes):
        reader = ScanReader(volume=i)
        np.testing.assert_array_equal(reader.get_data(reader.read(get_reader_paths(scan)))[0], volume)


@pytest.mark.parametrize("jitter", [lambda k: k % 2, lambda k: k // 6], ids=["turns", "halves"])
def test_time_points_separated_only_by_varying_times_are_refused_once(tmp_path, jitter):
    for i in range(3):
        times = lambda k, i=i: str(40 * i + (jitter(k) if i else 0))  # noqa: E731
        values = {"TriggerTime": times, "InstanceNumber": None}
        write_series(tmp_path, random_volume((9, 8, 12), seed=i), AXIAL, f"t{i}", change=tags(**MR, **values),
                     SeriesInstanceUID=uid("series"))  # fmt: skip
    assert_refused_once(scans_in(tmp_path), "36 slices at 12 positions and no tag that separates them")


def test_interleaved_scans_of_one_kernel_are_separated(tmp_path):
    volumes = [random_volume((9, 8, 12), seed=i) for i in range(4)]
    for i, volume in enumerate(volumes):
        values = {"ConvolutionKernel": "AB"[i // 2], "AcquisitionNumber": i % 2 + 1}
        write_series(tmp_path, volume, moved(i % 2), first=12 * i, change=tags(**values))
    assert_are(scans_in(tmp_path), *volumes)


def test_volume_with_fewer_slices_than_another_gets_a_warning(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(EchoTime="5"))
    write_series(tmp_path, OTHER[..., :9], AXIAL, first=12, change=tags(EchoTime="10"))
    whole, short = sorted(scans_in(tmp_path), key=lambda scan: -scan.shape[2])
    assert len(whole.warnings) == 1
    assert short.warnings[1] == "another volume at its place has 3 more slices: some of it may be missing"


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "AcquisitionTime"])
def test_packages_with_a_missing_slice_are_not_two_scans(tmp_path, keyword):
    lost = tags(**MR, **{keyword: lambda k: f"1200{k % 2:02d}"})
    write_series(tmp_path, VOLUME, AXIAL, change=lambda data, k: k != 1 and lost(data, k))
    assert_refused_once(scans_in(tmp_path), "missing: 1")


@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
@pytest.mark.parametrize("values", [6, 4], ids=["six of two slices", "four of three"])
def test_tag_with_more_values_than_slices_does_not_separate(tmp_path, modality, values):
    write_series(
        tmp_path, VOLUME, AXIAL, change=tags(Modality=modality, ImageType=lambda k: ["ORIGINAL", f"{k % values}"])
    )
    assert_refused_once(scans_in(tmp_path), f"{values} that interleave, by ImageType")


@pytest.mark.parametrize("modality", ["", "CT"])
def test_passes_without_modality_are_not_mr_packages(tmp_path, modality):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(Modality=modality, AcquisitionNumber=lambda k: k % 2))
    assert_refused_once(scans_in(tmp_path), "2 that interleave, by AcquisitionNumber")


@pytest.mark.parametrize("passes", [2, 3, 4])
def test_passes_shown_only_by_instance_numbers(tmp_path, passes):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(InstanceNumber=lambda k: 1 + k // passes + 100 * (k % passes)))
    assert_refused_once(scans_in(tmp_path), f"{passes} that interleave, by their image numbers")


def test_instance_numbers_out_of_order_give_a_warning(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=tags(InstanceNumber=lambda k: 1 + 5 * k % 12))
    (scan,) = scans_in(tmp_path)
    assert scan.warnings == ("its image numbers do not follow its slices",)
    assert_are([scan], VOLUME)


@pytest.mark.parametrize("place", [24, 1], ids=["after", "between"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_folders_without_common_numbering_are_two_scans_or_refused(tmp_path, modality, place):
    for i, volume in enumerate((VOLUME, OTHER)):
        write_series(tmp_path / str(i), volume, moved(i * place), str(i), change=tags(
            Modality=modality, InstanceNumber=None, SeriesInstanceUID=uid("series")))  # fmt: skip
    assert_refused_once(scans_in(tmp_path), "slices in 2 folders, and no numbers that count them through")


def test_packages_in_folders_are_refused(tmp_path):
    for i, volume in enumerate((VOLUME, OTHER)):
        write_series(tmp_path / str(i), volume, moved(i), first=12 * i, change=tags(**MR))
    assert_refused_once(scans_in(tmp_path), "2 that interleave, by their image numbers")


FRAMES = {
    "time": ("TemporalPositionSequence", {"TemporalPositionTimeOffset": (0.0, 2.0)}),
    "flip angle": ("MRTimingAndRelatedParametersSequence", {"FlipAngle": (5.0, 20.0)}),
    "inversion": ("MRModifierSequence", {"InversionTimes": (100.0, 900.0)}),
    "label": ("MRArterialSpinLabelingSequence", {"ASLContext": ("LABEL", "CONTROL")}),
    "kernel": ("CTReconstructionSequence", {"ConvolutionKernel": ("B30f", "B70f")}),
    "tube": ("CTXRayDetailsSequence", {"KVP": (80.0, 140.0)}),
}


def with_frames(name, which):
    sequence, ((keyword, values),) = FRAMES[name][0], FRAMES[name][1].items()

    def change(groups, f):
        for keyword_of_time in ("TemporalPositionIndex", "DimensionIndexValues"):
            delattr(groups.FrameContentSequence[0], keyword_of_time)
        setattr(groups, sequence, [item(**{keyword: values[which(f)]})])

    return change


@pytest.mark.parametrize("name", FRAMES)
def test_frames_at_the_same_positions_are_separated(tmp_path, name):
    pair = np.stack([random_volume(seed=i) for i in range(2)], axis=-1)
    kind = {} if name in ("kernel", "tube") else {"sop_class": EnhancedMRImageStorage}
    write_multiframe(tmp_path / "x.dcm", pair, change=with_frames(name, lambda f: f // 6), **kind)
    assert_are(scans_in(tmp_path), *(pair[..., i].astype(np.float32) - 1024 for i in range(2)))


@pytest.mark.parametrize("which", [lambda f: f % 2, lambda f: f // 6], ids=["interleaved", "consecutive"])
def test_frames_of_two_kernels_are_two_scans(tmp_path, which):
    write_multiframe(tmp_path / "x.dcm", VOLUME, change=with_frames("kernel", which))
    parts = [VOLUME[..., [k for k in range(12) if which(k) == i]].astype(np.float32) - 1024 for i in range(2)]
    assert_are(scans_in(tmp_path), *parts)


def test_interleaved_multiframe_files_are_refused_and_consecutive_ones_are_one_scan(tmp_path):
    fine, step = OBLIQUE.copy(), OBLIQUE[:3, 2] / 2
    fine[:3, 3] += step
    for name, affine in (("a", OBLIQUE), ("b", fine)):
        write_multiframe(tmp_path / "turns" / f"{name}.dcm", random_volume(), affine, SeriesInstanceUID=uid("s"))
    assert_refused_once(scans_in(tmp_path / "turns"), "files of several slices that interleave, 2 of them")
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += 12 * step
    for i, affine in enumerate((OBLIQUE, shifted)):
        part = VOLUME[..., 6 * i : 6 * i + 6]
        write_multiframe(tmp_path / "after" / f"{i}.dcm", part, affine, SeriesInstanceUID=uid("s"))
    (scan,) = scans_in(tmp_path / "after")
    np.testing.assert_array_equal(voxels(scan), VOLUME.astype(np.float32) - 1024)


def test_pet_time_frames_with_equal_numbering(tmp_path):
    volumes = [random_volume((9, 8, 12), seed=i) for i in range(3)]
    for i, volume in enumerate(volumes):
        write_series(tmp_path, volume, AXIAL, f"f{i}", change=tags(
            Modality="PT", FrameReferenceTime=str(1000 * i), SeriesInstanceUID=uid("series")))  # fmt: skip
    assert_are(scans_in(tmp_path), *volumes)
