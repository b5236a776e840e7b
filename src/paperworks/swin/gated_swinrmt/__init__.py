"""Gated-SwinRMT: attention in shifted windows whose scores decay with Manhattan distance, with an input-dependent gate.

Gated-SwinRMT: Unifying Swin Windowed Attention with Retentive Manhattan Decay via Input-Dependent Gating, arXiv
2604.06014; after Swin (2103.14030), RMT (2309.11523), SWAT (2502.18845) and gated attention (2505.06708). In a window
of h x w tokens with queries q, keys k / sqrt(D) and values v, two passes with the same q and k:

    v <- P_width v inside each row, then v <- P_height v inside each column

    retention   P = softmax_j(S + |i - j| ln gamma_k + M),        Y = (O * sigmoid(X W_g + b_g)) W_O + b_O
    swat        P = A / max(sum_j A, 1), A = sigmoid(S - s_k |i - j|) gamma_k^|i - j| [M = 0],
                v = SiLU(X W_vg + b_vg) * (X W_v + b_v),          Y = O W_O + b_O

with S = q k^T, O = the passes + LCE(v) (a depthwise convolution), gamma_k = 1 - 2^-(a + r k / H) of head k, and slopes
s_k that sum to zero over the heads. The passes multiply to gamma^(|dr| + |dc|), the Manhattan prior.
"""

from paperworks.swin.gated_swinrmt.attention import GatedRetention, ManhattanRetention
from paperworks.swin.gated_swinrmt.blocks import RMTBlock, SwinRMTBlock
from paperworks.swin.gated_swinrmt.checkpoints import load_rmt_state_dict
from paperworks.swin.gated_swinrmt.convert import ClampedRetention, ShiftedRetention, convert_swin, heal
from paperworks.swin.gated_swinrmt.decay import adaptive_window, balanced_alibi_slopes, manhattan_log_decay
from paperworks.swin.gated_swinrmt.masks import AxisMasks
from paperworks.swin.gated_swinrmt.network import (
    GatedSwinRMT,
    gated_swinrmt_retention,
    gated_swinrmt_swat,
    rmt_baseline,
)
from paperworks.swin.gated_swinrmt.windows import StageWindows, effective_window_report

__all__ = [
    "AxisMasks",
    "ClampedRetention",
    "GatedRetention",
    "GatedSwinRMT",
    "ManhattanRetention",
    "RMTBlock",
    "ShiftedRetention",
    "StageWindows",
    "SwinRMTBlock",
    "adaptive_window",
    "balanced_alibi_slopes",
    "convert_swin",
    "effective_window_report",
    "gated_swinrmt_retention",
    "gated_swinrmt_swat",
    "heal",
    "load_rmt_state_dict",
    "manhattan_log_decay",
    "rmt_baseline",
]
