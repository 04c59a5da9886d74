# SPDX-License-Identifier: Apache-2.0
"""The names of the floors of segmentations; a bundle's study settings have those of classifications."""

# Without and with a registration of the mean image to the image of a case.
MEAN_SHAPE, REGISTERED_SHAPE = "floor-mean-shape", "floor-registered-shape"
SHAPE_FLOORS = (MEAN_SHAPE, REGISTERED_SHAPE)
