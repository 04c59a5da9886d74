# SPDX-License-Identifier: Apache-2.0
"""Data sets with labels: MedMNIST3D, and phantoms made by code."""
