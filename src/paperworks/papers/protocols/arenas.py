"""The arenas: for each area, all its arms on one shared protocol."""

from __future__ import annotations

from paperworks.lab.arena import Arena
from paperworks.lab.nouns import Arm, Tiers
from paperworks.papers.protocols.images import classification

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

ARENAS = {
    "activations": Arena("activations", classification, "accuracy", ACTIVATIONS, {}, Tiers(smoke=2, desk=10)),
}
