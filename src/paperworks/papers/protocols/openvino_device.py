"""Time of a rewritten Mamba-2 on a device that OpenVINO lists, beside the graph as the paper found it."""

from __future__ import annotations

from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language import at_least_one

DEVICE = Setting("device", str, "CPU", "a device that OpenVINO lists, such as NPU, GPU or CPU")
CHECKPOINT = Setting(
    "checkpoint",
    str,
    "",
    "a folder with a Mamba-2 model that transformers saved; none: layers of Mamba2-130m with random weights",
    signature="paperworks.papers.protocols.openvino_device:checkpoint_signature",
)


def checkpoint_signature(folder: str) -> str:
    """Digest of the files of a checkpoint."""
    from paperworks.surgery.models import model_signature

    return model_signature(folder) if folder else ""


@protocol(
    "openvino on a device",
    metrics={
        "seconds": "median time of a prompt",
        "ratio": "median over rounds of the arm's time divided by that of the graph as it is, in the same round",
        "relative_error": "largest difference of the outputs by the largest output",
    },
    settings=(
        DEVICE,
        CHECKPOINT,
        Setting("style", str, "naive", "naive (the operations of early 2024), transformers or grouped"),
        Setting("tokens", int, Tiers(smoke=8, desk=256), "tokens of the prompt", at_least_one),
        Setting("layers", int, 1, "layers of a model made here", at_least_one),
        Setting("rounds", int, Tiers(smoke=6, desk=15), "interleaved rounds"),
    ),
    exclusive=True,
    preload=("transformers.models.mamba2.modeling_mamba2",),
)
def openvino_device(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm's target rewrites a graph in place, or returns another one; precision is that of the device."""
    import numpy as np

    from paperworks.efficiency.xamba import export_mamba
    from paperworks.efficiency.xamba.inspection import compiled
    from paperworks.measure.latency import paired_latency
    from paperworks.papers.protocols.openvino_graphs import mamba2_layer, some_tokens

    settings, seed = trial.settings, trial.derived_seed("weights") % 2**31
    model: Any
    if settings["checkpoint"]:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(settings["checkpoint"], use_safetensors=True, local_files_only=True).eval()
    else:
        model = mamba2_layer(seed, settings["layers"])
    graph = export_mamba(model, seq_len=settings["tokens"], style=settings["style"])
    changed = graph.clone()
    returned = arm.build(changed)
    changed = returned if isinstance(returned, type(graph)) else changed
    tokens = some_tokens(seed, 1, settings["tokens"], int(model.config.vocab_size))
    requests = {
        name: compiled(each, settings["device"]).create_infer_request()
        for name, each in (("arm", changed), ("as it is", graph))
    }
    outputs = {name: np.array(request.infer([tokens])[0]) for name, request in requests.items()}
    found = paired_latency(
        {name: lambda request=request: request.infer([tokens]) for name, request in requests.items()},  # type: ignore[misc]
        rounds=settings["rounds"],
        seed=trial.derived_seed("order") % 2**31,
    )
    difference = np.abs(outputs["arm"] - outputs["as it is"]).max() / np.abs(outputs["as it is"]).max()
    return {
        "seconds": found.medians["arm"],
        "ratio": found.ratio("arm", "as it is").median,
        "relative_error": float(difference),
    }
