# SPDX-License-Identifier: Apache-2.0
import re
import shutil

import nibabel
import numpy as np
import pytest
from dicom_files import OBLIQUE, SECRETS, dataset, item, random_volume, save, tags, uid, write_multiframe, write_series
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import EnhancedMRImageStorage, RLELossless, generate_uid

from monai_llmboost.data.scans import RefusedScan, ScanReader
from monai_llmboost.data.scans.dicom.paths import get_reader_paths
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans

VOLUME = random_volume()  # (9, 8, 6)
AXIAL = np.diag([-0.7, -0.9, 2.5, 1])


def scans_in(folder, **options):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found, skipped = find_dicom_scans(files, lambda path: path.relative_to(folder).as_posix(), **options)
    assert not any(secret in repr((found, skipped)) for secret in SECRETS.values())
    return found, skipped


def only_scan(folder, **options):
    ((scan,), _) = scans_in(folder, **options)
    return scan


@pytest.mark.parametrize(
    ("affine", "orientation"),
    [
        (OBLIQUE, "RAS"),
        (AXIAL, "LPS"),
        (np.array([[-0.7, 0, 0, 5], [0, 0, -2.5, 6], [0, -0.9, 0, 7], [0, 0, 0, 1.0]]), "LIP"),
        (np.array([[0, 0, -2.5, 5], [-0.7, 0, 0, 6], [0, 0.9, 0, 7], [0, 0, 0, 1.0]]), "PSL"),
    ],
    ids=["oblique", "axial", "coronal", "sagittal"],
)
def test_series_is_one_scan(tmp_path, affine, orientation):
    paths = write_series(tmp_path / "study", VOLUME, affine)
    scan = only_scan(tmp_path)
    assert (scan.name, scan.format, scan.modality, scan.series_uid) == ("study", "DICOM", "CT", uid("series"))
    assert scan.shape == (9, 8, 6)
    assert scan.spacing_mm == pytest.approx((0.7, 0.9, 2.5))
    assert (scan.orientation, scan.refused, scan.warnings) == (orientation, "", ())
    assert scan.files == tuple(paths), "in the order of positions, though names and InstanceNumber run backwards"


@pytest.mark.parametrize("number", [lambda k: k * 7 % 6, lambda k: 1, lambda k: None], ids=["random", "equal", "none"])
def test_instance_number_does_not_matter(tmp_path, number):
    paths = write_series(tmp_path, VOLUME, change=lambda data, k: setattr(data, "InstanceNumber", number(k)))
    assert only_scan(tmp_path).files == tuple(paths)


def moved(data, k, shift):
    if k == 3:
        data.ImagePositionPatient = list(np.array(data.ImagePositionPatient, float) + shift)


def in_one(keyword, value):
    def change(data, k):
        if k == 3:
            setattr(data, keyword, value(data) if callable(value) else value)

    return change


REFUSED = {
    "slice missing": (
        lambda data, k: k != 2,
        r"slices 2.5 mm apart, missing: 1, between series-005.dcm and series-003.dcm \(5 mm\)",
    ),
    "two slices missing": (lambda data, k: k not in (1, 4), "missing: 2, the first between series-006.dcm and"),
    "uneven": (lambda data, k: moved(data, k, [0, 0, 0.2]), r"at equal distances, got 2.3 to 2.7 mm"),
    "sideways": (lambda data, k: moved(data, k, [1, 0, 0]), "even, straight line, got one 1 mm off its place"),
    "no positions": (lambda data, k: delattr(data, "ImagePositionPatient"), "the position of every slice, got none"),
    "no orientation": (lambda data, k: delattr(data, "ImageOrientationPatient"), "the orientation of every slice"),
    "no spacing": (lambda data, k: delattr(data, "PixelSpacing"), "expected the pixel spacing of every slice"),
    "zero spacing": (lambda data, k: setattr(data, "PixelSpacing", [0, 0]), "a pixel spacing above 0 mm"),
    "skew": (
        lambda data, k: setattr(data, "ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]),
        "x and y at a right angle",
    ),
    "one left": (lambda data, k: k == 3, "a single slice is no volume"),
    "same place": (
        lambda data, k: tags(ImagePositionPatient=[0, 0, 2.5 * (k // 2)], InstanceNumber=1)(data, k),
        "6 slices at 3 positions and no tag that separates them",
    ),
    "signs": (in_one("PixelRepresentation", 0), "slices of one sign .* got several"),
    "scaled and not": (
        lambda data, k: k % 2 and tags(RescaleSlope="1", RescaleIntercept="-1024")(data, k),
        r"slices of one way of scaling \(RescaleSlope\), got several",
    ),
    "scaled in part": (
        lambda data, k: setattr(data, "RescaleSlope", "2"),
        r"expected RescaleSlope and RescaleIntercept, got one of them: .* \(series-00\d.dcm\)",
    ),
    "cut short": (
        in_one("PixelData", lambda data: data.PixelData[:-20]),
        r"expected 144 bytes of pixels \(1 x 8 x 9, 16 bits\), got 124: header and pixels .* \(series-003.dcm\)",
    ),
    "kinds": (in_one("Modality", "MR"), "slices of one modality, got several"),
    "inverted": (in_one("PhotometricInterpretation", "MONOCHROME1"), "slices of one photometric interpretation"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_slices_that_are_not_one_volume_are_refused(tmp_path, name):
    change, reason = REFUSED[name]
    write_series(tmp_path, VOLUME, AXIAL, change=change)
    scan = only_scan(tmp_path)
    assert re.search(reason, scan.refused), scan.refused
    assert (scan.shape, scan.spacing_mm, scan.orientation) == ((), (), "")


def test_positions_with_few_digits_are_evenly_spaced(tmp_path):
    write_series(tmp_path, VOLUME, AXIAL, change=lambda data, k: moved(data, k, [0, 0, 0.01]))
    assert only_scan(tmp_path).refused == ""


def test_min_slices(tmp_path):
    write_series(tmp_path, VOLUME)
    assert only_scan(tmp_path, min_slices=6).refused == ""
    assert "expected at least 7 slices, got 6" in only_scan(tmp_path, min_slices=7).refused


def test_two_series_in_a_folder_are_two_scans_with_stable_names(tmp_path):
    write_series(tmp_path / "study", VOLUME, series="one")
    assert only_scan(tmp_path).name == "study"
    write_series(tmp_path / "study", VOLUME, series="two")
    both, _ = scans_in(tmp_path)
    assert all(re.fullmatch(r"study_[0-9a-f]{8}", scan.name) and scan.name.endswith(scan.stack) for scan in both)
    write_series(tmp_path / "study", VOLUME, series="three")
    three, _ = scans_in(tmp_path)
    assert {scan.name for scan in both} < {scan.name for scan in three}
    assert [scan.name for scan in three] == sorted(scan.name for scan in three)


def test_localizers_of_the_series_are_separate_scans(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    coronal = np.array([[-0.7, 0, 0, 5], [0, 0, -2.5, 6], [0, -0.9, 0, 7], [0, 0, 0, 1.0]])
    write_series(tmp_path / "scout", VOLUME[:, :, :1], coronal, first=100)
    volume, scout = scans_in(tmp_path)[0]
    assert (volume.files, volume.refused) == (tuple(paths), "")
    assert scout.name == "scout/series-101.dcm"
    assert "a single slice is no volume" in scout.refused
    assert volume.warnings == scout.warnings == ("one of 2 stacks of its series",)


def test_slices_of_another_size_are_a_separate_scan(tmp_path):
    write_series(tmp_path / "a", VOLUME)
    write_series(tmp_path / "b", random_volume((9, 7, 4)), first=50)
    assert [scan.shape for scan in scans_in(tmp_path)[0]] == [(9, 8, 6), (9, 7, 4)]


TOLD_APART = {
    "echoes": ([{"EchoTime": "4.6"}, {"EchoTime": "9.2"}], "EchoTime"),
    "times": ([{"TemporalPositionIdentifier": t} for t in (1, 2, 3)], "TemporalPositionIdentifier"),
    "acquisitions": ([{"AcquisitionNumber": t} for t in (1, 2)], "AcquisitionNumber"),
    "b-values": ([{"DiffusionBValue": b} for b in (0.0, 1000.0)], "DiffusionBValue"),
    "triggers": ([{"TriggerTime": str(t)} for t in (10, 20)], "TriggerTime"),
    "magnitude and phase": ([{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in "MP"], "ImageType"),
    "echoes and times": (
        [{"EchoTime": str(e), "TemporalPositionIdentifier": t} for e in (4, 9) for t in (1, 2)],
        "EchoTime and TemporalPositionIdentifier",
    ),
    "a number for each slice as well": (
        [{"EchoTime": str(e), "AcquisitionNumber": lambda k, e=e: 10 * e + k} for e in (4, 9)],
        "EchoTime",
    ),
    "a number for each half as well": (
        [{"FlipAngle": lambda k, i=i: str(2 * i + k // 3), "AcquisitionNumber": i} for i in (1, 2)],
        "AcquisitionNumber",
    ),
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_volumes_at_the_same_positions_are_separated_by_tags(tmp_path, name):
    volumes, by = TOLD_APART[name]
    expected = [
        tuple(write_series(tmp_path, VOLUME, first=100 * i, change=tags(**values))) for i, values in enumerate(volumes)
    ]
    found, _ = scans_in(tmp_path)
    assert sorted(scan.files for scan in found) == sorted(expected)
    assert {scan.refused for scan in found} == {""}
    assert {scan.warnings for scan in found} == {(f"one of {len(volumes)} stacks of its series, separated by {by}",)}
    assert len({scan.name for scan in found}) == len(volumes)


@pytest.mark.parametrize("trigger", [lambda k, i: "1", lambda k, i: str(10 * i + k)], ids=["same", "for each slice"])
def test_inseparable_time_points_are_refused(tmp_path, trigger):
    for i in range(2):
        values = {"TriggerTime": lambda k, i=i: trigger(k, i), "InstanceNumber": lambda k, i=i: (k * 5 + i * 7) % 11}
        write_series(tmp_path, VOLUME, first=100 * i, change=tags(**values))
    assert "got 12 slices at 6 positions and no tag" in only_scan(tmp_path).refused


NUMBERED = {
    "sweep after sweep": lambda k, t: 6 * t + k,
    "sweeps from above": lambda k, t: 6 * t + 5 - k,
    "position after position": lambda k, t: 3 * k + t,
    "slices within phases of slices": lambda k, t: 100 * (k // 3) + 10 * t + k % 3,
    "interleaved slices": lambda k, t: 6 * t + [0, 3, 1, 4, 2, 5][k],
}


@pytest.mark.parametrize("name", NUMBERED)
def test_time_points_separated_by_numbers_are_one_scan_of_several_volumes(tmp_path, name):
    for t in range(3):
        change = tags(InstanceNumber=lambda k, t=t: NUMBERED[name](k, t), ContentTime=lambda k, t=t: f"12{t:02}{k:02}")
        write_series(tmp_path, VOLUME + t, first=100 * t, change=change)
    scan = only_scan(tmp_path)
    assert (scan.shape, scan.refused, scan.warnings) == ((9, 8, 6, 3), "", ())
    for t in range(3):
        reader = ScanReader(volume=t)
        np.testing.assert_array_equal(reader.get_data(reader.read(get_reader_paths(scan)))[0], VOLUME + t)
    reader = ScanReader()
    with pytest.raises(RefusedScan, match=r"expected one volume, got 3 .*: choose one with --volume K .*, from 0 to 2"):
        reader.get_data(reader.read(get_reader_paths(scan)))
    reader = ScanReader(volume=3)
    with pytest.raises(RefusedScan, match="volume to be from 0 to 2, got 3"):
        reader.get_data(reader.read(get_reader_paths(scan)))


def test_echoes_of_several_time_points_are_scans_of_several_volumes(tmp_path):
    for t in range(2):
        for echo in range(2):
            number = 50 * (2 * t + echo)
            write_series(tmp_path, VOLUME + 10 * echo + t, first=number, EchoTime=str(4 + echo))
    found, _ = scans_in(tmp_path)
    assert [scan.shape for scan in found] == [(9, 8, 6, 2)] * 2
    assert {scan.warnings for scan in found} == {("one of 2 stacks of its series, separated by EchoTime",)}


def test_incomplete_last_time_point_is_refused(tmp_path):
    write_series(tmp_path, VOLUME)
    write_series(tmp_path, VOLUME, first=100, change=lambda data, k: k < 4)
    assert "10 slices at 6 positions and no tag" in only_scan(tmp_path).refused


def test_missing_slice_refuses_only_its_time_point(tmp_path):
    write_series(tmp_path, VOLUME, change=tags(EchoTime="4"))
    write_series(tmp_path, VOLUME, first=100, change=lambda d, k: tags(EchoTime="9")(d, k) or k != 2)
    assert sorted("missing" in scan.refused for scan in scans_in(tmp_path)[0]) == [False, True]


def test_copies_are_left_out_with_a_warning(tmp_path):
    paths = write_series(tmp_path / "a", VOLUME)
    shutil.copy(paths[1], tmp_path / "a" / "zzz.dcm")
    packed = dcmread(paths[2])
    packed.compress(RLELossless, generate_instance_uid=False)
    save(packed, tmp_path / "a" / "zzz" / "packed.dcm")
    (scan,) = scans_in(tmp_path)[0]
    assert (scan.files, scan.refused) == (tuple(paths), "")
    assert scan.warnings == ("copies of its files were left out: 2",)
    assert {file.reason for file in scans_in(tmp_path)[1]} == {f"a copy of {path.name}" for path in paths[1:3]}


def test_another_image_with_the_same_uid_is_no_copy(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    other = dcmread(paths[1])
    other.PixelData = other.PixelData[::-1]
    save(other, tmp_path / "other.dcm")
    assert "7 slices at 6 positions" in only_scan(tmp_path).refused


def test_series_in_several_folders_is_named_by_their_common_parent(tmp_path):
    for k, path in enumerate(write_series(tmp_path / "p" / "x", VOLUME)):
        (tmp_path / "p" / str(k % 2)).mkdir(exist_ok=True)
        path.rename(tmp_path / "p" / str(k % 2) / path.name)
    assert only_scan(tmp_path).name == "p"


def test_gantry_tilt_gives_a_warning(tmp_path):
    tilted = AXIAL.copy()
    tilted[1, 2] = 2.5 * np.tan(np.radians(15))
    write_series(tmp_path, VOLUME, tilted)
    scan = only_scan(tmp_path)
    assert scan.refused == ""
    assert scan.warnings == ("its slices are tilted by 15.0 degrees (gantry tilt)",)


def test_volumes_of_a_multiframe_file_are_scans(tmp_path):
    four = np.stack([VOLUME, VOLUME + 1, VOLUME + 2], axis=-1)
    path = write_multiframe(tmp_path / "m.dcm", four, order=np.random.default_rng(1).permutation(18))
    found, _ = scans_in(tmp_path)
    assert [scan.shape for scan in found] == [(9, 8, 6)] * 3
    assert {scan.files for scan in found} == {(path,)}
    assert all(re.fullmatch(r"m.dcm_[0-9a-f]{8}", scan.name) for scan in found)
    assert len({scan.name for scan in found}) == 3


def test_inseparable_volumes_of_a_multiframe_file_are_refused(tmp_path):
    def change(groups, f):
        del groups.FrameContentSequence

    write_multiframe(tmp_path / "m.dcm", np.stack([VOLUME] * 2, axis=-1), change=change)
    assert "12 slices at 6 positions" in only_scan(tmp_path).refused


def test_diffusion_directions_of_a_multiframe_file(tmp_path):
    def change(groups, f):
        del groups.FrameContentSequence
        if f >= 6:
            direction = item(DiffusionGradientOrientation=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]][f // 6 - 1])
            groups.MRDiffusionSequence = [item(DiffusionBValue=1000.0, DiffusionGradientDirectionSequence=[direction])]
        else:
            groups.MRDiffusionSequence = [item(DiffusionBValue=0.0)]

    write_multiframe(
        tmp_path / "m.dcm", np.stack([VOLUME] * 3, axis=-1), sop_class=EnhancedMRImageStorage, change=change
    )
    found, _ = scans_in(tmp_path)
    assert [scan.shape for scan in found] == [(9, 8, 6)] * 3


def test_frames_without_positions_are_refused_whatever_their_number(tmp_path):
    frames = dataset(np.zeros((3, 4, 5), np.uint16))
    save(frames, tmp_path / "a.dcm")
    assert "expected the place of each of 3 frames, got 0" in only_scan(tmp_path).refused
    frames.NumberOfFrames = 2_000_000_000
    save(frames, tmp_path / "a.dcm")
    assert "expected 80000000000 bytes of pixels" in only_scan(tmp_path).refused


def test_too_large_volume_is_refused_before_its_pixels_are_read(tmp_path):
    def change(data, k):
        data.Rows = data.Columns = 60000
        data.file_meta.TransferSyntaxUID = RLELossless
        data.PixelData = encapsulate([bytes(64)])
        data["PixelData"].is_undefined_length = True
        data.SOPInstanceUID = generate_uid(entropy_srcs=[str(k)])

    write_series(tmp_path, VOLUME, change=change)
    assert "voxels, got 21600000000" in only_scan(tmp_path).refused


def test_localizers_in_many_directions_are_separate_planes(tmp_path):
    for i in range(40):
        turned = np.eye(4)
        turned[:3, :3] = nibabel.eulerangles.euler2mat(0.05 * (i % 20)) * [0.7, 0.9, 2.0]
        write_series(tmp_path, VOLUME[..., :1], turned, f"s{i}", SeriesInstanceUID=uid("series"))
    scans, _ = find_dicom_scans(tmp_path.iterdir(), str)
    assert [(scan.refused_kind, len(scan.files)) for scan in scans] == [("several-volumes", 2)] * 20
