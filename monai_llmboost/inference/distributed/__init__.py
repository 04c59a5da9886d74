# SPDX-License-Identifier: Apache-2.0
"""One prediction shared by the machines of a Ray cluster."""
