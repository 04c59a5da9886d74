# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation, which imports matplotlib; :class:`monai_llmboost.engines.ScanMetrics` writes it."""
