# SPDX-License-Identifier: Apache-2.0
"""The memory that is available to this process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Linux: of the whole machine, and the limit and use of a container.
MEMINFO = Path("/proc/meminfo")
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
# Limit, use, and the part of the use that is files, which are given up when memory is needed; of both versions.
NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory() -> int:
    """Return the bytes that can be used without swapping, within the limit of a container if there is one."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        found = [int(lines["MemAvailable"].split()[0]) * 1024]
    except (OSError, KeyError, ValueError, IndexError):
        pass  # no Linux: half of the memory
    for folder in GROUPS:
        for limit, used, files in NAMES:
            with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or one without a limit
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                most, now = (int((folder / name).read_text()) for name in (limit, used))
                found.append(most - now + int(statistics[files]))
    return max(0, min(found))
