# SPDX-License-Identifier: Apache-2.0
"""ViT3D: a vision transformer over the patches of a volume, with a booster after or between its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.boosted_network import BoostedNetwork, describe_transformer
from monai_llmboost.networks.class_names import ClassNames, Preprocessing, TrainingCases
from monai_llmboost.networks.tokens import PatchTokens, check_pool, grid_of, learned_embedding
from monai_llmboost.networks.transformer import transformer_layers


class ViT3D(BoostedNetwork):
    """A 3D vision transformer from volumes to class logits, as in R-LLM (Lai et al. 2024, arXiv:2403.17343).

    Patches become tokens (LayerNorm, linear, LayerNorm), and a CLS token and positions are added. Pre-norm transformer
    layers follow, without a norm after the last one, then the booster, the pooling, a LayerNorm and a linear head.
    ``position`` can move the booster.

    Args:
        in_channels: channels of the volume.
        num_classes: number of logits.
        img_size: size of the volume along its three axes, voxels; one number for a cube.
        patch_size: size of a patch, voxels; divides ``img_size``. ``None`` for 4 to 8 patches along each axis, as many
            as possible.
        hidden_size: features of a token, C.
        mlp_dim: inner features of the layers' MLPs.
        num_layers: number of transformer layers.
        num_heads: attention heads.
        head_size: features of a head; ``None`` is ``hidden_size / num_heads``.
        dropout_rate: dropout in attention, MLPs and after the positions are added, 0 to below 1.
        pool: ``"cls"`` reads the CLS token, ``"mean"`` the mean over all tokens including CLS.
        booster: maps tokens (B, N, C) to tokens (B, N, C), such as :class:`monai_llmboost.boosters.ResidualBooster`;
            ``None`` for the plain network.
        class_names: names of the classes in the order of the logits. Checkpoints contain them, and loading one
            replaces those in ``class_names.names()``.
        position: position of the booster. ``"last"``: after the last layer; with ``pool="cls"`` it computes only the
            CLS token, at little cost. ``"middle"``: after the first ``num_layers // 2`` layers, at least one on each
            side; the later layers need all tokens of the booster. ``"head"``: on the pooled token, just before
            ``head_norm``; the block then sees one token, (B, 1, C), so its attention returns the value of that token.
        stem_channels: features of a convolutional stem before the patches, see
            :class:`monai_llmboost.networks.tokens.PatchTokens`; 0 for none, as published.

    Raises:
        ValueError: sizes that do not match, or too few layers for the middle; in ``forward``, a volume of another size.

    Example:
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> network = ViT3D(1, 2, img_size=28, patch_size=7, booster=ResidualBooster(192, load_block("embedded")))
        >>> network(torch.zeros(4, 1, 28, 28, 28)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int | None,
        hidden_size: int = 192,
        mlp_dim: int = 384,
        num_layers: int = 4,
        num_heads: int = 6,
        head_size: int | None = None,
        dropout_rate: float = 0.0,
        pool: str = "cls",
        booster: nn.Module | None = None,
        class_names: Sequence[str] | None = None,
        position: str = "last",
        stem_channels: int = 0,
    ) -> None:
        super().__init__()
        check_whole("in_channels", in_channels, 1)
        check_whole("num_classes", num_classes, 1)
        size, patch = grid_of(img_size, patch_size)
        check_pool(pool)
        layers = transformer_layers(num_layers, hidden_size, mlp_dim, num_heads, head_size, dropout_rate)
        num_patches = (size[0] // patch[0]) * (size[1] // patch[1]) * (size[2] // patch[2])
        self.patch_tokens = PatchTokens(in_channels, size, patch, hidden_size, stem_channels)
        self.cls_token = learned_embedding(1, 1, hidden_size)
        self.positions = learned_embedding(1, 1 + num_patches, hidden_size)
        self.drop = nn.Dropout(dropout_rate)
        self.layers = layers
        self.head_norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_classes)
        text = describe_transformer(self, patch, num_heads, pool, stem_channels)
        self.make_joint(text, hidden_size, num_layers, pool)
        self.place_booster(booster, position)
        self.class_names = ClassNames(num_classes, class_names)
        self.preprocessing = Preprocessing()
        self.training_cases = TrainingCases()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map volumes (B, channels, S0, S1, S2) to tokens before the booster, CLS first, (B, 1 + patches, C).

        With position "last" these are the tokens after all layers, with "middle" after the first half; with "head",
        only the pooled token, (B, 1, C).
        """
        x = self.patch_tokens(x).flatten(1, 2)  # (B, patches, C)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        x = self.drop(x)
        if self.boosts_between:
            return self.layers(x, 0, self.num_before)
        x = self.layers(x)
        return self.pool_tokens(x).unsqueeze(1) if self.boosts_pooled else x

    def forward_head(self, x: Tensor) -> Tensor:
        """Map tokens after the booster (B, 1 + patches, C) to logits (B, num_classes).

        With position "last" and pool "cls", the CLS token (B, 1, C) is enough. With "middle", the second half of the
        layers runs first. With "head", the input is the pooled token, (B, 1, C).
        """
        if self.boosts_between:
            x = self.layers(x, self.num_before)
        return self.head(self.head_norm(self.pool_tokens(x)))
