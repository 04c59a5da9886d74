# SPDX-License-Identifier: Apache-2.0
"""Masks of structures: sliding windows over whole volumes, and label maps on the grid of the scan."""
