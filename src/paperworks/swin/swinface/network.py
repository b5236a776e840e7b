"""SwinFace: one pass over an aligned face for identity, expression, age and forty attributes (arXiv 2308.11509)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.swinface.attention import EPS, MLCA, pool_levels
from paperworks.swin.swinface.branches import TaskBranches
from paperworks.swin.swinface.tasks import FACE_TASK_GROUPS, RECOGNITION, TaskGroup, check_groups

__all__ = ["SwinFace"]


class SwinFace(nn.Module):
    """A shared Swin, an embedding head, and for each group of tasks its attention over levels, a subnet and heads.

    By default the published network: 112 pixels, Swin-T on patches of 2, 42 tasks in eleven groups. The levels are the
    maps of the stages behind their merging, and the last map before the final norm; all at 7 x 7.

    Args:
        groups: tasks; those of a group share a branch.
        embedding_size: of the identity embedding.
        img_size, patch_size: pixels; the image is a multiple of the patch times 2 for each merging.
        embed_dim, depths, num_heads, window_size, drop_path_rate: of the Swin.
        subnet_dropout: in the branches.
        backbone: a network in place of the Swin: from images to maps (B, C, h, w), the finest first, with `channels`
            or timm's ``feature_info.channels()`` (``timm.create_model(..., features_only=True)``). A `SwinBackbone`
            may be given as it is.
        task_width: features of a branch; `embedding_size` by default.

    In training its batch norms need two or more images.

    Raises ValueError for sizes that do not go together.
    """

    def __init__(
        self,
        groups: Sequence[TaskGroup] = FACE_TASK_GROUPS,
        embedding_size: int = 512,
        img_size: int = 112,
        patch_size: int = 2,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.1,
        subnet_dropout: float = 0.5,
        backbone: nn.Module | None = None,
        *,
        task_width: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_groups(groups)
        self._factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.img_size: int | None = None
        if backbone is None:
            step = patch_size * 2 ** (len(depths) - 1)
            if img_size < 1 or img_size % step:
                wanted = f"a multiple of patch_size {patch_size} times 2 for each of {len(depths) - 1} mergings: {step}"
                raise ValueError(f"img_size: got {img_size}, wanted {wanted}")
            backbone = SwinBackbone(
                2, 3, patch_size, embed_dim, depths, num_heads, window_size, taps="after",
                drop_path_rate=drop_path_rate, **self._factory,
            )  # fmt: skip
            backbone.apply(_initialise)
            self.img_size = img_size
        self.backbone = backbone
        channels = level_channels(backbone)
        width = channels[-1]
        self.norm = nn.LayerNorm(width, **self._factory)
        self.embedding = nn.Sequential(
            nn.Linear(width, width, bias=False, **self._factory),
            nn.BatchNorm1d(width, EPS, **self._factory),
            nn.Linear(width, embedding_size, bias=False, **self._factory),
            nn.BatchNorm1d(embedding_size, EPS, **self._factory),
        )
        self.embedding.apply(_initialise)
        self._made: dict[str, Any] = {
            "in_channels": channels,
            "width": task_width or embedding_size,
            "dropout": subnet_dropout,
        }
        self.branches = nn.ModuleList([self._branches(groups)])
        self._frozen = False

    def _branches(self, groups: Sequence[TaskGroup]) -> TaskBranches:
        return TaskBranches(groups, **self._made, **self._factory)

    @property
    def groups(self) -> tuple[TaskGroup, ...]:
        """All groups, those that were added last."""
        return tuple(group for bank in self._banks() for group in bank.groups)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the outputs, ``"recognition"`` first."""
        return (RECOGNITION, *(task for group in self.groups for task in group.outputs))

    def _banks(self) -> list[TaskBranches]:
        return [bank for bank in self.branches if isinstance(bank, TaskBranches)]

    def levels(self, x: Tensor) -> list[Tensor]:
        """The backbone's maps of images (B, 3, H, W), channels first, the finest first."""
        if x.dim() != 4 or x.shape[1] != 3 or (self.img_size and x.shape[2:] != (self.img_size,) * 2):
            side = self.img_size or "H"
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, 3, {side}, {self.img_size or 'W'})")
        maps = self.backbone(x)
        return [m.movedim(-1, 1) for m in maps] if isinstance(self.backbone, SwinBackbone) else list(maps)

    def pyramid(self, x: Tensor) -> Tensor:
        """The levels of images, averaged to the smallest grid and joined: (B, sum of channels, h, w)."""
        return torch.cat(pool_levels(self.levels(x)), 1)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Outputs by task.

        Args:
            x: aligned faces (B, 3, img_size, img_size) in [-1, 1].
            tasks: the outputs wanted, by default all; only what they need is run.

        Returns ``"recognition"``, the embedding (B, embedding_size), not normalised; ``"age"`` (B, 1) in years; logits
        (B, classes) of every other task.
        """
        wanted = self.tasks if tasks is None else tuple(tasks)
        unknown = [task for task in wanted if task not in self.tasks]
        if not wanted or unknown or isinstance(tasks, str):
            raise ValueError(f"tasks: got {tasks!r}, wanted some of {', '.join(self.tasks)}")
        levels = self.levels(x)
        found: dict[str, Tensor] = {}
        if RECOGNITION in wanted:
            found[RECOGNITION] = self.embedding(self.norm(levels[-1].flatten(2).mT).mean(1))
        pooled: list[Tensor] = []
        for bank in self._banks():
            own = [task for task in wanted if task in bank.place]
            if own:
                pooled = pooled or pool_levels(levels)
                found |= bank(pooled, own)
        return {task: found[task] for task in self.tasks if task in found}

    def branch(self, task: str) -> tuple[TaskBranches, int]:
        """The branches that a task is in, and the number of its group among them."""
        for bank in self._banks():
            if task in bank.place:
                return bank, bank.place[task]
        raise ValueError(f"task: got {task!r}, wanted one of {', '.join(self.tasks[1:])}")

    def mlca(self, task: str) -> MLCA:
        """The attention module of a task's group: a copy, to be used on its own."""
        bank, number = self.branch(task)
        return bank.mlca.branch(number)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Channel weights (B, task_width) of every group, by its name."""
        pooled = pool_levels(self.levels(x))
        found: dict[str, Tensor] = {}
        for bank in self._banks():
            gates = bank.mlca.gate(pooled).unbind(1)
            found |= {group.name: gate for group, gate in zip(bank.groups, gates, strict=True)}
        return found

    @torch.no_grad()
    def start_at(self, task: str, value: float) -> None:
        """Begin a task of one number at `value`, e.g. ``"age"`` at the mean of the training faces, in place of 0."""
        bank, number = self.branch(task)
        outputs = bank.groups[number].outputs
        if outputs[task] != 1:
            raise ValueError(f"task: got {task!r} of {outputs[task]} outputs, wanted one of a single output")
        names = list(outputs)
        at = sum(outputs[name] for name in names[: names.index(task)])
        bank.heads[number].get_parameter("bias")[at] = value

    def add_task(self, group: TaskGroup, like: str | None = None) -> TaskBranches:
        """Add a group of tasks with a branch of its own; what was there is frozen, and stays in eval mode.

        Args:
            group: new tasks.
            like: a task whose attention and subnet the branch starts from; random by default.

        Returns the branch: its parameters are those to train (`unfreeze` undoes it). Raises ValueError for names that
        are taken.
        """
        check_groups([*self.groups, group])
        source = None if like is None else self.branch(like)
        weight = self.norm.weight
        bank = self._branches([group]).to(weight.device, weight.dtype)
        if source is not None:
            theirs, number = source
            bank.mlca.copy_branch(0, theirs.mlca.branch(number))
            with torch.no_grad():
                for mine, other in ((bank.subnet1, theirs.subnet1), (bank.subnet2, theirs.subnet2)):
                    mine.weight.copy_(other.weight[number : number + 1])
                    mine.bias.copy_(other.bias[number : number + 1])
        self.requires_grad_(False)
        self._frozen = True
        self.branches.append(bank)
        self.train(self.training)
        return bank

    def unfreeze(self) -> SwinFace:
        """Train everything again."""
        self._frozen = False
        self.requires_grad_(True)
        return self.train(self.training)

    def train(self, mode: bool = True) -> SwinFace:
        """As of any module; frozen parts stay in eval mode."""
        super().train(mode)
        if self._frozen:
            for part in (self.backbone, self.norm, self.embedding, *self._banks()[:-1]):
                part.eval()
        return self

    def load_official_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the published weights, in place.

        Args:
            state_dict: with the prefixes ``backbone.``, ``fam.``, ``tss.`` and ``om.``, or a mapping of the four parts'
                state dicts under these names, or ``state_dict_backbone`` and so on as in the published checkpoint.

        Raises ValueError that names what is missing, left over or of another shape; nothing is loaded then.
        """
        from paperworks.swin.swinface.official import load_official

        load_official(self, state_dict)

    def official_state_dict(self) -> dict[str, Tensor]:
        """The weights under the published names: the inverse of `load_official_state_dict`."""
        from paperworks.swin.swinface.official import official_state_dict

        return official_state_dict(self)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def level_channels(backbone: nn.Module) -> tuple[int, ...]:
    """Channels of a backbone's maps. Raises ValueError for one that does not say."""
    info = getattr(backbone, "feature_info", None)
    channels: Any = getattr(backbone, "channels", None) or (info.channels() if info is not None else None)
    if not channels:
        raise ValueError(f"backbone: got {type(backbone).__name__}, wanted it to have `channels`, a number a map")
    return tuple(int(c) for c in channels)
