# SPDX-License-Identifier: Apache-2.0
"""GGUF, the file format of llama.cpp: read the files, and convert their tensors to layers."""
