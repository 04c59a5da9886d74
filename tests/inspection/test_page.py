# SPDX-License-Identifier: Apache-2.0
import html
import re
from html.parser import HTMLParser

import pytest
from scan_lists import make_list, mr, save, write_list

from monai_llmboost.inspection import inspect_list
from monai_llmboost.inspection.page import report

HOSTILE = "<script>window.hacked=1</script>{{ 7*7 }}&amp;\u202e"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a list with refused scans, duplicates and a shortcut."""
    folder = tmp_path_factory.mktemp("page")
    path = make_list(folder, make=lambda n: mr(n, (14 + 2 * (n % 2), 16, 12)), count=40, spacing=(1, 1, 2))
    save(folder / "s2.nii.gz", mr(0, (14, 16, 12)), (1, 1, 2))
    (folder / "s5.nii.gz").write_bytes(b"no scan")
    found = inspect_list(path, folder / "out", progress=False)
    return found, found.page.read_text()


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


def test_problems_come_first(page):
    found, content = page
    text = text_of(content)
    places = [
        text.index(part) for part in ("Errors", "the same image", "Warnings", "shortcut: ", "Cases", "Distributions")
    ]
    assert places == sorted(places)
    assert all(sentence in text for sentence in (*found.findings.errors, *found.findings.warnings))


def test_cases_scans_refusals_duplicates_and_pictures(page):
    _, content = page
    text = " ".join(text_of(content).split())
    assert "cannot be used 0 1 1" in text
    assert "voxels median 14 x 16 x 12, from 14 x 16 x 12 to 16 x 16 x 12, 2 different" in text
    assert "s5.nii.gz format" in text
    assert "s0.nii.gz , s2.nii.gz" in text
    assert content.count('<img src="data:image/png;base64,') == 39
    assert content.count("<svg") == content.count("</svg>")
    assert 'aria-label="Spacing in mm: along x from 1 to 1, median 1' in content


def test_the_plan_has_values_and_reasons(tmp_path):
    found = inspect_list(make_list(tmp_path, count=30), tmp_path / "out", progress=False)
    text = " ".join(text_of(found.page.read_text()).split())
    assert "image_shape [1, 14, 16, 12] the shape of all scans" in text
    assert "No errors and no warnings." in text


def test_it_is_well_formed_and_sends_no_request(page):
    _, content = page
    open_tags, void = [], {"meta", "link", "img", "path", "use", "rect"}

    class Checked(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in void:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag not in void:
                assert open_tags.pop() == tag

    Checked().feed(content)
    assert open_tags == []
    assert "<script" not in content
    assert not re.search(r'(?:src|href)="(?!data:|#)', content)


def test_names_are_text(tmp_path):
    rows = []
    for number in range(20):
        save(tmp_path / f"s{number}.nii.gz", mr(number))
        rows.append({"image": f"s{number}.nii.gz", "label": ["x", HOSTILE][number % 2], "case": f"{HOSTILE}{number}"})
    found = inspect_list(write_list(tmp_path, rows, "a&b.csv"), tmp_path / "out", progress=False)
    content = found.page.read_text()
    assert "<script" not in content
    assert "{{ 7*7 }}" in content
    assert "\u202e" not in content
    assert "a&amp;b.csv" in content


def test_the_size_of_a_page_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "THUMBNAIL_BYTES", 30_000)
    found = inspect_list(make_list(tmp_path, count=24), tmp_path / "out", progress=False)
    assert 0 < found.page.read_text().count("data:image/png") < 24
