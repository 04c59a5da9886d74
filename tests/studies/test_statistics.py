# SPDX-License-Identifier: Apache-2.0
"""The statistics of a study, held against brute force, other libraries, and simulations of which the truth is known."""

import itertools
import json
import math
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from monai_llmboost.engines import medmnist_acc, medmnist_auc
from monai_llmboost.studies.statistics.compare import (
    arm_summary,
    compare_arms,
    correct_for_many,
    over_seeds_and_cases,
)
from monai_llmboost.studies.statistics.influence import bootstrap_counts, can_be_compared, components, resampled
from monai_llmboost.studies.statistics.records import Comparison, Intervals
from monai_llmboost.studies.statistics.roc import roc_curves
from monai_llmboost.studies.statistics.verdict import verdict
from monai_llmboost.tasks import Classification, TaskMetric

METRICS = Classification.metrics
AUC = METRICS["auc"]
KEYS = ["metric", "arm", "reference", "difference", "runs", "standard_error", "df", "intervals"]
KEYS += ["p", "p_holm", "p_delong", "detectable", "verdict"]
# Standard deviations of the scores of two classes that lie 1.5 apart: what all runs see in a case, what all runs of an
# arm see, what all arms of a seed see, what a run alone sees; and of the distance itself between runs.
CASE, ARM_CASE, SEED_CASE, RUN_CASE, RUN = 0.7, 0.4, 0.3, 0.5, 0.2
NOISE = CASE**2 + ARM_CASE**2 + SEED_CASE**2 + RUN_CASE**2


def true_auc(distance):
    """Of the binormal model, the mean over all seeds and cases."""
    return stats.norm.cdf(distance / math.sqrt(2 * NOISE + RUN**2))


def simulated(random, distances, seeds=5, cases=200, positive=0.3):
    """Runs of arms whose classes lie ``distances`` apart: predictions by arm, labels."""
    labels = (np.arange(cases) < positive * cases).astype(int)
    case, seed_case = CASE * random.normal(size=cases), SEED_CASE * random.normal(size=(seeds, cases))
    arms = {}
    for name, distance in distances.items():
        scores = (distance + RUN * random.normal(size=(seeds, 1))) * labels + case + seed_case
        scores += ARM_CASE * random.normal(size=cases) + RUN_CASE * random.normal(size=(seeds, cases))
        p = 1 / (1 + np.exp(-scores))
        arms[name] = np.stack([1 - p, p], axis=-1)
    return arms, labels


def of_classes(classes, seeds=3, cases=90, decimals=None):
    """Predictions (seeds, cases, classes) of some use, and labels; rounded, many tie."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(cases) % classes)
    scores = np.exp(random.normal(size=(seeds, cases, classes)) + np.eye(classes)[labels])
    p = scores / scores.sum(axis=-1, keepdims=True)
    return (p if decimals is None else p.round(decimals)), labels


def delong_of_pairs(scores, inside):
    """Covariance of the areas of several runs (runs, cases), from all pairs of cases, as the paper writes it."""
    x, y = scores[:, inside], scores[:, ~inside]
    psi = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    return np.cov(psi.mean(axis=2)) / x.shape[1] + np.cov(psi.mean(axis=1)) / y.shape[1]


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("classes", [2, 3, 11])
def test_values_are_those_of_medmnist(classes, decimals):
    predictions, labels = of_classes(classes, decimals=decimals)
    for metric, expected in (("auc", medmnist_auc), ("acc", medmnist_acc)):
        values, influence = components(METRICS[metric], predictions, labels)
        assert values == pytest.approx([expected(p, labels) for p in predictions], abs=1e-12)
        assert influence.sum(axis=1) == pytest.approx(np.zeros(3), abs=1e-10)


@pytest.mark.parametrize("decimals", [None, 1])
def test_covariance_is_that_of_delong(decimals):
    predictions, labels = of_classes(2, decimals=decimals)
    _, influence = components(AUC, predictions, labels)
    assert influence @ influence.T == pytest.approx(delong_of_pairs(predictions[:, :, 1], labels == 1), rel=1e-9)


@pytest.mark.parametrize("metric", ["auc", "acc"])
@pytest.mark.parametrize("classes", [2, 3])
def test_covariance_is_that_of_a_bootstrap(metric, classes):
    predictions, labels = of_classes(classes, cases=240)
    _, influence = components(METRICS[metric], predictions, labels)
    counts = bootstrap_counts(labels, samples=4000)
    bootstrap = np.cov([resampled(METRICS[metric], p[None], labels, counts) for p in predictions])
    assert influence @ influence.T == pytest.approx(bootstrap, rel=0.12, abs=0.05 * bootstrap.max())


@pytest.mark.parametrize("metric", ["auc", "acc"])
def test_covariance_over_patients_is_that_of_a_bootstrap_of_patients(metric):
    """Cases of one patient are alike: intervals over cases would be too narrow."""
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.0, "b": 1.4}, seeds=3, cases=240)
    copies = np.random.default_rng(1).integers(1, 5, size=240)
    alike = {name: np.repeat(p, copies, axis=1) for name, p in arms.items()}
    labels, patients = np.repeat(labels, copies), np.repeat(np.arange(240), copies)
    covariance = {}
    for known in (None, patients):
        _, influence = components(METRICS[metric], alike["a"], labels, known)
        counts = bootstrap_counts(labels, samples=4000, patients=known)
        bootstrap = np.cov([resampled(METRICS[metric], p[None], labels, counts) for p in alike["a"]])
        covariance[known is None] = influence @ influence.T
        assert covariance[known is None] == pytest.approx(bootstrap, rel=0.15, abs=0.05 * bootstrap.max())
    assert np.diag(covariance[False]).mean() > 2 * np.diag(covariance[True]).mean()


def test_patients_of_one_case_each_change_nothing_and_twins_count_once():
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.0, "b": 1.4}, cases=120)
    alone = np.random.default_rng(2).permutation(120).astype(str)
    (plain,) = (each for each in compare_arms(arms, labels, ["a"]) if each.metric == "auc")
    (same,) = (each for each in compare_arms(arms, labels, ["a"], patients=alone) if each.metric == "auc")
    for field in ("difference", "standard_error", "df", "p", "p_delong"):
        assert getattr(same, field) == pytest.approx(getattr(plain, field), rel=1e-9)
    twins = {name: np.concatenate([p, p], axis=1) for name, p in arms.items()}
    twice = compare_arms(twins, np.tile(labels, 2), ["a"], patients=np.tile(alone, 2))[0]
    assert twice.difference == pytest.approx(plain.difference, rel=1e-9)
    assert twice.standard_error == pytest.approx(plain.standard_error, rel=0.02)
    assert twice.intervals.both == pytest.approx(plain.intervals.both, abs=0.005)
    width = np.ptp(arm_summary("auc", twins["a"], np.tile(labels, 2), patients=np.tile(alone, 2)).interval)
    assert width == pytest.approx(np.ptp(arm_summary("auc", arms["a"], labels).interval), rel=0.03)
    assert width > 1.1 * np.ptp(arm_summary("auc", twins["a"], np.tile(labels, 2)).interval)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_draw_is_computed_anew(classes):
    predictions, labels = of_classes(classes, cases=30, decimals=1)
    for counts in bootstrap_counts(labels, samples=5):
        drawn = np.repeat(np.arange(30), counts.astype(int))
        for metric, expected in (("auc", medmnist_auc), ("acc", medmnist_acc)):
            mean = np.mean([expected(p[drawn], labels[drawn]) for p in predictions])
            assert resampled(METRICS[metric], predictions, labels, counts[None]) == pytest.approx(mean, abs=1e-12)


def test_no_class_vanishes_from_a_draw():
    labels = np.array([0] * 20 + [1] * 2)
    counts = bootstrap_counts(labels, samples=300)
    assert (counts.sum(axis=1) == 22).all()
    assert (counts[:, 20:].sum(axis=1) > 0).all()
    assert (counts == bootstrap_counts(labels, samples=300)).all(), "seeded"
    scores = np.random.default_rng(0).normal(size=(1, 22, 2))
    drawn = np.repeat(np.arange(22), counts[0].astype(int))
    expected = roc_auc_score(labels[drawn], scores[0, drawn, 1])
    assert resampled(AUC, scores, labels, counts[:1]) == pytest.approx(expected)


def test_variance_is_that_of_obuchowski_and_rockette_and_df_that_of_hillis():
    """Written out with the mean covariances, of two arms and their five seeds."""
    arms, labels = simulated(np.random.default_rng(3), {"a": 1.5, "b": 1.7})
    (a, of_a), (b, of_b) = (components(AUC, p, labels) for p in arms.values())
    covariance = np.vstack([of_a, of_b]) @ np.vstack([of_a, of_b]).T
    other_seed = ~np.eye(5, dtype=bool)
    within = (covariance[:5, :5][other_seed].mean() + covariance[5:, 5:][other_seed].mean()) / 2
    across = (covariance[:5, 5:][other_seed].mean() + covariance[5:, :5][other_seed].mean()) / 2
    table = np.array([a, b])
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    ms_arm, ms_both = 5 * table.mean(axis=1).var(ddof=1), (rest**2).sum() / 4
    assert within > across
    f = ms_arm / (ms_both + 5 * (within - across))
    df = (ms_both + 5 * (within - across)) ** 2 / (ms_both**2 / 4)
    (found,) = (c for c in compare_arms(arms, labels, ["a"]) if c.metric == "auc")
    assert (found.difference / found.standard_error) ** 2 == pytest.approx(f)
    assert found.df == pytest.approx(df)
    assert found.p == pytest.approx(stats.f.sf(f, 1, df))
    assert found.intervals.seeds == pytest.approx(stats.ttest_rel(b, a).confidence_interval())
    z = found.difference / math.sqrt((((of_b - of_a).mean(axis=0)) ** 2).sum())
    assert found.p_delong == pytest.approx(2 * stats.norm.sf(abs(z)))


@pytest.fixture(scope="module")
def studies():
    """400 studies without difference: (AUC difference, standard error, df, p) each, with five seeds and with two."""
    results = {}
    for seeds in (5, 2):
        random, rows = np.random.default_rng(0), []
        for _ in range(400):
            arms, labels = simulated(random, {"a": 1.5, "b": 1.5}, seeds)
            (a, of_a), (b, of_b) = (components(AUC, p, labels) for p in arms.values())
            error, df = over_seeds_and_cases(b - a, of_b - of_a)
            difference = (b - a).mean()
            rows.append((difference, error, df, 2 * stats.t.sf(abs(difference) / error, df or math.inf), a, of_a))
        results[seeds] = rows
    return results


def test_p_is_uniform_where_there_is_no_difference(studies):
    p = np.array([row[3] for row in studies[5]])
    assert stats.kstest(p, "uniform").pvalue > 0.05
    assert 0.03 < (p < 0.05).mean() < 0.07


def test_two_seeds_do_not_find_what_is_not_there(studies):
    """With two the spread of seeds is nearly unknown; without its floor every eighth study would find something."""
    assert np.mean([row[3] < 0.05 for row in studies[2]]) < 0.09


def test_the_interval_holds_the_truth_of_one_arm_in_95_of_100_studies(studies):
    held = []
    for *_, values, influence in studies[5]:
        error, df = over_seeds_and_cases(values, influence)
        held.append(abs(values.mean() - true_auc(1.5)) < stats.t.ppf(0.975, df or math.inf) * error)
    assert 0.925 < np.mean(held) < 0.98


def test_the_interval_holds_a_planted_difference_and_the_power_is_as_told():
    truth = true_auc(1.8) - true_auc(1.5)
    random, held, found, detectable = np.random.default_rng(1), [], [], []
    for _ in range(400):
        arms, labels = simulated(random, {"a": 1.5, "b": 1.8})
        (a, of_a), (b, of_b) = (components(AUC, p, labels) for p in arms.values())
        error, df = over_seeds_and_cases(b - a, of_b - of_a)
        half, difference = stats.t.ppf(0.975, df or math.inf) * error, (b - a).mean()
        held.append(abs(difference - truth) < half)
        found.append(abs(difference) > half)
        detectable.append(stats.t.ppf(0.8, df or math.inf) * error + half)
    assert 0.925 < np.mean(held) < 0.98
    power = np.mean(found)
    expected_power = stats.norm.cdf(truth / np.median(detectable) * (1.96 + 0.84) - 1.96)
    assert power == pytest.approx(expected_power, abs=0.06)


def test_a_planted_gain_is_found_and_a_null_is_not():
    arms, labels = simulated(np.random.default_rng(5), {"none": 1.2, "mlp": 1.2, "pretrained": 2.4}, seeds=5, cases=300)
    comparisons = compare_arms(arms, labels, ["none", "mlp"])
    assert [list(c.as_dict()) for c in comparisons] == [KEYS] * 6
    assert [c.metric for c in comparisons] == ["auc"] * 3 + ["acc"] * 3
    pairs = [("mlp", "none"), ("pretrained", "none"), ("pretrained", "mlp")]
    assert [(c.arm, c.reference) for c in comparisons] == pairs * 2
    null, gain, _ = comparisons[:3]
    truth = true_auc(2.4) - true_auc(1.2)
    assert gain.difference == pytest.approx(truth, abs=2 * gain.standard_error)
    for interval in (gain.intervals.seeds, gain.intervals.cases, gain.intervals.both):
        assert interval[0] < truth < interval[1]
    assert gain.p_holm < 0.001
    assert ": better (p < 0.001, p < 0.001 corrected for all comparisons)." in gain.verdict
    assert null.p_holm > 0.05
    assert ": no difference seen; gains above 0." in null.verdict
    contents = [c.as_dict() for c in comparisons]
    assert json.loads(json.dumps(contents, allow_nan=False)) == contents
    backwards = compare_arms(dict(reversed(arms.items())), labels, ["pretrained"])
    assert ": worse (" in backwards[1].verdict
    assert backwards[1].difference == pytest.approx(-gain.difference)


def test_each_pair_with_a_reference_comes_once():
    arms, labels = simulated(np.random.default_rng(0), dict.fromkeys("abcd", 1.5), seeds=2, cases=40)
    pairs = [(c.reference, c.arm) for c in compare_arms(arms, labels, ["b", "c"])]
    assert pairs == [pair for pair in itertools.combinations("abcd", 2) if {"b", "c"} & set(pair)] * 2


def test_holm_is_over_the_pairs_of_one_metric():
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.2, "b": 1.5, "c": 1.9}, cases=300)
    comparisons = compare_arms(arms, labels, ["a", "b"])
    for family in (comparisons[:3], comparisons[3:]):
        ordered = sorted(family, key=lambda c: c.p)
        by_hand = np.maximum.accumulate([min((3 - k) * c.p, 1) for k, c in enumerate(ordered)])
        assert [c.p_holm for c in ordered] == pytest.approx(by_hand)
    assert correct_for_many([], AUC) == []


def test_holm_equals_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.03, 0.7, 0.9]
    comparisons = [compared(0.0, [-1, 1], p=one) for one in p]
    corrected = [c.p_holm for c in correct_for_many(comparisons, AUC)]
    assert corrected == [0.06, 0.15, 0.15, 0.035, 0.15, 1.0, 1.0]  # multipletests(p, method="holm")[1]


def test_many_classes():
    predictions, labels = of_classes(4, seeds=4, cases=200)
    blunt = 0.5 * predictions + 0.5 * np.random.default_rng(1).permuted(predictions, axis=1)
    for comparison in compare_arms({"blunt": blunt, "sharp": predictions}, labels, ["blunt"]):
        assert ": better" in comparison.verdict
        low, high = comparison.intervals.both
        assert 0 < low < comparison.difference < high < 1


def test_one_seed_gives_an_interval_over_the_cases_alone():
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.5, "b": 1.6}, seeds=1, cases=300)
    comparison = compare_arms(arms, labels, ["a"])[0]
    assert comparison.intervals.seeds is None
    assert comparison.df is None
    assert comparison.p == comparison.p_delong
    assert comparison.intervals.both == pytest.approx(comparison.intervals.cases, abs=0.01)
    assert comparison.verdict.endswith(
        "; from one seed, so over the test cases alone: the spread between seeds is unknown."
    )
    summary = arm_summary("auc", arms["a"], labels)
    assert summary.sd is None
    assert summary.mean == summary.runs[0]
    assert summary.interval[0] < summary.mean < summary.interval[1] <= 1


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_equal_arms(seeds):
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.5}, seeds, cases=50)
    for comparison in compare_arms({**arms, "b": arms["a"]}, labels, ["a"]):
        assert (comparison.difference, comparison.standard_error, comparison.p) == (0, 0, 1)
        assert comparison.intervals == Intervals([0, 0] if seeds > 1 else None, [0, 0], [0, 0])
        assert comparison.detectable is None
        assert "without any spread over seeds or test cases" in comparison.verdict
        json.dumps(comparison.as_dict(), allow_nan=False)


def test_runs_that_are_all_alike_leave_the_spread_of_the_cases():
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.5, "b": 1.6}, seeds=1, cases=50)
    alone = compare_arms(arms, labels, ["a"])
    alike = compare_arms({name: np.repeat(p, 5, axis=0) for name, p in arms.items()}, labels, ["a"])
    for one, five in zip(alone, alike):
        assert five.standard_error == pytest.approx(one.standard_error)
        assert five.df is None
        assert five.p == pytest.approx(five.p_delong)
        json.dumps(five.as_dict(), allow_nan=False)


def test_a_perfect_arm_against_one_that_says_nothing_claims_nothing_of_no_spread():
    labels = np.arange(10) % 2
    perfect = np.stack([1 - labels, labels], axis=-1)[None].astype(float)
    comparison = compare_arms({"constant": np.full((1, 10, 2), 0.5), "perfect": perfect}, labels, ["constant"])[0]
    assert (comparison.difference, comparison.p) == (0.5, 1)
    assert "so it is unknown if this is a difference" in comparison.verdict


def test_summary_of_an_arm():
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.5}, cases=300)
    for metric, expected in (("auc", medmnist_auc), ("acc", medmnist_acc)):
        runs = [expected(p, labels) for p in arms["a"]]
        summary = arm_summary(metric, arms["a"], labels)
        assert list(asdict(summary)) == ["mean", "sd", "runs", "interval"]
        assert summary.runs == pytest.approx(runs)
        assert (summary.mean, summary.sd) == pytest.approx((np.mean(runs), np.std(runs, ddof=1)))
        low, high = summary.interval
        assert 0 < low < summary.mean < high < 1
        json.dumps(asdict(summary), allow_nan=False)


BASE = {
    "metric": "auc", "arm": "pretrained", "reference": "none", "runs": [0.0] * 5, "standard_error": 0.007, "df": 9.0,
    "p": 0.6, "p_holm": 0.6, "p_delong": 0.5, "detectable": 0.0213,
}  # fmt: skip


def compared(difference, both, cases=None, seeds=None, **changes):
    return Comparison(
        **{**BASE, "difference": difference, "intervals": Intervals(seeds, cases or both, both), **changes}
    )


@pytest.mark.parametrize(
    ("changes", "difference", "both", "sentence"),
    [
        (
            {},
            0.004,
            [-0.011, 0.019],
            "AUC +0.004 [-0.011, 0.019]: no difference seen; gains above 0.019 and losses above 0.011 are excluded at "
            "95 % (a true difference of 0.021 would have been seen with 80 % power).",
        ),
        ({"p": 0.002, "p_holm": 0.004}, 0.02, [0.01, 0.03], "better (p = 0.002, p = 0.004 corrected"),
        ({"p": 0.0002, "p_holm": 0.0004}, -0.02, [-0.03, -0.01], "worse (p < 0.001, p < 0.001 corrected"),
        ({"p": 0.03, "p_holm": 0.09}, 0.02, [0.001, 0.039], "suggests a gain (p = 0.030), but not after correction"),
        ({"p": 0.03, "p_holm": 0.09}, -0.02, [-0.039, -0.001], "suggests a loss (p = 0.030), but not after correction"),
        ({"p": 0.03, "p_holm": None}, 0.02, [0.001, 0.039], "better (p = 0.030)."),
        ({"runs": [0.0] * 2}, -0.0001, [-0.1, 0.1], "AUC -0.0001 [-0.100"),
        ({}, -0.02, [-0.05, 0.0004], "[-0.050, 0.0004]: no difference seen; gains above 0.0004 and losses above 0.050"),
        ({"p_holm": 0.04}, -0.02, [-0.05, -0.00004], "AUC -0.020 [-0.050, -0.00004]: worse"),
        ({}, 0.02, [-1e-17, 0.05], "[0.000, 0.050]: no difference seen; gains above 0.050 and losses above 0.000"),
        ({"detectable": 0.0003}, 0.0, [-0.1, 0.1], "(a true difference of 0.0003 would have been seen"),
        (
            {"runs": [0.0] * 2},
            0.0,
            [-0.1, 0.1],
            "; from 2 seeds only, which say little about the spread between seeds.",
        ),
        ({"runs": [0.0] * 2, "detectable": 1.7}, 0.0, [-1, 1], "(no true difference would have been seen with 80 %"),
    ],
)
def test_verdict(changes, difference, both, sentence):
    text = verdict(compared(difference, both, **changes), AUC)
    assert text.startswith("pretrained against none: AUC ")
    assert sentence in text
    assert text.endswith(".")


def test_what_is_refused():
    arms, labels = simulated(np.random.default_rng(0), {"a": 1.5, "b": 1.5}, seeds=2, cases=30)
    a, broken = arms["a"], arms["b"].copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"arms differ in their runs, cases or classes, .*: give each arm"):
        compare_arms({"a": a, "b": a[:1]}, labels, ["a"])
    with pytest.raises(ValueError, match=r"arms differ.*their scores have the shapes \{\}"):
        compare_arms({}, labels, [])
    with pytest.raises(ValueError, match=r"scores must have the shape \(runs, cases, classes\), not \(30, 2\): stack"):
        arm_summary("auc", a[0], labels)
    with pytest.raises(ValueError, match="30 cases need 30 labels, not 29: give one label per case"):
        compare_arms(arms, labels[1:], ["a"])
    with pytest.raises(ValueError, match=r"labels must be whole numbers .*, not float64 of shape"):
        compare_arms(arms, labels * 1.0, ["a"])
    with pytest.raises(ValueError, match=r"scores of the arms \['b'\] are not finite: leave out the seeds that failed"):
        compare_arms({"a": a, "b": broken}, labels, ["a"])
    with pytest.raises(ValueError, match=r"labels must be from 0 to 1, not \[2\]: give the labels of these classes"):
        compare_arms(arms, np.where(np.arange(30) == 3, 2, labels), ["a"])
    with pytest.raises(
        ValueError, match=r"each class needs 2 test cases or more, the classes \[1\] have fewer: add cases"
    ):
        compare_arms(arms, labels * 0, ["a"])
    with pytest.raises(ValueError, match=r"unknown references \['c'\]; choose from the arms a, b"):
        compare_arms(arms, labels, ["c"])
    with pytest.raises(ValueError, match=r"30 cases need 30 patients, not \(29,\): give one patient per case"):
        compare_arms(arms, labels, ["a"], patients=np.arange(29))
    with pytest.raises(ValueError, match="the test cases must be of 2 patients or more: add patients"):
        arm_summary("auc", a, labels, patients=np.zeros(30))
    with pytest.raises(ValueError, match="unknown metric 'f1'; choose from auc, acc"):
        arm_summary("f1", a, labels)


def test_no_interval_is_narrower_than_that_over_the_cases():
    """Five seeds that agree by chance do not make few test cases many."""
    labels = np.arange(60) % 2
    random = np.random.default_rng(3)
    shared = labels + random.normal(0, 1.2, 60)
    worse = shared + random.normal(0, 0.6, 60)
    arms = {}
    for name, score in {"none": worse, "mlp": shared}.items():
        p = 1 / (1 + np.exp(-(score + random.normal(0, 0.01, (5, 60)))))
        arms[name] = np.stack([1 - p, p], axis=-1)
    for comparison in compare_arms(arms, labels, ["none"]):
        cases, both = comparison.intervals.cases, comparison.intervals.both
        assert both[0] <= cases[0]
        assert cases[1] <= both[1]


def test_a_small_p_with_zero_in_the_interval_is_no_finding():
    both, changes = [-0.049, 0.004], {"p": 0.005, "p_holm": 0.03, "runs": [-0.02] * 5}
    text = verdict(compared(-0.023, both, seeds=[-0.035, -0.012], **changes), AUC)
    assert ": no difference seen; gains above 0.004 and losses above 0.049 are excluded" in text


def test_folds_are_not_seeds():
    arms, labels = simulated(np.random.default_rng(5), {"none": 1.0, "mlp": 1.0}, seeds=6)
    folded = compare_arms(arms, labels, ["none"], folds=3)[0]
    single = compare_arms(arms, labels, ["none"])[0]
    assert folded.runs == pytest.approx(np.reshape(single.runs, (2, 3)).mean(axis=1).tolist())
    assert folded.difference == pytest.approx(single.difference)
    assert "from 2 seeds only" in folded.verdict
    one = {name: p[:3] for name, p in arms.items()}
    assert "from one seed" in compare_arms(one, labels, ["none"], folds=3)[0].verdict
    assert arm_summary("auc", one["none"], labels, folds=3).sd is None


class Lengths:
    """A task of one number for each case, of which smaller errors are better."""

    metrics: ClassVar = {
        "error": TaskMetric("MAE", "val_mae", lambda scores, labels: float(np.abs(scores[:, 0] - labels).mean()),
                            lambda scores, labels: np.abs(scores[..., 0] - labels), bounds=(0.0, math.inf),
                            larger_is_better=False),
    }  # fmt: skip

    def groups(self, labels):
        return np.zeros(len(labels), int)


def test_any_task_is_compared_by_its_own_metrics():
    random = np.random.default_rng(2)
    labels = random.normal(size=80)
    arms = {name: (labels + spread * random.normal(size=(5, 80)))[..., None] for name, spread in (("a", 2), ("b", 1))}
    (comparison,) = compare_arms(arms, labels, ["a"], task=Lengths())
    assert comparison.metric == "error"
    assert comparison.difference == pytest.approx(
        np.abs(arms["b"][..., 0] - labels).mean() - np.abs(arms["a"][..., 0] - labels).mean()
    )
    assert comparison.verdict.startswith("b against a: MAE -0.")
    assert ": better (p < 0.001" in comparison.verdict, "a smaller error is a gain"
    summary = arm_summary("error", arms["a"], labels, task=Lengths())
    assert summary.interval[0] < summary.mean < summary.interval[1], "not cut at 1"
    assert roc_curves(Lengths.metrics, arms["a"], labels) is None


def test_no_difference_of_an_error_excludes_the_gain_below_zero():
    text = verdict(compared(0.004, [-0.011, 0.019], metric="error"), Lengths.metrics["error"])
    assert "MAE +0.004 [-0.011, 0.019]: no difference seen; gains above 0.011 and losses above 0.019" in text


def dice_of(random, level, missing=()):
    scores = np.clip(level + 0.05 * random.normal(size=(3, 30, 2)), 0, 1)
    for case, structure in missing:
        scores[:, case, structure] = np.nan
    return scores


def test_cases_without_a_structure_do_not_count_in_a_segmentation():
    from monai_llmboost.tasks import Segmentation

    random, task = np.random.default_rng(3), Segmentation(["background", "a", "b"])
    missing = [(0, 0), (0, 1), (1, 1), (2, 1)]
    arms = {"none": dice_of(random, 0.7, missing), "pretrained": dice_of(random, 0.8, missing)}
    arms["pretrained"][1, 2, 1] = 0.0  # found by one run where there is nothing
    labels = np.zeros(30, int)
    first, of_a, of_b = compare_arms(arms, labels, ["none"], task=task)
    assert [each.metric for each in (first, of_a, of_b)] == ["dice", "dice_a", "dice_b"]
    assert first.verdict.startswith("pretrained against none: Dice +0.")
    assert ": better (p = 0.00" in first.verdict
    for comparison, per_case in ((first, lambda x: np.nanmean(x[:, 1:], axis=2)), (of_a, lambda x: x[:, 1:, 0])):
        expected = per_case(arms["pretrained"]).mean() - per_case(arms["none"]).mean()
        assert comparison.difference == pytest.approx(expected)
        without = {name: scores[:, 1:] for name, scores in arms.items()}
        same = next(
            each for each in compare_arms(without, labels[1:], ["none"], task=task) if each.metric == comparison.metric
        )
        assert comparison.standard_error == pytest.approx(same.standard_error), "the empty case changes nothing"
        assert comparison.intervals.cases == pytest.approx(same.intervals.cases, abs=0.01)
    summary = arm_summary("dice_b", arms["none"], labels, task=task)
    assert summary.mean == pytest.approx(np.nanmean(arms["none"][..., 1], axis=1).mean())


def test_a_structure_in_too_few_cases_is_not_compared():
    from monai_llmboost.tasks import Segmentation

    random, task = np.random.default_rng(3), Segmentation(["background", "a", "b"])
    rare = [(case, 1) for case in range(29)]
    arms = {"none": dice_of(random, 0.7, rare), "pretrained": dice_of(random, 0.8, rare)}
    found = compare_arms(arms, np.zeros(30, int), ["none"], task=task)
    assert [each.metric for each in found] == ["dice", "dice_a"]
    assert not can_be_compared(task.metrics["dice_b"], arms["none"], np.zeros(30, int))
    arms["none"][0, 3] = np.inf
    with pytest.raises(ValueError, match=r"scores of the arms \['none'\] are not finite"):
        compare_arms(arms, np.zeros(30, int), ["none"], task=task)
