# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of a NIfTI file lie: its sform, its qform or its voxel sizes, and whether they can be believed."""

from __future__ import annotations

import math

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_llmboost.data.scans.scan import RefusedScan

# Sizes of a voxel, in mm, beyond which its header most likely counts in metres or micrometres.
SMALLEST_VOXEL, LARGEST_VOXEL = 1e-3, 100.0
# Three directions whose box has less than this part of the volume of a straight one lie in a plane.
FLAT = 1e-6
# Cosine between two axes of the grid above which it is sheared; float32 in a header keeps below a hundredth of it.
SHEARED = 1e-3
# Distance in voxels, at the farthest corner, above which sform and qform are two opinions rather than one rounded.
TWO_OPINIONS = 0.05
UNITS_MM = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}
XFORM_CODES = range(1, 6)  # those that the standard names


@np.errstate(over="ignore", invalid="ignore")  # a damaged header may hold any number; what is too large is refused
def nifti_affine(header: nibabel.Nifti1Header, shape: tuple[int, ...], warnings: list[str]) -> np.ndarray:
    """(4, 4) float64, voxel -> RAS+ mm: the sform if there is one, else the qform, else what voxel sizes alone give.

    That is nibabel's order too. What is odd is added to ``warnings``.

    Raises:
        RefusedScan: no usable affine, or one that cannot be in mm.
    """
    steps = np.asarray(header["pixdim"], dtype=np.float64)[1:4]
    bad_steps = not (np.isfinite(steps).all() and (steps != 0).all())
    sform = header.get_sform() if int(header["sform_code"]) in XFORM_CODES else None
    qform = None if bad_steps or int(header["qform_code"]) not in XFORM_CODES else _qform(header)
    if sform is not None and not np.isfinite(sform).all():
        if qform is None:
            raise RefusedScan("expected a finite sform, got NaN or infinite numbers, and no usable qform")
        warnings.append("its sform has NaN or infinite numbers: the qform is taken")
        sform = None
    if sform is None and bad_steps:
        raise RefusedScan(
            f"expected voxel sizes above 0 mm, its header says {tuple(map(float, steps))}: write it again"
        )
    if sform is not None:
        affine = np.asarray(sform, dtype=np.float64)
        if bad_steps:
            warnings.append("its pixdim has no usable voxel sizes: those of the sform are taken")
    elif qform is not None:
        affine = qform
    elif int(header["qform_code"]) in XFORM_CODES:
        raise RefusedScan("expected a qform that is a rotation, got broken numbers, and no sform: write it again")
    else:
        header["pixdim"][1:4] = np.abs(steps)
        affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        warnings.append("it has no sform and no qform, so its orientation is unknown: LAS is taken, as nibabel does")
    _check_affine(affine, int(header["xyzt_units"]) & 7, warnings)
    if sform is not None and qform is not None:
        _compare(affine, qform, shape, warnings)
    return affine


def _qform(header: nibabel.Nifti1Header) -> np.ndarray | None:
    """The qform, with the sign and the sizes mended as nibabel mends them when it loads; None if it is broken."""
    mended = header.copy()
    mended["pixdim"][1:4] = np.abs(mended["pixdim"][1:4])
    mended["pixdim"][0] = -1.0 if float(mended["pixdim"][0]) == -1.0 else 1.0
    try:
        qform = np.asarray(mended.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    return qform if np.isfinite(qform).all() else None


def _check_affine(affine: np.ndarray, unit: int, warnings: list[str]) -> None:
    axes = affine[:3, :3]  # mm per voxel; how far from flat they are does not depend on the unit
    sizes = np.linalg.norm(axes, axis=0)
    if abs(np.linalg.det(axes)) <= FLAT * sizes.prod():
        raise RefusedScan("expected an affine that can be inverted: its voxel size or directions are broken")
    told = f"{' x '.join(f'{size:g}' for size in sizes)} mm"
    if unit in UNITS_MM:
        name, factor = UNITS_MM[unit]
        if (sizes * factor >= SMALLEST_VOXEL).all() and (sizes * factor <= LARGEST_VOXEL).all():
            raise RefusedScan(f"expected lengths in mm, its header says {name}: write the file again in mm")
        warnings.append(f"its header says that lengths are in {name}, which cannot be: taken as {told}")
    if (sizes < SMALLEST_VOXEL).any() or (sizes > LARGEST_VOXEL).any():
        raise RefusedScan(
            f"expected voxels of {SMALLEST_VOXEL:g} to {LARGEST_VOXEL:g} mm, got {told}: perhaps metres or micrometres "
            "were written for mm"
        )
    cosines = np.abs((axes / sizes).T @ (axes / sizes) - np.eye(3)).max()
    if cosines > SHEARED:
        degrees = math.degrees(math.asin(min(1.0, cosines)))
        warnings.append(f"its axes are not at right angles (sheared by {degrees:.1f} degrees): it is read as it is")


def _compare(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], warnings: list[str]) -> None:
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    apart = np.linalg.norm(((sform - qform) @ corners.T)[:3], axis=0).max()
    if apart > TWO_OPINIONS * np.linalg.norm(sform[:3, :3], axis=0).min():
        warnings.append(
            f"its sform ({orientation(sform)}) and qform ({orientation(qform)}) lie up to {apart:.3g} mm apart: the "
            "sform is taken"
        )


def orientation(affine: np.ndarray) -> str:
    """The anatomical directions in which i, j, k grow, such as ``"RAS"``."""
    return "".join(str(letter) for letter in nibabel.aff2axcodes(affine))
