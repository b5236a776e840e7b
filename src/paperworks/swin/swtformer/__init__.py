"""SWTformer: seed masks from image tags, by class activation maps and prototypes of a Swin without a class token.

Leveraging Swin Transformer for Local-to-Global Weakly Supervised Semantic Segmentation, arXiv 2401.17828. With the maps
S_1..S_n of the stages and X = LN(S_n),

    version 1    A = W X (1x1, no bias),  logits = mean_xy A,  CAM_k = ReLU(A_k) / (max_xy ReLU(A_k) + 1e-5)
    version 2    M = [1 - max_k CAM_k, CAM_1..K] * [1, y];  fused = the stages, detached, each through a 1x1 convolution
                 and over its norm, side by side on the grid of S_n-1;  seed_i = argmax_k IoU_ik (X, M);
                 P_k = mean(seed_k fused);  I_k = ReLU(cos(fused, P_k))
    loss         L_cls + mean |M - I / max I| + 0.1 L_ccl,  L_ccl = -log softmax_k(cos(fused_i, P_k) / tau) at the seed

The second version follows SIPE (2203.02909), its parent; the form of L_ccl is our reconstruction.
"""

from paperworks.data.voc import VOCClassification
from paperworks.swin.swtformer.localisation import localize, uncertainty_map
from paperworks.swin.swtformer.maps import (
    class_contrast_loss,
    class_prototypes,
    gsc_loss,
    normalize_cam,
    prototype_cam,
    structure_seeds,
    with_background,
)
from paperworks.swin.swtformer.network import LocalizationOutput, SWTformer, swtformer_loss
from paperworks.swin.swtformer.prompts import SeedPrompt, seed_mask, seeds_to_points
from paperworks.swin.swtformer.scores import SeedScore, multilabel_map, seed_miou

__all__ = [
    "LocalizationOutput",
    "SWTformer",
    "SeedPrompt",
    "SeedScore",
    "VOCClassification",
    "class_contrast_loss",
    "class_prototypes",
    "gsc_loss",
    "localize",
    "multilabel_map",
    "normalize_cam",
    "prototype_cam",
    "seed_mask",
    "seed_miou",
    "seeds_to_points",
    "structure_seeds",
    "swtformer_loss",
    "uncertainty_map",
    "with_background",
]
