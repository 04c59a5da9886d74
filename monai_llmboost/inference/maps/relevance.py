# SPDX-License-Identifier: Apache-2.0
"""Gradient-based maps over a network's tokens of the evidence for a class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.networks import ViViT
from monai_llmboost.networks.trial import in_eval_mode
from monai_llmboost.networks.wrappers import unwrap


def relevance_maps(network: nn.Module, image: Tensor, class_index: int) -> dict[str, Tensor]:
    """Return maps of the evidence for a class in an image, from one forward and one backward pass.

    ``"network"``: ``relu(sum_c x_jc dy/dx_jc)``, with y the logit of the class and x_j the patch tokens before
    positions are added. This is gradient times input (Shrikumar et al. 2016, arXiv:1605.01713) over the whole network:
    to first order, the decrease of the logit if the token is removed.

    ``"before_booster"`` and ``"after_booster"``: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the booster's
    input and output tokens, ``relu(sum_c w_c x_jc)`` with ``w_c = mean_j dy/dx_jc``. The weights are the direction in
    which a common shift of all tokens, including CLS, increases the logit most. The maps show which tokens point in
    that direction, *not* which tokens were used. With pool "cls" and position "last", only the CLS token is read after
    the booster: the other output tokens have no influence, and the other input tokens only through the block's
    attention. In this case, the two maps show the effect of the booster on tokens, and ``"network"`` is the map that
    explains the prediction. Both are left out if the network has no booster or the booster sees one pooled token
    (position "head"). In a ViViT, tokens of the booster are whole slabs, so all patches of a slab have one value.

    A map is not an outline of a lesion and does not prove a cause: compare with maps of a network with random weights
    (Adebayo et al. 2018, arXiv:1810.03292). The network runs in float32 and ``eval()`` mode; its modes, hooks and the
    gradients of its parameters are not changed.

    Args:
        network: a :class:`monai_llmboost.networks.ViT3D` or :class:`monai_llmboost.networks.ViViT`.
        image: (1, channels, S0, S1, S2), the network's input.
        class_index: index of the logit.

    Returns:
        Maps (G0, G1, G2) over the patches, from 0 to 1; the maximum of each map is 1, unless it is zero everywhere.

    Raises:
        TypeError: the network has no patch tokens.
        ValueError: more than one image, no such class, or a logit that is not finite.

    Example:
        >>> from monai_llmboost.networks import ViT3D
        >>> network = ViT3D(1, 2, 8, 4, hidden_size=12, mlp_dim=12, num_layers=1, num_heads=3)
        >>> relevance_maps(network, torch.rand(1, 1, 8, 8, 8), class_index=0)["network"].shape
        torch.Size([2, 2, 2])
    """
    plain: Any = unwrap(network)
    if not isinstance(getattr(plain, "patch_tokens", None), nn.Module):
        raise TypeError(
            f"{type(plain).__name__} has no patch tokens, as ViT3D and ViViT have: run without saliency maps"
        )
    if image.dim() != 5 or len(image) != 1:
        raise ValueError(
            f"the shape {tuple(image.shape)} is not that of one image, (1, channels, S0, S1, S2): give them one by one"
        )
    patch = plain.patch_tokens
    grid = tuple(patch.grid)
    device = patch.project.weight.device
    tokens: list[Tensor] = []

    def start_here(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        tokens.append(output.detach().requires_grad_())  # earlier layers need no gradient
        return tokens[0]

    with (
        in_eval_mode(plain),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        patch.register_forward_hook(start_here),
    ):
        # A copy, because a tensor from inference mode cannot be used in autograd.
        before = plain.forward_features(image.detach().clone().to(device, torch.float32))
        after = plain.booster(before)  # all tokens, even if the prediction reads only the first; the values are equal
        logits = plain.forward_head(after)[0]
        if not 0 <= class_index < len(logits):
            raise ValueError(f"class_index must be from 0 to {len(logits) - 1}, not {class_index}")
        if not torch.isfinite(logits[class_index]):
            raise ValueError("the logit is NaN or infinite: check the image and the network's weights")
        of_patches, of_before, of_after = torch.autograd.grad(logits[class_index], [tokens[0], before, after])
        maps = {"network": _scaled((of_patches * tokens[0]).sum(dim=-1).view(grid))}
        if isinstance(plain.booster, nn.Identity) or plain.boosts_pooled:
            return maps
        for name, x, gradient in (("before_booster", before, of_before), ("after_booster", after, of_after)):
            # The formula of monai.visualize.GradCAM, which would reset the gradients of the parameters.
            values = x[0] @ gradient[0].mean(dim=0)  # ([1 +] patches or slabs,)
            if isinstance(plain, ViViT):
                values = values[-grid[0] :].repeat_interleave(grid[1] * grid[2])
            maps[name] = _scaled(values[-math.prod(grid) :].view(grid))
    return maps


def _scaled(values: Tensor) -> Tensor:
    """Return the positive part of a map, scaled to a maximum of 1."""
    values = values.detach().relu()
    return values / values.max() if values.max() > 0 else values
