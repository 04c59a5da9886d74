# SPDX-License-Identifier: Apache-2.0
"""A frozen 2D vision transformer on the slices of a volume along three axes, with randomly projected mean tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.features.embedding import Embedding

PREPROCESSOR = "preprocessor_config.json"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for a folder that does not say
SLICES = 32  # that run together; always the same, so that features do not depend on the batch
# Layers after the patch tokens, of which nothing is used.
UNUSED = ("pooler", "head", "classifier")


class SliceFeatures(Embedding):
    """Features of Raptor (An et al. 2025, arXiv:2507.08254) by any 2D vision transformer.

    For each of the three axes d, with the patch tokens T_s (N, D) of its slices s and a random matrix R (D, K)::

        features_d = R^T mean_s(T_s)^T                           (K, N)
        features = [features_0, features_1, features_2]          flattened, 3 K N

    R is Gaussian, N(0, 1), the same for all patches and axes; class and register tokens are left out. Each channel has
    its own features. A slice is resized to the size of the transformer (bicubic, clipped to 0 to 1), its grey values
    are repeated in three colours and normalised. The published code (github.com/sriramlab/raptor) also rounds slices
    to 256 grey levels and lets the transformer's own preprocessing enlarge them and cut their border off; here slices
    stay whole. Which numbers its R has depends on numpy's generator, so features differ from the published ones by
    another R. With DINOv2-L the paper takes K = 10 or 100, and slices of 224.

    Args:
        folder: local folder of a vision transformer as ``transformers`` saves it: ``config.json`` and
            ``*.safetensors``, such as DINOv2's. Nothing is downloaded, and no code of the folder is run.
        image_shape: (C, S0, S1, S2) of a volume with intensities from 0 to 1.
        projection: K, numbers per patch and axis.
        seed: seed of R; the global random state is not changed.

    Raises:
        FileNotFoundError: no such folder, or no ``config.json`` in it.
        ValueError: not a vision transformer with square patches, weights in pickled files, missing weights.

    Example:
        >>> SliceFeatures("dinov2-small", (1, 64, 64, 64))(torch.rand(2, 1, 64, 64, 64)).shape  # doctest: +SKIP
        torch.Size([2, 7680])
    """

    def __init__(self, folder: str | Path, image_shape: Sequence[int], projection: int = 10, seed: int = 0) -> None:
        super().__init__(image_shape)
        check_whole("projection", projection, 1)
        check_whole("the seed of the features", seed, 0)
        folder = Path(folder)
        self.model, config = _load(folder)
        said = _preprocessor(folder)
        self.size = _side(said.get("crop_size") or said.get("size") or config.image_size)
        self.patches = (self.size // _side(config.patch_size)) ** 2
        self.colours = getattr(config, "num_channels", 3)
        for name, default in (("image_mean", MEAN), ("image_std", DEVIATION)):
            values = torch.tensor((said.get(name) or default)[: self.colours])
            self.register_buffer(name, values[:, None, None])
        random = torch.Generator().manual_seed(seed)
        self.register_buffer("projection", torch.randn(config.hidden_size, projection, generator=random))
        self.finish()

    def extra_repr(self) -> str:
        """Return the size of the slices, which changes features and not weights."""
        return f"by slices of {self.size}"

    def embed(self, x: Tensor) -> Tensor:
        """Map volumes (B, C, S0, S1, S2) to features (B, C * 3 * K * N)."""
        channels = x.flatten(0, 1)  # (B * C, S0, S1, S2)
        features = [torch.cat([self._along(volume, axis) for axis in range(3)]) for volume in channels]
        return torch.stack(features).reshape(len(x), -1)

    def _along(self, volume: Tensor, axis: int) -> Tensor:
        """Map a volume (S0, S1, S2) to the features (K * N) of its slices along an axis."""
        slices = volume.movedim(axis, 0)[:, None]  # (S, 1, height, width)
        total = torch.zeros(self.patches, self.get_buffer("projection").shape[0], device=volume.device)
        for part in slices.split(SLICES):
            total += self._tokens(part).sum(dim=0)
        return (total / len(slices) @ self.get_buffer("projection")).T.flatten()

    def _tokens(self, slices: Tensor) -> Tensor:
        """Map slices (S, 1, height, width) to their patch tokens (S, N, D)."""
        x = functional.interpolate(slices, (self.size, self.size), mode="bicubic").clamp(0, 1)
        x = (x.expand(-1, self.colours, -1, -1) - self.get_buffer("image_mean")) / self.get_buffer("image_std")
        return self.model(pixel_values=x).last_hidden_state[:, -self.patches :]  # other tokens stand first


def _load(folder: Path) -> tuple[nn.Module, Any]:
    """Return the vision transformer of a folder, and its config."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no vision transformer in {folder}: give a local folder with config.json and *.safetensors, such as that "
            "of DINOv2"
        )
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no *.safetensors; pickled weights are not read: convert them with transformers")
    from transformers import AutoModel  # takes seconds to import

    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        whole, said = AutoModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **options)
    except Exception as error:  # transformers refuses a folder with any kind of error
        raise ValueError(f"transformers cannot load {folder}: {str(error).splitlines()[0]}. Give another") from error
    model = getattr(whole, "vision_model", whole)  # of a pair of vision and text, such as CLIP
    config = getattr(whole.config, "vision_config", whole.config)
    if not all(hasattr(config, name) for name in ("patch_size", "image_size", "hidden_size")):
        raise ValueError(f"{folder} is a {config.model_type} model, not a 2D vision transformer: give one like DINOv2")
    missing = sorted(name for name in said["missing_keys"] if not any(part in name for part in UNUSED))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}: download it again")
    return model, config


def _preprocessor(folder: Path) -> dict[str, Any]:
    file = folder / PREPROCESSOR
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _side(size: Any) -> int:
    """Return the side of a square in any of the forms of transformers' configs.

    Raises:
        ValueError: not a square.
    """
    values = (
        list(size.values()) if isinstance(size, dict) else list(size) if isinstance(size, (list, tuple)) else [size]
    )
    if len(set(values)) != 1:
        raise ValueError(f"slices or patches of {size} are not square: give a transformer with square ones")
    return int(values[0])
