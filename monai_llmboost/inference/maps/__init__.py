# SPDX-License-Identifier: Apache-2.0
"""What the network looked at: relevance of its tokens, on the grid of the scan, as pictures."""
