"""MobileTL: transfer learning with little memory for networks of inverted residual blocks.

Only the last blocks train. In them, the norms at the wide channels keep their statistics and scale, so that their
inputs need not be kept; activations are exact forwards and keep one bit a value for the backward pass,

    dx = dy 1[x > 0];

the last norm of a block trains in full ("MobileTL: On-device Transfer Learning with Inverted Residual Blocks",
arXiv 2212.03246, AAAI 2023).

`mobiletl(model, blocks=5)` rewrites a timm, torchvision, transformers or MONAI network in place; `plan` chooses the
number of blocks for a memory budget; `block_memory` and `training_flops` are the paper's accounting.
"""

from paperworks.efficiency.bits import pack_bits, unpack_bits
from paperworks.efficiency.mobiletl.accounting import TrainingFlops, block_memory, training_flops
from paperworks.efficiency.mobiletl.activation import (
    SignedHardswish,
    SignedReLU,
    SignedReLU6,
    SignedSiLU,
    signed_activation,
)
from paperworks.efficiency.mobiletl.conversion import MobileTL, mobiletl
from paperworks.efficiency.mobiletl.norm import ShiftOnlyNorm2d
from paperworks.efficiency.mobiletl.planning import Plan, plan
from paperworks.measure.stored_activations import MemoryReport, stored_activations
from paperworks.surgery.inverted_residuals import find_inverted_residuals

__all__ = [
    "MemoryReport",
    "MobileTL",
    "Plan",
    "ShiftOnlyNorm2d",
    "SignedHardswish",
    "SignedReLU",
    "SignedReLU6",
    "SignedSiLU",
    "TrainingFlops",
    "block_memory",
    "find_inverted_residuals",
    "mobiletl",
    "pack_bits",
    "plan",
    "signed_activation",
    "stored_activations",
    "training_flops",
    "unpack_bits",
]
