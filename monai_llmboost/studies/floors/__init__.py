# SPDX-License-Identifier: Apache-2.0
"""Floors: simple predictors that cost seconds, which a network must reach before a comparison says something."""
