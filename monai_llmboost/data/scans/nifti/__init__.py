# SPDX-License-Identifier: Apache-2.0
"""NIfTI files: headers, geometry and voxels, each checked before it is used."""
