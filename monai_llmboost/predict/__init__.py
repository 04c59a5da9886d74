# SPDX-License-Identifier: Apache-2.0
"""`monai-llmboost predict`: a folder of scans through a bundle's `inference.json`, exit status last."""

from monai_llmboost.predict.run import StoppedEarly, device_named, dry_run, run_predict
from monai_llmboost.predict.status import ALL_GOOD, NOTHING_DONE, SOME_FAILED, AcceptedRefusals

__all__ = [
    "ALL_GOOD",
    "NOTHING_DONE",
    "SOME_FAILED",
    "AcceptedRefusals",
    "StoppedEarly",
    "device_named",
    "dry_run",
    "run_predict",
]
