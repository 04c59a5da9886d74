# SPDX-License-Identifier: Apache-2.0
"""Maps over a network's tokens as files on the grid of the original volume, and a picture of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_llmboost.artifacts.files import atomic_path
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.case_folder import PREVIEW, case_folder
from monai_llmboost.inference.maps.grid import on_input_grid, to_matrix
from monai_llmboost.inference.maps.previews import save_preview
from monai_llmboost.inference.maps.relevance import relevance_maps
from monai_llmboost.inference.nifti import nifti_image

FOLDER = "saliency"
# Written values are multiples of this, because smaller differences have no meaning and would not compress.
STEP = np.float32(1 / 256)
# Descriptions of the maps for the headers of their files.
DESCRIPTIONS = {
    "network": "gradient x token of the whole network",
    "before_booster": "Grad-CAM of tokens before the booster",
    "after_booster": "Grad-CAM of tokens after the booster",
}


@dataclass(frozen=True)
class CaseMaps:
    """The written maps of a case.

    Args:
        files: paths relative to the output folder, with "/": ``"network"``, ``"before_booster"`` and
            ``"after_booster"`` if they exist, and ``"preview"``.
        values: (i, j, k) float32 of each map, from 0 to 1.
    """

    files: dict[str, str]
    values: dict[str, np.ndarray]


class SaliencyMaps:
    """Writes the maps of a case as NIfTI files on the case's original grid, and a picture of them.

    The files are ``output_dir/saliency/NAME/{network,before_booster,after_booster}.nii.gz`` and ``preview.webp``, with
    NAME from :func:`case_folder`. Each file is written atomically. Values of maps are rounded to multiples of 1/256.

    Args:
        network: see :func:`relevance_maps`.
        output_dir: folder of the run.
        image_size: (S0, S1, S2) of the network's input images, voxels; one number for a cube.

    Example:
        >>> maps = SaliencyMaps(network, "out", image_size=28)  # doctest: +SKIP
        >>> maps("a.nii", case, class_index=1, volume_of=lambda: volume, title="a.nii").files  # doctest: +SKIP
        {'network': 'saliency/a.nii/network.nii.gz', 'preview': 'saliency/a.nii/preview.webp'}
    """

    def __init__(self, network: nn.Module, output_dir: str | Path, image_size: Sequence[int] | int) -> None:
        self.network = network
        self.output_dir = Path(output_dir)
        self.image_size = ensure_tuple_rep(image_size, 3)

    def __call__(
        self, name: str, case: Case, class_index: int, volume_of: Callable[[], np.ndarray], title: str
    ) -> CaseMaps:
        """Write the files of one case.

        Args:
            name: the case's name.
            case: the case, with its image and geometry.
            class_index: the class whose evidence is shown.
            volume_of: function that returns the original volume, (i, j, k).
            title: text above the picture.

        Raises:
            TypeError, ValueError: see :func:`relevance_maps` and :func:`on_input_grid`; also a volume of another shape.
        """
        maps = relevance_maps(self.network, case.image[None], class_index)
        tokens = next(iter(maps.values())).shape
        affine, input_affine = to_matrix(case.affine), to_matrix(case.input_affine)
        shape = tuple(case.input_shape.tolist())
        on_grid = {
            kind: on_input_grid(relevance, self.image_size, affine, input_affine, shape)
            for kind, relevance in maps.items()
        }
        volume = np.asarray(volume_of())
        if volume.ndim == 4 and volume.shape[3] == 1:
            volume = volume[..., 0]
        if volume.shape != shape:
            raise ValueError(f"the volume has the shape {volume.shape}, not {shape}: give the one that was read")
        rounded = {kind: np.rint(values / STEP) * STEP for kind, values in on_grid.items()}
        folder = self.output_dir / FOLDER / case_folder(name)
        files = {kind: folder / f"{kind}.nii.gz" for kind in rounded}
        for kind, values in rounded.items():
            with atomic_path(files[kind]) as path:
                image = nifti_image(values, input_affine, f"{DESCRIPTIONS[kind]}, class {class_index}")
                image.header["cal_max"] = 1
                nibabel.save(image, path)
        token_mm = np.linalg.norm(affine[:3, :3], axis=0) * self.image_size / tokens
        note = f"token size {' x '.join(f'{size:.1f}' for size in token_mm)} mm"
        files["preview"] = folder / PREVIEW
        with atomic_path(files["preview"]) as path:
            save_preview(path, volume, input_affine, on_grid, title, note)
        return CaseMaps({kind: path.relative_to(self.output_dir).as_posix() for kind, path in files.items()}, rounded)
