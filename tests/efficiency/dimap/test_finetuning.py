"""Training on with removed weights at exactly 0: the schedule, the optimizer's state, resuming."""

import copy
import itertools

import pytest
import torch
from efficiency.dimap.doubles import TimmSwin
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from paperworks.efficiency.dimap import Masks, dimap_prune, finetune
from paperworks.efficiency.dimap.finetuning import learning_rate

OPTIONS = {"epochs": 2, "lr": 1e-2, "min_lr": 1e-4, "warmup_lr": 1e-3, "weight_decay": 0.1}


def network(permanent: bool) -> tuple[TimmSwin, Masks]:
    torch.manual_seed(0)
    net = TimmSwin(dim=8, depths=(1, 1))
    return net, dimap_prune(net, 0.6, permanent=permanent)


def loader(n: int = 24) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(n, 3, 16, 16, generator=generator), torch.randint(0, 5, (n,), generator=generator))
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("permanent", [True, False])
def test_removed_weights_stay_exactly_zero_and_the_others_learn(permanent):
    net, masks = network(permanent)
    before = {name: net.get_submodule(name[:-7]).weight.detach().clone() for name in masks}
    history = finetune(net, masks, loader(), **OPTIONS)
    for name, mask in masks.items():
        weight = net.get_submodule(name[:-7]).weight
        assert not weight[~mask].any()
        assert not torch.equal(weight[mask], before[name][mask])
    assert history.epochs == len(history.lr) == 2
    assert history.evaluations == []


def test_attached_and_permanent_masks_learn_the_same():
    results = []
    for permanent in (True, False):
        net, masks = network(permanent)
        finetune(net, masks, loader(), **OPTIONS, clip_norm=None)
        if not permanent:
            masks.remove(net)
        results.append(net.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_a_model_that_was_never_pruned_is_pruned_by_the_masks_first():
    torch.manual_seed(0)
    net = TimmSwin(dim=8, depths=(1, 1))
    masks = network(True)[1]
    finetune(net, masks, loader(), **{**OPTIONS, "epochs": 1})
    assert all(not net.get_parameter(name)[~mask].any() for name, mask in masks.items())


class Stop(Exception):
    pass


@pytest.mark.parametrize("permanent", [True, False])
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(permanent, tmp_path):
    options = {**OPTIONS, "epochs": 3}
    whole, masks = network(permanent)
    whole.layers[0].blocks[0].mlp.drop1.p = 0.5
    expected = finetune(whole, masks, loader(), **options, evaluate=lambda net: {"epochs": 1})
    stopped, masks = network(permanent)
    stopped.layers[0].blocks[0].mlp.drop1.p = 0.5

    def interrupt(fraction: float, text: str) -> None:
        if fraction > 0.5:
            raise Stop

    with pytest.raises(Stop):
        finetune(
            stopped, masks, loader(), **options, evaluate=lambda net: {"epochs": 1}, checkpoint=tmp_path / "run.pt",
            progress=interrupt,
        )  # fmt: skip
    fresh, masks = network(permanent)
    fresh.layers[0].blocks[0].mlp.drop1.p = 0.5
    history = finetune(
        fresh, masks, loader(), **options, evaluate=lambda net: {"epochs": 1}, checkpoint=tmp_path / "run.pt"
    )
    assert history == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    again = finetune(fresh, masks, loader(), **options, checkpoint=tmp_path / "run.pt")
    assert again == expected, "a finished run is not trained again"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    net, masks = network(True)
    finetune(net, masks, loader(), **OPTIONS, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="of a run with"):
        finetune(net, masks, loader(), **{**OPTIONS, "lr": 2e-2}, checkpoint=tmp_path / "run.pt")


def test_the_global_generator_is_not_consumed():
    net, masks = network(True)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    finetune(net, masks, loader(), **{**OPTIONS, "epochs": 1})
    assert torch.equal(torch.get_rng_state(), state)


def test_the_schedule_of_the_paper():
    options = {"lr": 2e-5, "min_lr": 2e-7, "warmup_lr": 2e-8, "warmup": 15}
    rates = [learning_rate(step, 30, **options) for step in range(30)]
    assert rates[0] == 2e-8
    assert rates[15] == 2e-5
    assert all(a < b for a, b in itertools.pairwise(rates[:16]))
    assert all(a > b for a, b in itertools.pairwise(rates[15:]))
    assert learning_rate(30, 30, **options) == pytest.approx(2e-7)
    middle = learning_rate(22, 29, **options)
    assert middle == pytest.approx((2e-5 + 2e-7) / 2)


def test_soft_labels_and_evaluation():
    net, masks = network(False)
    images = torch.randn(8, 3, 16, 16)
    batches = [(images, torch.softmax(torch.randn(8, 5), 1))]
    modes = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        modes.append(model.training)
        return {"accuracy": 0.5}

    history = finetune(net, masks, batches, **{**OPTIONS, "epochs": 2}, evaluate=evaluate)
    assert history.evaluations == [{"accuracy": 0.5}] * 2
    assert modes == [False, False]


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"warmup_epochs": 3}, {"min_lr": 1.0}, {"loss": lambda output, labels: output.sum() * torch.nan}],
)
def test_bad_numbers(bad):
    net, masks = network(True)
    with pytest.raises(ValueError, match=r"epochs|lr|finite"):
        finetune(net, masks, loader(), **{**OPTIONS, **bad})


def test_masks_of_another_model_and_an_empty_loader():
    net, masks = network(True)
    with pytest.raises(ValueError, match="loader"):
        finetune(net, masks, [], **OPTIONS)
    other = copy.deepcopy(net)
    other.layers[0].blocks[0].mlp.fc1 = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="shape"):
        finetune(other, masks, loader(), **OPTIONS)
