# SPDX-License-Identifier: Apache-2.0
"""Labelled data sets: MedMNIST3D and synthetic phantoms."""
