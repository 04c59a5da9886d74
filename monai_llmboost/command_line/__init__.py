# SPDX-License-Identifier: Apache-2.0
"""The command line `monai-llmboost`: one thin function per command; the work is done by other packages."""
