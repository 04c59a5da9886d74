# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_llmboost` is the command line `monai-llmboost`."""

from monai_llmboost.command_line.app import main

if __name__ == "__main__":
    main()
