# SPDX-License-Identifier: Apache-2.0
"""Check that short ways of reading DICOM files give the values of the long ones, and notice changed files."""

import tracemalloc

import numpy as np
import pytest
from dicom_files import dataset, random_volume, save, write_multiframe, write_series
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian

from monai_llmboost.data.scans.dicom import blocks, headers, pixels, values
from monai_llmboost.data.scans.dicom.headers import read_header
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
from monai_llmboost.data.scans.scan import RefusedScan

VOLUME = random_volume()  # (9, 8, 6)


def read_both(monkeypatch, folder):
    """Return the volume as it is read, and as it is decoded from files that are parsed again."""
    reader = DicomSeriesReader()
    found = reader.read(folder)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "dcmread", None)
        array, _ = reader.get_data(found)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "is_unchanged", lambda file, plain: False)
        return array, reader.get_data(found)[0]


def implicit(data, k):
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


KINDS = {
    "plain": {},
    "implicit": {"change": implicit},
    "whole intercept": {"RescaleSlope": "1", "RescaleIntercept": "-1024"},
    "intercept": {"RescaleSlope": "1", "RescaleIntercept": "-0.3"},
    "large intercept": {"RescaleSlope": "1", "RescaleIntercept": "123456789"},
    "slope": {"RescaleSlope": "0.1", "RescaleIntercept": "-1024.7"},
    "unused bits": {"BitsStored": 12, "HighBit": 11},
    "mirrored": {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": "2", "RescaleIntercept": "1"},
    "padding": {"PixelPaddingValue": 100, "PixelPaddingRangeLimit": 500},
}


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_decoder(tmp_path, monkeypatch, kind, dtype):
    if dtype == "uint8" and kind in ("unused bits", "padding"):
        return
    write_series(tmp_path, VOLUME.astype(dtype), **{"BitsStored": 8 * np.dtype(dtype).itemsize, **KINDS[kind]})
    for most in (50, 4, 1):
        monkeypatch.setattr(blocks, "MOST_SLICES", most)
        short, long = read_both(monkeypatch, tmp_path)
        np.testing.assert_array_equal(short.view(np.int32), long.view(np.int32))
        assert short.flags.c_contiguous, "so that no later step copies the volume"


def test_frames_are_those_of_the_decoder(tmp_path, monkeypatch):
    path = write_multiframe(tmp_path / "m.dcm", VOLUME, order=[3, 1, 5, 0, 2, 4])
    short, long = read_both(monkeypatch, path)
    np.testing.assert_array_equal(short, long)


def test_values_of_a_file_with_a_new_header_are_read_by_it(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    reader = DicomSeriesReader()
    found = reader.read(tmp_path)
    data = dcmread(paths[2])
    stored = VOLUME.astype(np.uint16)[:, :, 2]
    data.PixelRepresentation, data.PixelData = 0, stored.T.tobytes()
    size = paths[2].stat().st_size
    save(data, paths[2])
    assert paths[2].stat().st_size == size, "only the header shows it"
    np.testing.assert_array_equal(reader.get_data(found)[0][:, :, 2], stored.astype(np.float32))


def test_file_cut_after_its_header_was_read_is_refused(tmp_path, monkeypatch):
    paths = write_series(tmp_path, VOLUME)
    reader = DicomSeriesReader()
    found = reader.read(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    with pytest.raises(RefusedScan, match="damaged, cut short"):
        reader.get_data(found)
    monkeypatch.setattr(pixels, "is_unchanged", lambda file, plain: bool(file.read(plain.offset)))
    with pytest.raises(RefusedScan, match="rewritten meanwhile") as refused:
        reader.get_data(found)
    assert refused.value.may_pass


def test_files_that_the_decoder_refuses_are_refused(tmp_path):
    write_series(tmp_path, VOLUME, SamplesPerPixel=None)
    reader = DicomSeriesReader()
    with pytest.raises(RefusedScan, match="damaged"):
        reader.get_data(reader.read(tmp_path))


@pytest.mark.parametrize("kind", ["file", "implicit", "frames"])
def test_headers_longer_than_the_first_bytes_are_the_same(tmp_path, monkeypatch, kind):
    if kind == "frames":
        path = write_multiframe(tmp_path / "m.dcm", VOLUME)
    else:
        (path,) = write_series(tmp_path, VOLUME[:, :, :1], change=implicit if kind == "implicit" else None)
    found = read_header(path)
    for size in range(132, path.stat().st_size, 31):
        monkeypatch.setattr(headers, "HEAD_BYTES", size)
        assert read_header(path) == found, size
        assert read_header(path)[0].plain == found[0].plain


def test_names_of_patients_are_not_kept_with_repeated_values(tmp_path):
    values._convert.cache_clear()
    found = [read_header(save(dataset(VOLUME[:, :, 0]), tmp_path / str(k))) for k in range(2)]
    assert found[0][0].identity == found[1][0].identity
    assert values._convert.cache_info().hits > 5
    assert not values.REPEATED_KINDS & {"LO", "LT", "PN", "SH", "ST", "UC", "UN", "UT"}


def test_padding_is_filled_without_a_copy_of_the_volume(tmp_path):
    volume = random_volume((128, 128, 40))
    volume[:20] = 30000
    write_series(tmp_path, volume, PixelPaddingValue=30000)
    stack = DicomSeriesReader().read(tmp_path)
    filled = blocks.Blocks(stack.layouts[0].slices)
    filled.write((number, volume[:, :, number].T) for number in range(40))
    tracemalloc.start()
    array, count = filled.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20 * 128 * 40 and array[:20].max() == volume[20:].min()
    assert peak < 0.05 * array.nbytes
