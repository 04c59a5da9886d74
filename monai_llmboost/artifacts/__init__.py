# SPDX-License-Identifier: Apache-2.0
"""What is written to disk and read back, each guarded in one place: files of weights."""
