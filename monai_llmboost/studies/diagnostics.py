# SPDX-License-Identifier: Apache-2.0
"""The effect of a booster on the tokens of a trained network, measured without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import FrozenBlock
from monai_llmboost.networks.wrappers import unwrap

# Number of compared tokens: more tokens take time and change only the third digit.
TOKENS = 4096
# Fraction of a volume's tokens that count as the most active ones.
TOP = 0.1
# Descriptions of the measures.
START = "at_start_"  # prefix of a measure of the untrained network
MEASURES = {
    "block_adds": "what the block adds to its tokens, relative to their size",
    "booster_adds": "what the booster adds to the tokens that are read, relative to their size",
    "cka_block": "similarity of tokens before and after the block (CKA, 0 to 1)",
    "cka_booster": "similarity of tokens before and after the booster (CKA, 0 to 1)",
    "top_tokens_before": "fraction of the activation in the top tenth of tokens, before the booster",
    "top_tokens_after": "the same after the booster",
}
MEASURES |= {
    f"{START}{name}": f"{MEASURES[name]}, before training" for name in ("block_adds", "booster_adds", "cka_block")
}


def diagnose(
    network: nn.Module, images: Iterable[Tensor], infer: Callable[[Tensor, nn.Module], Any] | None = None
) -> dict[str, float] | None:
    """Measure the effect of the first booster in a network, or return ``None`` without a booster.

    - ``block_adds``: ``|layers(h) - h| / |h|``, where h are the tokens that enter the first layer, and ``layers(h)``
      those that leave the last one, before the final norm: 0.6 to 1.4 inside a trained language model, near zero if the
      block hardly changes its tokens. Left out if there is no block of a language model, as in the arm ``mlp``;
    - ``booster_adds``: ``|z - x| / |x|`` of the tokens that the network reads of the booster, such as the CLS token;
    - ``cka_block``: similarity of the block's input and output tokens, see :func:`linear_cka`; 1 if the block only
      rotates and scales them;
    - ``cka_booster``: the same before and after the whole booster;
    - ``top_tokens_before``, ``top_tokens_after``: the fraction of the total activation in the most active tenth of
      the tokens, before and after the booster; the activation of a token is the norm of its difference to the volume's
      mean token. Pang et al. (2024, arXiv:2310.12973) argue that a frozen block amplifies informative tokens: then
      the fraction increases. Both are left out if there is only one token, as at position "head".

    Args:
        network: trained network on the device of the images; it is left in ``eval()``.
        images: batches (B, channels, S0, S1, S2), used until ``TOKENS`` tokens are collected.
        infer: applies the network to a batch, such as in sliding windows; ``None``: to the whole batch at once.
    """
    network = unwrap(network)
    booster = next((part for part in network.modules() if isinstance(part, ResidualBooster)), None)
    if booster is None:
        return None
    entered: list[tuple[Any, ...]] = []
    watch = booster.register_forward_pre_hook(lambda _, arguments: entered.append(arguments))
    parts: list[dict[str, Tensor]] = []
    seen = 0
    try:
        with torch.inference_mode():
            for image in images:
                entered.clear()
                network.eval()
                network(image) if infer is None else infer(image, network)
                for x, *read in [*entered]:  # the tokens, and if not all, how many of them are read
                    if seen < TOKENS:
                        # In float32, also if the network was in mixed precision.
                        parts.append(dict(_tokens(booster, x.float(), *read)))
                        seen += x.shape[0] * x.shape[1]
                if seen >= TOKENS:
                    break
    finally:
        watch.remove()
    whole = {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}  # (B, N, ...)
    flat = {name: tokens.flatten(0, 1)[:TOKENS] for name, tokens in whole.items()}
    measured = {
        "cka_block": linear_cka(flat["encoded"], flat["block"]),
        "cka_booster": linear_cka(flat["before"], flat["after"]),
        "booster_adds": relative_change(whole["read_before"], whole["read_after"]),
    }
    if "entered" in whole:
        measured["block_adds"] = relative_change(whole["entered"], whole["left"])
    if whole["before"].shape[1] > 1:
        measured |= {f"top_tokens_{name}": top_share(whole[name]) for name in ("before", "after")}
    return measured


def _tokens(booster: ResidualBooster, x: Tensor, read: int | None = None) -> Any:
    """Yield all tokens at each stage of the booster, even if the network reads only the first token."""
    forward = type(booster).forward  # without the forward hook
    yield "before", x
    yield "encoded", (h := booster.encode(x))
    yield "block", booster.block_output(x, h)
    yield "after", (z := forward(booster, x))
    yield "read_before", x[:, :read]
    yield "read_after", z[:, :read]
    if isinstance(booster.block, FrozenBlock):
        yield "entered", booster.block.take(h)
        yield "left", booster.block.run_layers(h)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return ``|after - before| / |before|``, over all tokens (B, N, features); 0 for tokens of zeros."""
    size = torch.linalg.norm(before)
    return float(torch.linalg.norm(after - before) / size) if size > 0 else 0.0


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Return the linear centred kernel alignment of two representations of the same tokens, 0 to 1.

    ``|B'A|^2 / (|A'A| |B'B|)`` in Frobenius norms, columns centred (Kornblith et al. 2019, arXiv:1905.00414); invariant
    to rotation and scaling of either representation.

    Args:
        a: (tokens, features).
        b: (tokens, other features).
    """
    a, b = (x.double() - x.double().mean(dim=0) for x in (a, b))
    norms = torch.linalg.norm(a.T @ a) * torch.linalg.norm(b.T @ b)
    return float(torch.linalg.norm(b.T @ a) ** 2 / norms) if norms > 0 else 0.0


def top_share(tokens: Tensor) -> float:
    """Return the fraction of activation in a volume's most active tokens, (B, N, C), averaged over the volumes."""
    activation = torch.linalg.norm(tokens - tokens.mean(dim=1, keepdim=True), dim=-1)  # (B, N)
    most = activation.topk(max(1, round(TOP * activation.shape[1])), dim=1).values.sum(dim=1)
    return float((most / activation.sum(dim=1).clamp_min(torch.finfo(activation.dtype).tiny)).mean())
