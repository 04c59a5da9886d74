# SPDX-License-Identifier: Apache-2.0
"""Geometry of NIfTI files: the affine by sform, qform or voxel sizes, and whether it is plausible."""

from __future__ import annotations

import math

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_llmboost.data.scans.nifti.tolerances import (
    COPLANAR,
    FIELD_ROUNDING,
    MAX_VOXEL_MM,
    MIN_VOXEL_MM,
    SFORM_QFORM_VOXELS,
    SHEAR_COSINE,
)
from monai_llmboost.data.scans.scan import RefusedScan

# xyzt_units that are not mm: name, and mm per unit.
UNITS_MM = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}
KNOWN_UNITS = (0, 1, 2, 3)  # 0: unknown, 2: mm
NEGATIVE = "its pixdim has negative voxel sizes: they are taken without their sign"
XFORM_CODES = range(1, 6)  # the codes in the standard


@np.errstate(over="ignore", invalid="ignore")  # a damaged header may contain any number; too large ones are refused
def read_affine(header: nibabel.Nifti1Header, shape: tuple[int, ...], warnings: list[str]) -> np.ndarray:
    """Return the affine, (4, 4) float64, voxel -> RAS+ mm: from the sform, else the qform, else the voxel sizes.

    nibabel uses the same order; in addition, a usable qform replaces an unusable sform here. Oddities are added to
    ``warnings``.

    Raises:
        RefusedScan: there is no usable affine, or it cannot be in mm.
    """
    sizes = np.asarray(header["pixdim"], dtype=np.float64)[1:4]
    bad_sizes = not (np.isfinite(sizes).all() and (sizes != 0).all())
    sform = header.get_sform() if int(header["sform_code"]) in XFORM_CODES else None
    qform: np.ndarray | None = None
    qform_warnings: list[str] = []
    qform_error: RefusedScan | None = None
    if int(header["qform_code"]) in XFORM_CODES and not bad_sizes:
        try:
            qform, qform_warnings = _read_qform(header)
        except RefusedScan as error:
            qform_error = error
    sform = _drop_unusable_sform(sform, qform, warnings)
    if sform is None and bad_sizes:
        raise RefusedScan(
            f"expected voxel sizes above 0 mm, its header says {tuple(map(float, sizes))}: write it again",
            kind="no-geometry",
        )
    if sform is not None:
        affine = np.asarray(sform, dtype=np.float64)
        if bad_sizes:
            warnings.append("its pixdim has no usable voxel sizes: those of the sform are taken")
    elif qform is not None:
        affine = qform
        warnings.extend(qform_warnings)
    elif qform_error is not None:
        raise qform_error
    else:
        if (sizes < 0).any():
            warnings.append(NEGATIVE)
        header["pixdim"][1:4] = np.abs(sizes)
        affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        warnings.append("it has no sform and no qform, so its orientation is unknown: LAS is taken, as nibabel does")
    _check_affine(affine, int(header["xyzt_units"]) & 7, warnings)
    if sform is not None and qform is not None:
        _compare_forms(affine, qform, shape, warnings)
    return affine


def _drop_unusable_sform(sform: np.ndarray | None, qform: np.ndarray | None, warnings: list[str]) -> np.ndarray | None:
    """Return the sform, or None if it is absent or unusable and the qform is taken.

    Raises:
        RefusedScan: the sform is not finite, and there is no qform.
    """
    if sform is None:
        return None
    if not np.isfinite(sform).all():
        if qform is None:
            raise RefusedScan(
                "expected a finite sform, got NaN or infinite numbers, and no usable qform", kind="no-geometry"
            )
        warnings.append("its sform has NaN or infinite numbers: the qform is taken")
        return None
    if qform is not None and _is_singular(sform):
        warnings.append("its sform cannot be inverted (zeros, or directions in one plane): the qform is taken")
        return None
    return sform


def _read_qform(header: nibabel.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """Return the qform, repaired as in nibabel when it loads a file, and warnings on the repairs.

    Raises:
        RefusedScan: the qform is not a rotation, or readers disagree on its meaning.
    """
    warnings: list[str] = []
    repaired = header.copy()
    if (repaired["pixdim"][1:4] < 0).any():
        warnings.append(NEGATIVE)
    repaired["pixdim"][1:4] = np.abs(repaired["pixdim"][1:4])
    repaired["pixdim"][0] = _read_qfac(float(header["pixdim"][0]), warnings)
    excess = sum(float(repaired[f"quatern_{part}"]) ** 2 for part in "bcd") - 1.0
    if abs(float(repaired.quaternion_threshold)) <= excess <= FIELD_ROUNDING:
        warnings.append(
            f"the quaternion of its qform is too long by rounding (its square by {excess:.2g}): it is normalised"
        )
        for part in "bcd":
            repaired[f"quatern_{part}"] /= math.sqrt(1.0 + excess)
    try:
        qform = np.asarray(repaired.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        raise RefusedScan(
            "expected a qform that is a rotation, got broken numbers, and no sform: write it again", kind="no-geometry"
        )
    return qform, warnings


def _read_qfac(value: float, warnings: list[str]) -> float:
    """Return 1, or -1 for a grid with a mirrored third axis, from pixdim[0]; 0 means 1 in the standard."""
    nearest = -1.0 if value < 0 else 1.0
    if value in (0.0, nearest):
        return nearest
    if value < 0 and abs(value + 1.0) > FIELD_ROUNDING:
        raise RefusedScan(
            f"expected pixdim[0] to be 1 or -1, got {value:g}, of which some readers make 1 and others -1, and no "
            "sform: write it again",
            kind="no-geometry",
        )
    warnings.append(f"its pixdim[0] is {value:.6g}, which must be 1 or -1: {nearest:g} is taken")
    return nearest


def _is_singular(affine: np.ndarray) -> bool:
    """Return whether the axes of an affine are coplanar, or one is zero."""
    axes = affine[:3, :3]  # mm per voxel; the ratio below does not depend on the unit
    return bool(abs(np.linalg.det(axes)) <= COPLANAR * np.linalg.norm(axes, axis=0).prod())


def _check_affine(affine: np.ndarray, unit: int, warnings: list[str]) -> None:
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if _is_singular(affine):
        raise RefusedScan(
            "expected an affine that can be inverted: its voxel size or directions are broken", kind="no-geometry"
        )
    mm = f"{' x '.join(f'{size:g}' for size in sizes)} mm"
    if unit in UNITS_MM:
        name, factor = UNITS_MM[unit]
        if (sizes * factor >= MIN_VOXEL_MM).all() and (sizes * factor <= MAX_VOXEL_MM).all():
            raise RefusedScan(
                f"expected lengths in mm, its header says {name}: write the file again in mm", kind="units"
            )
        warnings.append(f"its header says that lengths are in {name}, which cannot be: taken as {mm}")
    elif unit not in KNOWN_UNITS:
        warnings.append(f"its header gives lengths in a unit that the standard does not have ({unit}): taken as {mm}")
    if (sizes < MIN_VOXEL_MM).any() or (sizes > MAX_VOXEL_MM).any():
        raise RefusedScan(
            f"expected voxels of {MIN_VOXEL_MM:g} to {MAX_VOXEL_MM:g} mm, got {mm}: perhaps metres or micrometres "
            "were written for mm",
            kind="units",
        )
    cosines = np.abs((axes / sizes).T @ (axes / sizes) - np.eye(3)).max()
    if cosines > SHEAR_COSINE:
        degrees = math.degrees(math.asin(min(1.0, cosines)))
        warnings.append(f"its axes are not at right angles (sheared by {degrees:.1f} degrees): it is read as it is")


def _compare_forms(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], warnings: list[str]) -> None:
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    distance_mm = np.linalg.norm(((sform - qform) @ corners.T)[:3], axis=0).max()
    if distance_mm > SFORM_QFORM_VOXELS * np.linalg.norm(sform[:3, :3], axis=0).min():
        warnings.append(
            f"its sform ({get_orientation(sform)}) and qform ({get_orientation(qform)}) lie up to {distance_mm:.3g} mm "
            "apart: the sform is taken"
        )


def get_orientation(affine: np.ndarray) -> str:
    """Return the anatomical directions of i, j, k, such as ``"RAS"``.

    Example:
        >>> get_orientation(np.diag([-1.0, -1.0, 2.0, 1.0]))
        'LPS'
    """
    return "".join(str(letter) for letter in nibabel.aff2axcodes(affine))
