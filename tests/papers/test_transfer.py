"""The transfer protocol: what its arms train, that arms of a seed share what they should, and the user's own data."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from paperworks.lab.nouns import Arm, at_tier
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import transfer_arms, transfer_training
from paperworks.papers.protocols.mobilenets import mobilenet_v3_small
from paperworks.papers.protocols.transfer import transfer
from paperworks.papers.protocols.transfer_networks import network_signature, weights_signature

ARMS = ("all_layers", "whole_blocks", "signed_blocks", "last_layer", "biases", "lite_residuals")


def arm(name: str, **options: object) -> Arm:
    return Arm(name, f"paperworks.papers.protocols.transfer_arms:{name}", options)


def run(
    name: str = "signed_blocks", seed: int = 0, options: dict | None = None, **settings: object
) -> dict[str, float]:
    chosen = {s.name: at_tier(s.default, "smoke") for s in transfer.settings}
    chosen |= {"width": 0.35, "labels": 2, **settings}
    return transfer.function(Trial(seed, "smoke", settings=chosen), arm(name, **(options or {})))


def network() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return mobilenet_v3_small(5, 1, width=0.35, stem_stride=1)


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def stages() -> dict:
    """Pretrained states by seed, so that this module pretrains once."""
    return {}


@pytest.fixture(autouse=True)
def _kept_stages(stages, monkeypatch):
    def stage(self, name, make, **identity):
        key = (self.seed, str(sorted(identity.items())))
        if key not in stages:
            stages[key] = {k: v.clone() for k, v in make().items()}
        return stages[key]

    monkeypatch.setattr(Trial, "stage", stage)


def test_what_each_arm_trains():
    everything = trained(network())
    assert trained(transfer_arms.all_layers(network())) == everything
    blocks = trained(transfer_arms.whole_blocks(network(), 2))
    assert blocks == {n for n in everything if n.split(".")[:2] in (["features", "10"], ["features", "11"])} | {
        n for n in everything if n.startswith("classifier")
    }
    signed = trained(transfer_arms.signed_blocks(network(), 2))
    assert signed < blocks
    assert len(blocks - signed) == 4, "the scales of two inner norms in each of two blocks"
    assert trained(transfer_arms.last_layer(network())) == {"classifier.3.weight", "classifier.3.bias"}
    biases = trained(transfer_arms.biases(network(), 2))
    assert {n for n in biases if not n.endswith("bias")} == {"classifier.3.weight"}
    assert {n.split(".")[1] for n in biases if n.startswith("features")} == {"10", "11"}
    lite = trained(transfer_arms.lite_residuals(network(), 2))
    assert sum(".path." in n for n in lite) == 2 * 6


@pytest.mark.parametrize("name", ["last_layer", "biases", "lite_residuals", "whole_blocks", "signed_blocks"])
def test_every_arm_starts_as_the_same_function(name):
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    want = network().eval()(x)
    torch.testing.assert_close(getattr(transfer_arms, name)(network()).eval()(x), want)


def test_arms_run_and_memory_falls_in_their_order():
    found = {name: run(name) for name in ARMS}
    assert all(0 <= m["accuracy"] <= 1 and m["loss"] > 0 for m in found.values())
    kept = {name: m["stored_bytes"] for name, m in found.items()}
    assert kept["last_layer"] < kept["signed_blocks"] < kept["whole_blocks"] < kept["all_layers"]
    assert kept["signed_blocks"] < 0.7 * kept["whole_blocks"]
    assert found["whole_blocks"]["gradient_cosine"] == 1
    assert 0.5 < found["signed_blocks"]["gradient_cosine"] < 1
    exact = run(options={"backward": "exact"})
    assert exact["gradient_cosine"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_numbers_and_another_others():
    assert run() == run()
    assert run()["loss"] != run(seed=1)["loss"]


def test_without_weights_the_second_half_of_the_classes_is_learned():
    digits = transfer_training.load_images("digits")
    source, target = transfer_training._halves(digits)
    assert (source.classes, target.classes) == (list("01234"), list("56789"))
    assert len(source) + len(target) == len(digits)
    assert int(target.labels.max()) == 4
    chosen = {s.name: at_tier(s.default, "smoke") for s in transfer.settings} | {"labels": 3}
    train, test = transfer_training._split(target, Trial(settings=chosen))
    assert torch.bincount(train.labels).tolist() == [3] * 5
    assert len(train) + len(test) == len(target)


# --- the user's own data and weights ---


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
                tmp_path / "pets" / name / f"{i}.png"
            )
    return f"imagefolder:{tmp_path / 'pets'}"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mobilenet_v3_small.pth"
    torch.save(mobilenet_v3_small(1000).state_dict(), path)
    return str(path)


def test_a_folder_of_pictures_with_a_checkpoint(pictures, weights):
    found = run(data=pictures, weights=weights, size=64, batch_size=4)
    assert 0 <= found["accuracy"] <= 1
    with pytest.raises(ValueError, match="at least 4"):
        run(data=pictures)


def test_cifar_with_a_checkpoint_and_its_own_test_part(tmp_path, weights):
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        batch = {b"data": rng.integers(0, 255, (20, 3072), dtype=np.uint8), b"labels": [i % 10 for i in range(20)]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.warns(UserWarning, match="without data_batch_2"):
        found = run(data=f"cifar:{tmp_path}", weights=weights, labels=1, batch_size=5)
    assert found["accuracy"] * 20 == pytest.approx(round(found["accuracy"] * 20)), "the 20 images of the test batch"


def test_signatures_follow_the_files(tmp_path, weights):
    before = weights_signature(weights)
    assert weights_signature("") == network_signature("mobilenet-v2") == ""
    torch.save({}, weights)
    assert weights_signature(weights) != before
