"""Swin UNETR (arXiv 2201.01266): the network, its loss, its scores, and how a whole volume is segmented."""

from paperworks.data.brain_tumours import BraTSVolumes, brats_regions
from paperworks.swin.swin_unetr.anisotropy import thick_slice_strides
from paperworks.swin.swin_unetr.inference import importance_map, predict_volume
from paperworks.swin.swin_unetr.network import SwinEncoder, SwinUNETR
from paperworks.swin.swin_unetr.receptive_field import Reach, explain_receptive_field
from paperworks.swin.swin_unetr.scores import dice_score, hd95, soft_dice_loss

__all__ = [
    "BraTSVolumes",
    "Reach",
    "SwinEncoder",
    "SwinUNETR",
    "brats_regions",
    "dice_score",
    "explain_receptive_field",
    "hd95",
    "importance_map",
    "predict_volume",
    "soft_dice_loss",
    "thick_slice_strides",
]
