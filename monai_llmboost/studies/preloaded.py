# SPDX-License-Identifier: Apache-2.0
"""What each process of a study finds imported when it is forked: all names that the configs of a run may use."""

from monai_llmboost import boosters, data, engines, llm, networks, studies, tasks

for room in (data, llm, boosters, networks, tasks, engines, studies):
    for name in room.__all__:
        getattr(room, name)
