# SPDX-License-Identifier: Apache-2.0
import base64
import hashlib
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from report_rows import ROWS, row, run_of

from monai_llmboost.inference.page.report import write_report
from monai_llmboost.inference.page.viewer import Viewer, viewer_html


@pytest.fixture
def written(tmp_path):
    """Writes a report into this test's folder."""

    def write(rows=ROWS, skipped=(), viewers=(), **changes):
        write_report(tmp_path / "report.html", rows, run_of(rows, **changes), skipped, viewers)
        return tmp_path / "report.html"

    return write


class Tags(HTMLParser):
    """All tags with their attributes, and the text of scripts that run."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts = [], []
        self.runs = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.runs = tag == "script" and "type" not in dict(attributes)

    def handle_data(self, data):
        if self.runs:
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self.runs = False


def test_the_page_names_no_address_and_allows_its_own_scripts_alone(written):
    viewer = viewer_html(np.random.default_rng(0).random((4, 5, 6)), np.eye(4), None, "x")
    tags = Tags(written(viewers=[Viewer("case-2", viewer)]).read_text())
    for tag, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag not in ("link", "object", "embed", "base") or attributes == {"rel": "icon", "href": "data:,"}
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"data:|\./|$", attributes.get(name, "")), (tag, attributes[name][:80])
    (policy,) = [a["content"] for _, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    (own,) = tags.scripts
    for script in [own, *re.findall(r"<script>(.*?)</script>", viewer, re.DOTALL)]:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_everything_about_the_run_is_shown(written):
    rows = [row("a", 0.3, series_uid="1.2.3.4", modality="CT")]
    text = written(rows, skipped=[("notes.txt", "a text")], command="predict --input x").read_text()
    of_the_run = ["Research only; not for diagnosis", "cd" * 32, "predict --input x", "28, 28, 28"]
    of_the_case = ["1.2.3.4", "CT", "ab" * 32, "8 \xd7 9 \xd7 10", "0.7 \xd7 0.7 \xd7 5 mm", "0.300"]
    for shown in (*of_the_run, *of_the_case, "notes.txt", "a text (1)"):
        assert shown in text


def test_histograms_count_every_case_once(written):
    rows = [row(str(p), p) for p in (0.0, 0.049, 0.05, 0.51, 0.999, 1.0)] + [row("refused")]
    counts = re.findall(r"<title>(0\.\d\d to [01]\.\d\d: \d+)</title>", written(rows).read_text())
    assert counts == [
        *("0.00 to 0.05: 2", "0.45 to 0.50: 1", "0.95 to 1.00: 3"),  # benign: 0, 0.001, 0.49, 0.95, 0.951, 1
        *("0.00 to 0.05: 2", "0.05 to 0.10: 1", "0.50 to 0.55: 1", "0.95 to 1.00: 2"),
    ]


@pytest.mark.parametrize("wrong", [[0.5], [0.2, 0.3, 0.5], [float("nan"), 1.0]])
def test_probabilities_that_are_not_those_of_the_classes(written, wrong):
    with pytest.raises(
        ValueError, match=r"'a' has the probabilities .*, not 2 finite ones: give those of all classes in the order"
    ):
        written([row("a", 0.5, probabilities=wrong)])


def test_a_viewer_of_no_case(written):
    with pytest.raises(ValueError, match="there is a viewer of 'b', which is no case: give a case's name"):
        written([row("a", 0.5)], viewers=[Viewer("b", "")])


def test_a_page_that_fails_leaves_nothing_and_an_earlier_one_is_kept(written):
    first = written().read_text()
    with pytest.raises(TypeError):  # when half of it is written
        written([row("a", 0.5), row("b", 0.5, seconds=None)])
    folder = written(rows=[]).parent
    assert sorted(path.name for path in folder.iterdir()) == ["report.1.html", "report.html"]
    assert (folder / "report.1.html").read_text() == first


def test_viewers_beyond_the_budget_lie_next_to_the_page(written, monkeypatch):
    html = viewer_html(np.random.default_rng(0).random((4, 5, 6)), np.eye(4), None, "x")
    rows = [row("a", 0.5), row("b #1/../c", 0.5)]
    monkeypatch.setattr("monai_llmboost.inference.page.report.VIEWER_BUDGET", 1.5 * len(html))
    page = written(rows, viewers=[Viewer("a", html), Viewer("b #1/../c", html)])
    text = page.read_text()
    assert text.count('id="viewer-') == 1
    (address,) = re.findall(r'href="\./(viewers/[^"]*)" target="_blank"', text)
    (file,) = (page.parent / "viewers").rglob("*.html")
    assert file == page.parent / unquote(address)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', file.read_text())
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_a_class_has_its_probability_and_the_page_the_figures_of_the_weights(written):
    rows = [row("a", 0.51)]
    text = written(rows).read_text()
    assert re.search(r'<td class="predicted"><bdi>malignant</bdi> <span>0\.510</span></td>', text)
    assert "No figures on how well these weights perform were found" in text
    figures = {"evaluation": {"dataset": "x", "split": "test", "cases": 9, "auc": 0.5, "acc": 0.25}}
    assert (
        "Evaluated on 9 labelled cases (x, test split): AUC 0.500, ACC 0.250."
        in written(rows, figures=figures).read_text()
    )
