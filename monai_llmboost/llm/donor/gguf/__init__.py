# SPDX-License-Identifier: Apache-2.0
"""GGUF, the files of llama.cpp: which bytes a tensor has, and which layer of which model it belongs to."""
