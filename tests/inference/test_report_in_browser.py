# SPDX-License-Identifier: Apache-2.0
import io
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from report_rows import ROWS, png, row, run_of

from monai_llmboost.inference.page import report
from monai_llmboost.inference.page.report import write_report
from monai_llmboost.inference.page.viewer import Viewer, viewer_html

HOSTILE = "\"><script>window.hacked=1</script></script></template><img src=x onerror='window.hacked=1'>&amp;{{ 7*7 }}"


@pytest.fixture
def written(tmp_path):
    """Writes a report into this test's folder."""

    def write(rows=ROWS, skipped=(), viewers=(), **changes):
        write_report(tmp_path / "report.html", rows, run_of(rows, **changes), skipped, viewers)
        return tmp_path / "report.html"

    return write


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the PATH to open the page in")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Open a page; in the end it must have sent no request and logged no error."""
    contexts, problems = [], []

    def open_page(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        # That nilearn's viewer reads single pixels back is no trouble.
        page.on("console", lambda message: "readback" in message.text or problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        mine = ("data:", "about:srcdoc", path.as_uri())
        page.on("request", lambda request: request.url.startswith(mine) or problems.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def cases(page):
    # Not the inner text: of rows that are far off, or were sorted this moment, the browser lays none out.
    return page.locator("#cases tbody tr:not([hidden]) th bdi").all_text_contents()


def heading(page, name):
    return page.locator("#cases thead th", has_text=name)


def test_sorting_by_a_probability(written, opened):
    page = opened(written())
    button = heading(page, "malignant").locator("button")
    button.click()
    assert cases(page) == ["case-10", "case-2", "case-1", "case-3", "refused"]
    assert heading(page, "malignant").get_attribute("aria-sort") == "descending"
    button.click()
    assert cases(page) == ["case-3", "case-1", "case-2", "case-10", "refused"]
    assert heading(page, "malignant").get_attribute("aria-sort") == "ascending"
    heading(page, "benign").locator("button").click()
    assert cases(page) == ["case-3", "case-1", "case-2", "case-10", "refused"]
    assert heading(page, "malignant").get_attribute("aria-sort") == "none"


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("No.", ["case-10", "case-2", "case-1", "refused", "case-3"]),
        ("Case", ["case-1", "case-2", "case-3", "case-10", "refused"]),
        ("Predicted", ["case-2", "case-1", "case-3", "case-10", "refused"]),
        ("Warnings", ["refused", "case-10", "case-1", "case-2", "case-3"]),
    ],
)
def test_sorting_by_keyboard(written, opened, name, order):
    page = opened(written())
    heading(page, name).locator("button").focus()
    page.keyboard.press("Enter")
    assert cases(page) == order


def test_searching_and_choosing(written, opened):
    page = opened(written())
    page.get_by_label("with warnings").check()
    page.get_by_text("3 of 5 cases").wait_for()
    assert cases(page) == ["case-10", "case-1", "refused"]
    page.get_by_label("Search").fill("WARNING  case")
    page.get_by_text("2 of 5 cases").wait_for()
    assert cases(page) == ["case-10", "case-1"]
    page.get_by_label("refused", exact=True).check()
    page.get_by_label("Search").fill("")
    page.get_by_text("1 of 5 cases").wait_for()
    assert cases(page) == ["refused"]
    assert page.locator("#cases tbody tr").evaluate_all("rows => rows.filter(row => row.offsetHeight).length") == 1
    page.get_by_label("all", exact=True).check()
    page.get_by_text("5 cases", exact=True).wait_for()


@pytest.mark.parametrize("where", [{}, {"viewport": {"width": 390, "height": 800}}])
def test_readable_without_javascript_and_on_a_phone(written, opened, where):
    page = opened(written(), java_script_enabled=False, **where)
    assert cases(page) == [row.case for row in ROWS]
    assert not page.locator("#filter").is_visible()
    assert page.get_by_text("expected one volume, got 3").is_visible()
    # Rows and cells stay a table for a screen reader, though they are laid out as grids.
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = Counter(node["role"]["value"] for node in tree if not node["ignored"])
    empty_cells = 2 if where else 0  # are left out on a phone, as are the headings
    assert (roles["table"], roles["rowheader"], roles["cell"]) == (1, 5, 4 * 8 + 6 - empty_cells)


def test_hostile_text_stays_text(written, opened):
    names = [HOSTILE, "\u202egnp.exe", "line\nbreak", "no utf-8 \udcff", "é 中 ok"]
    rows = [
        row(name, 0.5, [name], predicted=name, modality=name, series_uid=name, saliency={name: name, "preview": "gone"})
        for name in names
    ] + [row("refused", refused=HOSTILE)]
    page = opened(
        written(
            rows,
            [(name, HOSTILE) for name in names],
            class_names=[HOSTILE, "b"],
            bundle=HOSTILE,
            task={HOSTILE: HOSTILE},
        ),
    )
    assert cases(page) == [HOSTILE, "\\u202egnp.exe", "line\\nbreak", "no utf-8 \\udcff", "é 中 ok", "refused"]
    assert page.evaluate("[window.hacked, document.querySelectorAll('img[src=x]').length]") == [None, 0]
    assert page.locator("td.predicted bdi").first.text_content() == HOSTILE
    assert HOSTILE in page.locator(".reason").text_content()
    page.get_by_text("0 skipped files").click()
    assert page.locator(".files li").all_text_contents()[:2] == [HOSTILE, "\\u202egnp.exe"]
    heading(page, "Case").locator("button").click()


def test_previews_lie_inside_up_to_the_budget(written, opened, tmp_path, monkeypatch):
    for name, width in (("one", 300), ("two #?%", 301), ("three", 302)):
        (tmp_path / f"{name}.png").write_bytes(png(width, 100))
    rows = [row(name, 0.5, saliency={"preview": f"{name}.png"}) for name in ("one", "two #?%", "three", "lost")]
    monkeypatch.setattr(report, "PREVIEW_BUDGET", 2.5 * len(png(300, 100)) * 4 / 3)
    page = opened(written([*rows, row("none", 0.5)]))
    assert page.locator("a[data-preview]").count() == 2
    assert page.locator("td a").evaluate_all("links => links.map(a => a.getAttribute('href'))") == [
        "./one.png",
        "./two%20%23%3F%25.png",
        "./three.png",
    ]
    assert page.get_by_text("those of 1 others are files next to it").is_visible()
    shown = page.locator("dialog[open] img")
    page.locator("a[data-preview]").first.focus()
    page.keyboard.press("Enter")
    expect(shown).to_have_js_property("naturalWidth", 300)
    page.keyboard.press("ArrowRight")
    expect(shown).to_have_js_property("naturalWidth", 301)
    assert page.locator("dialog h2").inner_text() == "two #?%"
    page.keyboard.press("Escape")
    assert shown.count() == 0
    # The event that a dialog closed comes a moment after it did.
    expect(page.locator("td a[href='./two%20%23%3F%25.png']")).to_be_focused()


def picture(page):
    """The viewer's canvas as it stands on the screen, (height, width, 3)."""
    frame = page.frame_locator("#viewer iframe")
    frame.locator("canvas").wait_for()
    page.wait_for_timeout(300)
    return np.asarray(Image.open(io.BytesIO(frame.locator("canvas").screenshot())).convert("RGB"), dtype=float)


def test_the_viewer_opens_on_demand_and_draws(written, opened):
    volume = np.random.default_rng(0).random((9, 10, 11)).astype(np.float32)
    relevance = np.zeros_like(volume)
    relevance[3:5, 4:6, 5:7] = 1
    viewers = [Viewer("case-2", viewer_html(volume, np.eye(4), None, "x")),
               Viewer("case-1", viewer_html(volume, np.eye(4), relevance, "x"))]  # fmt: skip
    page = opened(written(viewers=viewers))
    assert page.locator("#viewer iframe").get_attribute("srcdoc") is None
    page.locator("#viewer summary").click()
    plain = picture(page)
    assert plain.std() > 20
    page.frame_locator("#viewer iframe").locator("canvas").focus()
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    assert np.abs(picture(page) - plain).mean() > 1, "the planes were moved by keys"
    page.locator("tr", has_text="case-1").get_by_role("button", name="three planes").focus()
    page.keyboard.press("Enter")
    assert page.locator("#viewer iframe").get_attribute("title") == "Three planes of case-1"
    warm = [(image[..., 0] - image[..., 2] > 60).mean() for image in (plain, picture(page))]
    assert warm[0] == 0
    assert warm[1] > 0.005, "relevance is drawn in colour"


def test_print_shows_a_table_and_no_controls(written, opened):
    page = opened(written(), color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible()
    styles = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('thead')).display]"
    )
    assert page.evaluate(styles) == ["rgb(255, 255, 255)", "table-header-group"]


def test_a_viewer_next_to_the_page_opens_in_a_page_of_its_own(written, opened, monkeypatch):
    monkeypatch.setattr(report, "VIEWER_BUDGET", 0)
    html = viewer_html(np.random.default_rng(0).random((9, 10, 11)), np.eye(4), None, "x")
    path = written(viewers=[Viewer("case-2", html)])
    page = opened(path)
    assert page.locator("#viewer").count() == 0
    assert page.locator("tr", has_text="case-2").get_by_role("link", name="three planes").is_visible()
    viewer = opened(path.parent / "viewers" / "case-2.html")
    viewer.locator("canvas").wait_for()
    viewer.wait_for_timeout(300)
    drawn = np.asarray(Image.open(io.BytesIO(viewer.locator("canvas").screenshot())).convert("RGB"), dtype=float)
    assert drawn.std() > 20


def test_previews_of_either_kind_are_shown(written, opened, tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "new.webp")
    (tmp_path / "old.png").write_bytes(png(301, 100))
    page = opened(written([row(name, 0.5, saliency={"preview": name}) for name in ("new.webp", "old.png")]))
    page.locator("a[data-preview]").first.click()
    for width in (300, 301):
        expect(page.locator("dialog[open] img")).to_have_js_property("naturalWidth", width)
        page.keyboard.press("ArrowRight")


STRUCTURES = {1: "shell", 2: "core"}


def masked(case, shell, **changes):
    """A case of a segmentation with this volume of the first structure, in mm3."""
    volumes = {"shell": shell, "core": 12.5}
    return row(case, 0.5, probabilities=[], predicted="", mask=f"masks/{case}.nii.gz", volume_mm3=volumes, **changes)


def test_a_page_of_masks_sorts_by_volume_and_its_viewer_hides_them(written, opened):
    volume, label_map = np.random.default_rng(0).random((20, 22, 24)), np.zeros((20, 22, 24), np.uint8)
    label_map[5:15, 5:15, 5:15] = 1
    html = viewer_html(volume, np.eye(4), None, "x", label_map, STRUCTURES)
    refused = row("bad", None, mask="", volume_mm3={}, thumbnail="")
    rows = [masked("small", 999.0), masked("large", 123_456.0, dicom={"segmentation": "dicom/a.dcm"}), refused]
    page = opened(written(rows, viewers=[Viewer("large", html)], structures={"1": "shell", "2": "core"}))
    assert page.locator(".legend bdi").all_inner_texts() == ["shell", "core"]
    assert page.locator(".histograms").count() == 0
    page.get_by_role("button", name="shell").click()
    cells = page.locator("tbody tr").nth(0).locator("td.p")
    expect(cells).to_have_text(["123 ml", "12.5 mm³"])  # waits until the table is drawn
    assert page.locator("tbody tr").nth(2).locator(".reason").count() == 1  # refused cases come last
    assert page.locator("tbody a").evaluate_all("links => links.map(a => a.getAttribute('href'))") == [
        *("./masks/large.nii.gz", "./dicom/a.dcm", "./masks/small.nii.gz")
    ]
    page.locator(".view-button").click()

    def orange():
        seen = picture(page)
        return (seen[..., 0] - seen[..., 2] > 40).mean()

    switch = page.frame_locator("#viewer iframe").get_by_role("checkbox", name="structures")
    drawn = orange()
    assert drawn > 0.005
    switch.uncheck()
    assert orange() == 0
    switch.check()
    assert orange() == pytest.approx(drawn)


def test_masks_without_their_volumes_are_refused(written):
    with pytest.raises(
        ValueError, match=r"'a' has the volumes \{'shell': 1.0, 'core': 12.5\}, not finite ones of shell"
    ):
        written([masked("a", 1.0)], structures={"1": "shell", "3": "rind"})
