"""Loading a user's image classifier from a spec, and the digest of what is behind the spec."""

import importlib
import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from paperworks.surgery.model_spec import parse_spec
from paperworks.surgery.models import ImageClassifier, load_model, model_signature

SHAPE = {"num_classes": 5, "in_channels": 1, "image_size": 8}
_numbers = itertools.count()

NETS = """
from types import SimpleNamespace
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, num_classes)
    def forward(self, x):
        return self.head(self.drop(self.conv(x).mean((2, 3))))

class Logits(Net):
    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x), hidden=x)

class InDict(Net):
    def forward(self, x):
        return {"loss": None, "logits": super().forward(x)}

def aliases(num_labels, in_chans, img_size):
    assert img_size == 8
    return Net(num_labels, in_chans)

def nothing():
    return Net(5, 1)

def positional(num_classes, /):
    return Net(num_classes, 1)

def timm_like(pretrained=False, **kwargs):
    return strict(**kwargs)

def strict(num_classes=10, in_chans=3, width=4):
    return Net(num_classes, in_chans)

def broken(num_classes, **kwargs):
    raise TypeError("broken inside")

def needs_more(num_classes, depth, *, width):
    return Net(num_classes)

def no_module(num_classes):
    return "a model"

class Holder:
    @staticmethod
    def build(num_classes, in_channels):
        return Net(num_classes, in_channels)

built = Net()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an importable module of a fresh name; gives the name and the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str, stem: str = "nets") -> tuple[str, Path]:
        name = f"{stem}_{next(_numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        importlib.invalidate_caches()
        return name, path

    return write


@pytest.fixture
def nets(module) -> str:
    return module(NETS)[0]


def images(size: int = 8, channels: int = 1) -> torch.Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))


# --- factories ---


@pytest.mark.parametrize("factory", ["Net", "Logits", "InDict", "aliases", "nothing", "timm_like", "Holder.build"])
def test_factories_give_logits(nets: str, factory: str) -> None:
    model = load_model(f"{nets}:{factory}", **SHAPE)
    assert isinstance(model, nn.Module)
    assert model.training
    logits = model(images())
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_of_plain_tensors_is_not_wrapped(nets: str) -> None:
    assert type(load_model(f"{nets}:Net", **SHAPE)).__name__ == "Net"
    assert isinstance(load_model(f"{nets}:Logits", **SHAPE), ImageClassifier)


def test_every_call_builds_a_new_model(nets: str) -> None:
    first, second = (load_model(f"{nets}:Net", **SHAPE) for _ in range(2))
    assert first is not second
    assert first.head.weight is not second.head.weight


def test_the_probe_leaves_modes_weights_and_statistics_alone(module) -> None:
    name, _ = module(
        "import torch\nfrom torch import nn\n"
        "def net():\n"
        "    bn = nn.BatchNorm2d(1); bn.eval()\n"
        "    noise = nn.Dropout(0.5)\n"
        "    return nn.Sequential(bn, nn.BatchNorm2d(1), noise, nn.Flatten(), nn.LazyLinear(5))\n"
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = load_model(f"{name}:net", **SHAPE)
    assert [m.training for m in model] == [False, True, True, True, True]
    assert all(int(bn.num_batches_tracked) == 0 for bn in model[:2])
    assert model[4].weight.shape == (5, 64)


def test_modules_of_the_working_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"here_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    before = list(sys.path)
    assert load_model(f"{name}:Net", **SHAPE)(images()).shape == (3, 5)
    assert sys.path == before
    assert len(model_signature(f"{name}:Net")) == 32


def test_torch_classes_are_factories(nets: str) -> None:
    model = load_model("torch.nn:Flatten", num_classes=64, in_channels=1, image_size=8)
    assert model(images()).shape == (3, 64)


def test_monai_factories_are_understood(module) -> None:
    pytest.importorskip("monai", reason="needs the extra 'swin'")
    name, _ = module(
        "from functools import partial\nfrom monai.networks.nets import DenseNet\n"
        "net = partial(DenseNet, spatial_dims=2, block_config=(1, 1), init_features=4, growth_rate=2)\n"
    )
    assert load_model(f"{name}:net", **SHAPE)(images()).shape == (3, 5)


@pytest.mark.parametrize(
    ("attribute", "error", "message"),
    [
        ("Nte", ValueError, r"has no 'Nte'; callables there: Net"),
        ("Holder.biuld", ValueError, r"has no 'biuld'; callables there: build"),
        ("number", TypeError, r"got int, want a callable"),
        ("built", TypeError, r"got a built Net"),
        ("no_module", TypeError, r"returned str"),
        ("needs_more", ValueError, r"needs depth, width"),
        ("positional", ValueError, r"needs num_classes"),
        ("broken", TypeError, r"broken inside"),
    ],
)
def test_bad_factories_are_explained(nets: str, attribute: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_model(f"{nets}:{attribute}", **SHAPE)
    assert attribute == "broken" or f"{nets}:{attribute}" in str(caught.value)


def test_wrong_outputs_are_explained(nets: str) -> None:
    with pytest.raises(ValueError, match=r"gave \(2, 5\), want logits of shape \(2, 7\)"):
        load_model(f"{nets}:nothing", num_classes=7, in_channels=1, image_size=8)
    with pytest.raises(ValueError, match=r"fails on images of shape \(2, 3, 8, 8\).*channels"):
        load_model(f"{nets}:nothing", num_classes=5, in_channels=3, image_size=8)
    with pytest.raises(ValueError, match=r"gave \(2, 3, 4, 4\)"):
        load_model("torch.nn:Identity", num_classes=3, in_channels=3, image_size=4)


def test_missing_modules_are_explained(nets: str, module) -> None:
    with pytest.raises(ValueError, match=r"'no_such_lab:net'.*no module 'no_such_lab'.*sys.path"):
        load_model("no_such_lab:net", **SHAPE)
    with pytest.raises(ValueError, match=r"no module 'paperworks.surgeon'; 'paperworks' has .*surgery"):
        load_model("paperworks.surgeon.models:net", **SHAPE)
    with pytest.raises(ValueError, match=rf"'{nets}' is a module, not a package"):
        load_model(f"{nets}.deep:net", **SHAPE)
    needy, _ = module("import a_package_nobody_has\n")
    with pytest.raises(ImportError, match=rf"{needy}:net.*needs 'a_package_nobody_has'"):
        load_model(f"{needy}:net", **SHAPE)


@pytest.mark.parametrize("spec", ["", "a b", "a:b:c", ":net", "nets:", "a/b/c", "https://x.y/z", "nets:1"])
def test_specs_of_no_known_form(spec: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:factory"):
        load_model(spec, **SHAPE)
    with pytest.raises(ValueError, match=r"package\.module:factory"):
        model_signature(spec)


@pytest.mark.parametrize("spec", ["./nowhere", "/no/such/folder", "~/no-such-folder-here"])
def test_folders_that_do_not_exist(spec: str) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load_model(spec, **SHAPE)


def test_a_folder_comes_before_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_spec("org/net").hub_id == "org/net"
    os.makedirs("org/net")
    assert parse_spec("org/net").folder == (tmp_path / "org/net").resolve()


def test_bad_numbers_and_types(nets: str) -> None:
    with pytest.raises(ValueError, match="num_classes: got 0"):
        load_model(f"{nets}:Net", num_classes=0, in_channels=1, image_size=8)
    with pytest.raises(TypeError, match=r"image_size: got 8\.0"):
        load_model(f"{nets}:Net", num_classes=5, in_channels=1, image_size=8.0)
    with pytest.raises(TypeError, match="model: got function"):
        load_model(load_model, **SHAPE)


# --- transformers ---


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra 'activations'")


def save_vit(transformers, folder: Path, **settings: object) -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=7, **size, **settings)
    transformers.ViTForImageClassification(config).save_pretrained(folder)


def test_a_folder_of_transformers(transformers, tmp_path: Path) -> None:
    save_vit(transformers, tmp_path)
    same = load_model(str(tmp_path), num_classes=7, in_channels=3, image_size=16)
    original = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    x = images(16, 3)
    torch.testing.assert_close(same(x), original(x).logits, rtol=0, atol=0)

    other = load_model(str(tmp_path), **SHAPE)
    assert other(images()).shape == (3, 5)
    weight = "model.vit.embeddings.patch_embeddings.projection.weight"
    torch.testing.assert_close(other.state_dict()[weight], same.state_dict()[weight], rtol=0, atol=0)


def test_images_are_brought_to_what_the_configuration_wants(transformers, tmp_path: Path) -> None:
    save_vit(transformers, tmp_path)
    model = load_model(str(tmp_path), num_classes=7, in_channels=1, image_size=8)
    flat = torch.full((2, 1, 8, 8), 0.5)
    torch.testing.assert_close(model(flat), model(torch.full((2, 3, 16, 16), 0.5)))
    with pytest.raises(ValueError, match="got 2 channels, want 3 or 1"):
        load_model(str(tmp_path), num_classes=7, in_channels=2, image_size=8)


def test_color_images_for_a_gray_model_are_averaged(transformers, tmp_path: Path) -> None:
    save_vit(transformers, tmp_path, num_channels=1)
    model = load_model(str(tmp_path), num_classes=7, in_channels=3, image_size=16)
    x = images(16, 3)
    torch.testing.assert_close(model(x), model(x.mean(1, keepdim=True)))


def test_a_network_without_a_fixed_size_gets_the_images_as_they_are(transformers, tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), num_classes=5, in_channels=3, image_size=24)
    assert model.image_size is None
    assert model(images(24, 3)).shape == (3, 5)


def test_half_precision_checkpoints_are_loaded_in_float32(transformers, tmp_path: Path) -> None:
    save_vit(transformers, tmp_path)
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), num_classes=7, in_channels=3, image_size=16)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_folders_without_safetensors_are_refused(transformers, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json; files: none"):
        load_model(str(tmp_path), **SHAPE)
    save_vit(transformers, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*.safetensors.*pytorch_model.bin"):
        load_model(str(tmp_path), **SHAPE)


def test_a_folder_of_another_task_is_refused(transformers, tmp_path: Path) -> None:
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16}
    transformers.GPT2Model(transformers.GPT2Config(**size)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_model(str(tmp_path), **SHAPE)


def test_an_id_that_cannot_be_fetched(transformers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"'no-such-lab/no-such-net': no folder of that name"):
        load_model("no-such-lab/no-such-net", **SHAPE)
    with pytest.raises(OSError, match=r"'no-such-lab/no-such-net': no folder of that name"):
        model_signature("no-such-lab/no-such-net")


# --- signatures ---


def test_signature_follows_the_source(module) -> None:
    name, path = module(NETS)
    first = model_signature(f"{name}:Net")
    assert model_signature(f"{name}:Net") == first
    assert len(first) == 32
    assert model_signature(f"{name}:Logits") != first
    path.write_text(NETS + "\n# changed\n")
    assert model_signature(f"{name}:Net") != first
    path.write_text(NETS)
    assert model_signature(f"{name}:Net") == first


@pytest.mark.parametrize("line", ["from {} import LAYERS", "import {}", "def late():\n    import {}"])
def test_signature_follows_the_users_own_imports(module, line: str) -> None:
    deep, deep_path = module("LAYERS = 1\n", "deep")
    blocks, _ = module(line.format(deep) + "\n", "blocks")
    name, _ = module(f"import math, torch\nimport {blocks}\n" + NETS)
    first = model_signature(f"{name}:Net")
    deep_path.write_text("LAYERS = 2\n")
    assert model_signature(f"{name}:Net") != first


def test_signature_follows_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / f"lab_{next(_numbers)}"
    (package / "nets").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets" / "__init__.py").write_text("")
    (package / "parts.py").write_text("WIDTH = 4\n")
    (package / "nets" / "small.py").write_text("from ..parts import WIDTH\nfrom . import other\n")
    (package / "nets" / "other.py").write_text("")
    importlib.invalidate_caches()
    spec = f"{package.name}.nets.small:net"
    seen = {model_signature(spec)}
    for changed in ("parts.py", "nets/other.py", "nets/__init__.py", "__init__.py", "nets/small.py"):
        with (package / changed).open("a") as file:
            file.write("# changed\n")
        seen.add(model_signature(spec))
    assert len(seen) == 6


def test_signature_of_installed_packages_and_missing_ones() -> None:
    assert len(model_signature("torch.nn.modules.linear:Linear")) == 32
    with pytest.raises(ValueError, match="no module 'no_such_lab'"):
        model_signature("no_such_lab:net")
    with pytest.raises(ValueError, match="no module 'math'"):
        model_signature("math:sin")


def test_signature_follows_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    seen = {model_signature(str(tmp_path))}
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_text("1")
    assert model_signature(str(tmp_path)) in seen
    (tmp_path / "config.json").write_text('{"a": 1}')
    seen.add(model_signature(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 10)
    seen.add(model_signature(str(tmp_path)))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    seen.add(model_signature(str(tmp_path)))
    assert len(seen) == 4
