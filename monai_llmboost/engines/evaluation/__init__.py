# SPDX-License-Identifier: Apache-2.0
"""The evaluation of labelled cases: their collection, a threshold from validation, numbers, and a page."""
