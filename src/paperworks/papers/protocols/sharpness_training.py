"""The trainings of the protocols about sharpness-aware minimisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from paperworks.data.images import load_images
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.sharpness_arms import Recipe
from paperworks.papers.protocols.training import parameter_groups
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.swin_se_fer import SAM, add_squeeze_excite, fit_sam, loss_along_climb, macro_f1

SIZE = 32
RADII = [0.0125 * i for i in range(-4, 17)]
SHOWN = 6


def small_swin(trial: Trial, recipe: Recipe, channels: int, classes: int) -> nn.Module:
    """A Swin of two stages for images of 32 pixels; the arms' weights are the same but for the block."""
    width = trial.settings["width"]
    with trial.global_generators("weights"):
        model = SwinClassifier(
            classes, in_chans=channels, patch=4, dim=width, depths=(2, 2), num_heads=(2, 4), window=4
        )
    if recipe.squeeze:
        with trial.global_generators("squeeze"):
            add_squeeze_excite(model, 16)
    return model.to(trial.device)


def optimizer_of(trial: Trial, recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, with sharpness-aware minimisation around it or without."""
    groups = parameter_groups(model, trial.settings["weight_decay"])
    lr = trial.settings["lr"]
    if recipe.sam:
        return SAM(groups, torch.optim.AdamW, trial.settings["rho"], every=recipe.every, lr=lr)
    return torch.optim.AdamW(groups, lr=lr)


def _loader(trial: Trial, images: Tensor, labels: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    order = trial.generator("batches")
    return DataLoader(TensorDataset(images, labels), trial.settings["batch_size"], shuffle=True, generator=order)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, device: str) -> Tensor:
    """Of all images, in eval mode."""
    model.eval()
    return torch.cat([model(some.to(device)).cpu() for some in images.split(200)])


def standardised(images: Tensor) -> Tensor:
    """Each image with mean 0 and deviation 1."""
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp(min=1e-6)


def train_on_few(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.sharpness_tasks.few_images`."""
    settings, recipe = trial.settings, arm.build()
    data = load_images(settings["data"]).resize(SIZE)
    train, test = data.split(trial.derived_seed("split") % 2**31, sizes=(settings["train_size"], settings["test_size"]))
    model = small_swin(trial, recipe, data.in_channels, data.num_classes)
    passes = [0]
    model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    optimizer, epochs = optimizer_of(trial, recipe, model), settings["epochs"] * recipe.times
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    images = standardised(train.images)
    losses = fit_sam(
        model,
        _loader(trial, images, train.labels),
        optimizer,
        F.cross_entropy,
        epochs,
        schedule=schedule,
        callback=lambda epoch, _: trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}"),
    )
    trained = passes[0]
    trial.curve("training loss", losses)
    logits = logits_of(model, standardised(test.images), trial.device)
    return {
        "macro_f1": macro_f1(logits, test.labels, data.num_classes),
        "accuracy": float((logits.argmax(1) == test.labels).float().mean()),
        "train_loss": float(F.cross_entropy(logits_of(model, images, trial.device), train.labels)),
        "passes": float(trained),
    }


def face_parts(trial: Trial) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and labels, test inputs and labels (1 is a face), and the test patches as they look."""
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise ImportError("the patches are scikit-image's: pip install scikit-image") from error
    patches = torch.from_numpy(lfw_subset().copy()).float().unsqueeze(1)
    labels = (torch.arange(len(patches)) < len(patches) // 2).long()
    generator, half = trial.generator("split"), trial.settings["train_size"] // 2
    if not 0 < half < len(patches) // 2:
        raise ValueError(f"train_size: got {2 * half}, wanted 2 to {len(patches) - 2}, half of them faces")
    orders = [torch.nonzero(labels == k).flatten() for k in (0, 1)]
    orders = [order[torch.randperm(len(order), generator=generator)] for order in orders]
    train, test = torch.cat([o[:half] for o in orders]), torch.cat([o[half:] for o in orders])
    inputs = standardised(F.interpolate(patches, (SIZE, SIZE), mode="bilinear", align_corners=False))
    return inputs[train], labels[train], inputs[test], labels[test], patches[test]


def train_on_faces(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.sharpness_tasks.face_patches`."""
    settings, recipe, device = trial.settings, arm.build(), trial.device
    images, labels, test_images, test_labels, patches = face_parts(trial)
    model = small_swin(trial, recipe, 1, 2)
    optimizer, losses = optimizer_of(trial, recipe, model), []

    def reached(epoch: int, _: float) -> bool:
        losses.append(float(F.cross_entropy(logits_of(model, images, device), labels)))
        trial.progress((epoch + 1) / settings["max_epochs"], f"epoch {epoch + 1}, loss {losses[-1]:.3f}")
        return losses[-1] <= settings["target_loss"]

    fit_sam(
        model,
        _loader(trial, images, labels),
        optimizer,
        F.cross_entropy,
        settings["max_epochs"],
        callback=reached,
    )
    model.eval()
    batch = (images.to(device), labels.to(device))
    radius = settings["measured_rho"]
    here, there = loss_along_climb(model, F.cross_entropy, batch, (0.0, radius))
    trial.curve("training loss", losses)
    trial.curve("radius", RADII)
    trial.curve("loss along the climb", loss_along_climb(model, F.cross_entropy, batch, RADII))
    probabilities = logits_of(model, test_images, device).softmax(1)[:, 1]
    shown = torch.cat([torch.nonzero(test_labels == k).flatten()[: SHOWN // 2] for k in (1, 0)])
    trial.curve("patches", patches[shown].flatten().tolist())
    trial.curve("probability of a face", probabilities[shown].tolist())
    return {
        "sharpness": there - here,
        "train_loss": here,
        "epochs": float(len(losses)),
        "accuracy": float(((probabilities > 0.5).long() == test_labels).float().mean()),
    }
