# SPDX-License-Identifier: Apache-2.0
"""NIfTI files: headers, geometry, voxels, each checked before it is believed."""
