# SPDX-License-Identifier: Apache-2.0
"""Bad files in a folder of scans, one at a time, next to a good scan that must be predicted nevertheless."""

import ast
import gzip
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import dataset, geometry, item, write_series
from dicom_files import save as save_dicom
from monai.data import set_track_meta
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from nifti_files import (
    BITPIX,
    DATATYPE,
    DIM,
    PIXDIM,
    QFORM_CODE,
    SFORM_CODE,
    SLOPE,
    SROW_X,
    VOX_OFFSET,
    patched,
    save,
    voxels,
)
from pydicom.config import disable_value_validation
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    MediaStorageDirectoryStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    TwelveLeadECGWaveformStorage,
)

import monai_llmboost
from monai_llmboost.data import CheckVolumed, ScanReader, find_scans
from monai_llmboost.data.scans.scan import REFUSED_KINDS

GOOD = voxels().astype(np.float32)
NO_FORM = ((SFORM_CODE, 0, "i2"), (QFORM_CODE, 0, "i2"))


def with_voxel(value, dtype="f4"):
    array = GOOD.astype(dtype)
    array[1, 2, 3] = value
    return array


def flipped(folder):
    content = bytearray(gzip.compress(save(folder / "x.nii").read_bytes(), compresslevel=0))
    (folder / "x.nii").unlink()
    content[-20] ^= 0xFF
    (folder / "x.nii.gz").write_bytes(content)


def cut(folder, name, length):
    path = save(folder / name)
    path.write_bytes(path.read_bytes()[:length])


def bomb(folder):
    """7 MB of a stream whose header asks for 12.6 GiB."""
    path = patched(folder / "x.nii.gz", (DIM, [3, 1500, 1500, 1500, 1, 1, 1, 1], "i2"), (DATATYPE, [16, 32], "i2"))
    path.write_bytes(path.read_bytes() + bytes(7 << 20))


def colour(folder):
    save(folder / "x.nii", np.zeros((9, 8, 7), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


def pair(folder):
    nibabel.save(nibabel.Nifti1Pair(voxels(), np.eye(4)), folder / "x.hdr")
    (folder / "x.img").unlink()


def analyze(folder):
    nibabel.save(nibabel.AnalyzeImage(voxels().astype("i2"), np.eye(4)), folder / "x.img")


def linked(folder, target, name="x.nii"):
    (folder / name).symlink_to(target)


def outside(folder):
    save(folder.parent / "elsewhere" / "secret.nii")
    linked(folder, folder.parent / "elsewhere" / "secret.nii")


def unreadable(folder):
    save(folder / "x.nii").chmod(0)


def renamed(folder, name):
    save(folder / "plain.nii").rename(folder / name)


def series(folder, change):
    write_series(folder / "x", voxels().astype(np.int16), change=change)


def uneven(data, k):
    data.ImagePositionPatient = [0, 0, 3 * k + (k == 4)]


def cut_short(data, k):
    if k == 3:
        data.PixelData = data.PixelData[:-20]


def photographs(data, k):
    for keyword in geometry(np.eye(4)):
        delattr(data, keyword)


def object_of(folder, sop_class, *without):
    """Write a DICOM object without some attributes of an image."""
    save_dicom(dataset(voxels()[:, :, 0], sop_class=sop_class, **dict.fromkeys(without)), folder / "x.dcm")


def no_image(folder, sop_class):
    object_of(folder, sop_class, "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelData")


def index(folder, name):
    """A DICOMDIR that refers to a series outside the folder."""
    (path, *_) = write_series(folder.parent / "elsewhere", voxels().astype(np.int16))
    data = dataset(voxels()[:, :, 0], sop_class=MediaStorageDirectoryStorage)
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(data, keyword)
    with disable_value_validation():  # a part of it may not be ".."
        file = ["..", "elsewhere", path.name]
        data.DirectoryRecordSequence = [item(DirectoryRecordType="IMAGE", ReferencedFileID=file)]
        save_dicom(data, folder / name)


READ, REFUSED, SKIPPED = "read", "refused", "skipped"
# Row in the table of bad inputs, function that makes it, outcome, and words of the reason (or of the warning; None
# without one).
CASES = [
    ("1 truncated .nii.gz", lambda f: cut(f, "x.nii.gz", 300), REFUSED, "cut short"),
    ("1 truncated in its first bytes", lambda f: cut(f, "x.nii.gz", 12), REFUSED, "cut short"),
    ("1 without its checksum", lambda f: cut(f, "x.nii.gz", -8), REFUSED, "cut short"),
    ("2 bit flips in .nii.gz", flipped, REFUSED, "CRC"),
    ("3 truncated .nii", lambda f: cut(f, "x.nii", -1), REFUSED, "expected 856 bytes by its header, got 855"),
    ("4 header only", lambda f: cut(f, "x.nii", 352), REFUSED, "expected 856 bytes by its header, got 352"),
    ("4 part of a header", lambda f: cut(f, "x.nii", 200), REFUSED, "expected a header of 348 bytes, got 200"),
    ("5 zero bytes", lambda f: (f / "x.nii").write_bytes(b""), REFUSED, "got an empty file"),
    ("5 zero bytes, .nii.gz", lambda f: (f / "x.nii.gz").write_bytes(b""), REFUSED, "got an empty file"),
    ("5 zero bytes, .dcm", lambda f: (f / "x.dcm").write_bytes(b""), REFUSED, "got an empty file"),
    ("6 text", lambda f: (f / "x.nii.gz").write_text("hello"), REFUSED, r"expected a NIfTI file .* got a text file"),
    ("6 page", lambda f: (f / "x.nii").write_text("<html>404"), REFUSED, "got an HTML or XML file"),
    ("6 pointer", lambda f: (f / "x.nii").write_text("version https://git-lfs.x"), REFUSED, "pointer of Git LFS"),
    ("6 picture", lambda f: (f / "x.nii.gz").write_bytes(b"\x89PNG\r\n\x1a\n"), REFUSED, "got a PNG picture"),
    ("7 .nii named .nii.gz", lambda f: renamed(f, "x.nii.gz"), READ, "ends with .gz, but it is not compressed"),
    ("7 .nii.gz named .nii", lambda f: save(f / "a.nii.gz").rename(f / "x.nii"), READ, "but it is compressed"),
    ("8 dims 32767", lambda f: patched(f / "x.nii.gz", (DIM + 2, [32767] * 3, "i2")), REFUSED, "at most 1073741824"),
    ("9 gzip bomb", bomb, REFUSED, "at most 1073741824 voxels, its header says 3375000000"),
    ("10 negative dim", lambda f: patched(f / "x.nii", (DIM + 4, -8, "i2")), REFUSED, r"says \(9, -8, 7\)"),
    ("11 zero-size dim", lambda f: patched(f / "x.nii", (DIM + 4, 0, "i2")), REFUSED, r"at least one voxel .* 0"),
    ("12 dim[0] = 0", lambda f: patched(f / "x.nii", (DIM, 0, "i2")), REFUSED, "3 dimensions, its header says 0"),
    ("12 dim[0] = 9", lambda f: patched(f / "x.nii", (DIM, 9, "i2")), REFUSED, "3 dimensions, its header says 9"),
    (
        "13 unknown dtype",
        lambda f: patched(f / "x.nii", (DATATYPE, 77, "i2")),
        REFUSED,
        "that NIfTI knows, its header says 77",
    ),
    ("14 bitpix", lambda f: patched(f / "x.nii", (BITPIX, 16, "i2")), READ, "16 bits per voxel, but uint8 is taken"),
    ("15 vox_offset", lambda f: patched(f / "x.nii", (VOX_OFFSET, 1e9, "f4")), REFUSED, "expected 1000000504 bytes"),
    ("16 slope NaN", lambda f: patched(f / "x.nii", (SLOPE, np.nan, "f4")), READ, "no scaling .slope nan"),
    ("16 slope inf", lambda f: patched(f / "x.nii", (SLOPE, np.inf, "f4")), READ, "no scaling .slope inf"),
    ("16 slope 0", lambda f: patched(f / "x.nii", (SLOPE, 0, "f4")), READ, "no scaling .slope 0"),
    ("17 one NaN", lambda f: save(f / "x.nii", with_voxel(np.nan)), REFUSED, "finite voxels, 1 are NaN or inf"),
    ("18 one Inf", lambda f: save(f / "x.nii.gz", with_voxel(-np.inf)), REFUSED, "finite voxels, 1 are NaN or inf"),
    ("18 all NaN", lambda f: save(f / "x.nii", GOOD * np.nan), REFUSED, "504 are NaN or infinite"),
    ("19 1e300", lambda f: save(f / "x.nii", with_voxel(1e300, "f8")), REFUSED, r"1 are too large \(overflow\)"),
    ("20 constant", lambda f: save(f / "x.nii", GOOD * 0 + 7), REFUSED, "expected an image, every voxel is 7"),
    ("21 2-D", lambda f: save(f / "x.nii", GOOD[:, :, 0]), REFUSED, r"a volume, got an image of shape \(9, 8\)"),
    ("21 one slice", lambda f: save(f / "x.nii", GOOD[:, :, :1]), REFUSED, r"got an image of shape \(9, 8, 1\)"),
    ("22 1 x 1 x 1", lambda f: save(f / "x.nii", GOOD[:1, :1, :1]), REFUSED, r"got an image of shape \(1, 1, 1\)"),
    ("22 2 x 2 x 2", lambda f: save(f / "x.nii", GOOD[:2, :2, :2]), REFUSED, "4 x 4 x 4 voxels, got 2 x 2 x 2: too"),
    ("23 three volumes", lambda f: save(f / "x.nii", np.stack([GOOD] * 3, -1)), REFUSED, "got 3 .* --volume K"),
    ("24 one volume of 4-D", lambda f: save(f / "x.nii", GOOD[..., None]), READ, None),
    ("25 5-D", lambda f: save(f / "x.nii", np.stack([GOOD] * 3, -1)[..., None, :]), REFUSED, "in 5 dimensions"),
    ("26 RGB", colour, REFUSED, "one number per voxel, got colour"),
    ("27 complex", lambda f: save(f / "x.nii", GOOD.astype("c8")), REFUSED, "one number per voxel, got complex64"),
    ("29 singular affine", lambda f: patched(f / "x.nii", (SROW_X, [0] * 4, "f4")), REFUSED, "can be inverted"),
    ("30 NaN in sform", lambda f: patched(f / "x.nii", (SROW_X, np.nan, "f4")), REFUSED, "expected a finite sform"),
    (
        "30 NaN in sform next to a qform",
        lambda f: patched(f / "x.nii", (SROW_X, np.nan, "f4"), (QFORM_CODE, 1, "i2")),
        READ,
        "the qform is taken",
    ),
    ("31 pixdim 0 with a sform", lambda f: patched(f / "x.nii", (PIXDIM + 4, 0, "f4")), READ, "those of the sform"),
    ("31 pixdim 0", lambda f: patched(f / "x.nii", *NO_FORM, (PIXDIM + 4, 0, "f4")), REFUSED, "sizes above 0 mm"),
    ("32 no codes", lambda f: patched(f / "x.nii", *NO_FORM), READ, "its orientation is unknown"),
    (
        "33 mirrored sform and qform",
        lambda f: patched(f / "x.nii", (QFORM_CODE, 1, "i2"), (SROW_X + 4, 1, "f4")),
        READ,
        r"its sform \(SRA\) and qform \(SLA\) lie up to 16 mm apart",
    ),
    ("34 sheared", lambda f: patched(f / "x.nii", (SROW_X, 0.5, "f4")), READ, "not at right angles"),
    ("35 1e-6 mm", lambda f: save(f / "x.nii", affine=np.diag([1e-6] * 3 + [1])), REFUSED, "perhaps metres or micro"),
    ("36 1000 mm", lambda f: save(f / "x.nii", affine=np.diag([1000] * 3 + [1])), REFUSED, "0.001 to 100 mm, got 1000"),
    ("37 LPS storage", lambda f: save(f / "x.nii", affine=np.diag([-2.0, -2, 3, 1])), READ, None),
    ("38 symlink loop", lambda f: linked(f, f / "x.nii"), SKIPPED, "a link that leads nowhere"),
    ("38 loop of folders", lambda f: linked(f, f, "again"), SKIPPED, "a link to a folder"),
    ("39 symlink out of the root", outside, SKIPPED, "a link that leads out of the folder"),
    ("40 directory named .nii.gz", lambda f: (f / "x.nii.gz").mkdir(), SKIPPED, "a folder, in spite of its name"),
    ("40 FIFO named .nii.gz", lambda f: os.mkfifo(f / "x.nii.gz"), SKIPPED, "no regular file but a pipe"),
    ("41 unreadable", unreadable, REFUSED, "Permission denied"),
    ("42 .hdr without .img", pair, REFUSED, "the .img of x.hdr is missing"),
    ("42 .img without .hdr", lambda f: (f / "x.img").write_bytes(b"\0\1"), SKIPPED, "whose .hdr is missing"),
    ("42 Analyze", analyze, REFUSED, "an Analyze file, which does not tell its orientation: convert it to NIfTI"),
    ("43 no extension", lambda f: renamed(f, "x"), READ, None),
    ("44 odd name", lambda f: renamed(f, "x [1] Ü $@% ٣.NII"), READ, None),
    ("45 the same name", lambda f: save(f / "two" / "good.nii"), READ, None),
    ("46 slice missing", lambda f: series(f, lambda data, k: k != 2), REFUSED, "missing: 1, between series-006"),
    ("46 slices uneven", lambda f: series(f, uneven), REFUSED, r"at equal distances, got 1\.92 to 3\.84 mm"),
    ("48 no geometry", lambda f: series(f, photographs), REFUSED, "position of every slice, got none for 7 of 7"),
    ("48 segmentation", lambda f: object_of(f, SegmentationStorage), SKIPPED, "expected a scan, got a segmentation"),
    ("48 report", lambda f: no_image(f, BasicTextSRStorage), SKIPPED, "another DICOM object .Basic Text SR"),
    ("48 PDF", lambda f: no_image(f, EncapsulatedPDFStorage), SKIPPED, "another DICOM object .Encapsulated PDF"),
    ("48 ECG", lambda f: no_image(f, TwelveLeadECGWaveformStorage), SKIPPED, "another DICOM object .12-lead ECG"),
    ("48 plan", lambda f: no_image(f, RTPlanStorage), SKIPPED, "another DICOM object .RT Plan"),
    ("48 contours", lambda f: no_image(f, RTStructureSetStorage), SKIPPED, "another DICOM object .RT Structure Set"),
    ("49 truncated pixels", lambda f: series(f, cut_short), REFUSED, r"expected 144 bytes of pixels .*, got 124"),
    ("50 DICOMDIR that leads out", lambda f: index(f, "DICOMDIR"), SKIPPED, "the files themselves are searched"),
    ("50 the same by another name", lambda f: index(f, "x.dcm"), SKIPPED, "a DICOMDIR: files are found by looking"),
    ("  NRRD", lambda f: (f / "x.nrrd").write_bytes(b"NRRD0004\n"), SKIPPED, "an NRRD image: convert it to NIfTI"),
    ("  MetaImage", lambda f: (f / "x.mha").write_text("ObjectType = Image"), SKIPPED, "a MetaImage: convert it"),
    ("  a side file", lambda f: (f / "._good.nii").write_bytes(b"\0\5\x16\7"), SKIPPED, "a side file of macOS"),
]


@pytest.fixture
def transform():
    set_track_meta(True)
    return Compose(
        [
            LoadImaged("image", reader="monai_llmboost.data.ScanReader"),
            EnsureChannelFirstd("image"),
            CheckVolumed("image", min_size=4),
        ]
    )


def root(error):
    while error.__cause__ is not None:  # Compose wraps what a transform raises
        error = error.__cause__
    return error


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize(("row", "make", "outcome", "words"), CASES, ids=[case[0].strip() for case in CASES])
def test_bad_input_fails_one_case_only(tmp_path, transform, row, make, outcome, words):
    if row.startswith("41") and os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = tmp_path / "scans"
    save(folder / "good.nii", GOOD)
    make(folder)
    scans, skipped = find_scans(folder)
    outcomes = {file.path.name: (SKIPPED, file.reason) for file in skipped}
    for scan in scans:
        if scan.refused:
            outcomes[scan.name] = (REFUSED, scan.refused)
            assert scan.refused_kind in REFUSED_KINDS
            continue
        files = [str(file) for file in scan.files]
        try:
            image = transform({"image": files[0] if len(files) == 1 else files})["image"]
        except Exception as error:
            outcomes[scan.name] = (REFUSED, str(root(error)))
            assert root(error).kind in REFUSED_KINDS
            continue
        assert np.array_equal(image[0], GOOD)
        assert set(scan.warnings) <= set(image.meta["warnings"].splitlines())
        outcomes[scan.name] = (READ, image.meta["warnings"].replace("\n", " | "))
    assert outcomes.pop("good.nii") == (READ, ""), "the good case is read"
    ((became, said),) = outcomes.values()
    assert became == outcome, said
    assert re.search(words, said) if words else said == ""
    assert "\n" not in said
    assert str(tmp_path) not in said, "a path may name a patient"


def test_reading_refuses_what_finding_refuses(tmp_path):
    """The reader checks again what the search checked."""
    for row, make, outcome, words in CASES:
        folder = tmp_path / re.sub(r"\W", "-", row)
        folder.mkdir()
        if outcome != REFUSED or row.split()[0] in ("20", "22", "41"):  # known from voxels or permissions only
            continue
        make(folder)
        (file, *_) = sorted(folder.iterdir())
        reader = ScanReader()
        with pytest.raises(ValueError, match=words if "dcm" not in row else "."):
            reader.get_data(reader.read(file))


def kinds_given():
    """Return for each call in the package that refuses a scan its place and the words that may be the kind."""
    package = Path(monai_llmboost.__file__).parent
    for file in sorted([*package.glob("data/scans/**/*.py"), *package.glob("inference/*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                if node.func.id == "RefusedScan" or (node.func.id in ("Scan", "Stack") and "refused" in given):
                    kind = given.get("kind", given.get("refused_kind"))
                    words = [part for part in ast.walk(kind) if isinstance(part, ast.Constant)] if kind else None
                    yield f"{file.name}:{node.lineno}", words and [word.value for word in words]


def test_every_refusal_has_a_listed_kind():
    given = dict(kinds_given())
    assert len(given) > 50
    assert not [place for place, words in given.items() if words is None]
    assert {word for words in given.values() for word in words} <= {*REFUSED_KINDS}
