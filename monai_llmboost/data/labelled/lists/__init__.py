# SPDX-License-Identifier: Apache-2.0
"""Reading of labelled lists: CSV files, datalists in JSON, folders of classes."""
