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
# How far the square of a quaternion's length may lie above 1, and pixdim[0] from 1 or -1, by rounding.
ROUNDED = 1e-3
UNITS_MM = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}
KNOWN_UNITS = (0, 1, 2, 3)  # 0: unknown, 2: mm
NEGATIVE = "its pixdim has negative voxel sizes: they are taken without their sign"
XFORM_CODES = range(1, 6)  # those that the standard names


@np.errstate(over="ignore", invalid="ignore")  # a damaged header may hold any number; what is too large is refused
def read_affine(header: nibabel.Nifti1Header, shape: tuple[int, ...], warnings: list[str]) -> np.ndarray:
    """(4, 4) float64, voxel -> RAS+ mm: the sform if there is one, else the qform, else what voxel sizes alone give.

    That is nibabel's order too, but a sform that cannot be used gives way to a qform that can. What is odd is added to
    ``warnings``.

    Raises:
        RefusedScan: no usable affine, or one that cannot be in mm.
    """
    steps = np.asarray(header["pixdim"], dtype=np.float64)[1:4]
    bad_steps = not (np.isfinite(steps).all() and (steps != 0).all())
    sform = header.get_sform() if int(header["sform_code"]) in XFORM_CODES else None
    qform: np.ndarray | None = None
    odd: list[str] = []
    broken: RefusedScan | None = None
    if int(header["qform_code"]) in XFORM_CODES and not bad_steps:
        try:
            qform, odd = _qform(header)
        except RefusedScan as error:
            broken = error
    if sform is not None and not np.isfinite(sform).all():
        if qform is None:
            raise RefusedScan(
                "expected a finite sform, got NaN or infinite numbers, and no usable qform", kind="no-geometry"
            )
        warnings.append("its sform has NaN or infinite numbers: the qform is taken")
        sform = None
    elif sform is not None and qform is not None and _is_flat(sform):
        warnings.append("its sform cannot be inverted (zeros, or directions in one plane): the qform is taken")
        sform = None
    if sform is None and bad_steps:
        raise RefusedScan(
            f"expected voxel sizes above 0 mm, its header says {tuple(map(float, steps))}: write it again",
            kind="no-geometry",
        )
    if sform is not None:
        affine = np.asarray(sform, dtype=np.float64)
        if bad_steps:
            warnings.append("its pixdim has no usable voxel sizes: those of the sform are taken")
    elif qform is not None:
        affine = qform
        warnings.extend(odd)
    elif broken is not None:
        raise broken
    else:
        if (steps < 0).any():
            warnings.append(NEGATIVE)
        header["pixdim"][1:4] = np.abs(steps)
        affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        warnings.append("it has no sform and no qform, so its orientation is unknown: LAS is taken, as nibabel does")
    _check_affine(affine, int(header["xyzt_units"]) & 7, warnings)
    if sform is not None and qform is not None:
        _compare(affine, qform, shape, warnings)
    return affine


def _qform(header: nibabel.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """Return the qform, with what writers leave odd mended as nibabel does when it loads, and what that was.

    Raises:
        RefusedScan: it is broken, or readers do not agree what it means.
    """
    odd: list[str] = []
    mended = header.copy()
    if (mended["pixdim"][1:4] < 0).any():
        odd.append(NEGATIVE)
    mended["pixdim"][1:4] = np.abs(mended["pixdim"][1:4])
    mended["pixdim"][0] = _qfac(float(header["pixdim"][0]), odd)
    excess = sum(float(mended[f"quatern_{part}"]) ** 2 for part in "bcd") - 1.0
    if abs(float(mended.quaternion_threshold)) <= excess <= ROUNDED:
        odd.append(
            f"the quaternion of its qform is too long by rounding (its square by {excess:.2g}): it is normalised"
        )
        for part in "bcd":
            mended[f"quatern_{part}"] /= math.sqrt(1.0 + excess)
    try:
        qform = np.asarray(mended.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        raise RefusedScan(
            "expected a qform that is a rotation, got broken numbers, and no sform: write it again", kind="no-geometry"
        )
    return qform, odd


def _qfac(value: float, odd: list[str]) -> float:
    """Return 1, or -1 for a grid whose third axis is mirrored, by pixdim[0]; 0 is 1, as the standard says."""
    nearest = -1.0 if value < 0 else 1.0
    if value in (0.0, nearest):
        return nearest
    if value < 0 and abs(value + 1.0) > ROUNDED:
        raise RefusedScan(
            f"expected pixdim[0] to be 1 or -1, got {value:g}, of which some readers make 1 and others -1, and no "
            "sform: write it again",
            kind="no-geometry",
        )
    odd.append(f"its pixdim[0] is {value:.6g}, which must be 1 or -1: {nearest:g} is taken")
    return nearest


def _is_flat(affine: np.ndarray) -> bool:
    """Whether the directions of an affine lie in a plane, or one is zero."""
    axes = affine[:3, :3]  # mm per voxel; how far from flat they are does not depend on the unit
    return bool(abs(np.linalg.det(axes)) <= FLAT * np.linalg.norm(axes, axis=0).prod())


def _check_affine(affine: np.ndarray, unit: int, warnings: list[str]) -> None:
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if _is_flat(affine):
        raise RefusedScan(
            "expected an affine that can be inverted: its voxel size or directions are broken", kind="no-geometry"
        )
    mm = f"{' x '.join(f'{size:g}' for size in sizes)} mm"
    if unit in UNITS_MM:
        name, factor = UNITS_MM[unit]
        if (sizes * factor >= SMALLEST_VOXEL).all() and (sizes * factor <= LARGEST_VOXEL).all():
            raise RefusedScan(
                f"expected lengths in mm, its header says {name}: write the file again in mm", kind="units"
            )
        warnings.append(f"its header says that lengths are in {name}, which cannot be: taken as {mm}")
    elif unit not in KNOWN_UNITS:
        warnings.append(f"its header gives lengths in a unit that the standard does not have ({unit}): taken as {mm}")
    if (sizes < SMALLEST_VOXEL).any() or (sizes > LARGEST_VOXEL).any():
        raise RefusedScan(
            f"expected voxels of {SMALLEST_VOXEL:g} to {LARGEST_VOXEL:g} mm, got {mm}: perhaps metres or micrometres "
            "were written for mm",
            kind="units",
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
            f"its sform ({get_orientation(sform)}) and qform ({get_orientation(qform)}) lie up to {apart:.3g} mm apart: the "
            "sform is taken"
        )


def get_orientation(affine: np.ndarray) -> str:
    """The anatomical directions in which i, j, k grow, such as ``"RAS"``."""
    return "".join(str(letter) for letter in nibabel.aff2axcodes(affine))
