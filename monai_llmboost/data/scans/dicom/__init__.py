# SPDX-License-Identifier: Apache-2.0
"""DICOM series: headers, stacks of slices and voxels, each checked before it is used."""
