# SPDX-License-Identifier: Apache-2.0
"""What went wrong in a config, without the exceptions that MONAI wraps around it."""

from __future__ import annotations

import re

# What MONAI's own wrappers around a failing config item begin with; the cause below them is what went wrong.
WRAPPERS = ("Failed to instantiate", "Failed to evaluate", "applying transform")
# What Python says when a config item, or an option below it, has a key that its class or function does not take.
UNEXPECTED = re.compile(r"([\w.]+?)(?:\.__init__)?\(\) got an unexpected keyword argument ('\w+')")


def root_cause(error: BaseException) -> BaseException:
    """Return what went wrong below the exceptions that MONAI wraps around it."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    if isinstance(error, TypeError) and (found := UNEXPECTED.match(str(error))):
        return TypeError(f"expected arguments that {found[1]} takes, got {found[2]}: leave it out, or correct its name")
    return error
