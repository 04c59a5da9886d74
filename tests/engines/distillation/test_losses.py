# SPDX-License-Identifier: Apache-2.0
"""CKA, and the losses of distillation by logits and features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_llmboost.engines.distillation import CKALoss, FeatureRegression, LogitDistillation, linear_cka


def features(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased HSIC by its definition, with n x n matrices (Song et al. 2012, equation 5)."""
    n = len(k)
    k, m = k - torch.diag(torch.diag(k)), m - torch.diag(torch.diag(m))
    one = torch.ones(n, dtype=k.dtype)
    return (
        torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


@pytest.mark.parametrize(("n", "f", "g"), [(4, 3, 5), (8, 64, 128), (50, 7, 3), (9, 20, 2)])
def test_unbiased_cka_is_that_of_the_definition(n, f, g):
    x, y = features(n, f, 0) + 3, features(n, g, 1) - 1
    k, m = x @ x.T, y @ y.T
    expected = plain_hsic(k, m) / (plain_hsic(k, k) * plain_hsic(m, m)).sqrt()
    assert linear_cka(x, y) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize(("n", "f", "g"), [(2, 3, 5), (8, 64, 128), (50, 7, 3)])
def test_biased_cka_is_that_of_the_definition(n, f, g):
    x, y = features(n, f, 0) + 3, features(n, g, 1) - 1
    center = torch.eye(n, dtype=x.dtype) - 1 / n
    k, m = (center @ each @ each.T @ center for each in (x, y))
    expected = (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
    assert linear_cka(x, y, unbiased=False) == pytest.approx(float(expected), abs=1e-10)


def test_independent_features_are_unlike_only_for_the_unbiased_cka():
    pairs = [(features(8, 64, seed), features(8, 128, seed + 1000)) for seed in range(60)]
    unbiased = torch.stack([linear_cka(*pair) for pair in pairs]).mean()
    biased = torch.stack([linear_cka(*pair, unbiased=False) for pair in pairs]).mean()
    assert abs(float(unbiased)) < 0.1
    assert 0.88 < float(biased) < 0.95


def test_it_does_not_change_with_rotation_shift_and_scale():
    x, y = features(20, 6, 0), features(20, 4, 1)
    rotation, _ = torch.linalg.qr(features(6, 6, 2))
    assert linear_cka(1e6 * x @ rotation + 7, y) == pytest.approx(float(linear_cka(x, y)), abs=1e-9)


def test_gradients_are_right_and_finite():
    x, y = features(6, 3, 0).requires_grad_(), features(6, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(linear_cka, (x, y))
    same = torch.ones(6, 3, requires_grad=True)
    loss = CKALoss()(same, features(6, 2, 1))
    loss.backward()
    assert float(loss.detach()) == 1  # features without any variation are like nothing
    assert same.grad is not None and bool(same.grad.isfinite().all())


def test_samples():
    tokens = features(3 * 5, 4, 0).reshape(3, 5, 4)
    matrix = tokens.reshape(15, 4)
    other = features(15, 6, 1)
    expected = float(1 - linear_cka(matrix, other))
    assert float(CKALoss("tokens")(tokens, other.reshape(3, 5, 6))) == pytest.approx(expected)
    voxels = tokens.movedim(-1, 1).reshape(3, 4, 5, 1, 1)
    assert float(CKALoss("voxels")(voxels, other.reshape(3, 5, 6).movedim(-1, 1))) == pytest.approx(expected)
    case = CKALoss()(features(8, 6, 2).reshape(8, 2, 3), features(8, 5, 3))
    assert float(case) == pytest.approx(float(1 - linear_cka(features(8, 6, 2), features(8, 5, 3))))


def test_it_is_in_float32_under_autocast():
    x = features(16, 8, 0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = CKALoss()(x, x)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "named", "message"),
    [
        ((3, 4), (3, 4), {}, "3 samples are too few for the unbiased CKA, which needs 4: raise the batch size"),
        ((1, 4), (1, 4), {"unbiased": False}, "1 samples are too few for the biased CKA, which needs 2"),
        ((8, 4), (7, 4), {}, r"features of shapes \[8, 4\] and \[7, 4\] are not those of the same samples"),
        ((8,), (8,), {}, r"features of shape \[8\] have no batch: give \(B, F\)"),
        ((8, 4), (8, 4), {"samples": "tokens"}, r"have no tokens: give \(B, N, C\)"),
        ((8, 4), (8, 4), {"samples": "voxels"}, r"have no voxels: give \(B, C, S0, ...\)"),
    ],
)
def test_features_that_do_not_fit(x, y, named, message):
    with pytest.raises(ValueError, match=message):
        CKALoss(**named)(torch.zeros(x), torch.zeros(y))


def test_unknown_arguments():
    with pytest.raises(ValueError, match="unknown samples 'cases'; choose from batch, tokens, voxels"):
        CKALoss("cases")
    with pytest.raises(ValueError, match="unbiased must be True or False, not 'no'"):
        CKALoss(unbiased="no")  # type: ignore[arg-type]


def test_logits():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3) * 2, 0.0]])
    # At the temperature 2 the teacher says 3/4 and 1/4, and the student 1/2 and 1/2.
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(LogitDistillation(2)(student, teacher)) == pytest.approx(expected, rel=1e-6)
    voxels = [logits.reshape(1, 2, 1, 1, 1).expand(3, 2, 4, 4, 4) for logits in (student, teacher)]
    assert float(LogitDistillation(2)(*voxels)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"the student's logits have the shape \[1, 2\], and the teacher's \[1, 3\]"):
        LogitDistillation()(student, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="temperature must be a number above 0, not 0"):
        LogitDistillation(0)


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    LogitDistillation()(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_features():
    assert float(FeatureRegression()(torch.zeros(2, 3), torch.full((2, 3), 2.0))) == 4
    with pytest.raises(ValueError, match="the student's features have the shape"):
        FeatureRegression()(torch.zeros(2, 3), torch.zeros(2, 4))
