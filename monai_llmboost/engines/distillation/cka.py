# SPDX-License-Identifier: Apache-2.0
"""How alike two networks see the same cases: centred kernel alignment (CKA), as a number and as a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice, check_switch

# What counts as a sample of features: a case, a token of (B, N, C), or a voxel or pixel of (B, C, ...).
SAMPLES = ("batch", "tokens", "voxels")


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """Return the linear CKA of two matrices of features, a number of their dtype.

    ``CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = x xᵀ`` and ``L = y yᵀ`` (Kornblith et al. 2019,
    arXiv:1905.00414). It is 1 for features that differ by a rotation, a shift and a scale. The biased estimate of HSIC
    is near 1 for independent features in small batches (0.92 for 8 cases of 64 and 128 features); the unbiased one of
    Song et al. (2012, JMLR 13:1393) is 0 there on average, and may be negative.

    Without an n x n matrix where there are more samples n than features.

    Args:
        x: features (n, F) of n samples.
        y: features (n, G) of the same samples.
        unbiased: the unbiased estimate of HSIC; it needs at least 4 samples, the biased one 2.

    Returns:
        The alignment; 0 where the features of one side are the same for all samples, so that it is undefined.

    Raises:
        ValueError: not two matrices with the same number of samples, or too few samples.

    Example:
        >>> x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
        >>> round(float(linear_cka(x, 3 * x.flip(1) + 1)), 4)
        1.0
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ValueError(
            f"features of shapes {list(x.shape)} and {list(y.shape)} are not those of the same samples: give (n, F) "
            "and (n, G)"
        )
    needed = 4 if unbiased else 2
    if len(x) < needed:
        raise ValueError(
            f"{len(x)} samples are too few for the {'unbiased' if unbiased else 'biased'} CKA, which needs {needed}: "
            "raise the batch size, or take tokens or voxels as samples"
        )
    x, y = _normalized(x), _normalized(y)
    hsic = _unbiased_hsic if unbiased else _biased_hsic
    xy, xx, yy = hsic(x, y), hsic(x, x), hsic(y, y)
    # Features are normalized, so that their own HSIC is a share of 1, or rounding where they are constant.
    defined = (xx > torch.finfo(x.dtype).eps) & (yy > torch.finfo(y.dtype).eps)
    product = torch.where(defined, xx * yy, 1.0)  # no square root of 0: its gradient is infinite
    return torch.where(defined, xy / product.sqrt(), 0.0)


def _normalized(x: Tensor) -> Tensor:
    """Center features and divide them by their norm: neither changes the CKA, and sums of products stay small."""
    x = x - x.mean(dim=0)
    norm = torch.linalg.matrix_norm(x)
    return x / torch.where(norm > 0, norm, 1.0)


def _biased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return tr(K L) of centred features."""
    if len(x) <= min(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return n(n - 3) times the unbiased HSIC of centred features; K~ and L~ are K and L with zero diagonals."""
    n = len(x)
    # The diagonals. Rows of K sum to 0 because the features are centred, so those of K~ to minus the diagonal.
    k, m = x.square().sum(dim=1), y.square().sum(dim=1)
    trace = _biased_hsic(x, y) - k @ m
    return trace + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m)


class CKALoss(nn.Module):
    """One minus the linear CKA of two features of the same cases: 0 for features that are alike, about 1 otherwise.

    It compares features of different sizes without a map between them. Computed in float32 at least, outside autocast.
    With several processes, each compares its own cases.

    Args:
        samples: ``"batch"``: each case is a sample, its features flattened; ``"tokens"``: each token of (B, N, C);
            ``"voxels"``: each voxel of a feature map (B, C, S0, S1, ...).
        unbiased: see :func:`linear_cka`.

    Raises:
        ValueError: unknown samples; in ``forward``, features of other axes, of different samples, or of too few.

    Example:
        >>> loss = CKALoss()
        >>> x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
        >>> y = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
        >>> round(float(loss(x, 2 * x)), 3), bool(loss(x, y) > 0.8)
        (0.0, True)
    """

    def __init__(self, samples: str = "batch", unbiased: bool = True) -> None:
        super().__init__()
        check_choice("samples", samples, SAMPLES)
        check_switch("unbiased", unbiased)
        self.samples = samples
        self.unbiased = unbiased

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the features of two networks."""
        x, y = self._matrix(x), self._matrix(y)
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return 1 - linear_cka(x.to(dtype), y.to(dtype), self.unbiased)

    def _matrix(self, x: Tensor) -> Tensor:
        """Return features as (samples, F)."""
        if self.samples == "batch" and x.dim() >= 2:
            return x.flatten(1)
        if self.samples == "tokens" and x.dim() == 3:
            return x.flatten(0, 1)
        if self.samples == "voxels" and x.dim() >= 3:
            return x.movedim(1, -1).flatten(0, -2)
        axes = {"batch": "(B, F)", "tokens": "(B, N, C)", "voxels": "(B, C, S0, ...)"}[self.samples]
        raise ValueError(f"features of shape {list(x.shape)} have no {self.samples}: give {axes}, or other samples")
