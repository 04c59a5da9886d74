# SPDX-License-Identifier: Apache-2.0
"""The original error of a config, without the exceptions that MONAI wraps around it."""

from __future__ import annotations

import re

# How the messages of MONAI's wrapping exceptions begin.
WRAPPERS = ("Failed to instantiate", "Failed to evaluate", "applying transform")
# Python's message for a config item with an argument that its class or function does not accept.
UNEXPECTED = re.compile(r"([\w.]+?)(?:\.__init__)?\(\) got an unexpected keyword argument ('\w+')")


def root_cause(error: BaseException) -> BaseException:
    """Return the original error below the exceptions that MONAI wraps around it."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    if isinstance(error, (NameError, SyntaxError)):
        return ValueError(f"an expression of the configs is wrong ({error}): correct it, or import what it needs")
    if isinstance(error, TypeError) and (found := UNEXPECTED.match(str(error))):
        return TypeError(f"expected arguments that {found[1]} takes, got {found[2]}: leave it out, or correct its name")
    return error
