# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: it builds without a warning, and loads nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

# What a browser would fetch: not links, which a reader may follow.
FETCHED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b[^>]*\bhref=\"(?:https?:)?//|@import\s"
)
ROOMS = (
    "bundle", "data", "llm", "adapters", "boosters", "networks", "tasks", "engines", "inference", "inspection",
    "studies",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs MkDocs: pip install 'monai-llmboost[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs mkdocstrings: pip install 'monai-llmboost[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not FETCHED.search(page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_all_public_names(site, room):
    module = importlib.import_module(f"monai_llmboost.{room}")
    page = (site / "reference" / "api" / f"{room}.html").read_text(encoding="utf-8")
    assert ":class:`" not in page
    public = {name: getattr(module, name) for name in module.__all__}
    # An alias, or what another room has and this one passes on, is described once.
    described = {name for name, value in public.items() if getattr(value, "__name__", "") == name}
    described -= {name for name in described if not public[name].__module__.startswith(module.__name__)}
    assert described <= set(re.findall(r'id="monai_llmboost\.[\w.]*?(\w+)"', page))
