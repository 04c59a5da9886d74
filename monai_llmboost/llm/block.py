# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of a language model, run on visual tokens: no positions, no mask, in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.llm.geometry import BlockGeometry


class DecoderBlock(nn.Module):
    """One pre-trained layer: attention over all tokens, then an MLP, each added to what came in.

    ``h = x + [n'](W_O attention(W_Q n(x), W_K n(x), W_V n(x)))``; ``y = h + [n''](mlp(n(h)))``

    Which norms there are, biases, grouped heads, the MLP's kind, whether both parts see ``x``: as the geometry says.
    A language model adds positions to queries and keys and masks the future. Visual tokens have no such order, so both
    are left out (Pang et al. 2024, arXiv:2310.12973, section 3), which makes the layer permutation-equivariant:
    ``block(x[:, p]) == block(x)[:, p]``. Who wants them can have them.

    Args:
        geometry: the layer as numbers.
        causal: mask what follows a token, as the language model does; the first token then sees itself only.
        rotary: turn queries and keys by the tokens' positions, as the language model does.

    Raises:
        ValueError: rotary positions of a layer that has none.
    """

    __constants__ = ("capped", "gated", "parallel", "rotates")  # so that scripting leaves out the branches not taken

    def __init__(self, geometry: BlockGeometry, causal: bool = False, rotary: bool = False) -> None:
        super().__init__()
        if rotary and not geometry.rotary:
            raise ValueError(
                "expected a layer with rotary positions, this one has none (or of a kind that is not supported): "
                "leave out rotary, or choose another donor or layer"
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
        self.rotary = list(geometry.rotary)
        self.query_groups = geometry.num_heads if geometry.qk_norm == "head" else 1
        self.key_groups = geometry.num_kv_heads if geometry.qk_norm == "head" else 1
        # Of unnormed keys at no position, scores are linear in the tokens but for each token's size; what biases add
        # is the same for all tokens, which only a cap makes felt.
        unbiased = geometry.norm == "rms" and not geometry.qkv_bias
        unplaced = not causal and not rotary
        unnormed = geometry.qk_norm == "none"
        self.scores_are_linear = unplaced and unnormed and geometry.pre_norm and (unbiased or geometry.score_cap == 0)
        self.keys_are_normed = unplaced and unbiased and not unnormed

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

    def queries(self, x: Tensor) -> Tensor:
        """What normed tokens (B, R, D) look for, (B, R, heads * head size)."""
        b, r = x.shape[0], x.shape[1]
        return self.query_norm(self.query(x).view(b, r, self.query_groups, -1)).reshape(b, r, -1)

    def attend(self, x: Tensor, read: int | None = None) -> Tensor:
        """What the heads of the first ``read`` normed tokens (B, N, D) gather from all, (B, R, heads * head size)."""
        rows = x if read is None else x[:, :read]
        if self.causal:
            x = rows  # nobody sees what follows
        b, n, r = x.shape[0], x.shape[1], rows.shape[1]
        q = self.queries(rows).view(b, r, self.num_heads, self.head_size).transpose(1, 2)
        k = self.key_norm(self.key(x).view(b, n, self.key_groups, -1))
        k = k.view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)  # (B, kv heads, N, head size)
        v = self.value(x).view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)
        if self.rotates:
            q, k = self.turn(q), self.turn(k)
        y = self.mix(q, k, v)  # (B, heads, R, head size)
        return y.transpose(1, 2).reshape(b, r, self.num_heads * self.head_size)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, heads, R, head size) over keys and values (B, kv heads, N, head size)."""
        grouped = self.num_kv_heads != self.num_heads
        if not self.capped:
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale, enable_gqa=grouped)
        if grouped:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
            v = v.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        scores = q @ k.transpose(2, 3)
        if scores.dtype != torch.float64:
            scores = scores.float()
        scores = scores * self.scale
        scores = self.score_cap * torch.tanh(scores / self.score_cap)  # (B, heads, R, N)
        if self.causal:
            future = torch.ones(scores.shape[2], scores.shape[3], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        return scores.softmax(dim=-1).to(v.dtype) @ v

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys (B, heads, N, head size), each pair of features turned by the token's position."""
        pairs = len(self.rotary)
        places = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
        angles = places.unsqueeze(1) * torch.tensor(self.rotary, device=x.device, dtype=torch.float32)  # (N, pairs)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * pairs :]), dim=-1)

    def mlp(self, x: Tensor) -> Tensor:
        """Normed tokens (B, N, D) to tokens (B, N, D), each for itself."""
        if self.gated:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: tokens (B, R, D) and what their heads gathered, to tokens (B, R, D)."""
        h = x + self.attention_post_norm(self.output(attended))
        seen = x if self.parallel else h
        return h + self.mlp_post_norm(self.mlp(self.mlp_norm(seen)))

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, (B, R, D)."""
        rows = x if read is None else x[:, :read]
        return self.finish(rows, self.attend(self.attention_norm(x), read))

    @classmethod
    def from_tensors(
        cls,
        geometry: BlockGeometry,
        tensors: dict[str, Tensor],
        dtype: torch.dtype | None = None,
        causal: bool = False,
        rotary: bool = False,
    ) -> DecoderBlock:
        """The layer over these tensors, which are used as they are, not copied, unless another dtype is asked for.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape than the geometry says.
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
