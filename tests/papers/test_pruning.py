"""The card of DIMAP and the pruning protocols: claims that can fail, pictures, checkpoints, controls."""

from xml.etree import ElementTree

import pytest
import torch
from efficiency.dimap.doubles import TimmSwin, transformers_swin
from in_process import Here
from PIL import Image
from torch import nn

import paperworks.efficiency.dimap as method
import paperworks.efficiency.dimap.checkpoints as checkpoints
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.papers.dimap import DIMAP, UNIFORM
from paperworks.papers.protocols.pruning import pruning
from paperworks.papers.protocols.pruning_calls import forward_pass
from paperworks.papers.protocols.pruning_checks import counted_reduction
from paperworks.papers.protocols.pruning_imagenet import imagenet_pruning, pruned_counts
from paperworks.papers.protocols.pruning_pictures import Pictures, TrainingBatches, mixed, top1_and_top5
from paperworks.papers.protocols.pruning_training import dead_neurons, kept_by_depth

pytest.importorskip("transformers", reason="the Swin networks are those of transformers")
paper = find("dimap")
QUICK = ("flops-by-the-ratio", "output-change-is-bounded", "squeezing-keeps-the-output", "parameters-of-swin-t")


def unmet(id: str) -> list[str]:
    claim = paper.claim(id)
    found = resolve(claim.target)(Trial())
    return [name for name, bound in claim.bounds.items() if not bound.met(found[name])]


# --- the card ---


def test_facts():
    assert paper.arxiv == "2404.13648"
    assert len(paper.authors.split(", ")) == paper.n_authors == 2
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS
            assert criterion.baseline is not None or criterion.control is not None


def test_the_usage_on_the_card_runs(capsys):
    torch.manual_seed(0)
    model = TimmSwin()
    exec(paper.usage.replace("224", "16"), scope := {"model": model})
    assert isinstance(scope["small"], nn.Module)
    assert "kept" in capsys.readouterr().out
    assert list(model.state_dict()) == list(TimmSwin().state_dict())


@pytest.mark.parametrize("id", QUICK)
def test_what_is_exact_holds(id):
    assert unmet(id) == []


def test_counted_flops_are_fewer_than_printed():
    assert 30 < counted_reduction(Trial(), "Swin-T", {}) < 40


BROKEN = {
    "half of what the ratio says": (
        "parameters-of-swin-t",
        "dimap_masks",
        lambda model, ratio: method.pruning.dimap_masks(model, ratio / 2),
    ),
    "a bound that is none": ("output-change-is-bounded", "distortion_bound", lambda weights, masks: 1e-3),
    "nothing cut": ("squeezing-keeps-the-output", "squeeze", lambda model: model),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch):
    id, name, instead = broken
    monkeypatch.setattr(method, name, instead)
    assert unmet(id)


# --- one-shot pruning ---


def settings_of(protocol, **given):
    return {s.name: at_tier(s.default, "smoke") for s in protocol.settings} | given


SMALL = {"train_size": 64, "batch_size": 32}


def test_the_protocol_prunes_the_same_network_by_every_arm():
    settings = settings_of(pruning, **SMALL, ratio=0.6, sweep=True)
    first, second = Trial(0, settings=settings), Trial(0, settings=settings)
    found = pruning.function(first, DIMAP)
    baseline = pruning.function(second, UNIFORM)
    assert set(found) == set(pruning.metrics)
    assert found["dense_accuracy"] == baseline["dense_accuracy"] == first.curves["accuracy by ratio"][0]
    assert found["points_lost"] == pytest.approx(found["dense_accuracy"] - found["accuracy"])
    assert first.curves["ratio"] == second.curves["ratio"]
    # uniform: every layer keeps the same part, and as much of the prunable multiply-adds
    kept = [v for name, values in second.curves.items() if name.startswith("kept") for v in values]
    assert max(kept) - min(kept) < 0.01
    assert 50 < baseline["macs_removed"] < 60
    assert found["macs_removed"] < baseline["macs_removed"]


def test_fine_tuning_is_part_of_the_trial():
    settings = settings_of(pruning, **SMALL, ratio=0.6, finetune_epochs=2, finetune_lr=1e-2)
    tuned = pruning.function(Trial(0, settings=settings), DIMAP)
    one_shot = pruning.function(Trial(0, settings={**settings, "finetune_epochs": 0}), DIMAP)
    assert tuned["dense_accuracy"] == one_shot["dense_accuracy"]
    assert tuned["accuracy"] != one_shot["accuracy"]
    assert tuned["macs_removed"] == one_shot["macs_removed"]


def test_a_users_model():
    settings = settings_of(pruning, **SMALL, data="digits?size=16&mode=rgb", model="papers.test_pruning:TimmSwinOfTen")
    assert pruning.function(Trial(0, settings=settings), DIMAP)["macs_removed"] > 30


def TimmSwinOfTen() -> nn.Module:
    return TimmSwin(classes=10)


def test_dead_neurons_and_kept_parts():
    torch.manual_seed(0)
    net = TimmSwin(depths=(1, 1))
    masks = method.dimap_masks(net, 0.0)
    assert dead_neurons(net, masks) == 0
    masks["layers.0.blocks.0.mlp.fc1.weight"][:8] = False
    masks["layers.0.blocks.0.mlp.fc2.weight"][:, 4:12] = False
    assert dead_neurons(net, masks) == 12 / (32 + 64)
    assert kept_by_depth(net, masks) == {"qkv": [1, 1], "proj": [1, 1], "fc1": [0.75, 1], "fc2": [0.75, 1]}


def test_calls_to_time_give_the_same():
    call, smaller = (forward_pass(Trial(), ratio=0.9, squeezed=squeezed) for squeezed in (False, True))
    torch.testing.assert_close(smaller(), call(), rtol=1e-4, atol=1e-4)


# --- pictures and checkpoints ---


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures a part in two classes: one is bright on the left, the other on the right."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for i in range(10):
            pixels = torch.randint(0, 100, (40, 48, 3), generator=generator, dtype=torch.uint8)
            half = slice(0, 24) if i % 2 else slice(24, 48)
            pixels[:, half] += 150
            folder = tmp_path / "images" / part / f"n0{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return f"imagefolder:{tmp_path / 'images'}"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    net = transformers_swin(num_labels=2, depths=[1, 1])
    torch.save({"model": checkpoints.official_names(net.state_dict())}, tmp_path / "swin.pth")
    return str(tmp_path / "swin.pth")


def test_a_picture_is_the_normalised_centre(pictures):
    found = Pictures(pictures, "val", 32)
    image, label = found[0]
    assert (len(found), found.classes, image.shape, label) == (10, ["n00", "n01"], (3, 32, 32), 0)
    grey = (image * torch.tensor([0.229, 0.224, 0.225])[:, None, None]).mean(0)
    assert grey[:, 20:].mean() > grey[:, :12].mean() + 0.3, "the right half is bright"
    assert torch.equal(found[0][0], image)


def test_augmentation_follows_its_seed(pictures):
    found = Pictures(pictures, "train", 16)
    assert torch.equal(found[3, 5][0], found[3, 5][0])
    assert not torch.equal(found[3, 5][0], found[3, 6][0])
    assert all(torch.isfinite(found[i % 10, i][0]).all() for i in range(40))


def test_batches_are_mixed_and_follow_their_generator(pictures):
    def batches(seed: int) -> list[torch.Tensor]:
        loader = TrainingBatches(Pictures(pictures, "train", 16), 4, 0, torch.Generator().manual_seed(seed))
        assert len(loader) == 2
        return [x for pair in loader for x in pair]

    first, again, other = batches(0), batches(0), batches(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    torch.testing.assert_close(first[1].sum(1), torch.ones(4))


def test_mixing_gives_each_picture_its_share():
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    labels = torch.eye(2)
    for seed in range(20):
        x, y = mixed(images, labels, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(x.mean((1, 2, 3)), y[:, 1], rtol=1e-5, atol=1e-6)


def test_top1_and_top5_by_hand(pictures):
    class RightHalf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sign = nn.Parameter(torch.ones(()))

        def forward(self, x):
            score = self.sign * (x[..., 20:].mean((1, 2, 3)) - x[..., :12].mean((1, 2, 3)))
            return torch.stack([score, -score], 1)

    model = RightHalf()
    assert top1_and_top5(model, Pictures(pictures, "val", 32), 4, 0) == (100, 100)
    model.sign.data.neg_()
    assert top1_and_top5(model, Pictures(pictures, "val", 32), 4, 0) == (0, 100)


def test_a_folder_without_the_part(tmp_path, pictures):
    with pytest.raises(ValueError, match="no folder 'test'"):
        Pictures(pictures, "test", 16)
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture"):
        Pictures(pictures, "empty", 16)


def test_a_checkpoint_on_pictures(pictures, weights):
    settings = settings_of(imagenet_pruning, data=pictures, weights=weights, image_size=16, batch_size=4, ratio=0.5)
    found = imagenet_pruning.function(Trial(settings=settings), DIMAP)
    assert set(found) == set(imagenet_pruning.metrics)
    assert found["top5"] == 100
    tuned = imagenet_pruning.function(Trial(settings={**settings, "finetune_epochs": 1}), DIMAP)
    assert 0 <= tuned["top1"] <= 100


def test_counts_of_a_checkpoint(weights):
    settings = settings_of(pruned_counts, weights=weights, image_size=16, ratio=0.5)
    uniform = pruned_counts.function(Trial(settings=settings), UNIFORM)
    stages = pruned_counts.function(
        Trial(settings=settings), Arm("", "paperworks.efficiency.dimap:dimap_prune", {"grouping": "stage"})
    )
    for found in (uniform, stages):
        assert found["macs_shortfall"] == pytest.approx(0, abs=0.01)
        assert 40 < found["macs_removed"] < 50


def test_what_is_needed_is_said_and_met_by_what_the_user_gives():
    def missing(id: str, **settings: str) -> list[str]:
        return [n.name for n in paper.claim(id).needs if n.kind == "setting" and n.missing(settings)]

    assert missing("beats-uniform-magnitude-on-imagenet-at-50") == ["data", "weights"]
    assert missing("beats-uniform-magnitude-on-imagenet-at-50", data="digits", weights="x.pth") == ["data"]
    assert missing("top1-change-of-swin-b-after-fine-tuning", data="imagefolder:x", weights="x.pth") == []
    assert missing("flops-from-the-masks-of-a-checkpoint") == ["weights"]


# --- a whole run ---


@pytest.mark.slow
def test_controls_decide_nothing_and_the_figure_is_drawn(tmp_path):
    ids = [c.id for c in paper.claims if c.protocol is pruning]
    settings = {name: str(value) for name, value in SMALL.items()}
    with open_store(tmp_path / "lab.sqlite") as store:
        controls = run([paper], store, Here(), tier="smoke", settings=settings, claims=ids, control=True)
        assert {v.status for v in controls} == {"inconclusive"}, [v.reason for v in controls]
        wanted = ["beats-uniform-magnitude-at-80", "beats-one-ranking-in-one-shot", "beats-global-magnitude"]
        run([paper], store, Here(), tier="smoke", settings=settings, claims=wanted)
        [drawn] = draw_all(collect(store, [paper]))["dimap"]
    assert not drawn.missing
    text = "".join(ElementTree.fromstring(drawn.svg.replace("xlink:href", "href")).itertext())
    for words in ("DIMAP", "uniform magnitude", "one ranking", "fc2"):
        assert words in text


# --- the benchmark ---


def test_the_peers_remove_what_dimap_removes(monkeypatch):
    case, *_ = find_cases("dimap")
    assert case.floor_bytes == 5 * 25_878_528
    torch.manual_seed(0)
    small = TimmSwin()
    scope = case.contenders[case.method].func.__globals__
    monkeypatch.setitem(scope, "network", lambda name: small)
    masks = case.contenders[case.method]()()
    by_sorting = case.contenders["the same scores by sorting"]()()
    in_order = [[masks[f"{n}.weight"].flatten() for n, _ in pairs] for pairs in method.find_modules(small).values()]
    for parts, mask in zip(in_order, by_sorting, strict=True):
        assert torch.equal(torch.cat(parts), mask)
    before = list(small.state_dict())
    call = case.contenders["torch prune.global_unstructured"]()
    call()
    call()
    assert set(small.state_dict()) == set(before), "its masks are off again"


def test_torch_prunings_importance_is_that_of_channels(monkeypatch):
    pytest.importorskip("torch_pruning", reason="the peer")
    case, *_ = find_cases("dimap")
    prepare = case.contenders["torch-pruning LAMP, channels of the MLPs"]
    small = transformers_swin(num_labels=5)
    monkeypatch.setitem(prepare.func.__globals__, "network", lambda name: small)
    monkeypatch.setitem(prepare.func.__globals__, "IMAGE", 16)
    scores = prepare()()
    assert [len(s) for s in scores] == [64, 64, 128, 128]


def test_squeezed_and_whole_compute_the_same():
    *_, case = find_cases("dimap")
    squeezed, whole = (case.contenders[name]()() for name in ("squeezed", "with zeros"))
    torch.testing.assert_close(squeezed, whole, rtol=1e-4, atol=1e-4)
