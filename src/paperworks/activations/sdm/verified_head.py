"""The two-headed language model output of an SDM network (section 4.3 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import log_sdm, sdm_loss


class VerifiedHead(nn.Module):
    """A language model head doubled to 2 |V| logits: z_neg = W_neg h (frozen) and z_pos = W_pos h (trained).

    Both start as copies of the model's own head, which also is the reference of the regulariser.  Greedy decoding
    takes argmax of the 2 |V| logits modulo |V|, which is SDM at q = e - 2, d = 1.

    Args:
        lm_head: the head as a linear layer, or its weight (|V|, D).  Tied weights are copied.

    State: negative (|V|, D), positive.weight (|V|, D), and a bias each where the head has one.
    """

    negative: Tensor
    negative_bias: Tensor | None

    def __init__(self, lm_head: nn.Linear | Tensor) -> None:
        super().__init__()
        weight = lm_head if isinstance(lm_head, Tensor) else lm_head.weight
        bias = None if isinstance(lm_head, Tensor) else lm_head.bias
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ValueError(f"lm_head must have a floating point weight (V, D), got {weight.dtype} {weight.shape}")
        self.register_buffer("negative", weight.detach().clone())
        self.register_buffer("negative_bias", None if bias is None else bias.detach().clone())
        # On the meta device no initial weights are drawn: they would use up the global random state.
        self.positive = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.positive.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            self.positive.bias = nn.Parameter(bias.detach().clone())

    @property
    def vocabulary(self) -> int:
        """|V|."""
        return self.negative.shape[0]

    def forward(self, h: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., 2 |V|), the negative half first."""
        return torch.cat([F.linear(h, self.negative, self.negative_bias), self.positive(h)], dim=-1)

    def decode(self, h: Tensor) -> Tensor:
        """Greedy token ids (...) for hidden states (..., D): argmax modulo |V|."""
        return self.forward(h).argmax(-1) % self.vocabulary

    def loss(self, h: Tensor, target: Tensor, q: Tensor, d: Tensor, beta: float) -> Tensor:
        """Eq. 32: mean -log_(2 + q) p_(t + |V|) + beta r'.

        Args:
            h: hidden states (B, D).
            target: next token ids t in the original vocabulary (B,), moved to the positive half here.
            q, d: similarity and distance quantile of the token's document (B,).
            beta: weight of the regulariser, at least 0.

        Raises:
            ValueError: a target outside the vocabulary, or beta below 0.
        """
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        if target.numel() and not torch.compiler.is_compiling():
            low, high = int(target.min()), int(target.max())
            if low < 0 or high >= self.vocabulary:
                raise ValueError(f"target must be in 0..{self.vocabulary - 1}, got {low}..{high}")
        # The base (2 + q)^(d z) magnifies rounding: half precision logits are widened first.
        z = self.forward(h).float() if h.dtype != torch.float64 else self.forward(h)
        shifted = target + self.vocabulary
        nll = sdm_loss(z, shifted, q, d)
        if beta == 0:
            return nll
        reference = z[:, : self.vocabulary].detach()
        return nll + beta * peak_regularizer(z, torch.cat([reference, reference], 1), shifted, q, d, nll)

    def merge(self) -> nn.Linear:
        """The positive half as a plain linear layer, for use without the verification layer."""
        head = nn.Linear(self.positive.in_features, self.vocabulary, bias=self.positive.bias is not None, device="meta")
        head.weight = nn.Parameter(self.positive.weight.detach().clone())
        if self.positive.bias is not None:
            head.bias = nn.Parameter(self.positive.bias.detach().clone())
        return head

    @contextmanager
    def installed(self, model: Any) -> Iterator[None]:
        """Let a `transformers` model decode with this head while the block runs.

        The model then gives max(z_neg, z_pos) (..., |V|), whose argmax is `decode`: `generate` and its cache work
        unchanged.
        """
        original = model.get_output_embeddings()
        if original is None:
            raise ValueError(f"model must have output embeddings, {type(model).__name__} has none")
        model.set_output_embeddings(_Decoder(self))
        try:
            yield
        finally:
            model.set_output_embeddings(original)


class _Decoder(nn.Module):
    def __init__(self, head: VerifiedHead) -> None:
        super().__init__()
        self.head = head
        self.weight = head.positive.weight  # what `transformers` reads of an output embedding

    def forward(self, h: Tensor) -> Tensor:
        # A head is trained in float32 on top of models of less precision.
        negative, positive = self.head(h.to(self.weight.dtype)).chunk(2, dim=-1)
        return torch.maximum(negative, positive)


def peak_regularizer(z: Tensor, z_reference: Tensor, target: Tensor, q: Tensor, d: Tensor, nll: Tensor) -> Tensor:
    """r' of Eq. 32: distance of the log-probabilities to the reference's, away from the peaks.

    r = mean_n || i_n (L_ref - L)_n ||_2 with L = log_(2 + q) SDM, and i zero at the argmax of each half of the
    reference, at the argmax of each half of z, and at the target.  r' = sqrt(max(r, 1)^s) with the exponent
    s = ln(loss) / ln(r) clipped to [0, 1]; no gradient flows through s.

    Args:
        z, z_reference: logits (B, 2 |V|).
        target: index of the target in 0..2 |V| - 1, (B,).
        q, d: (B,).
        nll: the loss, a scalar.
    """
    half = z.shape[1] // 2
    with torch.no_grad():
        peaks = [
            part.argmax(1) + offset
            for logits in (z_reference, z)
            for part, offset in ((logits[:, :half], 0), (logits[:, half:], half))
        ]
        mask = torch.ones_like(z).scatter_(1, torch.stack([*peaks, target], dim=1), 0.0)
        reference = log_sdm(z_reference, q, d)
    r = torch.linalg.vector_norm(mask * (reference - log_sdm(z, q, d)), dim=1).mean()
    with torch.no_grad():
        # At r <= 1 the base is 1 and the exponent has no effect.
        exponent = torch.where(r > 1, nll.log() / r.log(), torch.zeros_like(r)).nan_to_num(0.0).clamp(0.0, 1.0)
    return torch.sqrt(r.clamp(min=1.0) ** exponent)
