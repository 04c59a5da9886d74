# SPDX-License-Identifier: Apache-2.0
"""Predictions and maps as DICOM objects that refer to their source images."""
