# SPDX-License-Identifier: Apache-2.0
"""The size of tokens at which a layer works as in its model, found from its weights, without data.

A layer of a language model adds to its tokens: ``layer(h) = h + branches(h)``. Its norms make what the branches add
nearly independent of the size of h, so tokens that are too small are drowned and tokens that are too large are hardly
changed. In whole models, ``|layer(h) - h| / |h|`` is about 0.7 from the second layer on.
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from monai_llmboost.llm.layers import DonorLayers
from monai_llmboost.llm.transformers_model import quiet

RATIO = 0.7  # measured in trained models: 0.64 to 0.74
SMALLEST, LARGEST = 1e-3, 1e4  # sizes that are tried
TOKENS, SEED = 64, 20240326


def find_h_rms(donor: DonorLayers) -> float | None:
    """Return the root mean square s of tokens at which a donor's first layer adds 0.7 times their size.

    It solves ``|layer(h) - h| / |h| = 0.7`` on 64 tokens of normal noise, each scaled to the root mean square s,
    without mask, positions and final norm, in float32. The global random state is not changed. The result has three
    digits, so that it is the same on any machine.

    Args:
        donor: the layers; only the first one is run.

    Returns:
        The size; ``None`` if no size from 0.001 to 10000 has this ratio.

    Example:
        >>> find_h_rms(read_block("embedded"))
        4.38
    """
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, TOKENS, donor.width, generator=generator, dtype=torch.float32, device="cpu")
    noise = F.rms_norm(noise, (donor.width,))
    first = donor.layers[0].module(torch.float32, causal=False, rotary=False)
    # If transformers runs the layer, its warnings concern language models only.
    loud = "transformers" in sys.modules

    def excess(log_size: float) -> float:
        h = noise * math.exp(log_size)
        added = float((first(h) - h).double().norm() / h.double().norm())
        return math.log(max(added, 1e-30) / RATIO)

    with quiet() if loud else nullcontext(), torch.no_grad():
        ends = math.log(SMALLEST), math.log(LARGEST)
        if not excess(ends[0]) > 0 > excess(ends[1]):
            return None
        from scipy.optimize import brentq  # takes half a second, and block files store the size

        # The logarithm falls nearly by one for each one of the size's logarithm, so this takes few steps.
        found = math.exp(brentq(excess, *ends, xtol=1e-6))
    return float(f"{found:.3g}")
