"""What a protocol is given: seed and generators made from it, tier, device, settings, and a place to report to."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

Progress = Callable[[float, str], None]


class Trial:
    """One run of one arm at one seed.

    Attributes:
        seed: the paired seed; arms of one comparison see the same data and the same initial generator states.
        tier: ``"smoke"``, ``"desk"``, ``"gpu"`` or ``"full"``.
        device: where tensors live, as `torch.device` understands it.
        settings: every setting of the protocol, complete.
        curves: named lists of numbers recorded by `curve`.
    """

    def __init__(
        self,
        seed: int = 0,
        tier: str = "smoke",
        device: str = "cpu",
        settings: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        code: str = "",
    ) -> None:
        self.seed = seed
        self.tier = tier
        self.device = device
        self.settings = dict(settings or {})
        self.curves: dict[str, list[float]] = {}
        self._progress = progress
        self._code = code

    def derived_seed(self, purpose: str) -> int:
        """A 63-bit seed for one purpose (``"split"``, ``"batches"``), independent of the other purposes' seeds."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:8], "big") >> 1

    def generator(self, purpose: str, device: str = "cpu") -> torch.Generator:
        """A torch generator for one purpose."""
        import torch

        return torch.Generator(device).manual_seed(self.derived_seed(purpose))

    def numpy_generator(self, purpose: str) -> np.random.Generator:
        """A NumPy generator for one purpose."""
        import numpy as np

        return np.random.default_rng(self.derived_seed(purpose))

    @contextlib.contextmanager
    def global_generators(self, purpose: str) -> Iterator[None]:
        """Seed the global generators of torch, NumPy and random inside the block and restore them after it.

        For code that takes no generator, such as the initialisation of `nn.Linear` or dropout.
        """
        import numpy as np
        import torch

        seed = self.derived_seed(purpose)
        python_state, numpy_state = random.getstate(), np.random.get_state()
        devices = [torch.device(self.device)] if self.device.startswith("cuda") else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)
                random.seed(seed)
                yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)

    def stage(
        self, name: str, make: Callable[[], Mapping[str, torch.Tensor]], **identity: Any
    ) -> dict[str, torch.Tensor]:
        """A dict of tensors that the arms of one seed begin with, such as a pretrained network's state, made once.

        It is kept on disk under seed, device, `name`, `identity` and the code and user's files of the protocol. A
        trial that was made by hand, without a protocol, keeps nothing.

        Args:
            name: what it is, e.g. ``"pretrained"``.
            make: computes it; must depend on nothing but the seed (through this trial's generators) and `identity`.
            identity: every setting it depends on, by name: strings and numbers.
        """
        if not self._code:
            return {key: value.detach().cpu().clone() for key, value in make().items()}
        from paperworks.lab.stages import kept

        return kept({"code": self._code, "name": name, "seed": self.seed, "device": self.device, **identity}, make)

    def progress(self, fraction: float, text: str = "") -> None:
        """Report how far the trial is, from 0 to 1."""
        if self._progress is not None:
            self._progress(min(1.0, max(0.0, fraction)), text)

    def curve(self, name: str, values: Sequence[float]) -> None:
        """Record a named list of numbers, e.g. the test accuracy after each epoch."""
        self.curves[name] = [float(v) for v in values]
