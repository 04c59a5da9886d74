# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of a language model, run on visual tokens without positions and mask."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.llm.attention import AttentionForm, AttentionTensors, TokenMaps, is_linear_map, runs_as
from monai_llmboost.llm.capped import capped_attention
from monai_llmboost.llm.geometry import BlockGeometry


class DecoderBlock(nn.Module):
    """One pre-trained layer: attention over all tokens, then an MLP, each with a residual connection.

    ``h = x + [n'](W_O attention(W_Q n(x), W_K n(x), W_V n(x)))``; ``y = h + [n''](mlp(n(h)))``

    The geometry gives the norms, biases, grouped heads, the kind of MLP, and whether both parts see ``x``.
    A language model adds positions to queries and keys and masks later tokens. Visual tokens have no such order, so
    both are off by default (Pang et al. 2024, arXiv:2310.12973, section 3), which makes the layer
    permutation-equivariant: ``block(x[:, p]) == block(x)[:, p]``.

    Args:
        geometry: sizes and options of the layer.
        causal: mask the tokens after each token, as the language model does; the first token then sees itself only.
        rotary: rotate queries and keys by the tokens' positions, as the language model does.

    Raises:
        ValueError: ``rotary`` for a layer without rotary positions.

    Example:
        >>> block = DecoderBlock(BlockGeometry(width=64, mlp_width=128, num_heads=4, num_kv_heads=2, head_size=16))
        >>> block(torch.zeros(2, 7, 64)).shape, block(torch.zeros(2, 7, 64), 1).shape
        (torch.Size([2, 7, 64]), torch.Size([2, 1, 64]))
    """

    if TYPE_CHECKING:
        attention_norm: Any
        key_norm: Any

    __constants__ = (
        "capped",
        "centred",
        "gated",
        "one_token",
        "parallel",
        "pre_norm",
        "qk_normed",
        "rotates",
    )  # so that scripting skips the branches that are not taken

    def __init__(self, geometry: BlockGeometry, causal: bool = False, rotary: bool = False) -> None:
        super().__init__()
        if rotary and not geometry.rotary:
            raise ValueError(
                "the layer has no rotary positions, or of a kind that is not supported: leave out rotary, or choose "
                "another donor or layer"
            )
        self.width = geometry.width
        self.num_heads = geometry.num_heads
        self.num_kv_heads = geometry.num_kv_heads
        self.head_size = geometry.head_size
        self.norm_eps = geometry.norm_eps
        self.scale = geometry.scale
        self.score_cap = geometry.score_cap
        self.capped = geometry.score_cap > 0
        self.gated = geometry.gated
        self.parallel = geometry.parallel
        self.causal = causal
        self.rotates = rotary
        self.one_token = False
        self.rotary = list(geometry.rotary)
        self.query_groups = geometry.num_heads if geometry.qk_norm == "head" else 1
        self.key_groups = geometry.num_kv_heads if geometry.qk_norm == "head" else 1
        self.pre_norm = geometry.pre_norm
        self.centred = geometry.norm == "layer"
        self.qk_normed = geometry.qk_norm != "none"

        inner, kv = geometry.num_heads * geometry.head_size, geometry.num_kv_heads * geometry.head_size
        width, mlp_width, eps = geometry.width, geometry.mlp_width, geometry.norm_eps

        def norm(wanted: bool) -> nn.Module:
            if not wanted:
                return nn.Identity()
            return nn.LayerNorm(width, eps=eps) if geometry.norm == "layer" else nn.RMSNorm(width, eps=eps)

        def qk_norm(size: int) -> nn.Module:
            if geometry.qk_norm == "none":
                return nn.Identity()
            return nn.RMSNorm(geometry.head_size if geometry.qk_norm == "head" else size, eps=eps)

        activations = {"silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "relu": nn.ReLU()}
        self.attention_norm = norm(geometry.pre_norm)
        self.query = nn.Linear(width, inner, bias=geometry.qkv_bias)
        self.key = nn.Linear(width, kv, bias=geometry.qkv_bias)
        self.value = nn.Linear(width, kv, bias=geometry.qkv_bias)
        self.query_norm = qk_norm(inner)
        self.key_norm = qk_norm(kv)
        self.output = nn.Linear(inner, width, bias=geometry.output_bias)
        self.attention_post_norm = norm(geometry.post_norm)
        self.mlp_norm = norm(geometry.pre_norm)
        self.gate = nn.Linear(width, mlp_width, bias=geometry.mlp_bias) if geometry.gated else nn.Identity()
        self.activation = activations[geometry.activation]
        self.up = nn.Linear(width, mlp_width, bias=geometry.mlp_bias)
        self.down = nn.Linear(mlp_width, width, bias=geometry.mlp_bias)
        self.mlp_post_norm = norm(geometry.post_norm)
        self.attention_form = self.form()

    def form(self) -> AttentionForm | None:
        """Return the form of the attention for the read-out; ``None`` if a fast read-out is not possible.

        Without positions and key norms, scores are linear in the tokens, up to the size of each token. Biases add the
        same to the scores of all tokens, which changes the softmax only if scores are capped.
        """
        unordered = not self.causal and not self.rotates
        unbiased = not self.centred and self.key.bias is None
        linear = not self.qk_normed and self.pre_norm and (unbiased or not self.capped)
        names = "attend", "attend_heads", "weigh"
        own = all(getattr(type(self), name) is getattr(DecoderBlock, name) for name in names)
        if not (unordered and own and (linear or (self.qk_normed and unbiased))):
            return None
        return AttentionForm(
            normed_keys=self.qk_normed,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            scale=self.scale,
            score_cap=self.score_cap,
            norm_eps=self.norm_eps,
            pre_norm=self.pre_norm,
            centred=self.centred,
        )

    def attention_tensors(self, x: Tensor) -> AttentionTensors:
        """Return the queries of tokens (B, R, D) and the attention weights applied to all tokens."""
        gain: Optional[Tensor] = None  # noqa: UP045  (as scripting reads it)
        norm_bias: Optional[Tensor] = None  # noqa: UP045
        key_gain: Optional[Tensor] = None  # noqa: UP045
        if self.pre_norm:
            gain = self.attention_norm.weight
            if self.centred:
                norm_bias = self.attention_norm.bias
        if self.qk_normed:
            key_gain = self.key_norm.weight
        q = self.queries(self.attention_norm(x))
        return AttentionTensors(q, gain, norm_bias, self.key.weight, key_gain, self.value.weight, self.value.bias)

    @torch.jit.unused
    def token_maps(self) -> TokenMaps | None:
        """Return the maps of all tokens before the attention; ``None`` if that of the queries is not linear."""
        if not is_linear_map(self.query):
            return None
        norm = self.attention_norm
        return TokenMaps(
            norm.weight if self.pre_norm else None,
            norm.bias if self.pre_norm and self.centred else None,
            (self.query.weight, self.key.weight, self.value.weight),
            (self.query.bias, self.key.bias, self.value.bias),
        )

    @torch.jit.unused
    def is_intact(self) -> bool:
        """Return whether :meth:`attention_tensors` and :meth:`finish` still compute the same as a call.

        They do not if a skipped module has a hook or was replaced by another kind of map or norm.
        """
        norm = (nn.LayerNorm if self.centred else nn.RMSNorm) if self.pre_norm else nn.Identity
        key_norm = nn.RMSNorm if self.qk_normed else nn.Identity
        eps = self.norm_eps
        bias = self.key.bias  # adds the same to every score; a trained one must be in the graph
        return (
            runs_as(self, DecoderBlock)
            and is_linear_map(self.key)
            and is_linear_map(self.value)
            and runs_as(self.attention_norm, norm)
            and runs_as(self.key_norm, key_norm)
            and runs_as(self.query_norm, key_norm)
            and (bias is None or not (self.qk_normed or self.capped or bias.requires_grad))
            and all(getattr(part, "eps", eps) == eps for part in (self.attention_norm, self.key_norm))
        )

    def queries(self, x: Tensor) -> Tensor:
        """Return the queries of normed tokens (B, R, D), (B, R, heads * head size)."""
        return self.norm_queries(self.query(x))

    def norm_queries(self, q: Tensor) -> Tensor:
        """Return queries (B, R, heads * head size) after their norm, if the layer has one."""
        b, r = q.shape[0], q.shape[1]
        return self.query_norm(q.view(b, r, self.query_groups, -1)).reshape(b, r, -1)

    def attend(self, x: Tensor, read: int | None = None) -> Tensor:
        """Return the output of the heads at the first ``read`` normed tokens (B, N, D), (B, R, heads * head size)."""
        if self.one_token:
            return self.attend_itself(x)
        rows = x if read is None else x[:, :read]
        if self.causal:
            x = rows  # no token sees later tokens
        return self.attend_heads(self.query(rows), self.key(x), self.value(x))

    def attend_heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output of the heads of queries (B, R, heads * head size) over all keys and values (B, N, ...).

        Queries and keys come as the maps give them, without norms and positions.
        """
        b, n, r = k.shape[0], k.shape[1], q.shape[1]
        q = self.norm_queries(q).view(b, r, self.num_heads, self.head_size).transpose(1, 2)
        k = self.key_norm(k.view(b, n, self.key_groups, -1))
        k = k.view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)  # (B, kv heads, N, head size)
        v = v.view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)
        if self.rotates:
            q, k = self.rotate(q), self.rotate(k)
        y = self.weigh(q, k, v)  # (B, heads, R, head size)
        return y.transpose(1, 2).reshape(b, r, self.num_heads * self.head_size)

    def attend_itself(self, x: Tensor) -> Tensor:
        """Return the output of the heads at one normed token (B, 1, D), its value, (B, 1, heads * head size)."""
        b = x.shape[0]
        if x.shape[1] != 1:
            raise ValueError(
                "this layer was made for one token, by for_one_token: give (B, 1, D), or a block with keys"
            )
        groups = self.num_heads // self.num_kv_heads
        v = self.value(x).view(b, self.num_kv_heads, 1, self.head_size)
        return v.expand(b, self.num_kv_heads, groups, self.head_size).reshape(b, 1, -1)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of queries (B, heads, R, head size) over keys and values (B, kv heads, N, head size)."""
        grouped = self.num_kv_heads != self.num_heads
        if not self.capped:
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale, enable_gqa=grouped)
        if grouped:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
            v = v.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        return capped_attention(q, k, v, self.scale, self.score_cap, self.causal)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate each pair of features of queries or keys (B, heads, N, head size) by the token's position."""
        pairs = len(self.rotary)
        positions = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
        angles = positions.unsqueeze(1) * torch.tensor(self.rotary, device=x.device, dtype=torch.float32)  # (N, pairs)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * pairs :]), dim=-1)

    def mlp(self, x: Tensor) -> Tensor:
        """Map normed tokens (B, N, D) to tokens (B, N, D), each independently."""
        if self.gated:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Map tokens (B, R, D) and the output of their heads, (B, R, heads * head size), to tokens (B, R, D)."""
        h = x + self.attention_post_norm(self.output(attended))
        seen = x if self.parallel else h
        return h + self.mlp_post_norm(self.mlp(self.mlp_norm(seen)))

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, (B, R, D)."""
        rows = x if read is None else x[:, :read]
        return self.finish(rows, self.attend(self.attention_norm(x), read))

    def for_one_token(self) -> DecoderBlock:
        """Return this layer for sequences of one token, without queries and keys; it shares the other weights.

        The softmax over one token is 1, so the attention returns the value of the token: ``W_O W_V n(x)``. A subclass
        with its own ``attend`` stays as it is.
        """
        if type(self).attend is not DecoderBlock.attend:
            return self
        layer = copy.copy(self)
        unused = {name: nn.Identity() for name in ("query", "key", "query_norm", "key_norm")}
        layer._modules = {**self._modules, **unused}
        layer.one_token = True
        layer.attention_form = None
        return layer

    @classmethod
    def from_tensors(
        cls,
        geometry: BlockGeometry,
        tensors: dict[str, Tensor],
        dtype: torch.dtype | None = None,
        causal: bool = False,
        rotary: bool = False,
    ) -> DecoderBlock:
        """Make the layer from these tensors; they are copied only if the dtype changes.

        Raises:
            ValueError: a tensor is missing, unknown, or differs in shape from the geometry.
        """
        geometry.check_tensors(tensors)
        with torch.device("meta"):
            block = cls(geometry, causal, rotary)
        weights = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors.items()}
        if geometry.gain_offset:
            gains = [name for name in weights if name.endswith("norm.weight")]
            weights.update({name: weights[name] + geometry.gain_offset for name in gains})
        block.load_state_dict(weights, strict=True, assign=True)
        return block
