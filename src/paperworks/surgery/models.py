"""Load the image classifier a user names: their own factory, a folder of transformers, or a transformers id.

Every model that comes out maps float images (N, C, H, W) to logits (N, num_classes), whatever its own conventions.
"""

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from paperworks.surgery.model_signature import model_signature
from paperworks.surgery.model_spec import ModelSpec, parse_spec, working_directory_importable

__all__ = ["ImageClassifier", "load_model", "model_signature"]

# What libraries call the three numbers, best known first.
_ALIASES: dict[str, tuple[str, ...]] = {
    "num_classes": ("num_classes", "n_classes", "nb_classes", "num_labels", "n_outputs", "out_channels"),
    "in_channels": ("in_channels", "in_chans", "input_channels", "n_input_channels", "num_channels"),
    "image_size": ("image_size", "img_size"),
}


def load_model(spec: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build the image classifier that `spec` names.

    Args:
        spec: one of
            `package.module:factory`: any callable that returns an `nn.Module`. It is called with those of
            `num_classes`, `in_channels` and `image_size` that its signature takes, under their usual names too
            (`num_labels`, `in_chans`, `img_size`, ...). Modules in the working directory are found.
            A local folder, or an id for `transformers.AutoModelForImageClassification.from_pretrained`: weights from
            safetensors only, the head made anew where the number of classes differs, images brought to the size and
            the number of channels that the model's configuration asks for. Images are not normalised.
        num_classes: length of the logits.
        in_channels: channels of the images the model will get.
        image_size: their height and width in pixels.

    Returns:
        A module in its own train/eval mode, (N, in_channels, image_size, image_size) float32 -> (N, num_classes).
        New weights are drawn from torch's global generator, as `nn` layers do: fork and seed it around the call.

    Raises:
        ValueError: the spec names nothing that exists; the factory needs other arguments; the folder has no
            safetensors; or the model fails on a probe of two images or gives another shape than (2, num_classes).
        TypeError: a number is no int; what is named is not callable or returns no `nn.Module`.
        ImportError: the module exists but fails to import, or transformers is missing.
        OSError: a transformers id that is neither cached nor can be fetched.
    """
    numbers = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: got {number!r}, want an int")
        if number < 1:
            raise ValueError(f"{name}: got {number}, want at least 1")
    parsed = parse_spec(spec)
    if parsed.module:
        with working_directory_importable():
            model = _from_factory(parsed, numbers)
    else:
        model = _from_transformers(parsed, num_classes)
    return _probed(parsed, model, numbers)


class ImageClassifier(nn.Module):
    """A transformers-like model as images in, logits out.

    Attributes:
        model: the wrapped model; its output is a tensor, or an object or mapping with `logits`.
        image_size: (height, width) the model wants, images of another size are resized (bilinear, antialiased);
            None: any.
        num_channels: channels the model wants. One channel is repeated, several are averaged to one; None: any.
    """

    def __init__(
        self, model: nn.Module, *, image_size: tuple[int, int] | None = None, num_channels: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.num_channels = num_channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float images to (N, num_classes) logits.

        Raises:
            ValueError: the model wants several channels and the images have another number, not 1.
        """
        channels = images.shape[1]
        if self.num_channels is not None and channels != self.num_channels:
            if channels == 1:
                images = images.expand(-1, self.num_channels, -1, -1)
            elif self.num_channels == 1:
                images = images.mean(dim=1, keepdim=True)
            else:
                raise ValueError(f"images: got {channels} channels, want {self.num_channels} or 1")
        if self.image_size is not None and tuple(images.shape[-2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", align_corners=False, antialias=True)
        logits: torch.Tensor = _logits(self.model(images))
        return logits


def _logits(output: Any) -> Any:
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


# --- package.module:factory ---


def _from_factory(spec: ModelSpec, numbers: Mapping[str, int]) -> nn.Module:
    module = _import(spec)
    factory: Any = module
    for part in spec.attribute.split("."):
        if not hasattr(factory, part):
            raise ValueError(f"model {spec.text!r}: {_what_exists(factory, part)}")
        factory = getattr(factory, part)
    if isinstance(factory, nn.Module):
        raise TypeError(f"model {spec.text!r}: got a built {type(factory).__name__}, want a callable that builds one")
    if not callable(factory):
        raise TypeError(f"model {spec.text!r}: got {type(factory).__name__}, want a callable that returns an nn.Module")
    model = _call(spec, factory, numbers)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {spec.text!r}: the factory returned {type(model).__name__}, want an nn.Module")
    return model


def _import(spec: ModelSpec) -> ModuleType:
    try:
        return importlib.import_module(spec.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != spec.module and not spec.module.startswith(missing + "."):
            raise ImportError(f"model {spec.text!r}: importing {spec.module} needs {missing!r}: {error}") from error
        parent = spec.module.rpartition(".")[0] if missing == spec.module else missing.rpartition(".")[0]
        raise ValueError(f"model {spec.text!r}: no module {missing!r}; {_submodules(parent)}") from error
    except ImportError as error:
        raise ImportError(f"model {spec.text!r}: importing {spec.module} failed: {error}") from error


def _submodules(parent: str) -> str:
    if not parent:
        return f"searched sys.path and {os.getcwd()}"
    path = getattr(sys.modules.get(parent), "__path__", None)
    if path is None:
        return f"{parent!r} is a module, not a package"
    return f"{parent!r} has {', '.join(sorted(m.name for m in pkgutil.iter_modules(path))) or 'no modules'}"


def _what_exists(holder: Any, missing: str) -> str:
    name = getattr(holder, "__name__", type(holder).__name__)
    names = sorted(n for n in dir(holder) if not n.startswith("_") and callable(getattr(holder, n, None)))
    shown = difflib.get_close_matches(missing, names) or names[:20]
    return f"{name!r} has no {missing!r}; callables there: {', '.join(shown) or 'none'}"


def _call(spec: ModelSpec, factory: Any, numbers: Mapping[str, int]) -> Any:
    """Call `factory` with the numbers it takes.

    A factory with `**kwargs` hides what it takes: it is tried with one alias after another, each time the one it
    was given turns out to be an unexpected keyword.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a callable of C code without a signature
        return factory()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given: dict[str, int] = {}
    on_trust: dict[str, tuple[str, ...]] = {}
    for meaning, number in numbers.items():
        first, *others = _ALIASES[meaning]
        if alias := next((a for a in _ALIASES[meaning] if a in named), None):
            given[alias] = number
        elif takes_any:
            given[first] = number
            on_trust[first] = tuple(others)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional and p.name not in given]
    if needed:
        raise ValueError(
            f"model {spec.text!r}: the factory needs {', '.join(needed)}, which it is not given; "
            f"want a function of {', '.join(numbers)} (or fewer) that fills in the rest"
        )
    while True:
        try:
            return factory(**given)
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None or refused[1] not in on_trust:
                raise
            number = given.pop(refused[1])
            rest = on_trust.pop(refused[1])
            if rest:
                given[rest[0]] = number
                on_trust[rest[0]] = rest[1:]


# --- transformers ---


def _from_transformers(spec: ModelSpec, num_classes: int) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ImportError(f"model {spec.text!r}: pip install 'paperworks[activations]' ({error})") from error
    if spec.folder is not None:
        _check_folder(spec, spec.folder)
    source = str(spec.folder) if spec.folder is not None else spec.hub_id
    try:
        model: nn.Module = AutoModelForImageClassification.from_pretrained(
            source,
            num_labels=num_classes,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
        return model
    except OSError as error:
        raise OSError(
            f"model {spec.text!r}: no folder of that name, and as a transformers id it cannot be loaded: {error}"
            if spec.hub_id
            else f"model {spec.text!r}: {error}"
        ) from error
    except ValueError as error:  # a configuration of no image classifier
        raise ValueError(f"model {spec.text!r}: {error}") from error


def _check_folder(spec: ModelSpec, folder: Path) -> None:
    files = sorted(path.name for path in folder.iterdir())
    if "config.json" not in files:
        raise ValueError(f"model {spec.text!r}: the folder has no config.json; files: {', '.join(files) or 'none'}")
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(
            f"model {spec.text!r}: the folder has no *.safetensors (pickled weights are not read; save the model "
            f"again with save_pretrained); files: {', '.join(files)}"
        )


# --- both ---


def _probed(spec: ModelSpec, model: nn.Module, numbers: Mapping[str, int]) -> nn.Module:
    """`model`, wrapped where it needs it, after two blank images went through it."""
    shape = (2, numbers["in_channels"], numbers["image_size"], numbers["image_size"])
    if _is_transformers_model(model):
        model = _wrapped(model)
    tensor = next(iter(model.parameters()), None)
    images = torch.zeros(shape, device=None if tensor is None else tensor.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(images)
    except Exception as error:
        raise ValueError(f"model {spec.text!r}: fails on images of shape {shape}: {error}") from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(output, torch.Tensor) and isinstance(_logits(output), torch.Tensor):
        model, output = ImageClassifier(model).train(model.training), _logits(output)
    wanted = (shape[0], numbers["num_classes"])
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if got != wanted:
        raise ValueError(f"model {spec.text!r}: images of shape {shape} gave {got}, want logits of shape {wanted}")
    return model


def _is_transformers_model(model: nn.Module) -> bool:
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(model, modeling.PreTrainedModel)


def _wrapped(model: Any) -> nn.Module:
    vision = getattr(model.config, "vision_config", model.config)
    size = getattr(vision, "image_size", None)
    if isinstance(size, int):
        size = (size, size)
    return ImageClassifier(
        model,
        image_size=None if size is None else (int(size[0]), int(size[1])),
        num_channels=getattr(vision, "num_channels", None),
    ).train(model.training)
