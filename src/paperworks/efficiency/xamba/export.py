"""XAMBA's first step, *enable*: Mamba and Mamba-2 of transformers as OpenVINO graphs of static shape.

An NPU wants every shape fixed and knows no state of its own, so a prompt and a single step are two graphs; the step
takes the states of all layers and returns the new ones. Nothing that depends on constants alone is left in a graph.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from paperworks.efficiency.xamba import scans
from paperworks.efficiency.xamba.graph import fold_constants, require_openvino

if TYPE_CHECKING:
    import openvino

STYLES, MODES = ("transformers", "naive", "grouped"), ("prefill", "decode")
LONGEST_UNROLLED = 512
"""Tokens of a Mamba-1 prompt: its scan is unrolled, some ten ops a token and layer."""

_STAND_INS: dict[str, dict[str, Any]] = {
    "naive": {
        "mamba2_chunk_scan": scans.naive_chunk_scan,
        "mamba2_selective_state_update": scans.naive_state_update,
    },
    "grouped": {"mamba2_chunk_scan": scans.grouped_chunk_scan},
}


def export_mamba(
    model: nn.Module,
    *,
    batch: int = 1,
    seq_len: int,
    style: Literal["transformers", "naive", "grouped"] = "transformers",
    mode: Literal["prefill", "decode"] = "prefill",
    fp16: bool = False,
    states: bool = False,
) -> openvino.Model:
    """A transformers Mamba or Mamba-2 model as an `openvino.Model` of static shape.

    Input ``input_ids`` (batch, seq_len) i64. Output 0 is ``last_hidden_state``, or ``logits`` for a ...ForCausalLM.
    With mode ``"decode"``, `seq_len` is 1, and the further inputs are ``conv_state.<layer>`` (batch, channels, kernel)
    and ``ssm_state.<layer>``, (batch, heads, head size, n) or for Mamba-1 (batch, channels, n), layer by layer; after
    output 0 follow the new states in that order, ``new_conv_state.<layer>`` and ``new_ssm_state.<layer>``. States of
    zeros are the start of a sequence.

    Functions of transformers' module are put aside for the length of the call, so this is not for several threads.

    Args:
        model: Mamba(2)Model or Mamba(2)ForCausalLM. It stays as it is.
        batch, seq_len: the fixed sizes.
        style: ``"transformers"``, its own operations. For Mamba-2 also ``"naive"``, those of early 2024, and
            ``"grouped"``, the fewest (beyond the paper); all are equal in value.
        mode: ``"prefill"``, from the start of a sequence; ``"decode"``, one token with states.
        fp16: keep the weights in half precision; they are computed with in float32.
        states: a prefill graph also returns the states after the prompt, as a decode graph does.

    Raises:
        TypeError: `model` is another kind of model.
        ValueError: a size below one, an unknown style or mode, a decode of several tokens, another style for Mamba-1,
            a Mamba-1 prompt of more than `LONGEST_UNROLLED` tokens.
        ImportError: openvino is missing, or transformers is older than the explicit cache of its Mamba models.
    """
    kind = _checked(model, batch, seq_len, style, mode)
    require_openvino()
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    example = torch.zeros(batch, seq_len, dtype=torch.int64)
    given = _zero_states(model.config, kind, batch) if mode == "decode" else []
    returned = bool(given) or states
    wrapper = _Explicit(_float32_on_cpu(model), returned).eval()
    with _only_elementary_operations(module, style), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of each size it takes as fixed, which is what is wanted
        # traced once: convert_model would run the model three times to check that it repeats itself
        converted = _converted(torch.jit.trace(wrapper, (example, *given), check_trace=False), [example, *given])
    _name(converted, model, bool(given), returned)
    converted.validate_nodes_and_infer_types()
    fold_constants(converted)
    if fp16:
        from openvino._offline_transformations import compress_model_transformation

        compress_model_transformation(converted)
    return converted


def _converted(traced: Any, inputs: list[Tensor]) -> openvino.Model:
    """What openvino.convert_model does with a traced module, without its report of the conversion to its makers."""
    import openvino
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # has to outlive the conversion
    converted: openvino.Model = frontend.convert(frontend.load(decoder))
    for parameter, example in zip(converted.get_parameters(), inputs, strict=True):
        parameter.set_element_type(openvino.Type.i64 if example.dtype == torch.int64 else openvino.Type.f32)
        parameter.set_partial_shape(openvino.PartialShape(list(example.shape)))
    converted.validate_nodes_and_infer_types()
    apply_moc_transformations(converted, cf=False)
    return converted


class ExplicitStates:
    """What the mixers of transformers ask a cache for, with states that are handed in and read out.

    Attributes:
        conv, ssm: by layer, the state, or None at the start of a sequence.
    """

    def __init__(self, layers: int, given: tuple[Tensor, ...] = ()) -> None:
        self.conv: list[Tensor | None] = [None] * layers
        self.ssm: list[Tensor | None] = [None] * layers
        for layer in range(len(given) // 2):
            self.conv[layer], self.ssm[layer] = given[2 * layer].clone(), given[2 * layer + 1].clone()

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.conv[layer_idx]

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.ssm[layer_idx]

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, conv_kernel_size: int, **_: Any) -> Tensor:
        """Keep the last `conv_kernel_size` columns, zeros before them where the prompt is shorter."""
        missing = max(0, conv_kernel_size - conv_states.shape[-1])
        padded = nn.functional.pad(conv_states, (missing, 0))
        self.conv[layer_idx] = padded[..., padded.shape[-1] - conv_kernel_size :]
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, **_: Any) -> Tensor:
        self.ssm[layer_idx] = recurrent_states
        return recurrent_states

    def tensors(self) -> tuple[Tensor, ...]:
        """conv and ssm states, layer by layer."""
        found = [state for pair in zip(self.conv, self.ssm, strict=True) for state in pair]
        return tuple(state for state in found if state is not None)


class _Explicit(nn.Module):
    """(input_ids, *states) -> (logits or hidden states, *new states)."""

    def __init__(self, model: nn.Module, returned: bool) -> None:
        super().__init__()
        self.model, self.returned = model, returned
        self.layers = _layers(model)

    def forward(self, input_ids: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        states = ExplicitStates(self.layers, given) if self.returned else None
        found = self.model(input_ids=input_ids, cache=states, use_cache=self.returned, return_dict=True)
        first = found.logits if hasattr(found, "logits") else found.last_hidden_state
        return (first, *states.tensors()) if states is not None else (first,)


def _layers(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.num_hidden_layers)


def _checked(model: nn.Module, batch: int, seq_len: int, style: str, mode: str) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or kind not in ("mamba", "mamba2"):
        raise TypeError(f"model: got {type(model).__name__}, want a Mamba or Mamba-2 model of transformers")
    for name, size in (("batch", batch), ("seq_len", seq_len)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: got {size!r}, want an integer of 1 or more")
    for name, value, known in (("style", style, STYLES), ("mode", mode, MODES)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, want one of {', '.join(known)}")
    if mode == "decode" and seq_len != 1:
        raise ValueError(f"seq_len: got {seq_len}, want 1 for mode 'decode'")
    if kind == "mamba" and style != "transformers":
        raise ValueError(f"style: got {style!r} for a Mamba-1 model, which has no chunked scan; want 'transformers'")
    if kind == "mamba" and seq_len > LONGEST_UNROLLED:
        raise ValueError(
            f"seq_len: got {seq_len}, want at most {LONGEST_UNROLLED} for a Mamba-1 model, whose scan is unrolled: "
            "feed a longer prompt to a 'decode' graph token by token"
        )
    return str(kind)


def _float32_on_cpu(model: nn.Module) -> nn.Module:
    parameters = list(model.parameters())
    if all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters) and not model.training:
        return model
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


@contextlib.contextmanager
def _only_elementary_operations(module: ModuleType, style: str) -> Iterator[None]:
    """Transformers' own PyTorch code, whatever kernels are installed beside it; or a stand-in for parts of it."""
    kernels = [name for name, value in vars(module).items() if hasattr(value, "__wrapped__") and "_" in name]
    wanted = {name: getattr(module, name).__wrapped__ for name in kernels if callable(getattr(module, name))}
    if not any("state_update" in name for name in wanted):
        raise ImportError(f"{module.__name__} has no state update of its own: pip install 'paperworks[efficiency]'")
    wanted |= _STAND_INS.get(style, {})
    before = {name: getattr(module, name) for name in wanted}
    try:
        vars(module).update(wanted)
        yield
    finally:
        vars(module).update(before)


def _zero_states(config: Any, kind: str, batch: int) -> list[Tensor]:
    if kind == "mamba":
        channels = config.intermediate_size
        ssm = torch.zeros(batch, channels, config.state_size)
    else:
        channels = config.num_heads * config.head_dim + 2 * config.n_groups * config.state_size
        ssm = torch.zeros(batch, config.num_heads, config.head_dim, config.state_size)
    pair = [torch.zeros(batch, channels, config.conv_kernel), ssm]
    return [state.clone() for _ in range(config.num_hidden_layers) for state in pair]


def _name(converted: openvino.Model, model: nn.Module, given: bool, returned: bool) -> None:
    states = [f"{kind}_state.{layer}" for layer in range(_layers(model)) for kind in ("conv", "ssm")]
    first = "logits" if type(model).__name__.endswith("ForCausalLM") else "last_hidden_state"
    for port, name in zip(converted.inputs, ["input_ids", *(states if given else [])], strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(converted.outputs, [first, *(f"new_{s}" for s in states if returned)], strict=True):
        port.get_tensor().set_names({name})
