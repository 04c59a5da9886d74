# SPDX-License-Identifier: Apache-2.0
"""Saliency maps: relevance of the network's tokens on the grid of the scan, as files and pictures."""
