# SPDX-License-Identifier: Apache-2.0
"""The methods by which few tokens are read, each made the cheapest in turn."""

import pytest

from monai_llmboost.boosters.readout.choose import AllKeys
from monai_llmboost.boosters.readout.encoded_tokens import EncodedTokens
from monai_llmboost.boosters.readout.normed_keys import NormedKeys
from monai_llmboost.boosters.readout.visual_tokens import VisualTokens

METHODS = {"keys": [AllKeys], "encoded": [EncodedTokens], "visual": [VisualTokens, NormedKeys]}


def only(method, monkeypatch):
    """Make one of the methods the cheapest, whatever it costs."""
    for name, kinds in METHODS.items():
        for kind in kinds:
            monkeypatch.setattr(kind, "cost", lambda self, batch, tokens, read, cost=int(name != method): cost)


@pytest.fixture(params=METHODS)
def method(request, monkeypatch):
    """Each of the methods, whatever it costs."""
    only(request.param, monkeypatch)
    return request.param
