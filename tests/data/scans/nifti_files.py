# SPDX-License-Identifier: Apache-2.0
"""NIfTI files made by code, valid and damaged, for tests of readers."""

import gzip

import nibabel
import numpy as np

SIZE = (9, 8, 7)
# A rotated and shifted grid with three voxel sizes, so that no two axes can be confused.
AFFINE = np.array([[0, -1.0, 0, 9], [0, 0, 2, 1], [3, 0, 0, 5], [0, 0, 0, 1]])
# Offsets of the fields of a NIfTI-1 header: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
SIZEOF_HDR, DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 0, 40, 70, 72, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X = 252, 254, 256, 280


def voxels(size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def save(path, array=None, affine=AFFINE, image=nibabel.Nifti1Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image(voxels() if array is None else array, affine), path)
    return path


def patched(path, *changes, array=None, affine=AFFINE):
    """Write a valid file with fields of its header overwritten: (offset, numbers, dtype), little-endian."""
    plain = path.with_name("plain.nii")
    content = bytearray(save(plain, array, affine).read_bytes())
    plain.unlink()
    for where, numbers, dtype in changes:
        part = np.asarray(numbers, np.dtype(dtype).newbyteorder("<")).tobytes()
        content[where : where + len(part)] = part
    path.write_bytes(gzip.compress(bytes(content)) if path.name.endswith(".gz") else bytes(content))
    return path
