# SPDX-License-Identifier: Apache-2.0
"""The command line `monai-llmboost`: one thin call per verb; what runs stays outside."""
