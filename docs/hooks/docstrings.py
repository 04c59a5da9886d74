# SPDX-License-Identifier: Apache-2.0
"""Docstrings as Markdown: Sphinx roles become code, as the package's docstrings are also read in an editor."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|data|func|meth|mod):`~?([^`]+)`")


class PlainRoles(Extension):
    """Replace :class:`Name` and its like by `Name`."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
