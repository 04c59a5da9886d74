# SPDX-License-Identifier: Apache-2.0
"""What is written to disk: atomic files, digests, signatures in checkpoints, weight files, the look of pages."""
