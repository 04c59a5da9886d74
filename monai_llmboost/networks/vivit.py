# SPDX-License-Identifier: Apache-2.0
"""ViViT: a factorised transformer within each slab of a volume and then across slabs, with a booster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.boosted_network import BoostedNetwork, describe_transformer
from monai_llmboost.networks.class_names import ClassNames, Preprocessing, TrainingCases
from monai_llmboost.networks.tokens import PatchTokens, check_pool, grid_of, learned_embedding
from monai_llmboost.networks.transformer import transformer_layers


class ViViT(BoostedNetwork):
    """A factorised encoder from volumes to class logits (Arnab et al. 2021, arXiv:2103.15691, model 2), as in R-LLM.

    The volume's first axis is used as time. The spatial layers process the patch tokens within each slab of
    ``patch_size[0]`` slices; each slab is then one token in the temporal layers. The booster (Lai et al. 2024,
    arXiv:2403.17343) sees only the temporal tokens.

    Args:
        in_channels: channels of the volume.
        num_classes: number of logits.
        img_size: size of the volume along its three axes, voxels; slabs are cut along the first axis.
        patch_size: size of a patch, voxels; divides ``img_size``.
        hidden_size: features of a token, C.
        mlp_dim: inner features of the layers' MLPs.
        num_spatial_layers: transformer layers within a slab.
        num_temporal_layers: transformer layers across slabs.
        num_heads: attention heads.
        head_size: features of a head; ``None`` is ``hidden_size / num_heads``.
        dropout_rate: dropout in attention, MLPs and after the positions are added, 0 to below 1.
        pool: ``"cls"`` reads one CLS token within slabs and another across slabs; ``"mean"`` averages over the tokens
            and uses no CLS tokens.
        booster: maps tokens (B, N, C) to tokens (B, N, C); ``None`` for the plain network.
        class_names: names of the classes in the order of the logits. Checkpoints contain them, and loading one
            replaces those in ``class_names.names()``.
        position: position of the booster. ``"last"``: after the last temporal layer and its norm; with ``pool="cls"``
            it computes only the CLS token, at little cost. ``"middle"``: after the first ``num_temporal_layers // 2``
            temporal layers, at least one on each side; the later layers need all tokens of the booster. ``"head"``: on
            the pooled token, just before ``head``; the block then sees one token, (B, 1, C), so its attention returns
            the value of that token.
        stem_channels: features of a convolutional stem before the patches, see
            :class:`monai_llmboost.networks.tokens.PatchTokens`; 0 for none, as published.

    Raises:
        ValueError: sizes that do not match, or too few layers for the middle; in ``forward``, a volume of another size.

    Example:
        >>> network = ViViT(1, 3, img_size=28, patch_size=(4, 14, 14), pool="mean", class_names=["a", "b", "c"])
        >>> network(torch.zeros(4, 1, 28, 28, 28)).shape, network.class_names.names()
        (torch.Size([4, 3]), ['a', 'b', 'c'])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int,
        hidden_size: int = 192,
        mlp_dim: int = 384,
        num_spatial_layers: int = 4,
        num_temporal_layers: int = 4,
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
        # Without CLS tokens, empty embeddings keep one forward for both kinds of pooling.
        cls_tokens = 0 if check_pool(pool) == "mean" else 1
        num_slabs, per_slab = size[0] // patch[0], (size[1] // patch[1]) * (size[2] // patch[2])
        spatial = transformer_layers(num_spatial_layers, hidden_size, mlp_dim, num_heads, head_size, dropout_rate)
        temporal = transformer_layers(num_temporal_layers, hidden_size, mlp_dim, num_heads, head_size, dropout_rate)
        self.patch_tokens = PatchTokens(in_channels, size, patch, hidden_size, stem_channels)
        self.positions = learned_embedding(1, num_slabs, per_slab, hidden_size)
        self.spatial_cls_token = learned_embedding(1, cls_tokens, hidden_size)
        self.temporal_cls_token = learned_embedding(1, cls_tokens, hidden_size)
        self.drop = nn.Dropout(dropout_rate)
        self.spatial_layers = spatial
        self.spatial_norm = nn.LayerNorm(hidden_size)
        self.temporal_layers = temporal
        self.temporal_norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_classes)
        text = describe_transformer(self, patch, num_heads, pool, stem_channels)
        self.make_joint(text, hidden_size, num_temporal_layers, pool)
        self.place_booster(booster, position)
        self.class_names = ClassNames(num_classes, class_names)
        self.preprocessing = Preprocessing()
        self.training_cases = TrainingCases()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map volumes (B, channels, S0, S1, S2) to temporal tokens before the booster, (B, [1 +] slabs, C).

        With position "last" these are the tokens after all temporal layers and their norm, with "middle" after the
        first half of the layers; with "head", only the pooled token, (B, 1, C).
        """
        x = self.patch_tokens(x) + self.positions  # (B, slabs, patches of a slab, C)
        b, slabs = x.shape[0], x.shape[1]
        x = x.flatten(0, 1)  # (B * slabs, patches of a slab, C)
        x = torch.cat((self.spatial_cls_token.expand(b * slabs, -1, -1), x), dim=1)
        x = self.pool_tokens(self.spatial_norm(self.spatial_layers(self.drop(x))))
        x = x.view(b, slabs, -1)
        x = torch.cat((self.temporal_cls_token.expand(b, -1, -1), x), dim=1)
        if self.boosts_between:
            return self.temporal_layers(x, 0, self.num_before)
        x = self.temporal_norm(self.temporal_layers(x))
        return self.pool_tokens(x).unsqueeze(1) if self.boosts_pooled else x

    def forward_head(self, x: Tensor) -> Tensor:
        """Map tokens after the booster (B, [1 +] slabs, C) to logits (B, num_classes).

        With position "last" and pool "cls", the CLS token (B, 1, C) is enough. With "middle", the second half of the
        temporal layers and their norm run first. With "head", the input is the pooled token, (B, 1, C).
        """
        if self.boosts_between:
            x = self.temporal_norm(self.temporal_layers(x, self.num_before))
        return self.head(self.pool_tokens(x))
