# SPDX-License-Identifier: Apache-2.0
import gzip
import json
import os
import socket
import time

import numpy as np
import pytest
from dicom_files import dataset, random_volume, write_series
from dicom_files import save as save_dicom
from nifti_files import save

from monai_llmboost.data import find_scans


def names(*inputs, **options):
    scans, _ = find_scans(inputs, **options)
    assert not [scan.refused for scan in scans if scan.refused]
    assert all(file.is_file() for scan in scans for file in scan.files)
    return [scan.name for scan in scans]


def reasons(*inputs, **options):
    return {file.path.name: file.reason for file in find_scans(inputs, **options)[1]}


def test_finds_folders_files_and_patterns(tmp_path):
    for name in ("a/scan.nii.gz", "b/scan.nii.gz", "b/deep/upper.nii", "odd [name] ü.nii"):
        save(tmp_path / name)
    (tmp_path / "b/deep/upper.nii").rename(tmp_path / "b/deep/UPPER.NII")
    (tmp_path / "b/notes.txt").write_text("x")
    assert names(tmp_path) == ["a/scan.nii.gz", "b/deep/UPPER.NII", "b/scan.nii.gz", "odd [name] ü.nii"]
    assert reasons(tmp_path) == {"notes.txt": "a text file"}
    assert names(tmp_path / "a" / "scan.nii.gz") == ["scan.nii.gz"]
    assert names(tmp_path / "odd [name] ü.nii") == ["odd [name] ü.nii"]
    assert names(tmp_path / "*" / "scan*") == ["a/scan.nii.gz", "b/scan.nii.gz"]
    assert names(f"{tmp_path}/**/*.NII") == ["b/deep/UPPER.NII"]
    assert names(tmp_path / "[ab]") == ["a/scan.nii.gz", "b/deep/UPPER.NII", "b/scan.nii.gz"], "folders by a pattern"
    assert [scan.name for scan in find_scans(str(tmp_path / "a"))[0]] == ["scan.nii.gz"], "a single input needs no list"


def test_brackets_in_folder_names_are_literal(tmp_path):
    save(tmp_path / "scan[1]" / "right.nii")
    save(tmp_path / "scan1" / "wrong.nii")
    assert names(tmp_path / "scan[1]" / "*.nii") == ["right.nii"]


def test_nothing_found(tmp_path):
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "nothing", tmp_path / "*.nii"):
        with pytest.raises(
            FileNotFoundError, match=r"no NIfTI or DICOM scans at \S+: give a folder, a file, a pattern"
        ):
            find_scans([where])
    with pytest.raises(FileNotFoundError, match="no NIfTI or DICOM scans at all"):
        find_scans([])
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match=r"only 1 other file\(s\), such as x.png, a PNG picture"):
        find_scans([tmp_path])
    save(tmp_path / "good" / "x.nii")
    with pytest.raises(FileNotFoundError, match=r"scans at .*nothing:"):  # a typing error must not lose cases
        find_scans([tmp_path / "good", tmp_path / "nothing"])


def test_content_decides_not_the_name(tmp_path):
    save(tmp_path / "a.nii.gz").rename(tmp_path / "a.img.txt")
    (write_series(tmp_path, random_volume((5, 5, 2)), suffix=".nii")[0]).rename(tmp_path / "slice")
    scans, skipped = find_scans(tmp_path)
    assert sorted(scan.format for scan in scans) == ["DICOM", "NIfTI"]
    assert not skipped


def test_dicom_series_are_named_by_their_folders(tmp_path):
    volume = random_volume((5, 6, 4))
    write_series(tmp_path / "patients" / "one" / "ct", volume)
    write_series(tmp_path / "patients" / "two", volume, series="other")
    (tmp_path / "patients" / "two" / "DICOMDIR").write_bytes(b"")
    save(tmp_path / "patients" / "three.nii")
    assert names(tmp_path / "patients") == ["one/ct", "three.nii", "two"]
    assert names(tmp_path / "patients" / "two") == ["two"], "the folder itself"
    assert names(tmp_path / "patients" / "two", tmp_path / "patients" / "one") == ["two", "one/ct"]
    slices = sorted((tmp_path / "patients" / "two").glob("*.dcm"))
    assert names(*slices) == ["two"], "as a shell gives them for a pattern"
    assert "index of DICOM files" in reasons(tmp_path / "patients")["DICOMDIR"]
    scan = find_scans(tmp_path / "patients" / "two")[0][0]
    assert (scan.format, scan.shape, len(scan.files)) == ("DICOM", (5, 6, 4), 4)


def test_several_inputs_give_different_names(tmp_path):
    for name in ("x/data/s.nii", "y/data/s.nii", "z/s.nii"):
        save(tmp_path / name)
    x, y = tmp_path / "x" / "data", tmp_path / "y" / "data"
    assert names(x, y, tmp_path / "z") == ["data/s.nii", "data-2/s.nii", "z/s.nii"]
    assert names(x / "s.nii", y / "s.nii") == ["x/data/s.nii", "y/data/s.nii"], "as a shell gives them for a pattern"
    assert names(x / "*.nii", x / "s.nii") == ["s.nii"], "one file is one case"


def test_input_inside_another_adds_no_case(tmp_path):
    save(tmp_path / "x" / "deep" / "s.nii")
    save(tmp_path / "x" / "t.nii")
    assert names(tmp_path / "x", tmp_path / "x" / "deep") == ["x/deep/s.nii", "x/t.nii"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("=1+1.nii", "./=1+1.nii"),
        ("+a.nii", "./+a.nii"),
        ("-a.nii", "./-a.nii"),
        ("@a.nii", "./@a.nii"),
        (" =a.nii", "./ =a.nii"),
        ("\t=a.nii", "\\t=a.nii"),
        ("a\nb.nii", "a\\nb.nii"),
        ("a\x1b[2Jb.nii", "a\\x1b[2Jb.nii"),
        ("$(x) {y} %s.nii", "$(x) {y} %s.nii"),
        (os.fsdecode(b"caf\xe9.nii"), "caf\\xe9.nii"),
    ],
)
def test_names_are_no_formulas_and_one_line(tmp_path, name, shown):
    save(tmp_path / "x.nii").rename(tmp_path / name)
    assert names(tmp_path) == [shown]
    shown.encode("utf-8")


def test_escaped_names_stay_different(tmp_path):
    for name in ("a\nb.nii", "a\\nb.nii"):
        save(tmp_path / "x.nii").rename(tmp_path / name)
    assert len(set(names(tmp_path))) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "a/s.nii\nb/s.nii\n"),
        ("list.txt", "\ufeffa/s.nii\r\n\r\nb/s.nii\r\n"),
        ("LIST.TXT", "./a/../a/s.nii\n b/s.nii "),
        ("list.csv", "a/s.nii\nb/s.nii\n"),
        ("list.csv", "label,Image,age\r\n0,a/s.nii,61\r\n1,b/s.nii,48\r\n"),
        ("list.csv", '\ufeffimage;label\n"a/s.nii";0\nb/s.nii;1\n'),
        ("list.json", json.dumps(["a/s.nii", "b/s.nii"])),
        ("list.json", json.dumps([{"image": "a/s.nii", "label": 0}, {"image": "b/s.nii"}])),
        ("list.txt", "a\nb\n"),
    ],
)
def test_lists(tmp_path, name, content):
    for folder in ("a", "b", "c"):
        save(tmp_path / folder / "s.nii")
    (tmp_path / name).write_bytes(content.encode())
    assert names(tmp_path / name) == ["a/s.nii", "b/s.nii"]


def test_list_may_name_files_elsewhere_or_missing(tmp_path):
    for name in ("one/p/t.nii", "one/q/t.nii"):
        save(tmp_path / name)
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "l.txt"
    path.write_text(f"../one/p/t.nii\n{tmp_path}/one/q/t.nii\n../one/r.nii\n../one/p/t.nii\n")
    scans, _ = find_scans(path)
    assert [scan.name for scan in scans] == ["p/t.nii", "q/t.nii", "r.nii"]
    assert [bool(scan.refused) for scan in scans] == [False, False, True]
    assert "a file that is there, got none" in scans[2].refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"a,b\n1,2\n", "the list has 2 columns, none of them called 'image'"),
        ("l.json", b"{}", "a JSON list of paths, or of objects with 'image'"),
        ("l.json", b"[1]", "a JSON list of paths"),
        ("l.json", b"[", "is not a list of paths in UTF-8"),
        ("l.txt", b"\xff\xfe", "is not a list of paths in UTF-8"),
        ("l.txt", b"\n", "the list .* is empty"),
        ("l.csv", b"", "the list .* is empty"),
        ("l.csv", b"image\n", "the list .* is empty"),
    ],
)
def test_invalid_lists(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_scans(tmp_path / name)


def test_links_are_followed_only_on_request_and_never_in_circles(tmp_path):
    inside = tmp_path / "in"
    save(inside / "real" / "s.nii")
    save(tmp_path / "out" / "far.nii")
    (inside / "same.nii").symlink_to("real/s.nii")
    (inside / "far.nii").symlink_to(tmp_path / "out" / "far.nii")
    (inside / "outer").symlink_to(tmp_path / "out")
    (inside / "real" / "up").symlink_to(inside)
    (inside / "broken.nii").symlink_to(inside / "nothing")
    assert names(inside) == ["real/s.nii", "same.nii"]
    assert reasons(inside) == {
        "far.nii": "a link that leads out of the folder: set follow_links to follow it",
        "outer": "a link to a folder: set follow_links to search it too",
        "up": "a link to a folder: set follow_links to search it too",
        "broken.nii": "a link that leads nowhere",
    }
    assert names(inside, follow_links=True) == ["far.nii", "real/s.nii"], "each file once"
    assert reasons(inside, follow_links=True)["up"] == "a link to a folder that is searched already"
    assert names(inside / "*.nii") == ["same.nii"]
    assert "leads out" in reasons(inside / "*.nii")["far.nii"]
    assert names(inside / "far.nii") == ["far.nii"], "a named link is followed"
    (tmp_path / "door").symlink_to(inside)
    assert names(tmp_path / "door") == ["real/s.nii", "same.nii"], "also to a folder"


def test_output_folder_is_left_out(tmp_path):
    for name in ("a.nii", "out/map.nii", "b/out/kept.nii"):
        save(tmp_path / name)
    out = tmp_path / "out"
    assert names(tmp_path, leave_out=[out]) == ["a.nii", "b/out/kept.nii"]
    assert names(tmp_path / "**" / "*.nii", leave_out=[out]) == ["a.nii", "b/out/kept.nii"]
    assert names(tmp_path / "*", leave_out=[out]) == ["a.nii", "b/out/kept.nii"]
    assert names(out / "map.nii", leave_out=[out]) == ["map.nii"], "a named file is read"
    assert names(tmp_path / "b", leave_out=[tmp_path]) == ["out/kept.nii"]
    for where in (out, out / "*.nii"):
        with pytest.raises(ValueError, match=r"the output folder is .*out, which is also searched"):
            find_scans(where, leave_out=[out])


def test_special_files_are_not_opened(tmp_path, monkeypatch):
    save(tmp_path / "good.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket.nii")
    assert names(tmp_path) == ["good.nii"]
    assert all("no regular file" in reason for reason in reasons(tmp_path).values())
    assert len(reasons(tmp_path)) == 2


def test_side_folders_are_not_searched(tmp_path):
    save(tmp_path / "a.nii")
    save(tmp_path / ".git" / "annex" / "a.nii")
    save(tmp_path / "__MACOSX" / "a.nii")
    assert names(tmp_path) == ["a.nii"]


def test_unreadable_file_with_the_name_of_a_scan_is_a_refused_case(tmp_path, monkeypatch):
    from monai_llmboost.data.scans import find

    for name in ("a.nii.gz", "a.DCM", "a.bin", "b.nii"):
        save(tmp_path / "x.nii").rename(tmp_path / name)
    look = find.read_first_bytes

    def forbidden(path):
        if path.name.startswith("a."):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(find, "read_first_bytes", forbidden)
    scans, skipped = find_scans(tmp_path)
    denied = "expected a file that can be read, got: Permission denied: see to its permissions, or copy it again"
    assert {scan.name: (scan.format, scan.refused) for scan in scans} == {
        "a.DCM": ("DICOM", denied),
        "a.nii.gz": ("NIfTI", denied),
        "b.nii": ("NIfTI", ""),
    }
    assert [file.reason for file in skipped] == ["cannot be read: Permission denied"]


def test_many_other_files_are_fast(tmp_path):
    save(tmp_path / "good.nii")
    for index in range(1000):
        (tmp_path / f"{index}.log").write_bytes(b"junk")
    start = time.perf_counter()
    scans, skipped = find_scans(tmp_path)
    assert (len(scans), len(skipped)) == (1, 1000)
    assert time.perf_counter() - start < 5


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    for name in ("b/2.nii", "a/1.nii", "c.nii"):
        save(tmp_path / name)
    ordered, scandir = names(tmp_path), os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(tmp_path) == ordered == ["a/1.nii", "b/2.nii", "c.nii"]


def test_results_of_an_earlier_run_are_no_scans(tmp_path):
    save(tmp_path / "x.nii")
    earlier = tmp_path / "sub" / "out"
    (earlier / "journal").mkdir(parents=True)
    (earlier / "run.json").write_text("{}")
    save(earlier / "saliency.nii.gz")
    scans, skipped = find_scans(tmp_path)
    assert [scan.name for scan in scans] == ["x.nii"]
    assert [(file.path, file.reason) for file in skipped] == [(earlier, "the folder of an earlier run's results")]
    with pytest.raises(FileNotFoundError, match=r"only 1 other file\(s\), such as out, the folder of an earlier run"):
        find_scans(earlier)


@pytest.mark.parametrize("spoilt", [lambda whole: b"", lambda whole: whole[:300], lambda whole: bytes(len(whole))])
def test_unread_files_next_to_a_series_give_a_warning(tmp_path, spoilt):
    """Without its first or last slice, a series looks complete."""
    volume = random_volume()
    paths = write_series(tmp_path / "a", volume)
    write_series(tmp_path / "b", volume, series="other")
    (tmp_path / "b" / "notes.txt").write_text("not a scan")
    paths[0].write_bytes(spoilt(paths[0].read_bytes()))
    scans, _ = find_scans(tmp_path)
    warnings = {scan.name: scan.warnings for scan in scans if not scan.refused}
    assert warnings == {
        "a": (
            "files next to it that cannot be read: 1; if they are of its series, its first or last slices are missing",
        ),
        "b": (),
    }


SPOILT = {
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "error page": lambda whole: b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
    "error in words": lambda whole: b"error: object not found\n",
    "a few bytes": lambda whole: whole[:100],
    "half a header": lambda whole: whole[:400],
    "noise": lambda whole: bytes((17 * i * i) % 251 for i in range(900)),
    "packed": gzip.compress,
    "pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("style", ["IM{:04d}", "I{}", "1.2.840.{}", "{}", "slice{}.mr", "{}.dcm", "{}.IMA"])
@pytest.mark.parametrize("name", SPOILT)
def test_remains_of_an_end_slice_give_a_warning(tmp_path, name, style):
    for end in (0, -1):
        folder = tmp_path / str(end)
        paths = [
            path.rename(path.with_name(style.format(k + 1)))
            for k, path in enumerate(write_series(folder, random_volume()))
        ]
        paths[end].write_bytes(SPOILT[name](paths[end].read_bytes()))
        scans, _ = find_scans(folder)
        (warnings,) = (scan.warnings for scan in scans if len(scan.files) > 1)
        assert "files next to it that cannot be read: 1;" in " ".join(warnings)


@pytest.mark.parametrize("where", ["nowhere", "out"])
def test_link_instead_of_a_slice_gives_a_warning(tmp_path, where):
    paths = write_series(tmp_path / "a", random_volume())
    target = paths[0].rename(tmp_path / "elsewhere")
    (tmp_path / "a" / paths[0].name).symlink_to(target if where == "out" else tmp_path / "gone")
    (scan,) = find_scans(tmp_path / "a")[0]
    assert "files next to it that cannot be read: 1;" in " ".join(scan.warnings)


NEVER_SLICES = {
    "LICENSE": b"Copyright 2026", "README": b"words", "SHA256SUMS": b"0123  IM1", "report1.txt": b"words",
    "index2.html": b"<html></html>", "dose3.json": b"{}", "preview4.png": b"\x89PNG\r\n\x1a\n0", "x5.pdf": b"%PDF-1.7",
    "._IM0001": b"\0\x05\x16\x07", ".DS_Store": bytes(range(256)), "Thumbs.db": bytes(range(256)),
    "export6.zip": b"PK\x03\x04 and so on", "table7.csv": b"a,b\n1,2\n",
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER_SLICES)
def test_files_that_are_no_slices_give_no_warning(tmp_path, name):
    for k, path in enumerate(write_series(tmp_path, random_volume())):
        path.rename(path.with_name(f"IM{k:04d}"))
    (tmp_path / name).write_bytes(NEVER_SLICES[name])
    (scan,) = find_scans(tmp_path)[0]
    assert scan.warnings == ()


@pytest.mark.parametrize("kept", range(100, 1001, 30))
def test_truncated_end_slice_gives_a_warning(tmp_path, kept):
    paths = write_series(tmp_path, random_volume((20, 20, 6)))
    paths[-1].write_bytes(paths[-1].read_bytes()[:kept])
    for scan in find_scans(tmp_path)[0]:
        assert scan.refused or "cannot be read: 1" in " ".join(scan.warnings)


NO_SLICE = {
    "colours": {"PhotometricInterpretation": "RGB"},
    "a palette": {"PhotometricInterpretation": "PALETTE COLOR"},
    "three samples": {"SamplesPerPixel": 3},
    "32 bits": {"BitsAllocated": 32},
    "a segmentation": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
}


@pytest.mark.parametrize("name", NO_SLICE)
def test_other_images_of_a_series_give_a_warning(tmp_path, name):
    def change(data, k):
        for keyword, value in NO_SLICE[name].items() if k == 5 else ():
            setattr(data, keyword, value)

    write_series(tmp_path, random_volume(), change=change)
    ((scan,), (skipped,)) = find_scans(tmp_path)
    assert "files of its series that are no grey slices: 1; some of its slices may be missing" in scan.warnings
    assert skipped.reason.startswith("expected")


@pytest.mark.parametrize(
    "sop_class", ["1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.66", "1.3.46.670589.5.0.9"]
)
def test_presentation_state_in_a_series_gives_no_warning(tmp_path, sop_class):
    write_series(tmp_path, random_volume())
    data = dataset(np.zeros((2, 2), np.uint16), sop_class=sop_class, Rows=None, Columns=None)
    save_dicom(data, tmp_path / "state")
    ((scan,), (skipped,)) = find_scans(tmp_path)
    assert (scan.refused, scan.warnings) == ("", ())
    assert "another DICOM object" in skipped.reason


@pytest.mark.parametrize(
    ("name", "content", "lost"),
    [
        ("LAST", b"<html>", True), ("I7.dcm.part", b"DICOM", True), ("7.dcm.html", b"<html>", True),
        ("README", b"words", False), ("report.html", b"<html>", False), ("labels.csv", b"a,1", False),
    ],
)  # fmt: skip
def test_error_pages_and_partial_downloads_instead_of_a_slice(tmp_path, name, content, lost):
    write_series(tmp_path, random_volume())
    (tmp_path / name).write_bytes(content)
    ((scan,), _) = find_scans(tmp_path)
    assert bool(scan.warnings) == lost
