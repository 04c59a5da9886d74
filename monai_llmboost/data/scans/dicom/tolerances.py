# SPDX-License-Identifier: Apache-2.0
"""Tolerances of DICOM geometry, tags and values, each with its reason."""

# Slice positions (geometry.py)
# Largest distance of a slice from its position on an evenly spaced line, as a part of the slice distance: far below a
# missing slice, above the rounding errors of writers.
SPACING_TOLERANCE = 0.01
# Positions whose last digit rounds by more than this part of the slice distance cannot show missing slices.
MAX_ROUNDING = 0.25
# Rounding of whole numbers: half a unit. Such a coordinate may just have lost its decimals.
WHOLE_NUMBER_ROUNDING = 0.5
# Slack of the linear programme that fits rounded positions: relative, and in mm.
FIT_TOLERANCE, FIT_TOLERANCE_MM = 1e-6, 1e-9
# Gaps below this multiple of the smallest one are single gaps; their median is the slice distance.
SINGLE_GAP = 1.5
# Slices closer than this part of a pixel are at the same position.
SAME_POSITION_PIXELS = 0.01
# Slices are of one volume if their directions and pixel spacings move no pixel of the image by more than this part of
# a pixel.
SAME_PLANE_PIXELS = 0.1
# Directions (as cosines) and pixel spacings (relative) that differ more than that, but not more than this, may be of
# one volume with inaccurate headers.
NEARLY_PARALLEL = 0.02

# The affine (layout.py, stacks.py)
# x and y directions may differ by this from unit length and from a right angle.
DIRECTION_TOLERANCE = 1e-3
# Slices may shift sideways by this part of their distance (0.06 degrees) before it is called a gantry tilt.
TILT_TOLERANCE = 1e-3
# Largest difference of the affines of volumes in time, in mm.
SAME_AFFINE_MM = 1e-3

# Tags that separate volumes (tags.py)
# Measured values, such as the echo time, are the same if they differ by no more than this part of them.
MEASURED_TOLERANCE = 0.02

# Mosaics (mosaic.py)
# Smallest cosine to the normal of the image of a direction that counts as the direction of the slices.
NORMAL_COSINE = 0.99
# Two slice distances agree up to this part of them.
SAME_DISTANCE = 0.01
# A planned slice is the one in the image up to this part of the slice distance.
SAME_CENTRE = 0.1

# Padding (pixels.py)
# Padding is dark enough if it is below the lowest other value by at most this part of the value range.
DARK_PADDING = 0.01
