# SPDX-License-Identifier: Apache-2.0
"""Read layers from an LLM checkpoint: find its files, read only the bytes needed, map the tensor names."""
