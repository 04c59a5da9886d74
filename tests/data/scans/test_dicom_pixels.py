# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
from dicom_files import OBLIQUE, dataset, item, random_volume, save, write_multiframe, write_series
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, MRImageStorage, RLELossless

from monai_llmboost.data.scans.dicom.headers import silence_pydicom
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
from monai_llmboost.data.scans.scan import RefusedScan

VOLUME = random_volume()  # (9, 8, 6)


def read(path):
    reader = DicomSeriesReader()
    return reader.get_data(reader.read(path))


def assert_reads_as(path, values):
    array, meta = read(path)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.asarray(values, np.float32))
    np.testing.assert_allclose(meta["affine"], OBLIQUE, atol=1e-6)
    return meta


def test_each_slice_has_its_slope_and_intercept(tmp_path):
    slopes = [1, 0.5, 2, 3, 0.25, 1]

    def change(data, k):
        data.RescaleSlope, data.RescaleIntercept = str(slopes[k]), str(-k)

    write_series(tmp_path, VOLUME, change=change)
    assert_reads_as(tmp_path, VOLUME * np.array(slopes) - np.arange(6))


def test_slope_of_each_frame_and_shuffled_frames(tmp_path):
    def change(groups, f):
        groups.PixelValueTransformationSequence = [item(RescaleSlope=str(f + 1), RescaleIntercept="0.5")]

    path = write_multiframe(tmp_path / "m.dcm", VOLUME, order=[3, 1, 5, 0, 2, 4], change=change)
    assert_reads_as(path, VOLUME * (np.arange(6) + 1.0) + 0.5)


def test_mr_slopes_are_applied(tmp_path):
    write_series(tmp_path, VOLUME, SOPClassUID=MRImageStorage, RescaleSlope="2", RescaleIntercept="5")
    assert_reads_as(tmp_path, VOLUME * 2 + 5)


@pytest.mark.parametrize(
    ("volume", "bits", "mirrored"),
    [
        ((VOLUME % 4096).astype(np.uint16), 12, lambda stored: 4095 - stored),
        (VOLUME, 16, lambda stored: -1 - stored),
        ((VOLUME % 256).astype(np.uint8), 8, lambda stored: 255 - stored),
    ],
    ids=["12 bits", "signed", "8 bits"],
)
def test_monochrome1_is_mirrored(tmp_path, volume, bits, mirrored):
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "HighBit": bits - 1}
    tags |= {"RescaleSlope": "2", "RescaleIntercept": "0"}
    write_series(tmp_path, volume, **tags)
    meta = assert_reads_as(tmp_path, mirrored(volume.astype(int)) * 2)
    assert meta["warnings"] == "stored with low values bright (MONOCHROME1): mirrored, so that bright is high"


def test_unused_bits_are_ignored(tmp_path):
    twelve = (VOLUME % 2048).astype(np.int16)
    write_series(tmp_path / "a", twelve | (5 << 12), BitsStored=12, HighBit=11)
    assert_reads_as(tmp_path / "a", twelve)
    negative = (VOLUME % 4096).astype(np.int16)
    write_series(tmp_path / "b", negative, BitsStored=12, HighBit=11)
    assert_reads_as(tmp_path / "b", np.where(negative > 2047, negative - 4096, negative))


def jpeg_2000(data):
    plane = np.frombuffer(data.PixelData, np.uint16).reshape(data.Rows, data.Columns)
    code = io.BytesIO()
    Image.fromarray(plane).save(code, format="JPEG2000", no_jp2=True, irreversible=False)
    data.PixelData = encapsulate([code.getvalue()])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless


def big_endian(data):
    data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian


PACKED = {
    "RLE": lambda data: data.compress(RLELossless, generate_instance_uid=False),
    "JPEG-LS": lambda data: data.compress(JPEGLSLossless, generate_instance_uid=False),
    "JPEG 2000": jpeg_2000,
    "big endian": big_endian,
}


def write_packed(folder, pack):
    volume = (VOLUME % 4096).astype(np.uint16)
    write_series(folder, volume, change=lambda data, k: pack(data), RescaleSlope="0.5", RescaleIntercept="-1024")
    return volume


@pytest.mark.parametrize("syntax", PACKED)
def test_compressed_pixels_have_the_same_values(tmp_path, syntax):
    volume = write_packed(tmp_path, PACKED[syntax])
    assert_reads_as(tmp_path, volume * 0.5 - 1024)


@pytest.mark.parametrize("syntax", ["RLE", "JPEG-LS"])
def test_compressed_frames_with_different_slopes(tmp_path, syntax):
    def change(groups, f):
        groups.PixelValueTransformationSequence = [item(RescaleSlope=str(f + 1), RescaleIntercept="0")]

    signed = VOLUME.astype(np.int16)
    path = write_multiframe(tmp_path / "m.dcm", signed, order=[3, 1, 5, 0, 2, 4], change=change)
    data = dcmread(path)
    PACKED[syntax](data)
    assert_reads_as(save(data, path), signed * (np.arange(6) + 1.0))


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def shorten_code(path):
    """Truncate a compressed frame within an intact wrapper: GDCM silently fills the rest."""
    data = dcmread(path)
    code = data.PixelData[16:-8]
    data.PixelData = encapsulate([code[: len(code) // 2 // 2 * 2]])
    save(data, path)


@pytest.mark.parametrize("syntax", [*PACKED, "plain"])
def test_truncated_file_is_refused(tmp_path, syntax):
    write_packed(tmp_path, PACKED.get(syntax, lambda data: None))
    cut(tmp_path / "series-003.dcm", 20)
    with pytest.raises(RefusedScan, match=r"cut short.*copy it again"):
        read(tmp_path)


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
def test_truncated_compressed_frame_is_refused(tmp_path, syntax):
    write_packed(tmp_path, PACKED[syntax])
    shorten_code(tmp_path / "series-003.dcm")
    with pytest.raises(RefusedScan, match=r"series-003\.dcm is damaged, cut short or in an unknown syntax") as refused:
        read(tmp_path)
    assert refused.value.__cause__ is None, "which may quote the patient's tags"


def test_values_beyond_float32_are_refused(tmp_path):
    write_series(tmp_path, VOLUME, RescaleSlope="1e300", RescaleIntercept="0")
    with pytest.raises(RefusedScan, match="expected finite voxels"):
        read(tmp_path)


def test_padding_is_set_to_the_lowest_value(tmp_path):
    """Outside the field of view, where writers use bright or dark values."""
    corner = np.zeros(VOLUME.shape, bool)
    corner[:2, :3] = True
    for name, padding, limit in (("dark", -2000, None), ("bright", 30000, None), ("range", 29000, 31000)):
        stored = np.where(corner, 30000 if padding > 0 else -2000, VOLUME)
        tags = {"PixelPaddingValue": padding, "RescaleSlope": "2", "RescaleIntercept": "-10"}
        if limit is not None:
            tags["PixelPaddingRangeLimit"] = limit
        write_series(tmp_path / name, stored.astype(np.int16), **tags)
        lowest = VOLUME[~corner].min()
        meta = assert_reads_as(tmp_path / name, np.where(corner, lowest, VOLUME) * 2.0 - 10)
        assert meta["warnings"] == "8.3 % of its voxels are padding (PixelPaddingValue): set to the lowest other value"


def test_dark_padding_is_unchanged(tmp_path):
    stored = (np.abs(VOLUME) + 1).astype(np.int16)
    stored[:2] = 0
    write_series(tmp_path, stored, PixelPaddingValue=0)
    assert assert_reads_as(tmp_path, stored)["warnings"] == ""


def test_absent_padding_changes_nothing(tmp_path):
    write_series(tmp_path, VOLUME, PixelPaddingValue=-2000)
    assert assert_reads_as(tmp_path, VOLUME)["warnings"] == ""


def test_padding_of_signed_values_may_be_unsigned(tmp_path):
    stored = VOLUME.copy()
    stored[0] = -2000

    def change(data, k):
        data.add_new("PixelPaddingValue", "US", 65536 - 2000)

    write_series(tmp_path, stored, change=change)
    expected = stored.copy()
    expected[0] = stored[1:].min()
    assert_reads_as(tmp_path, expected)


def test_bright_padding_of_inverted_images_is_dark(tmp_path):
    stored = (VOLUME % 200).astype(np.uint8)
    stored[0] = 255
    write_series(tmp_path, stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=255)
    expected = 255 - stored.astype(int)
    expected[0] = expected[1:].min()
    assert_reads_as(tmp_path, expected)


def pieces(data, change):
    """Write a file with RLE pixels, one segment of which is changed."""
    data.compress(RLELossless, generate_instance_uid=False)
    code = change(get_frame(data.PixelData, 0, number_of_frames=1))
    data.PixelData = encapsulate([code + bytes(len(code) % 2)])


def without_some(code, at, count):
    return code[:at] + code[at + count :]


@pytest.mark.parametrize("at", [64, 66, 70, 100, -20, -4])
def test_rle_with_bytes_missing_is_refused(tmp_path, at):
    """Also where the first segment then ends within the second one."""

    def change(data, k):
        if k == 2:
            pieces(data, lambda code: without_some(code, at % len(code), 2))

    write_series(tmp_path, np.repeat(VOLUME, 3, axis=0), change=change)
    with pytest.raises(RefusedScan, match=r"expected pixels that can be unpacked, .* is damaged"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["RLE", "JPEG-LS", "JPEG 2000"])
def test_compressed_pixels_without_end_are_refused_by_the_header(tmp_path, kind):
    write_packed(tmp_path, PACKED[kind])
    path = sorted(tmp_path.iterdir())[2]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RefusedScan, match=r"expected compressed pixels up to their end mark, got fewer: .* cut short"):
        read(tmp_path)


@pytest.mark.parametrize(("more", "got"), [(b"\0" * 8, 152), (b"\0" * 2, 146)])
def test_more_pixels_than_in_the_header_are_refused(tmp_path, more, got):
    def change(data, k):
        if k == 2:
            data.PixelData = data.PixelData + more

    write_series(tmp_path, VOLUME, change=change)
    with pytest.raises(RefusedScan, match=rf"expected 144 bytes of pixels .*, got {got}: header and pixels are not of"):
        read(tmp_path)


def test_odd_number_of_bytes_is_padded(tmp_path):
    volume = random_volume((9, 7, 6), 0, 255).astype(np.uint8)
    write_series(tmp_path, volume, change=lambda data, k: setattr(data, "PixelData", data.PixelData + b"\0"))
    assert_reads_as(tmp_path, volume)


def test_pixels_completed_by_trailing_padding_are_refused(tmp_path):
    def change(data, k):
        if k == 2:
            data.PixelData = data.PixelData[:-20]
            data.add_new(0xFFFCFFFC, "OB", bytes(20))

    write_series(tmp_path, VOLUME, change=change)
    with pytest.raises(RefusedScan, match=r"expected 144 bytes of pixels .*, got 124: header and pixels are not of"):
        read(tmp_path)


BAD_SCALING = {
    "two slopes": {"RescaleSlope": ["2", "2"], "RescaleIntercept": ["0", "0"]},
    "two intercepts": {"RescaleSlope": "2", "RescaleIntercept": ["0", "0"]},
}


@pytest.mark.parametrize("name", BAD_SCALING)
def test_invalid_scaling_is_refused(tmp_path, name):
    write_series(tmp_path, VOLUME, **BAD_SCALING[name])
    with pytest.raises(RefusedScan, match="expected one Rescale"):
        read(tmp_path)


def test_scaling_of_another_type_is_refused(tmp_path):
    write_series(tmp_path, VOLUME, change=lambda data, k: data.add_new(0x00281053, "SQ", [item(KVP="1")]))
    with pytest.raises(RefusedScan, match="expected numbers in RescaleSlope, got something else"):
        read(tmp_path)


UNLIKE = {
    "Units": lambda k: {"Units": "CNTS" if k else "BQML"},
    "RescaleType": lambda k: {"RescaleType": "US" if k else "HU"},
    "MONOCHROME1": lambda k: {
        "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 16 - 4 * (k == 0), "HighBit": 15 - 4 * (k == 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_values_of_different_meaning_are_refused(tmp_path, name):
    def change(data, k):
        for keyword, value in UNLIKE[name](k).items():
            setattr(data, keyword, value)

    write_series(tmp_path, VOLUME, change=change)
    with pytest.raises(RefusedScan, match=rf"expected slices of one [a-z ]+\({name}\), got several"):
        read(tmp_path)


def test_unit_of_some_slices_holds_for_all(tmp_path):
    write_series(tmp_path, VOLUME, change=lambda data, k: k < 2 or setattr(data, "RescaleType", "HU"))
    assert_reads_as(tmp_path, VOLUME)


def test_photometric_interpretation_may_be_lower_case(tmp_path):
    with silence_pydicom():
        write_series(tmp_path, VOLUME, PhotometricInterpretation="monochrome2")
    assert_reads_as(tmp_path, VOLUME)


def test_file_rewritten_after_its_header_was_read_is_refused_for_now(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    reader = DicomSeriesReader()
    found = reader.read(tmp_path)
    for shape in ((1, 1), (4, 4), (9, 8)):
        save(dataset(np.full(shape, 77, np.int16)), paths[2])
        with pytest.raises(RefusedScan, match="rewritten meanwhile") as refused:
            reader.get_data(found)
        assert refused.value.may_pass


@pytest.mark.parametrize("lost", [[3], [0, 2, 4], [5]])
def test_damaged_slices_with_one_sop_uid_are_no_copies(tmp_path, lost):
    paths = write_series(tmp_path, VOLUME, SOPInstanceUID="1.2.3")
    for k in lost:
        paths[k].write_bytes(paths[k].read_bytes()[:-40])
    with pytest.raises(RefusedScan, match="cut short"):
        read(tmp_path)
