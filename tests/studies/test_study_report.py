# SPDX-License-Identifier: Apache-2.0
import copy
import html
import itertools
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from monai_llmboost.artifacts.drawing import house_style, look_of
from monai_llmboost.studies.page import figures, write_study_report
from monai_llmboost.studies.page.words import MINUS

ARMS = ("none", "mlp", "random", "pretrained")
DATASETS = ("adrenalmnist3d", "vesselmnist3d")
SIDES = ("better", "better →")
HOSTILE = "\"><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>&amp;{{ 7*7 }}$x$ _]]>"


def statistic(runs, half=None):
    runs = [float(each) for each in runs]
    sd = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
    interval = None if half is None else [float(np.mean(runs)) - half, float(np.mean(runs)) + half]
    return {"mean": float(np.mean(runs)), "sd": sd, "runs": runs, "interval": interval}


def compared(metric, arm, reference, runs, rng):
    runs, half = [float(each) for each in runs], float(rng.uniform(0.012, 0.03))
    d = float(np.mean(runs))
    seeds = None if len(runs) == 1 else [d - 0.6 * half, d + 0.6 * half]
    ends = f"{d:+.3f} [{d - half:.3f}, {d + half:.3f}]"
    found = "better" if d > half else "worse" if d < -half else "no difference seen"
    return {
        **{"metric": metric, "arm": arm, "reference": reference, "difference": d, "runs": runs},
        **{"standard_error": half / 2, "df": 6.5, "p": 0.31, "p_holm": 0.93, "p_delong": 0.0002},
        "detectable": 1.4 * half,
        "intervals": {"seeds": seeds, "cases": [d - 0.8 * half, d + 0.8 * half], "both": [d - half, d + half]},
        "verdict": f"{arm} against {reference}: {metric.upper()} {ends}: {found}; gains above {d + half:.3f} and "
        f"losses above {half - d:.3f} are excluded at 95 % (a true difference of {1.4 * half:.3f} would have been seen "
        "with 80 % power).",
    }


def curves_of(seeds, epochs, rng):
    lengths = rng.integers(epochs // 2, epochs + 1, seeds)
    xs = np.arange(1, max(lengths) + 1)
    loss = [(0.35 + 0.35 * np.exp(-xs[:n] / 6) + rng.normal(0, 0.012, n)).tolist() for n in lengths]
    auc = [(0.86 - 0.3 * np.exp(-xs[:n] / 5) + rng.normal(0, 0.012, n)).tolist() for n in lengths]
    return {"epoch": xs.tolist(), "train_loss": loss, "validation_auc": auc}


def roc_of(runs):
    rates = np.linspace(0, 1, 101)
    curves = [(rates ** (1 / area - 1)).tolist() for area in runs]
    return {"false_positive_rate": rates.tolist(), "true_positive_rate": curves}


def cost_of(number):
    frozen, trained = (202e6 if number > 1 else 0), 21e6 + (8.4e6 if number else 0)
    flops = 25e9 * (1.07 if number else 1) * (1 + 0.02 * number)
    passes = {"flops": flops, "seconds": 0.01, "ratio": 1.07, "ratio_range": [1.02, 1.11], "memory_bytes": 3e8}
    step = {f"step_{key}": value for key, value in passes.items()}
    return {
        **{"trained": int(trained), "frozen": int(frozen), "checkpoint_bytes": 8e7, "weight_bytes": 9e8, **step},
        **{f"forward_{key}": value for key, value in passes.items()},
        "read_out": "keys from tokens" if number else "-",
    }


def results_of(arms=ARMS, seeds=5, datasets=DATASETS, epochs=30):
    """The results that a study of these arms, seeds and data sets would write; always the same."""
    rng = np.random.default_rng(0)
    found = {}
    for name in datasets:
        base = rng.uniform(0.75, 0.9)
        auc = {arm: base + 0.006 * n + rng.normal(0, 0.009, seeds) for n, arm in enumerate(arms)}
        acc = {arm: each - 0.05 + rng.normal(0, 0.01, seeds) for arm, each in auc.items()}
        pairs = [(b, a) for a, b in itertools.combinations(arms, 2) if a in arms[:3]]
        found[name] = {
            "cases": {"train": 1188, "val": 98, "test": 298},
            "class_names": ["normal", "hyperplasia"],
            "learning_rates": {
                arm: {"chosen": 0.003 if n == 1 else 0.001, "validation_auc": {"0.001": 0.8}, "at_edge": n == 1}
                for n, arm in enumerate(arms)
            },
            "arms": {
                arm: {
                    **{"auc": statistic(auc[arm], 0.03), "acc": statistic(acc[arm], 0.04)},
                    "validation_auc": {**statistic(auc[arm] + 0.01), "interval": None},
                    "epochs": rng.integers(5, epochs, seeds).tolist(),
                    "beside": {"what": "last weights", "auc": statistic(auc[arm] - 0.004)},
                    "failed": [],
                }
                for arm in arms
            },
            "comparisons": [
                compared(metric, arm, reference, values[arm] - values[reference], rng)
                for metric, values in (("auc", auc), ("acc", acc))
                for arm, reference in pairs
            ],
            "curves": {arm: curves_of(seeds, epochs, rng) for arm in arms},
            "roc": {arm: roc_of(auc[arm]) for arm in arms},
            "cost": {
                **{"device": "AMD EPYC, 2 threads", "amp": None, "batch_size": 32, "img_size": 28, "rounds": 5},
                "arms": {arm: cost_of(number) for number, arm in enumerate(arms)},
            },
            "diagnostics": {arm: {"cka_block": statistic([0.91, 0.93])} if n else None for n, arm in enumerate(arms)},
        }
    return {
        "study": {
            **{"bundle": "medmnist3d_rllm_classification", "arms": list(arms), "seeds": seeds, "folds": 0},
            **{"datasets": list(datasets), "preset": "rllm", "lr_grid": [0.0003, 0.001, 0.003], "lr_seeds": 2},
            **{"references": list(arms[:3]), "chosen_by": "epoch of the best validation AUC"},
            "options": {"epochs": epochs, "hidden_size": 1024},
        },
        "software": {"monai_llmboost": "0.1", "torch": "2.8.0", "monai": "1.6.1"},
        "device": "AMD EPYC, 2 threads",
        "command": "monai-llmboost study medmnist3d_rllm_classification --seeds 5",
        "model_card": "For research; not for diagnosis.",
        "datasets": found,
    }


def with_floor(results, floor="floor-pca"):
    """The results, had the study had a floor."""
    results["study"]["floors"] = [floor]
    rng = np.random.default_rng(1)
    for data in results["datasets"].values():
        runs = np.array(data["arms"]["none"]["auc"]["runs"]) + 0.05
        data["arms"][floor] = {
            **{"auc": statistic(runs, 0.03), "acc": statistic(runs), "validation_auc": statistic(runs)},
            **{"epochs": [], "beside": None, "failed": []},
        }
        data["roc"][floor] = roc_of(runs)
        data["floors"] = {
            "comparisons": [compared("auc", "none", floor, np.full(len(runs), -0.05), rng)],
            **{"single_numbers": {"volume of the mask": 0.931}, "left_out": ""},
            "shortcut": "Shortcut: the volume of the mask alone reaches AUC 0.931.",
        }
        data["caveats"] = []
    return results


def failed_wholly(results, arm):
    """The results, had every run of an arm failed."""
    for data in results["datasets"].values():
        seeds = range(results["study"]["seeds"])
        failed = [{"run": f"{arm}/seed{seed}", "reason": "the loss was not finite"} for seed in seeds]
        missing = {"mean": None, "sd": None, "runs": [None for _ in seeds], "interval": None}
        data["arms"][arm] = {
            **{"auc": missing, "acc": None, "validation_auc": missing},
            **{"epochs": [None], "beside": None, "failed": failed},
        }
        data["comparisons"] = [each for each in data["comparisons"] if arm not in (each["arm"], each["reference"])]
        data["curves"][arm] = {"epoch": [], "train_loss": [None], "validation_auc": [None]}
        data["roc"][arm] = None
        data["cost"]["arms"].pop(arm)
        data["learning_rates"][arm] = None
    return results


@pytest.fixture
def written(tmp_path):
    """Writes a report into this test's folder."""

    def write(results):
        write_study_report(results, tmp_path / "report.html")
        return tmp_path / "report.html"

    return write


class Page(HTMLParser):
    """All tags of a page with their attributes, and its words."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.words, self.inside = [], "", []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = [tag]

    def handle_data(self, data):
        if self.inside != ["style"]:
            self.words += data

    def handle_endtag(self, tag):
        self.inside = []

    def pictures(self, beginning=""):
        """The text alternatives of the pictures that are no ornament."""
        labels = [attributes["aria-label"] for _, attributes in self.tags if attributes.get("role") == "img"]
        return [label for label in labels if label.startswith(beginning)]


def test_all_verdicts_stand_first_and_look_alike(written):
    results = results_of()
    file = written(results)
    page, text = Page(file), file.read_text()
    for data in results["datasets"].values():
        for comparison in data["comparisons"]:
            assert comparison["verdict"] in page.words
    of_auc = [each["verdict"] for data in results["datasets"].values() for each in data["comparisons"][:6]]
    assert max(text.index(html.escape(verdict)) for verdict in of_auc) < text.index("<svg")
    verdicts = re.findall(r"<li>([^<]*excluded at 95 %[^<]*)</li>", text)
    assert len(verdicts) == 2 * 12, "no verdict has a class, a size or a weight of its own"


def test_each_picture_is_there_with_its_text(written):
    page = Page(written(results_of(datasets=("a", "b", "c"))))
    for name in "abc":
        for metric in ("AUC", "ACC"):
            (forest,) = page.pictures(f"{name}: difference in {metric}")
            assert len(re.findall(r"against \w+: .?0\.\d{3,} \[.?0\.\d{3,}, .?0\.\d{3,}\]", forest)) == 6
        assert len(page.pictures(f"ROC curves on {name}. none: AUC 0.")) == 1
        assert len(page.pictures(f"Training loss by epoch on {name}.")) == 1
        assert len(page.pictures(f"Validation AUC by epoch on {name}.")) == 1
        assert len(page.pictures(f"AUC against trained weights, millions on {name}. none: 21, AUC 0.")) == 1
        assert len(page.pictures(f"AUC against GFLOP per volume, forward on {name}. none: 25, AUC")) == 1
    assert len(page.pictures("Mean AUC on each data set; the middle is 0.")) == 1
    assert len(page.pictures("Mean ACC on each data set; the middle is 0.")) == 1
    assert len(page.pictures()) == 3 * 7 + 2
    assert [tag for tag, _ in page.tags].count("figcaption") == 3 * 7 + 2


def test_the_page_names_no_address_and_runs_no_script(written):
    file = written(results_of(datasets=("a",)))
    page, text = Page(file), file.read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert "@import" not in text
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag not in ("script", "link", "object", "embed", "base") or attributes["href"] == "data:,"
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"#|data:,$", attributes.get(name, "#")), (tag, attributes)
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_ids_are_unique_and_all_that_is_referred_to_is_there(written):
    page = Page(written(results_of(datasets=("a", "b", "c"))))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    referred = {attributes["href"][1:] for tag, attributes in page.tags if tag == "use"}
    values = [text or "" for _, attributes in page.tags for text in attributes.values()]
    referred |= {found for text in values for found in re.findall(r"url\(#([^)]+)\)", text)}
    assert referred == set(ids)


def test_no_stand_in_for_a_colour_is_left(written):
    text = written(results_of(datasets=("a",))).read_text()
    assert not re.search(r"#0[1-5]00[0-9a-f]{2}", text)
    assert all(f"var(--arm-{number})" in text for number in range(4))


def test_the_same_results_give_the_same_bytes(written, tmp_path):
    import matplotlib

    results = results_of(seeds=2, datasets=("a",))
    untouched = copy.deepcopy(results)
    first = written(results).read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert written(results).read_bytes() == first, "whatever the style of who calls"
    assert results == untouched
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"], "the earlier one is replaced"


def test_no_rounding_hides_a_sign(written):
    results = results_of(datasets=("a",))
    comparison = results["datasets"]["a"]["comparisons"][0]
    comparison["difference"] = -0.0002
    comparison["intervals"] = {"both": [-0.05, 0.0004], "seeds": [-0.00003, 0.02], "cases": [0.0, 0.04]}
    page = Page(written(results))
    table, forest = (text.replace(MINUS, "-") for text in (page.words, page.pictures("a: difference in AUC")[0]))
    for shown in ("-0.0002", "[-0.050, 0.0004]", "[-0.00003, 0.020]", "[0.000, 0.040]"):
        assert shown in table
    assert "mlp against none: -0.0002 [-0.050, 0.0004]" in forest


def test_the_teacher_of_students_is_in_the_table_of_costs(written):
    results = results_of()
    page = Page(written(results))
    assert "teacher" not in page.words and "weights, ratio" not in page.words
    for data in results["datasets"].values():
        data["cost"]["arms"] = {"teacher": cost_of(9), **data["cost"]["arms"]}
    page = Page(written(results))
    assert all(word in page.words for word in ("teacher", "weights, ratio", "step GFLOP, ratio"))
    text = written(results).read_text()
    for table in re.findall(r'aria-label="(?:Cost|Diagnostics) on.*?</table>', text, flags=re.DOTALL):
        head, *rows = (len(re.findall(r"<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL))
        assert rows and {head} == {*rows}


def test_tables_tell_of_edges_failures_and_costs(written):
    results = results_of()
    results["datasets"]["adrenalmnist3d"]["learning_rates"]["mlp"]["diverged"] = [0.03, 0.1]
    results["datasets"]["vesselmnist3d"]["arms"]["random"]["failed"] = [{"run": "random/seed3", "reason": "no memory"}]
    page = Page(written(results))
    for shown in (
        "random/seed3:",
        "no memory",
        "29.40 M",
        "202.00 M",
        "keys from tokens",
        "before and after the block",
        "diverged: 0.03, 0.1",
    ):
        assert shown in page.words
    assert page.words.count("at the grid's edge") == 2
    assert "0.920 [0.91" not in page.words, "diagnostics are short numbers"
    assert "0.92 [0.91, 0.93]" in " ".join(page.words.split())


def drawn(figure):
    """The x of all lines of a figure, each as a list."""
    return [np.atleast_1d(line.get_xdata()).tolist() for line in figure.axes[0].lines]


def test_a_forest_plot_draws_what_the_comparisons_say():
    comparison = results_of(datasets=("a",))["datasets"]["a"]["comparisons"][2]
    with house_style():
        both, seeds, difference, runs, zero = drawn(figures.forest([comparison], {"pretrained": look_of(3)}, 0.1))
    assert both == comparison["intervals"]["both"]
    assert seeds == comparison["intervals"]["seeds"]
    assert (difference, runs, zero) == ([comparison["difference"]], comparison["runs"], [0, 0])
    assert figures.reach([comparison]) >= max(map(abs, both + runs))


def test_a_forest_plot_says_on_which_side_the_arm_is_better():
    comparisons = results_of(datasets=("a",))["datasets"]["a"]["comparisons"][:6]
    looks = {arm: look_of(number) for number, arm in enumerate(ARMS)}

    def sides(some):
        with house_style():
            texts = [text for text in figures.forest(some, looks, 0.1).axes[0].texts if text.get_text().endswith(SIDES)]
        return {text.get_text(): text.get_ha() for text in texts}

    assert sides(comparisons) == {"← reference better": "left", "arm better →": "right"}
    assert sides(comparisons[:3]) == {"← none better": "left", "arm better →": "right"}
    assert sides(comparisons[:1]) == {"← none better": "left", "mlp better →": "right"}


def test_mean_curves_go_as_far_as_all_runs_go():
    curves = {"none": [[3.0, 2.0, 1.0], [1.0, 0.0], None]}
    with house_style():
        figure = figures.learning({"none": [1, 2, 3]}, curves, {"none": look_of(0)})
    assert drawn(figure) == [[1, 2, 3], [3], [1, 2], [2], [1, 2]]
    assert figure.axes[0].lines[-1].get_ydata().tolist() == [2.0, 1.0]


def test_curves_of_every_third_epoch_are_drawn():
    curves = {"none": [[None, None, 2.0, None, None, 1.0], [None, None, 4.0, None, None, 1.0]]}
    with house_style():
        figure = figures.learning({"none": [1, 2, 3, 4, 5, 6]}, curves, {"none": look_of(0)})
    assert drawn(figure) == [[3, 6], [6], [3, 6], [6], [3, 6]]
    assert figure.axes[0].lines[-1].get_ydata().tolist() == [3.0, 1.0]


def test_looks_differ():
    assert len({look_of(number) for number in range(50)}) == 50


@pytest.mark.parametrize("count", [2, 3])
def test_a_radar_needs_three_data_sets(written, count):
    names = [f"set{n}" for n in range(count)]
    file = written(results_of(datasets=names))
    assert len(Page(file).pictures("Mean ")) == (2 if count > 2 else 0)
    assert ("Over all data sets" in file.read_text()) == (count > 2)


def test_one_seed_has_no_spread(written):
    page = Page(written(results_of(seeds=1, datasets=("a",))))
    assert "±" not in page.words
    assert "Thin line" not in page.words
    assert "None" not in page.words
    assert "nan" not in page.words
    assert "One seed: how much the results would change with another is not known" in page.words


@pytest.mark.parametrize("arm", ["none", "pretrained"])
def test_an_arm_that_failed_wholly(written, arm):
    page = Page(written(failed_wholly(results_of(seeds=2, datasets=("a", "b", "c")), arm)))
    assert page.words.count("the loss was not finite") == 3 * 2
    assert len(page.pictures()) == 3 * 7 + 2
    for shown in (page.words, *page.pictures()):
        assert not re.search(r"\bNone\b|\bnan\b", shown)


def test_all_arms_failed(written):
    results = results_of(datasets=("a", "b", "c"))
    for arm in ARMS:
        failed_wholly(results, arm)
    page = Page(written(results))
    assert page.pictures() == []
    assert page.words.count("No two arms could be compared.") == 3 * 4


def test_runs_of_which_some_failed(written):
    results = results_of()
    data = results["datasets"]["adrenalmnist3d"]
    for metric in ("auc", "acc", "validation_auc"):
        data["arms"]["mlp"][metric]["runs"][2] = None
    data["curves"]["mlp"]["train_loss"][2] = data["curves"]["mlp"]["validation_auc"][2] = None
    data["curves"]["mlp"]["train_loss"][3] = [None, float("nan"), 0.5]
    data["roc"]["mlp"]["true_positive_rate"][2] = None
    data["comparisons"][0] |= {"p": None, "p_holm": None, "df": None, "runs": [0.1, None]}
    data["cost"] = data["diagnostics"] = None
    page = Page(written(results))
    assert len(page.pictures("AUC against")) == 2
    assert not re.search(r"\bNone\b|\bnan\b", page.words)


def test_many_arms_with_long_names(written):
    arms = ["none", *(f"pretrained-with-a-very-long-name-of-its-own-{n}-of-the-last-layer" for n in range(9))]
    page = Page(written(results_of(arms=arms, seeds=2, datasets=("a",))))
    assert len(page.pictures("a: difference in AUC")) == 1
    assert all(arm in page.words for arm in arms)


def test_the_metrics_of_another_task(written):
    """Under their own names; of an error the smaller one is better, so the sides of a forest plot change."""
    results = results_of(datasets=("a",), seeds=2)
    results["metrics"] = {"mae": {"label": "MAE", "larger_is_better": False}}
    data = results["datasets"]["a"]
    data["comparisons"] = [
        {**each, "metric": "mae", "verdict": "a verdict"} for each in data["comparisons"] if each["metric"] == "auc"
    ]
    for each in data["arms"].values():
        each["mae"], each["validation_mae"] = each.pop("auc"), each.pop("validation_auc")
        del each["acc"]
        each["beside"]["mae"] = each["beside"].pop("auc")
    for curve in data["curves"].values():
        curve["validation_mae"] = curve.pop("validation_auc")
    data["roc"] = {}
    file = written(results)
    page = Page(file)
    assert "MAE on 298 test cases" in page.words
    assert "The rate with the best validation MAE was chosen" in page.words
    assert "AUC" not in page.words.replace("validation AUC", "")  # which study, chosen_by says here
    assert len(page.pictures("Validation MAE by epoch on a.")) == 1
    assert len(page.pictures("a: difference in MAE")) == 1
    assert file.read_text().index("arm better") < file.read_text().index("reference better")


def test_results_of_an_arm_that_is_not_named(written):
    results = results_of()
    results["study"]["arms"].remove("mlp")
    with pytest.raises(ValueError, match=r"have the arms \['mlp'\], the study has .*: name every arm"):
        written(results)


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
def opened(browser):
    """Opens a page; in the end nothing may have been asked of the network, and nothing complained of."""
    contexts, problems = [], []

    def open_page(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        mine = ("data:", path.as_uri())
        page.on("request", lambda request: request.url.startswith(mine) or problems.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize("width", [400, 1100, 1600])
def test_in_a_browser_nothing_overflows(written, opened, width):
    arms = [*ARMS, "pretrained-frozen-" + "long" * 20, "sixth"]
    file = written(results_of(arms=arms, datasets=["fracturemnist3d", "synapsemnist3d", "c"]))
    page = opened(file, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll('table')].filter(table => {
      const [a, b] = [table.parentElement, table.getBoundingClientRect()];
      return getComputedStyle(a).overflowX != 'auto' || a.scrollWidth < Math.floor(b.width) || b.left < 0; }).length"""
    assert page.evaluate(cut) == 0, "a wide table scrolls in its own box"
    outside = """[...document.querySelectorAll('figure svg text')].filter(text => {
      const [a, b] = [text.getBoundingClientRect(), text.closest('figure').getBoundingClientRect()];
      return a.left < b.left - 2 || a.right > b.right + 2; }).map(text => text.textContent)"""
    assert page.evaluate(outside) == []
    sizes = page.locator("figure svg text").evaluate_all("all => all.map(each => each.getBoundingClientRect().height)")
    assert min(sizes) > 9, "legible, px"
    assert page.locator(".found:not(.second) li").first.evaluate("each => each.getBoundingClientRect().top") < 900


def test_in_a_browser_night_has_light_letters_and_lines(written, opened):
    page = opened(written(results_of(seeds=2, datasets=("a",))), color_scheme="dark")
    colour = "each => getComputedStyle(each).fill"
    assert page.locator(".forest svg text", has_text="against").first.evaluate(colour) == "rgb(228, 231, 234)"
    page.emulate_media(color_scheme="light")
    assert page.locator(".forest svg text", has_text="against").first.evaluate(colour) == "rgb(28, 33, 39)"


def test_in_a_browser_hostile_names_stay_text(written, opened):
    arms = ["none", HOSTILE, "<script>", "\u202egnp.exe", "line\nbreak \udcff", "é 中 ok"]
    results = results_of(arms=arms, datasets=(HOSTILE, "a$b$", "_c"))
    results["command"] = results["device"] = results["model_card"] = HOSTILE
    page = opened(written(results))
    assert page.evaluate("[window.hacked, document.querySelectorAll('img, script').length]") == [None, 0]
    names = page.locator(".arms").first.locator("bdi").all_text_contents()
    assert names == ["none", HOSTILE, "<script>", "\\u202egnp.exe", "line\\nbreak \\udcff", "é 中 ok"]
    assert page.locator(".use").text_content() == f"Model card: {HOSTILE}"
    assert "<script> against none" in page.locator(".forest svg text").all_text_contents()


def test_in_a_browser_all_is_printed(written, opened):
    page = opened(written(results_of(seeds=2, datasets=("a",))), color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_floors_have_a_section_and_rows_of_the_table(tmp_path):
    write_study_report(with_floor(results_of()), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h2>Floors</h2>") == 1
    assert page.count("none against floor-pca: AUC -0.050") == 2, "a verdict for each data set"
    assert page.count("<bdi>floor-pca</bdi> <small>no network</small>") == 2
    assert page.count("Shortcut: the volume of the mask alone reaches AUC 0.931.") == 2
    assert "volume of the mask 0.931." in page
    write_study_report(results_of(), tmp_path / "earlier.html")
    assert "Floors" not in (tmp_path / "earlier.html").read_text()


def test_a_caveat_is_shown_once_before_the_verdicts(tmp_path):
    results, caveat = results_of(), "The base none (AUC 0.750) does not reach floor-pca (0.800)."
    data = results["datasets"][next(iter(results["datasets"]))]
    verdicts = [each["verdict"] for each in data["comparisons"]]
    data["caveats"] = [caveat]
    for comparison in data["comparisons"]:
        comparison["verdict"] = f"{caveat} {comparison['verdict']}"
    write_study_report(results, tmp_path / "report.html")
    page = html.unescape((tmp_path / "report.html").read_text())
    assert page.count(f'<li class="warning">{caveat}</li>') == 2, "before the verdicts by AUC and by ACC"
    assert page.index(caveat) < page.index(f"<li>{verdicts[0]}</li>")
    assert all(f"<li>{verdict}</li>" in page for verdict in verdicts)


def test_each_legend_names_what_its_pictures_show(tmp_path):
    """A picture's description names every arm and floor in it; the legend stands before the pictures."""
    results = with_floor(results_of(datasets=("a, 10 % of labels", "a")))
    results["study"] |= {"datasets": ["a"], "label_fractions": [0.1, 1.0]}
    write_study_report(results, tmp_path / "report.html")
    sections = (tmp_path / "report.html").read_text().partition("<h2>Floors</h2>")[2].split("<section>")[1:]
    drawn = 0
    for section in sections:
        legend = section.partition('<ul class="arms"')[2].partition("</ul>")[0]
        for description in re.findall(r'role="img" aria-label="([^"]*)"', section):
            drawn += "floor-pca" in description
            assert ("floor-pca" in description) <= ("floor-pca" in legend), description[:80]
    assert drawn >= 3, "ROC curves of two sets, and label curves"


def test_why_there_are_no_floors(tmp_path):
    results = results_of()
    results["study"]["floors"] = ["floor-pca"]
    left_out = {"comparisons": [], "single_numbers": {}, "shortcut": "", "left_out": "Floors are left out: no classes."}
    for data in results["datasets"].values():
        data["floors"] = left_out
    write_study_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<li>Floors are left out: no classes.</li>") == 2


def test_label_curves_are_drawn_when_there_is_more_than_one_fraction(written):
    names = ("a, 10 % of labels", "a, 25 % of labels", "a")
    results = results_of(datasets=names)
    results["study"] |= {"datasets": ["a"], "label_fractions": [0.1, 0.25, 1.0]}
    text = written(results).read_text()
    means = [results["datasets"][name]["arms"]["mlp"]["auc"]["mean"] for name in names]
    shown = ", ".join(f"{part} %: {mean:.3f}" for part, mean in zip((10, 25, 100), means))
    assert "<h2>Label curves</h2>" in text
    assert "AUC against the fraction of training labels on a. none: 10 %" in text
    assert f"mlp: {shown}" in text
    assert "Over all data sets" not in text, "three fractions are not three data sets"
    results["datasets"]["a"]["arms"]["mlp"]["auc"] = None  # every run of it failed
    assert f"mlp: {shown.rpartition(', ')[0]}" in written(results).read_text()
    assert "Label curves" not in written(results_of(datasets=("a", "b"))).read_text()
