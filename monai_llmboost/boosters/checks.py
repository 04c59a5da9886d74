# SPDX-License-Identifier: Apache-2.0
"""Check of the booster contract, for boosters of this package and of users."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import nn

# Above float32 rounding errors of reordered sums, far below the effect of one masked or positioned token.
EQUIVARIANCE_TOLERANCE = 1e-4
NONZERO = 0.5, 1.5  # range of the values that replace a parameter of zeros
MANY_TOKENS = 400


def check_booster(booster: nn.Module, channels: int, num_tokens: int = 9, tolerance: float | None = None) -> None:
    """Check that a booster maps tokens (B, N, C) to tokens (B, N, C) and can be placed in any network.

    The rules:

    - shape and dtype stay the same, and values are finite;
    - the cases of a batch are independent;
    - reordering the tokens reorders the output;
    - the first output token depends on all other input tokens or on none (no causal mask);
    - with ``read``, the output equals the first tokens of the full output;
    - the gradient reaches the input and every parameter, and every parameter is trained (frozen weights are buffers);
    - a checkpoint can be loaded into a copy, which then gives the same output.

    Parameters of zeros, such as an initial gate or the second matrix of an adapter, would hide errors, so the check
    uses a copy with other values for them.

    Args:
        booster: the booster; it is not changed.
        channels: C.
        num_tokens: N of the trial input.
        tolerance: largest relative difference in the comparisons; by default 1e-4, or 2e-2 if a floating weight has
            fewer than 32 bits.

    Raises:
        ValueError: a rule is broken; the message names the first one.

    Example:
        >>> check_booster(mlp_booster(16, like="random"), channels=16)
    """
    trial = without_zeros(booster).eval()
    if tolerance is None:
        narrow = any(t.is_floating_point() and t.element_size() < 4 for t in [*trial.parameters(), *trial.buffers()])
        tolerance = 2e-2 if narrow else EQUIVARIANCE_TOLERANCE
    device = next((t.device for t in trial.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, num_tokens, channels, generator=generator).to(device).requires_grad_()
    z = trial(x)

    def require(holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{type(booster).__name__} breaks the booster contract: {rule}")

    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-6))

    require(z.shape == x.shape, f"the output has shape {tuple(z.shape)}, not {tuple(x.shape)} as the input")
    require(z.dtype == x.dtype, f"the output has dtype {z.dtype}, not {x.dtype} as the input")
    require(bool(torch.isfinite(z).all()), "the output of ordinary input is not finite")
    require(close(trial(x[:1]), z[:1]), "the output of a case depends on the other cases of its batch")
    order = torch.randperm(num_tokens, generator=generator).to(device)
    require(
        close(trial(x[:, order]), z[:, order]), "reordering the tokens does not reorder the output (mask or positions?)"
    )

    (touched,) = torch.autograd.grad(z[:, 0].square().sum(), x, retain_graph=True)
    reach = touched.abs().amax(dim=(0, 2)) > 0  # (N,): input tokens that affect the first output token
    require(bool(reach[0]), "no gradient reaches the input")
    require(
        bool(reach[1:].all() or not reach[1:].any()), "the first token sees some tokens and not others (a causal mask?)"
    )

    if "read" in inspect.signature(trial.forward).parameters:
        many = torch.randn(2, MANY_TOKENS, channels, generator=generator).to(device)  # may select another read-out
        for tokens in (x, many):
            require(
                close(trial(tokens, 2), trial(tokens)[:, :2]),
                "the first tokens, requested alone by `read`, differ from the first of all",
            )

    z.square().sum().backward()
    for name, parameter in trial.named_parameters():
        require(parameter.requires_grad, f"the parameter {name} is not trained: keep frozen weights as buffers")
        require(parameter.grad is not None and bool((parameter.grad != 0).any()), f"no gradient reaches {name}")

    other = copy.deepcopy(booster).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(trial.state_dict(), strict=True)
    require(torch.equal(other(x), trial(x)), "a checkpoint of it, loaded into a copy, gives another output")


def without_zeros(booster: nn.Module) -> nn.Module:
    """Return a copy of the booster in which every parameter has nonzero values."""
    copied = copy.deepcopy(booster)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            if not parameter.any():
                parameter.copy_(torch.empty(parameter.shape).uniform_(*NONZERO, generator=generator))
    return copied
