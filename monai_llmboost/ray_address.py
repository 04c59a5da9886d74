# SPDX-License-Identifier: Apache-2.0
"""Checks before a connection to a Ray cluster, which would otherwise fail late."""

from __future__ import annotations

import importlib.util
import socket
from urllib.parse import urlsplit

# Timeout in seconds for the answer of a Ray cluster.
ANSWER = 10
# The default port of ``ray://`` addresses.
RAY_PORT = 10001


def check_installed() -> None:
    """Check that Ray is installed.

    Raises:
        ImportError: it is not.
    """
    try:
        found = importlib.util.find_spec("ray") is not None
    except ValueError:  # a module without a description, as after a failed import
        found = False
    if not found:
        raise ImportError("--engine ray needs Ray, which is not installed: pip install 'monai-llmboost[ray]'")


def check_answer(address: str) -> None:
    """Check that an address with a port answers, because Ray itself would wait for minutes.

    Raises:
        ConnectionError: no Ray cluster answers at the address.
    """
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        port = place.port or (RAY_PORT if place.scheme == "ray" else None)
        if port is not None:
            socket.create_connection((place.hostname, port), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}): start it there, or give another --address"
        ) from error
