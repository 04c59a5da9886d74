# SPDX-License-Identifier: Apache-2.0
"""A block whose weights are never trained, never saved into a checkpoint, and known by a fingerprint."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.llm.block import DecoderBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, digest_of

# What `--block random` is when no donor says otherwise: small enough to train beside on a laptop.
SMALL_GEOMETRY = BlockGeometry(width=192, mlp_width=512, num_heads=3, num_kv_heads=3, head_size=64)


def freeze_(module: nn.Module) -> None:
    """Turn every parameter below ``module`` into a buffer that no optimizer sees and no checkpoint holds."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach())
        for name, buffer in list(child.named_buffers(recurse=False)):
            child.register_buffer(name, buffer, persistent=False)


class FrozenBlock(nn.Module):
    """Frozen layers of a language model one after another, then a norm: ``y = norm(layer(... layer(h)))``.

    The weights are buffers, not parameters: any optimizer line, ``CheckpointSaver``, strict ``CheckpointLoader``,
    ``deepcopy``, ``.to()`` and DDP (best with ``broadcast_buffers=False``) work unchanged, and a checkpoint holds the
    block's name and fingerprint in place of its weights. Loading a checkpoint over a different block is refused.

    Args:
        donor: the layers, one or several.
        dtype: dtype in which the weights are kept; ``None`` keeps the donor's.
        final_norm: ``"unit"``, of the donor's kind with gain one, as in the published R-LLM code, which does not load
            the language model's own; ``"donor"``, the donor's own; ``"none"``.
        causal: mask what follows a token, as language models do and images have no use for.
        rotary: give tokens positions by their order, as many language models do.
        known_fingerprint: of these layers, from whoever has just computed it; ``None`` computes it.

    Raises:
        ValueError: ``dtype`` is no floating type, or an option that these layers cannot have.
    """

    if TYPE_CHECKING:
        layer: Any  # a DecoderBlock where `native`

    __constants__ = ("centres", "folds", "native", "norms_keys")  # so that scripting leaves out the branches not taken

    def __init__(
        self,
        donor: DonorLayers,
        dtype: torch.dtype | None = None,
        final_norm: str = "unit",
        causal: bool = False,
        rotary: bool = False,
        known_fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"expected a floating dtype for the block, got {dtype!r}: use torch.float32 or torch.bfloat16 "
                "(on a command line '$torch.bfloat16', in single quotes)"
            )
        for word, asked in (("causal", causal), ("rotary", rotary)):
            if not isinstance(asked, bool):
                raise ValueError(f"expected {word} to be True or False, got {asked!r}: mind the capital letter")
        *before, last = [layer.module(dtype, causal, rotary) for layer in donor.layers]
        self.geometry = donor.layers[-1].geometry
        self.width = last.width
        self.causal = causal
        self.in_order = causal or rotary
        self.before = nn.Sequential(*before)
        self.layer = last
        self.final_norm = donor.final_norm_module(final_norm)
        # Of the weights as the donor gave them: one block is one block, whatever dtype it is run in.
        self.fingerprint = known_fingerprint or donor.fingerprint
        options = "".join(f", {word}" for word, asked in (("causal", causal), ("rotary", rotary)) if asked)
        if final_norm != "unit":
            options += f", final norm {final_norm}"
        norm = digest_of(donor.final_norm) if final_norm == "donor" else ""
        self.signature = Signature(
            "block",
            f"{donor.name} ({self.fingerprint[:12]}{options})",
            "run with the block and options it was trained with (--block FILE), or train again",
            compared=f"{self.fingerprint}{options}{norm}",
        )
        self.native = isinstance(last, DecoderBlock)
        self.final_norm.to(max(last.state_dict().values(), key=torch.numel).dtype)
        for part in (self.before, self.layer, self.final_norm):
            freeze_(part)
        # Whether a few tokens can be read without the others' keys and values; see boosters/readout.py.
        self.folds = bool(self.native and last.scores_are_linear and not before)
        self.norms_keys = bool(self.native and last.keys_are_normed and not before)
        self.has_gain: bool = self.norms_keys and not isinstance(last.attention_norm, nn.Identity)
        self.centres = self.folds and isinstance(last.attention_norm, nn.LayerNorm)

    def forward(self, h: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, of the dtype that came in."""
        return self.final_norm(self.layer(self.before(self.received(h)), read)).to(h.dtype)

    def received(self, h: Tensor) -> Tensor:
        """Tokens in the dtype of the weights."""
        if self.native:
            return h.to(self.layer.down.weight.dtype)
        return h.to(max(self.layer.buffers(), key=torch.numel).dtype)

    def queries(self, h: Tensor) -> Tensor:
        """What these tokens (B, R, D) look for, (B, R, heads * head size), in the block's dtype."""
        return self.layer.queries(self.layer.attention_norm(self.received(h)))

    def value_bias(self) -> Tensor:
        """What every value has besides its token's part, (kv heads * head size,): the norm's and its own."""
        value = self.layer.value
        bias = torch.zeros_like(value.weight[:, 0])
        if value.bias is not None:
            bias = bias + value.bias
        if self.centres:
            bias = bias + value.weight @ self.layer.attention_norm.bias
        return bias

    def finish(self, h: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: tokens (B, R, D) and what their heads gathered, to tokens (B, R, D)."""
        return self.final_norm(self.layer.finish(self.received(h), attended)).to(h.dtype)

    def extra_repr(self) -> str:
        """The block's name and fingerprint, for ``print(network)``."""
        return self.signature.text
