"""What is exact about SWTformer: what its two versions add to a backbone, and what trains it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.swin import swtformer as method
from paperworks.swin.backbone import SwinClassifier

VOC_CLASSES = 20


def _image(trial: Trial, size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=trial.generator("image"))


def class_maps_without_class_token(trial: Trial) -> dict[str, float]:
    """Weights that version 1 adds to Swin-T, and the distance of the mean of each map from its logit at 224 pixels."""
    with trial.global_generators("weights"):
        model = method.SWTformer(num_classes=VOC_CLASSES, version=1).eval()
    with torch.no_grad():
        out = model(_image(trial, 224))
    return {
        "weights beside the backbone": count_parameters(model) - count_parameters(model.backbone),
        "mean of map - logit": float((out.cam.mean((2, 3)) - out.logits).abs().max()),
        "maps": out.cam.shape[1],
        "side of a map": out.cam.shape[2],
    }


def side_convolutions(trial: Trial) -> dict[str, float]:
    """Weights that version 2 adds to version 1 of Swin-T, and the share of the backbone that they are."""
    first, second = (method.SWTformer(num_classes=VOC_CLASSES, version=v, device="meta") for v in (1, 2))
    added = count_parameters(second) - count_parameters(first)
    return {"weights": added, "share of Swin-T": added / count_parameters(SwinClassifier(0, device="meta"))}


def prototypes_leave_the_backbone_alone(trial: Trial) -> dict[str, float]:
    """Norm of the gradient in Swin-T: of the prototype maps, of the contrast, of the consistency; 64 pixels."""
    with trial.global_generators("weights"):
        model = method.SWTformer(num_classes=VOC_CLASSES, version=2)
    labels = torch.zeros(1, VOC_CLASSES)
    labels[:, :3] = 1
    out = model(_image(trial, 64), labels)
    assert out.prototype_map is not None
    assert out.features is not None
    # seeds of several classes, which a network with random weights may not give
    numbers = torch.randint(0, 4, out.features.shape[2:], generator=trial.generator("seeds"))
    seeds = F.one_hot(numbers, VOC_CLASSES + 1).movedim(-1, 0)[None].float()
    prototypes = method.class_prototypes(seeds, out.features)
    contrast = method.class_contrast_loss(out.features, seeds, prototypes, labels)
    consistency = method.gsc_loss(out.norm_cam, method.prototype_cam(prototypes, out.features))
    parts = {
        "prototype maps": (out.prototype_map.sum(), model.backbone),
        "contrast": (contrast, model.backbone),
        "consistency": (consistency, model.backbone),
        "contrast, in the sides": (contrast, model.sides),
    }
    found = {}
    for name, (value, module) in parts.items():
        gradients = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
        found[name] = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
    return found


def absent_classes_lower_the_background(trial: Trial) -> dict[str, float]:
    """Two classes that peak apart, one of them labelled: the background where the other peaks, and the other's map."""
    cam = torch.zeros(1, 2, 28, 28)
    cam[0, 0, 7, 7] = cam[0, 1, 20, 20] = 1.0
    maps = method.with_background(method.normalize_cam(cam), torch.tensor([[1.0, 0.0]]))
    return {"background": float(maps[0, 0, 20, 20]), "absent class": float(maps[0, 2, 20, 20])}


def grad_cam_is_the_first_version(trial: Trial) -> dict[str, float]:
    """Largest difference of Grad-CAM at the last norm of Swin-T to version 1's maps, same weights, 3 classes."""
    classes = (2, 7, 14)
    with trial.global_generators("weights"):
        classifier = SwinClassifier(VOC_CLASSES).eval()
    image = _image(trial, 224)
    model = method.SWTformer(classifier, VOC_CLASSES, version=1).eval()
    tokens = classifier.forward_features(image).detach().requires_grad_()
    assert isinstance(classifier.head, nn.Linear)
    logits = classifier.head(tokens.flatten(1, -2).mean(1))[0]
    maps = []
    for k in classes:
        (gradient,) = torch.autograd.grad(logits[k], tokens, retain_graph=True)
        maps.append((tokens.detach() * gradient.mean((1, 2), keepdim=True)).sum(-1))
    # the gradient of a mean has the number of tokens under it, which the 1e-5 of the normalisation would feel
    theirs = method.normalize_cam(torch.stack(maps, 1) * logits.new_tensor(tokens[0, ..., 0].numel()))
    with torch.no_grad():
        model.head.weight.copy_(classifier.head.weight[:, :, None, None])
        ours = method.normalize_cam(model(image).cam)[:, list(classes)]
    return {"difference": float((ours - theirs).abs().max()), "largest value": float(ours.max())}
