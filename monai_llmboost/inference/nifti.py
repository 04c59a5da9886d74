# SPDX-License-Identifier: Apache-2.0
"""NIfTI images on the grid of a scan."""

from __future__ import annotations

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

# Fields of a header that say where a volume is.
PLACE_FIELDS = (
    "sform_code", "srow_x", "srow_y", "srow_z",
    "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
)  # fmt: skip
# Affines that differ by less are one, mm.
SAME_MM = 1e-4


def nifti_image(
    values: np.ndarray, affine: np.ndarray, descrip: str, source: nibabel.Nifti1Header | None = None
) -> nibabel.Nifti1Image:
    """Return a volume (i, j, k) as NIfTI, with the sform and qform of its source.

    Without a source, and where the affine is not that of its header (because it was repaired), there is an sform, and a
    qform if the axes are at right angles, both with the code "aligned".

    Args:
        values: (i, j, k).
        affine: (4, 4), voxels to RAS+ mm.
        descrip: description for the header, at most 79 characters.
        source: header of the NIfTI file whose grid it is.
    """
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code="aligned")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    image.set_qform(affine if straight else None, code="aligned" if straight else "unknown")
    if source is not None and _says(source, affine):
        for field in PLACE_FIELDS:
            image.header[field] = source[field]
        image.header["pixdim"][:4] = source["pixdim"][:4]
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = descrip
    return image


def _says(header: nibabel.Nifti1Header, affine: np.ndarray) -> bool:
    """Return whether the sform or qform of a header is the affine."""
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        return False
    try:
        own = header.get_best_affine()
    except (HeaderDataError, ValueError):  # a quaternion that only reading normalises
        return False
    return np.allclose(own, affine, rtol=0, atol=SAME_MM)
