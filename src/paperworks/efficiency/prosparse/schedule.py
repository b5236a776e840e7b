"""The progressive L1 regularisation: step 2 of ProSparse.

    L = L_lm + lambda(t) sum over the layers ||x1||_1                                      (Eq. 2)
    stage 1, t in (T_0, T_1]:        lambda = l_1
    stage i, t in (T_{i-1}, T_i]:    lambda = l_{i-1} + eta (l_i - l_{i-1}),
                                     eta = (sin(-pi/2 + pi (t - T_{i-1}) / (T_i - T_{i-1})) + 1) / 2     (Algorithm 1)

Before T_0 the model is only getting used to ReLU: lambda = 0.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from paperworks.efficiency.prosparse.recorder import ActivationRecorder, checked_reduction


class SparsityRegularisation:
    """The factor lambda by step, and the term of the loss.

    Args:
        peaks: l_1 <= ... <= l_S, above 0. Two equal neighbours make a stage of constant lambda.
        steps: T_1 < ... < T_S, the ends of the stages, counted over the whole training.
        start: T_0 >= 0, the end of the substitution stage, before T_1.
        reduction: "mean" takes the mean of |x1| over valid tokens and channels; "token_norm" sums over the channels.
            The paper writes the plain norm and does not say how tokens are reduced. With the sum over thousands of
            channels the published peaks would outweigh the language loss by far.

    Raises ValueError for peaks that fall or are not positive, steps that do not rise above `start`, or another number
    of peaks than of steps.
    """

    def __init__(
        self, peaks: Sequence[float], steps: Sequence[int], *, start: int = 0, reduction: str = "mean"
    ) -> None:
        self.peaks = [float(peak) for peak in peaks]
        self.steps = [int(step) for step in steps]
        self.start = int(start)
        self.reduction = checked_reduction(reduction)
        if not self.peaks or len(self.peaks) != len(self.steps):
            raise ValueError(f"peaks, steps: got {len(self.peaks)} and {len(self.steps)}, wanted one step a peak")
        rising = all(a <= b for a, b in itertools.pairwise(self.peaks))
        if not (rising and self.peaks[0] > 0 and math.isfinite(self.peaks[-1])):
            raise ValueError(f"peaks: got {self.peaks}, wanted numbers above 0 that never fall")
        if list(self.steps) != list(steps) or self.start != start or self.start < 0:
            raise ValueError(f"steps, start: got {list(steps)}, {start}, wanted whole numbers, start >= 0")
        ends = [self.start, *self.steps]
        if any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"steps: got {self.steps} after start {self.start}, wanted numbers that rise above it")

    def __repr__(self) -> str:
        return f"SparsityRegularisation({self.peaks}, {self.steps}, start={self.start}, reduction={self.reduction!r})"

    def factor(self, step: int) -> float:
        """lambda at `step`, counted from 1 over the whole training: 0 up to `start`, the last peak after the last end.

        Raises ValueError for a step below 0.
        """
        if step < 0:
            raise ValueError(f"step: got {step}, wanted 0 or more")
        if step <= self.start:
            return 0.0
        stage = bisect.bisect_left(self.steps, step)
        if stage == 0:
            return self.peaks[0]
        if stage == len(self.steps) or step == self.steps[stage]:  # the peak itself, free of rounding
            return self.peaks[min(stage, len(self.peaks) - 1)]
        begin, end = self.steps[stage - 1], self.steps[stage]
        eta = (math.sin(-math.pi / 2 + math.pi * (step - begin) / (end - begin)) + 1) / 2
        low, high = self.peaks[stage - 1], self.peaks[stage]
        return low + eta * (high - low)

    def term(self, recorder: ActivationRecorder, step: int, attention_mask: Tensor | None = None) -> Tensor:
        """What is added to the language loss at `step`: lambda times the L1 norm of the recorded pass, a scalar."""
        return self.factor(step) * recorder.l1(attention_mask, self.reduction)


def published_schedule(name: str) -> SparsityRegularisation:
    """The schedule of one of the paper's models (Tables 6 and 7): "7b", "13b" or "1b".

    The 1B model's decay stage keeps its last factor up to step 95,000; its fine-tuning, 6,000 steps at 1e-2, is a
    training of its own, since a factor never falls within one.
    """
    published = {
        "7b": ([5e-3, 5e-2, 5e-2, 2e-1, 2e-1], [6000, 10000, 12000, 16000, 16500], 5000),
        "13b": ([5e-3, 1e-2, 1e-2, 2e-2, 2e-2], [6750, 10750, 11000, 15000, 16000], 5500),
        "1b": ([1e-3, 5e-3, 5e-3, 5e-2, 5e-2], [15000, 20000, 25000, 35000, 95000], 10000),
    }
    if name not in published:
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(published)}")
    peaks, steps, start = published[name]
    return SparsityRegularisation(peaks, steps, start=start)


def sparsity_for_peak(peak: float, a: float = 1.76, alpha: float = 0.30, b: float = 3.49) -> float:
    """The sparsity in percent that a last peak of `peak` leads to: 100 - exp(-a peak^alpha + b), fitted on 7B.

    The fit was made for peaks of 0.01 and more. Raises ValueError for a peak that is not above 0.
    """
    if not peak > 0:
        raise ValueError(f"peak: got {peak}, wanted a number above 0")
    return 100 - math.exp(-a * peak**alpha + b)


def peak_for_sparsity(target: float, a: float = 1.76, alpha: float = 0.30, b: float = 3.49) -> float:
    """The last peak that leads to a sparsity of `target` percent, the inverse of `sparsity_for_peak`.

    The defaults are the paper's fit to its 7B model, trained with its reduction and data.

    Raises ValueError for a target that the formula cannot reach: 100 - e^b or less, 100 or more.
    """
    if not 100 - math.exp(b) < target < 100:
        raise ValueError(f"target: got {target}, wanted percent above {100 - math.exp(b):.4g} and below 100")
    return float(((b - math.log(100 - target)) / a) ** (1 / alpha))
