# SPDX-License-Identifier: Apache-2.0
"""LLM checkpoint -> tensors of some layers: where the files are, which bytes of them are read, what the names mean."""
