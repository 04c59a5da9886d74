# SPDX-License-Identifier: Apache-2.0
"""Short list of language models to extract a layer from: open ones of several sizes, and well-known gated ones."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from monai_llmboost.llm.donor.families import FAMILIES, make_geometry
from monai_llmboost.llm.geometry import BlockGeometry


@dataclass(frozen=True)
class KnownDonor:
    """A model on the hub, with its configuration and model card as of November 2026.

    Args:
        repository: hub id.
        licence: licence, as in its model card.
        num_layers: number of layers.
        config: the numbers of its ``config.json`` that define a layer.
        gated: the hub requires users to accept the licence first.
    """

    repository: str
    licence: str
    num_layers: int
    config: dict[str, Any]
    gated: bool = False

    @property
    def geometry(self) -> BlockGeometry:
        """Return the geometry of the last layer."""
        return make_geometry(FAMILIES[self.config["model_type"]], self.config, self.num_layers - 1)

    @property
    def layer_weights(self) -> int:
        """Return the number of weights in one layer."""
        return sum(map(prod, self.geometry.tensor_shapes.values()))


def _make_config(
    family: str, width: int, mlp_width: int, heads: int, kv_heads: int | None = None, head_size: int | None = None
) -> dict[str, Any]:
    numbers = {"hidden_size": width, "intermediate_size": mlp_width, "num_attention_heads": heads}
    optional = {"num_key_value_heads": kv_heads, "head_dim": head_size}
    return {"model_type": family, **numbers, **{key: value for key, value in optional.items() if value is not None}}


DONORS = (
    KnownDonor("HuggingFaceTB/SmolLM2-135M", "apache-2.0", 30, _make_config("llama", 576, 1536, 9, 3)),
    KnownDonor("openai-community/gpt2", "mit", 12, {"model_type": "gpt2", "n_embd": 768, "n_head": 12}),
    KnownDonor("EleutherAI/pythia-160m", "apache-2.0", 12, _make_config("gpt_neox", 768, 3072, 12)),
    KnownDonor("Qwen/Qwen3-0.6B-Base", "apache-2.0", 28, _make_config("qwen3", 1024, 3072, 16, 8, 128)),
    KnownDonor("HuggingFaceTB/SmolLM2-1.7B", "apache-2.0", 24, _make_config("llama", 2048, 8192, 32, 32)),
    KnownDonor("allenai/OLMo-2-0425-1B", "apache-2.0", 16, _make_config("olmo2", 2048, 8192, 16, 16)),
    KnownDonor("HuggingFaceTB/SmolLM3-3B-Base", "apache-2.0", 36, _make_config("smollm3", 2048, 11008, 16, 4)),
    KnownDonor("microsoft/Phi-3-mini-4k-instruct", "mit", 32, _make_config("phi3", 3072, 8192, 32, 32)),
    KnownDonor("Qwen/Qwen3-8B-Base", "apache-2.0", 36, _make_config("qwen3", 4096, 12288, 32, 8, 128)),
    KnownDonor("EleutherAI/pythia-6.9b", "apache-2.0", 32, _make_config("gpt_neox", 4096, 16384, 32)),
    KnownDonor("allenai/OLMo-2-1124-7B", "apache-2.0", 32, _make_config("olmo2", 4096, 11008, 32, 32)),
    KnownDonor("meta-llama/Llama-3.2-1B", "llama3.2", 16, _make_config("llama", 2048, 8192, 32, 8, 64), gated=True),
    KnownDonor("google/gemma-3-1b-pt", "gemma", 26, _make_config("gemma3_text", 1152, 6912, 4, 1, 256), gated=True),
    KnownDonor("google/gemma-2-2b", "gemma", 26, _make_config("gemma2", 2304, 9216, 8, 4, 256), gated=True),
    KnownDonor("meta-llama/Llama-2-7b-hf", "llama2", 32, _make_config("llama", 4096, 11008, 32, 32), gated=True),
    KnownDonor("meta-llama/Llama-3.1-8B", "llama3.1", 32, _make_config("llama", 4096, 14336, 32, 8), gated=True),
)
