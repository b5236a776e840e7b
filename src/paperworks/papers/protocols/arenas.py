"""The arenas: for each area, all its arms on one shared protocol."""

from __future__ import annotations

from paperworks.lab.arena import Arena
from paperworks.lab.nouns import Arm, Tiers
from paperworks.papers.protocols.images import classification
from paperworks.papers.protocols.kan_images import network_classification

ACTIVATIONS = (
    Arm("ReLU", "torch.nn:ReLU"),
    Arm("LeakyReLU", "torch.nn:LeakyReLU"),
    Arm("PReLU", "torch.nn:PReLU"),
    Arm("ELU", "torch.nn:ELU"),
    Arm("GELU", "torch.nn:GELU"),
    Arm("SiLU", "torch.nn:SiLU"),
    Arm("Mish", "torch.nn:Mish"),
    Arm("Hardswish", "torch.nn:Hardswish"),
    Arm("Tanh", "torch.nn:Tanh"),
    Arm("ASH", "paperworks.activations.ash:ASH"),
    Arm("L-ASH", "paperworks.activations.ash:ASH", {"leak": 0.01}),
    Arm("Hard ASH", "paperworks.activations.ash:HardASH"),
    Arm("CRReLU", "paperworks.activations.crrelu:CRReLU"),
    Arm("EAFO(ReLU)", "paperworks.activations.crrelu:EAFOActivation", {"base": "relu"}),
    Arm("EAFO(GELU)", "paperworks.activations.crrelu:EAFOActivation", {"base": "gelu"}),
)

_NETWORKS = "paperworks.papers.protocols.kan_networks"
KAN = (
    Arm("MLP, equal parameters", f"{_NETWORKS}:image_mlp", {"width": 36}),
    Arm("MLP, equal FLOPs", f"{_NETWORKS}:image_mlp", {"width": 96}),
    *(
        Arm(f"KAN, {basis}", f"{_NETWORKS}:image_kan", {"basis": basis})
        for basis in ("bspline", "chebyshev", "fourier", "rbf", "wavelet", "relu_power", "silu_quad1")
    ),
    Arm("S-KAN", f"{_NETWORKS}:image_s_kan"),
    Arm("AF-KAN", f"{_NETWORKS}:image_af_kan"),
    Arm("ReLU-KAN", f"{_NETWORKS}:image_relu_kan"),
)
"""On 8x8 digits 2,600 to 2,800 parameters each (S-KAN after pruning); FLOPs count ten for each value of a basis."""

_MAPS = "paperworks.papers.protocols.swin_networks:MapClassifier"
SWIN = (
    Arm("shifted windows (Swin)", _MAPS, {"mixer": "window"}),
    Arm("windows, not shifted", _MAPS, {"mixer": "window, not shifted"}),
    Arm("attention over the whole map", _MAPS, {"mixer": "global"}),
    Arm("Swin with squeeze-and-excitation", _MAPS, {"mixer": "window", "excite": True}),
    Arm("Gated-SwinRMT, retention", _MAPS, {"mixer": "retention"}),
    Arm("Gated-SwinRMT, SWAT", _MAPS, {"mixer": "swat"}),
    Arm("RMT, Manhattan retention", _MAPS, {"mixer": "manhattan"}),
    Arm("depthwise convolution", _MAPS, {"mixer": "depthwise"}),
    Arm("no mixing of tokens", _MAPS, {"mixer": "none"}),
)
"""Networks of equal width and depth on 8x8 digits, a patch a pixel."""

ARENAS = {
    "activations": Arena("activations", classification, "accuracy", ACTIVATIONS, {}, Tiers(smoke=2, desk=10)),
    "kan": Arena("kan", network_classification, "accuracy", KAN, {}, Tiers(smoke=2, desk=8)),
    "swin": Arena("swin", network_classification, "accuracy", SWIN, {"lr": 2e-3}, Tiers(smoke=2, desk=8)),
}
