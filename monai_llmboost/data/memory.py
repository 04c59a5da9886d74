# SPDX-License-Identifier: Apache-2.0
"""The memory that is available to this process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Linux: of the whole machine, and the limit and use of a container.
MEMINFO = Path("/proc/meminfo")
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def available_memory() -> int:
    """Return the bytes that can be used without swapping, within the limit of a container if there is one."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        found = [int(lines["MemAvailable"].split()[0]) * 1024]
    except (OSError, KeyError, ValueError, IndexError):
        pass  # no Linux: half of the memory
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        found.append(int(LIMIT.read_text()) - int(USED.read_text()))
    return max(0, min(found))
