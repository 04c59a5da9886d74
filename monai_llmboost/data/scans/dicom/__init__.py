# SPDX-License-Identifier: Apache-2.0
"""DICOM series: headers, the stacks that they make, voxels, each checked before it is believed."""
