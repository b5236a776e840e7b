"""Swin-X2S (arXiv 2501.05961): a labelled volume from two X-rays, the X-rays of a volume, and how both are judged."""

from paperworks.data.bones import XrayToShape
from paperworks.data.radiographs import biplanar_pair, drr, to_radiograph
from paperworks.swin.swin_x2s.fusion import CrossViewAttention
from paperworks.swin.swin_x2s.losses import two_view_loss
from paperworks.swin.swin_x2s.network import SIZES, DimensionExpansion, SwinX2S, swin_x2s
from paperworks.swin.swin_x2s.reprojection import disagreement, reprojection_loss, silhouette, silhouette_overlap
from paperworks.swin.swin_x2s.scores import chamfer_and_hd95, identification_rate, label_dice

__all__ = [
    "SIZES",
    "CrossViewAttention",
    "DimensionExpansion",
    "SwinX2S",
    "XrayToShape",
    "biplanar_pair",
    "chamfer_and_hd95",
    "disagreement",
    "drr",
    "identification_rate",
    "label_dice",
    "reprojection_loss",
    "silhouette",
    "silhouette_overlap",
    "swin_x2s",
    "to_radiograph",
    "two_view_loss",
]
