# SPDX-License-Identifier: Apache-2.0
"""Tolerances of NIfTI headers, each with its reason."""

# Voxel sizes in mm; outside this range, a header most likely has lengths in metres or micrometres.
MIN_VOXEL_MM, MAX_VOXEL_MM = 1e-3, 100.0
# Three axes count as coplanar, and their affine as singular, if they span less than this part of the volume of three
# orthogonal axes of the same lengths.
COPLANAR = 1e-6
# Cosine between two axes above which the grid is called sheared; float32 in a header stays below a hundredth of it.
SHEAR_COSINE = 1e-3
# Largest distance of sform and qform at a corner, in voxels, that counts as rounding.
SFORM_QFORM_VOXELS = 0.05
# Rounding errors of header fields: the square of a quaternion's length above 1, pixdim[0] from 1 or -1, vox_offset from
# a whole byte.
FIELD_ROUNDING = 1e-3
# Maximum number of bytes that a writer may leave after the voxels.
MAX_TRAILING_BYTES = 1 << 20
# No gzip stream decompresses to more than this many times its length.
MAX_GZIP_RATIO = 1032
