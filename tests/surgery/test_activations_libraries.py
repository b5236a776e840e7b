"""Replacing activations in the models of transformers, MONAI, diffusers and timm, at their real structure and size."""

import pytest
import torch
from torch import nn

from paperworks.surgery.activations import ReplacementReport, replace_activations


class TwoScalars(nn.Module):
    """ASH's parameter count: two scalars a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.alpha * torch.tanh(x) + self.beta


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check_used(report: ReplacementReport, *inputs: object, **named: object) -> None:
    """One forward pass goes through every new activation."""
    new = [report.model.get_submodule(name) for name in report.replaced]
    assert all(isinstance(module, TwoScalars) for module in new)
    with torch.no_grad():
        report.model.eval()(*inputs, **named)
    assert all(module.calls > 0 for module in new)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- transformers ---


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra 'activations'")


def test_resnet50_has_49_sites_and_gains_98_parameters(transformers) -> None:
    with torch.device("meta"):
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    assert n_parameters(model) == 25_557_032
    report = replace_activations(model, TwoScalars)
    assert len(report.replaced) == 49
    assert report.shared == []
    assert n_parameters(model) == 25_557_032 + 98
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "config", "parameters", "sites"),
    [
        ("ViTForImageClassification", "ViTConfig", None, 12),
        ("GPT2LMHeadModel", "GPT2Config", 124_439_808, 12),
        ("BertModel", "BertConfig", 109_482_240, 12),
        ("MobileNetV2ForImageClassification", "MobileNetV2Config", None, 35),
    ],
)
def test_published_sizes_gain_two_parameters_a_site(transformers, model, config, parameters, sites) -> None:
    with torch.device("meta"):
        net = getattr(transformers, model)(getattr(transformers, config)())
    before = n_parameters(net)
    assert parameters in (None, before)
    assert len(replace_activations(net, TwoScalars).replaced) == sites
    assert n_parameters(net) - before == 2 * sites


def test_resnet_forward(transformers) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    check_used(replace_activations(transformers.ResNetModel(config), TwoScalars), noise(1, 3, 32, 32))


def test_vit_forward(transformers) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **size))
    check_used(replace_activations(model, TwoScalars), noise(1, 3, 16, 16))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "quick_gelu", "gelu_fast", "gelu_pytorch_tanh", "silu"])
def test_the_table_of_transformers_is_replaced_whatever_types_says(transformers, activation: str) -> None:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=8, activation_function=activation
    )
    model = transformers.GPT2Model(config)
    report = replace_activations(model, TwoScalars, types=(nn.ReLU6,))
    assert report.replaced == ["h.0.mlp.act", "h.1.mlp.act"]
    assert report.not_replaceable == []
    check_used(report, torch.arange(4)[None])


@pytest.mark.parametrize("activation", ["linear", "tanh", "sigmoid"])
def test_the_identity_and_torch_classes_of_that_table_go_by_types(transformers, activation: str) -> None:
    model = nn.Sequential(transformers.activations.ACT2FN[activation])
    assert replace_activations(model, TwoScalars).replaced == []
    assert replace_activations(model, TwoScalars, types=type(model[0])).replaced == ["0"]


def test_bert_keeps_the_tanh_of_its_pooler(transformers) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=32
    )
    model = transformers.BertModel(config)
    report = replace_activations(model, TwoScalars)
    assert report.replaced == ["encoder.layer.0.intermediate.intermediate_act_fn"]
    assert isinstance(model.pooler.activation, nn.Tanh)
    check_used(report, torch.arange(4)[None])


def test_llama_gated_mlp_computes_the_new_activation(transformers) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=32
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    report = replace_activations(model, TwoScalars)
    assert report.replaced == ["model.layers.0.mlp.act_fn"]
    mlp = model.model.layers[0].mlp
    assert mlp.act_fn.alpha.dtype == torch.bfloat16
    x = noise(1, 3, 16).to(torch.bfloat16)
    torch.testing.assert_close(mlp(x), mlp.down_proj(torch.tanh(mlp.gate_proj(x)) * mlp.up_proj(x)))
    check_used(report, torch.arange(4)[None])


def test_functions_held_by_transformers_modules_are_listed(transformers) -> None:
    layer = "transformers.models.mask2former.modeling_mask2former"
    module = pytest.importorskip(layer, reason="a transformers with Mask2Former")
    block = module.Mask2FormerPixelDecoderEncoderLayer(
        transformers.Mask2FormerConfig(feature_size=16, num_attention_heads=2, encoder_feedforward_dim=16)
    )
    assert replace_activations(block, TwoScalars).not_replaceable == ["activation_fn"]


# --- MONAI ---


@pytest.fixture(scope="module")
def nets():
    return pytest.importorskip("monai.networks.nets", reason="needs the extra 'swin'")


def test_densenet121_has_121_sites_and_gains_242_parameters(nets) -> None:
    with torch.device("meta"):
        model = nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000)
    assert n_parameters(model) == 7_978_856
    assert len(replace_activations(model, TwoScalars).replaced) == 121
    assert n_parameters(model) == 7_978_856 + 242


def test_monai_unet_adn_blocks(nets) -> None:
    model = nets.UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=1, act="RELU")
    report = replace_activations(model, TwoScalars)
    assert report.replaced
    assert all(name.endswith(".adn.A") for name in report.replaced)
    check_used(report, noise(1, 1, 16, 16))


def test_monai_unet_by_default_has_prelu_which_goes_by_types(nets) -> None:
    model = nets.UNet(2, 1, 2, (4, 8), (2,))
    assert replace_activations(model, TwoScalars).replaced == []
    check_used(replace_activations(model, TwoScalars, types=(nn.PReLU,)), noise(1, 1, 16, 16))


def test_swin_unetr(nets) -> None:
    model = nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2)
    report = replace_activations(model, TwoScalars)
    assert len(report.replaced) == 8
    assert all(name.endswith(".mlp.fn") for name in report.replaced)
    check_used(report, noise(1, 1, 64, 64))


def test_segresnet_shares_one_relu(nets) -> None:
    model = nets.SegResNet(spatial_dims=2, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    shared = [name for name, m in model.named_modules(remove_duplicate=False) if m is model.act_mod]
    report = replace_activations(model, TwoScalars)
    assert len(shared) > 1
    assert report.shared == shared
    assert len({id(model.get_submodule(name)) for name in shared}) == 1
    check_used(report, noise(1, 1, 16, 16))


@pytest.mark.parametrize("act", ["swish", "memswish", "gelu"])
def test_monai_swish_counts_as_silu(nets, act: str) -> None:
    model = nets.BasicUNet(spatial_dims=2, features=(4, 4, 4, 4, 4, 4), act=act)
    report = replace_activations(model, TwoScalars, types=(nn.GELU if act == "gelu" else nn.SiLU,))
    assert len(report.replaced) == 18
    assert not replace_activations(model, TwoScalars).replaced


# --- diffusers ---


def test_unet2d() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra 'motion'")
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    silus = [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.SiLU)]
    report = replace_activations(model, TwoScalars)
    assert report.replaced == silus
    assert "conv_act" in silus
    assert "time_embedding.act" in silus
    check_used(report, noise(1, 1, 8, 8), 3)


def test_diffusers_fp32_silu_counts_as_silu() -> None:
    activations = pytest.importorskip("diffusers.models.activations", reason="needs the extra 'motion'")
    assert replace_activations(nn.Sequential(activations.FP32SiLU()), TwoScalars).replaced == ["0"]
    # diffusers' GELU is a linear layer followed by a call of F.gelu: no activation site.
    assert replace_activations(nn.Sequential(activations.GELU(2, 2)), TwoScalars).replaced == []


# --- timm ---


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm imports only where torchvision does", exc_type=ImportError)


@pytest.mark.parametrize(
    ("name", "parameters", "sites"), [("resnet50", 25_557_032, 49), ("densenet121", 7_978_856, 121)]
)
def test_timm_counts(timm, name: str, parameters: int, sites: int) -> None:
    model = timm.create_model(name)
    assert n_parameters(model) == parameters
    assert len(replace_activations(model, TwoScalars).replaced) == sites
    assert n_parameters(model) == parameters + 2 * sites


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "efficientnet_b0"])
def test_timm_forward(timm, name: str) -> None:
    report = replace_activations(timm.create_model(name), TwoScalars)
    assert report.replaced
    check_used(report, noise(1, 3, 64, 64))
