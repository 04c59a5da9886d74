# SPDX-License-Identifier: Apache-2.0
"""The plan of a training, derived from the survey of its scans."""
