# SPDX-License-Identifier: Apache-2.0
"""A block whose weights are never trained, never saved into a checkpoint, and known by a fingerprint."""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.llm.block import DecoderBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.signature import Signature

# What `--block random` is when no donor says otherwise: small enough to train beside on a laptop.
SMALL_GEOMETRY = BlockGeometry(width=192, mlp_width=512, num_heads=3, num_kv_heads=3, head_size=64)


def fingerprint(geometry: BlockGeometry, tensors: dict[str, Tensor]) -> str:
    """sha256 (hex) over the geometry and every tensor's name, dtype, shape and bytes (a meta tensor has none)."""
    digest = hashlib.sha256(geometry.to_json().encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def freeze_(module: nn.Module) -> None:
    """Turn every parameter below ``module`` into a buffer that no optimizer sees and no checkpoint holds."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach(), persistent=False)


class FrozenBlock(nn.Module):
    """One frozen layer of a language model, then its final RMSNorm: ``y = RMSNorm(layer(h))``.

    The weights are buffers, not parameters: any optimizer line, ``CheckpointSaver``, strict ``CheckpointLoader``,
    ``deepcopy``, ``.to()`` and DDP work unchanged, and a checkpoint holds the block's name and fingerprint in place of
    its weights. Loading a checkpoint over a different block is refused.

    Args:
        geometry: the widths and head counts.
        tensors: the layer's weights, named as in ``geometry.tensor_shapes``.
        name: what the block is called in messages, such as "meta-llama/Llama-2-7b-hf layer 31".
        dtype: dtype in which the weights are kept; ``None`` keeps the donor's.
        final_norm: gain of the final RMSNorm, (D,); ``None`` is one everywhere, as in the published R-LLM code, which
            does not load the language model's own.
        known_fingerprint: of these weights, from whoever has just computed it; ``None`` computes it.

    Raises:
        ValueError: the tensors do not fit the geometry, or ``dtype`` is no floating type.
    """

    final_norm: Tensor

    def __init__(
        self,
        geometry: BlockGeometry,
        tensors: dict[str, Tensor],
        name: str,
        dtype: torch.dtype | None = None,
        final_norm: Tensor | None = None,
        known_fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"expected a floating dtype for the block, got {dtype!r}: use torch.float32 or torch.bfloat16 "
                "(on a command line '$torch.bfloat16', in single quotes)"
            )
        self.geometry = geometry
        self.width = geometry.width
        self.norm_eps = geometry.norm_eps
        self.layer = DecoderBlock.from_tensors(geometry, tensors)
        if final_norm is not None and tuple(final_norm.shape) != (geometry.width,):
            raise ValueError(f"expected final_norm of shape ({geometry.width},), got {tuple(final_norm.shape)}")
        gain = torch.ones(geometry.width, dtype=tensors["mlp_norm.weight"].dtype) if final_norm is None else final_norm
        self.register_buffer("final_norm", gain, persistent=False)
        known = tensors if final_norm is None else {**tensors, "final_norm.weight": final_norm}
        # Of the weights as the donor gave them: one block is one block, whatever dtype it is run in.
        self.fingerprint = known_fingerprint or fingerprint(geometry, known)
        self.signature = Signature(
            "block",
            f"{name} ({self.fingerprint[:12]})",
            "run with the block it was trained with (--block FILE), or train anew",
            compared=self.fingerprint,
        )
        freeze_(self.layer)
        if dtype is not None:
            self.to(dtype)

    def forward(self, h: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, of the dtype that came in."""
        return self.normed(self.layer(h.to(self.layer.query.weight.dtype), read)).to(h.dtype)

    def queries(self, h: Tensor) -> Tensor:
        """What these tokens (B, R, D) look for, (B, R, heads * head size), in the block's dtype."""
        return self.layer.query(self.layer.attention_norm(h.to(self.layer.query.weight.dtype)))

    def finish(self, h: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: tokens (B, R, D) and what their heads gathered, to tokens (B, R, D)."""
        return self.normed(self.layer.finish(h.to(self.layer.query.weight.dtype), attended)).to(h.dtype)

    def normed(self, y: Tensor) -> Tensor:
        """The final RMSNorm."""
        return F.rms_norm(y, [self.width], self.final_norm, self.norm_eps)

    def extra_repr(self) -> str:
        """The block's name and fingerprint, for ``print(network)``."""
        return self.signature.text


def random_tensors(geometry: BlockGeometry, seed: int = 0, like: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights of the control arm: normal, drawn in float32 from a generator of its own.

    With ``like`` each tensor has the mean and the standard deviation of the donor's, so that nothing but what was
    learned differs. Without a donor, matrices have standard deviation ``1 / sqrt(inputs)`` and gains are one.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in geometry.tensor_shapes.items():
        noise = torch.randn(shape, generator=generator)
        if like is not None:
            donor = like[name].float()
            tensors[name] = donor.mean() + donor.std() * noise
        elif len(shape) == 1:
            tensors[name] = torch.ones(shape)
        else:
            tensors[name] = noise * shape[1] ** -0.5
    return tensors
