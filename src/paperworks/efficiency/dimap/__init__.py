"""DIMAP: one-shot pruning of hierarchical vision transformers without data, module by module.

Data-independent Module-aware Pruning for Hierarchical Vision Transformers (ICLR 2024), arXiv 2404.13648. The weights of
all attention inputs (qkv), of all attention outputs (proj) and of all MLPs are three rankings. In each, every weight
has the relative distortion its removal adds to its own layer,

    Imp(w_(j)) = w_(j)^2 / sum_{i <= j} w_(i)^2,   |w_(1)| >= |w_(2)| >= ...        (Eq. 10)

and the smallest go. Norms, embeddings, patch merging, position biases, heads and all biases stay.
"""

from paperworks.efficiency.dimap.finetuning import History, finetune
from paperworks.efficiency.dimap.flops import FlopReport, sparse_flops
from paperworks.efficiency.dimap.importance import distortion_bound, importance
from paperworks.efficiency.dimap.masks import KeptWeights, Masks
from paperworks.efficiency.dimap.pruning import dimap_masks, dimap_prune
from paperworks.efficiency.dimap.squeezing import squeeze
from paperworks.surgery.swin_parts import MODULES, find_modules

__all__ = [
    "MODULES",
    "FlopReport",
    "History",
    "KeptWeights",
    "Masks",
    "dimap_masks",
    "dimap_prune",
    "distortion_bound",
    "find_modules",
    "finetune",
    "importance",
    "sparse_flops",
    "squeeze",
]
