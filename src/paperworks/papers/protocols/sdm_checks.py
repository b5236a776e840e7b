"""Exact checks of Similarity-Distance-Magnitude estimation: functions of a trial that return what they found."""

from __future__ import annotations

import math
from typing import Any

from paperworks.lab.trial import Trial


def generalises_softmax(trial: Trial) -> dict[str, float]:
    """Largest differences over 10,000 random logits of seven classes in float64, with random q and d > 0."""
    import torch

    from paperworks.activations.sdm import SOFTMAX_Q, sdm

    generator = trial.generator("logits")
    z = 5 * torch.randn(10_000, 7, generator=generator, dtype=torch.float64)
    q = torch.randint(0, 1000, (len(z),), generator=generator).double()
    d = 1 - 0.99 * torch.rand(len(z), generator=generator, dtype=torch.float64)
    return {
        "SDM - softmax": (sdm(z, SOFTMAX_Q) - z.softmax(1)).abs().max().item(),
        "predictions changed": (sdm(z, q, d).argmax(1) != z.argmax(1)).sum().item(),
        "p - 1/C at d = 0": (sdm(z, q, 0.0) - 1 / 7).abs().max().item(),
    }


def gradient_is_free_of_the_base(trial: Trial) -> float:
    """Largest difference from automatic differentiation over 1,000 random points in float64."""
    import torch

    from paperworks.activations.sdm import sdm, sdm_loss

    generator = trial.generator("logits")
    z = (3 * torch.randn(1000, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randint(0, 5, (1000,), generator=generator)
    q = torch.randint(0, 300, (1000,), generator=generator).double()
    d = torch.rand(1000, generator=generator, dtype=torch.float64)
    [gradient] = torch.autograd.grad(sdm_loss(z, target, q, d), z)
    expected = d[:, None] * (sdm(z, q, d) - torch.nn.functional.one_hot(target, 5)).detach() / 1000
    return (gradient - expected).abs().max().item()


def similarity_by_counting(trial: Trial) -> dict[str, float]:
    """Counting in float32 against the definition; a tenth of the training points is predicted wrong."""
    import torch

    from paperworks.activations.sdm import SupportIndex

    generator = trial.generator("points")
    labels, predicted = (torch.arange(n) % 2 for n in (20_000, 20))
    support = torch.randn(20_000, 1000, generator=generator) + labels[:, None] * 0.2
    h = torch.randn(20, 1000, generator=generator) + predicted[:, None] * 0.2
    wrong = torch.rand(20_000, generator=generator) < 0.1
    own = torch.where(wrong, 1 - labels, labels)
    q, nearest = SupportIndex(support, labels, own).query(h, predicted)
    exact = torch.cdist(h.double(), support.double(), compute_mode="donot_use_mm_for_euclid_dist")
    matches = (own == predicted[:, None]) & (own == labels)
    sorted_matches = matches.gather(1, exact.argsort(1))
    differing = (sorted_matches.long().cumprod(1).sum(1) != q).sum().item()
    distance = (nearest / exact.amin(1) - 1).abs().max().item()
    return {"similarities that differ": differing, "relative difference of distances": distance}


def quantile_cut_keeps_the_accuracy(trial: Trial) -> dict[str, float]:
    """Three classes; the larger q~, the more peaked the outputs."""
    import numpy as np
    from scipy import special, stats

    from paperworks.activations.sdm import CalibrationOutputs

    generator = trial.numpy_generator("outputs")

    def draw_points() -> CalibrationOutputs:
        soft_q = generator.uniform(0, 6, 100_000)
        output = special.softmax(np.exp(soft_q)[:, None] * generator.standard_normal((100_000, 3)), axis=1)
        labels = (output.cumsum(1) < generator.random((100_000, 1))).sum(1)
        return CalibrationOutputs(labels, output.argmax(1), output, soft_q, soft_q < 1)

    q_min, psi = draw_points().threshold(0.95)
    test = draw_points()
    admitted = (test.soft_q >= q_min) & (test.output.max(1) >= psi[test.prediction])

    def least(groups: Any) -> float:
        right = [(test.labels == test.prediction)[admitted & (groups == c)] for c in range(3)]
        return min(float(stats.binomtest(int(r.sum()), len(r)).proportion_ci(0.95).low) for r in right)

    return {
        "least accuracy by class": least(test.labels),
        "least accuracy by prediction": least(test.prediction),
        "admitted": float(np.mean(admitted)),
    }


def band_holds_the_distribution(trial: Trial) -> float:
    """The largest probability that a distribution function leaves its band of half-width eps, over n up to 1,000.

    The greatest distance between it and that of the sample has the law of Kolmogorov and Smirnov, which is known.
    """
    import numpy as np
    from scipy import stats

    n = np.arange(1, 1001)
    return float(stats.kstwo.sf(np.sqrt(math.log(2 / 0.05) / (2 * n)), n).max())


def trains_the_output_layer(trial: Trial) -> dict[str, float]:
    """Counts on a head of that size which has shapes and no memory."""
    import torch

    from paperworks.activations.sdm import VerifiedHead
    from paperworks.measure.parameters import count_parameters

    head = VerifiedHead(torch.empty(32_064, 3_072, device="meta"))
    return {
        "trained parameters": count_parameters(head),
        "outputs": head(torch.empty(1, 3_072, device="meta")).shape[1],
    }


def decodes_as_the_model(trial: Trial) -> dict[str, float]:
    """Over 2,000 random hidden states; training is stood in for by noise on the trained half."""
    import torch

    from paperworks.activations.sdm import VerifiedHead, sdm

    generator = trial.generator("states")
    weight, noise = torch.randn(2, 500, 64, generator=generator)
    h = torch.randn(2000, 64, generator=generator)
    head = VerifiedHead(weight)
    untrained = (head.decode(h) != (h @ weight.T).argmax(1)).sum().item()
    with torch.no_grad():
        head.positive.weight += 0.3 * noise
        likeliest = sdm(head(h), math.e - 2).argmax(1) % 500
    return {
        "untrained: tokens that differ": untrained,
        "trained: tokens that differ": (head.decode(h) != likeliest).sum().item(),
    }


def regulariser_follows_the_loss(trial: Trial) -> dict[str, float]:
    """A vocabulary of 200 in float64. r is a distance between log-probabilities, computed here from its definition."""
    import torch

    from paperworks.activations.sdm import VerifiedHead, log_sdm, peak_regularizer, sdm_loss

    generator = trial.generator("logits")
    weight, noise = torch.randn(2, 200, 16, generator=generator, dtype=torch.float64)
    h = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 200, (8,), generator=generator)
    q, d = 5 * torch.ones(8, dtype=torch.float64), 0.5 * torch.ones(8, dtype=torch.float64)
    head = VerifiedHead(weight)
    untrained = head.loss(h, target, q, d, 0.1) - sdm_loss(head(h), target + 200, q, d) - 0.1
    negative, z = h @ weight.T, torch.cat([h @ weight.T, h @ (weight + noise).T], 1)
    reference = torch.cat([negative, negative], 1)
    difference = log_sdm(reference, q, d) - log_sdm(z, q, d)
    peaks = [
        half.argmax(1) + at for logits in (reference, z) for half, at in zip(logits.chunk(2, 1), (0, 200), strict=True)
    ]
    difference.scatter_(1, torch.stack([*peaks, target + 200], 1), 0.0)
    r = difference.norm(dim=1).mean()

    def error(loss: Any, expected: Any) -> float:
        found = peak_regularizer(z, reference, target + 200, q, d, torch.as_tensor(loss, dtype=torch.float64))
        return float(found - expected)

    middle = (1 + r) / 2
    return {
        "untrained: loss - (nll + beta)": untrained.item(),
        "loss < 1: r' - 1": error(0.5, 1.0),
        "1 < loss < r: r' - sqrt(loss)": error(middle, middle.sqrt()),
        "loss > r: r' - sqrt(r)": error(2 * r, r.sqrt()),
    }


def filters_add_no_dimensions(trial: Trial) -> dict[str, float]:
    """Rank of 500 centred exemplars, and the largest residual of logits regressed on the features, in float64."""
    import torch

    from paperworks.activations.sdm import ExemplarAdaptor

    generator = trial.generator("features")
    adaptor = ExemplarAdaptor(7, 4, 1000, generator=generator, dtype=torch.float64)
    x = torch.rand(500, 7, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        logits, exemplars = adaptor.fit_normalizer(x)(x)
    design = torch.cat([x, torch.ones(500, 1, dtype=torch.float64)], 1)
    residual = logits - design @ torch.linalg.lstsq(design, logits).solution
    return {
        "dimensions of the exemplars": torch.linalg.matrix_rank(exemplars - exemplars.mean(0)).item(),
        "logits - their affine fit": residual.abs().max().item(),
    }


def constant_in_the_logarithm(trial: Trial) -> dict[str, float]:
    """Loss and gradient at a confident error, in float64."""
    import torch

    from paperworks.activations.sdm import SOFTMAX_Q, sdm_loss

    z = torch.tensor([[0.0, 40.0]], dtype=torch.float64, requires_grad=True)
    loss = sdm_loss(z, torch.tensor([0]), SOFTMAX_Q)
    powers, eps = (z - z.max()).exp(), torch.finfo(torch.float32).eps
    capped = (powers.sum() + eps).log() - (powers[0, 0] + eps).log()
    return {
        "loss at z = (0, 40), target 0": loss.item(),
        "its gradient": torch.autograd.grad(loss, z)[0][0, 0].item(),
        "with the constant: loss": capped.item(),
        "with the constant: gradient": torch.autograd.grad(capped, z)[0][0, 0].item(),
    }


def quantiles_rest_on_float32(trial: Trial) -> dict[str, float]:
    """Share of the calibration points of one split of the digits, told apart at 5, whose v differs."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    from paperworks.activations.sdm import SDMClassifier, sdm
    from paperworks.activations.sdm.ecdf import classwise_ecdf

    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    model = SDMClassifier(rounds=1, random_state=0).fit(x, digits.target >= 5)
    state = model.state_
    z, _ = state.adaptor.project(torch.from_numpy(x[model.cal_index_]))
    p = sdm(z.double(), *(torch.from_numpy(a).double() for a in (state.cal_q, state.cal_d))).numpy()
    ecdfs = classwise_ecdf(p, state.y_cal, 2, saturate=True)
    v = np.stack([e(p[:, c]) for c, e in enumerate(ecdfs)], axis=1)
    return {"points whose quantiles move": float((np.abs(v - state.cal_v) > 1e-12).any(1).mean())}


def rescaler_outgrows_its_training(trial: Trial) -> dict[str, float]:
    """The largest weight of the solved W'' for 1,200 digits of ten classes, and how far Alg. 2 moves a weight at most.

    A step of Adam is at most lr (1 - beta1) / sqrt(1 - beta2) (Kingma and Ba, section 2.1).
    """
    import numpy as np
    from sklearn.datasets import load_digits

    from paperworks.activations.sdm import SDMClassifier, rescaler_loss

    digits = load_digits()
    state = SDMClassifier(rounds=1, random_state=0).fit(digits.data[:1200] / 16, digits.target[:1200]).state_
    soft_q = state.cal_v[np.arange(len(state.y_cal)), state.cal_pred] * state.cal_log_base
    solved, reach = state.rescaler_weight, len(state.y_cal) * 1000 * 1e-4 * (1 - 0.9) / math.sqrt(1 - 0.999)
    nearer = solved * min(1.0, reach / float(np.abs(solved).max()))
    loss = [rescaler_loss(weight, state.cal_v, soft_q, state.y_cal)[0] for weight in (nearer, solved)]
    return {
        "optimum: largest weight": float(np.abs(solved).max()),
        "reach of the paper's training": reach,
        "loss, optimum scaled to that reach - optimum": loss[0] - loss[1],
    }
