# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation, opened in a browser."""

import shutil

import numpy as np
import pytest

from monai_llmboost.engines.evaluation.cases import EvaluatedCases
from monai_llmboost.engines.evaluation.page.report import write_evaluation_page
from monai_llmboost.tasks import class_recalls, confusion_counts

HOSTILE = "\"><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>{{ 7*7 }}"
LONG = "a name of a class that does not fit anywhere" + "e" * 60


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser with")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the PATH to open the page in")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of random cases; in the end it must have sent no request and logged no error."""
    contexts, problems = [], []

    def open_page(names, **options):
        random = np.random.default_rng(0)
        labels = random.permutation(np.arange(90) % len(names))
        scores = random.dirichlet(np.ones(len(names)), 90)
        case_names = np.array([f"{names[0]}/{number}" for number in range(90)])
        file = tmp_path / "evaluation.html"
        write_evaluation_page(file, EvaluatedCases(scores, labels, case_names), {"data": names[0]}, numbers_of(
            scores, labels, names))  # fmt: skip
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        mine = ("data:", file.as_uri())
        page.on("request", lambda request: request.url.startswith(mine) or problems.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def numbers_of(scores, labels, names):
    """Numbers of an evaluation whose intervals are of no interest here."""
    threshold = 0.4 if len(names) == 2 else None
    recalls = class_recalls(scores, labels, threshold).tolist()
    numbers = {name: 0.5 for name in ("auc", "acc", "balanced_accuracy", "calibration_error")}
    if threshold is not None:
        numbers |= {"sensitivity": recalls[1], "specificity": recalls[0]}
    numbers |= {f"{name}_interval_95": [0.4, 0.6] for name in list(numbers)}
    if threshold is not None:
        numbers |= {"threshold": threshold, "positive_class": names[1]}
        numbers["validation"] = {"cases": 9, "sensitivity": 0.7, "specificity": 0.8}
    return numbers | {
        "recall": dict(zip(names, recalls)),
        "recall_interval_95": {name: [0.4, 0.6] for name in names},
        "calibration_error_if_calibrated": 0.05,
        "majority": 0.5,
        "caveats": ["A caveat."],
        "confusion_matrix": {"class_names": names, "counts": confusion_counts(scores, labels, threshold).tolist()},
    }


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("names", [["benign", LONG], [f"class {number}" for number in range(11)]])
def test_nothing_overflows(opened, names, width):
    page = opened(names, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('figure > svg text')].filter(text => {
      const [a, b] = [text.getBoundingClientRect(), text.closest('figure').getBoundingClientRect()];
      return a.left < b.left - 2 || a.right > b.right + 2; }).map(text => text.textContent)"""
    assert page.evaluate(outside) == []
    sizes = page.locator("figure > svg text").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().height)"
    )
    assert min(sizes) > 9, "legible, px"


def test_night_has_light_letters(opened):
    page = opened(["benign", "malignant"], color_scheme="dark")
    colour = "each => getComputedStyle(each).fill"
    text = page.locator("figure > svg text", has_text="malignant, 45 cases")
    assert text.evaluate(colour) == "rgb(228, 231, 234)"
    page.emulate_media(color_scheme="light")
    assert text.evaluate(colour) == "rgb(28, 33, 39)"


def test_hostile_names_stay_text(opened):
    page = opened([HOSTILE, "\u202egnp.exe"])
    assert page.evaluate("[window.hacked, document.querySelectorAll('img, script').length]") == [None, 0]
    names = page.locator(".confusion tbody th").all_text_contents()
    assert names == [HOSTILE, "\\u202egnp.exe"]
    assert page.locator("figcaption bdi").all_text_contents() == ["\\u202egnp.exe"]
