"""torch's multi-head attention with queries, keys and values from layers of their own, which can be cut.

`nn.MultiheadAttention` holds one width for its input, its output and all of its heads together, and checks it. So neither a head
nor a channel around it can go. `SplitAttention` takes its place, with the same weights and the same forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.surgery.self_attention import plain_linear


class SplitAttention(nn.Module):
    """Attention with heads of any width: `q`, `k`, `v` (heads * width, inputs), `out_proj` (outputs, heads * width).

    Its forward takes and gives what that of `nn.MultiheadAttention` does.
    """

    _qkv_same_embed_dim = False  # torch's encoder layers then call this forward, and no kernel of theirs
    in_proj_bias = None

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = source.num_heads, source.batch_first, source.dropout
        self.scale = source.head_dim**-0.5
        weights = (
            (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
            if source.in_proj_weight is None
            else source.in_proj_weight.chunk(3)
        )
        biases = (None,) * 3 if source.in_proj_bias is None else source.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (
            plain_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.out_proj = plain_linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`; `is_causal` says of `attn_mask` what it is, and changes nothing."""
        batched = query.dim() == 3
        first = self.batch_first or not batched

        def heads(layer: nn.Module, x: Tensor) -> Tensor:
            x = x if batched else x[None]
            x = x if first else x.transpose(0, 1)
            split: Tensor = layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            return split

        q, k, v = heads(self.q, query), heads(self.k, key), heads(self.v, value)
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropped = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.scale
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropped) if dropped else weights
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropped, scale=self.scale)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y[0], weights
        return (y if first else y.transpose(0, 1)), weights

    @staticmethod
    def _mask(q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores (B, H, L, S), broadcast."""
        masks = []
        if attn_mask is not None:
            mask = attn_mask if attn_mask.dim() == 2 else attn_mask.view(*q.shape[:2], *attn_mask.shape[1:])
            masks.append(_added(mask, q))
        if key_padding_mask is not None:
            padding = key_padding_mask if key_padding_mask.dim() == 2 else key_padding_mask[None]
            masks.append(_added(padding, q)[:, None, None])
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers that are added: what a boolean one names is left out."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def can_split(module: nn.Module) -> bool:
    """Whether it is torch's own multi-head attention, and adds no keys of its own."""
    if type(module) is not nn.MultiheadAttention:
        return False
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn
