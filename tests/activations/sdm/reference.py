"""The estimator point by point in plain loops, written from the equations alone."""

import math

import numpy as np


def project(x, weights, mean, std):
    g, g_bias, w, w_bias = (np.asarray(a, dtype=np.float64) for a in weights)
    h = ((np.asarray(x, dtype=np.float64) - mean) / std) @ g.T + g_bias
    return (h @ w.T + w_bias).astype(np.float32), h.astype(np.float32)


def similarity_distance(h, predicted, exemplars, labels, predictions, own=None):
    """Walk along the sorted neighbours until the first failure; failing points come first among equals."""
    distances = [math.dist(h.tolist(), e.tolist()) for e in exemplars]
    fails = [not (y == p == predicted) for y, p in zip(labels, predictions, strict=True)]
    order = sorted((j for j in range(len(exemplars)) if j != own), key=lambda j: (distances[j], not fails[j]))
    q = 0
    for j in order:
        if fails[j]:
            break
        q += 1
    return q, distances[order[0]] if order else math.inf


def ecdf(values, v, saturate=False):
    if not len(values):
        return 0.0
    if saturate and v >= max(values):
        return 1.0
    return sum(1 for u in values if u < v) / len(values)


def distance(d_nearest, known):
    return 0.0 if any(not len(c) for c in known) else min(1 - ecdf(c, d_nearest) for c in known)


def activation(z, q, d):
    """p by powers of 2 + q, in float64."""
    powers = [(2.0 + q) ** (d * (float(a) - float(max(z)))) for a in z]
    return np.array(powers) / sum(powers)


def rescaled(weight, v, soft_q):
    logits = [sum(w * u for w, u in zip(row, v, strict=True)) * math.log(2 + soft_q) for row in weight]
    powers = [math.exp(a - max(logits)) for a in logits]
    return np.array(powers) / sum(powers)


def branch(weight, v, predicted, q):
    """o, q~ after the flip rule, and whether it flipped."""
    soft_q = v[predicted] * math.log(2 + q)
    o = rescaled(weight, v, soft_q)
    flipped = int(np.argmax(o)) != predicted
    return o, 0.0 if flipped else soft_q, flipped


def threshold(outputs, labels, soft_q, ood, alpha, classes):
    """Alg. 3 as it is written: try every q~' from below."""
    valid = [i for i in range(len(labels)) if not ood[i]]
    for candidate in sorted({soft_q[i] for i in valid}):
        psi = []
        for c in range(classes):
            own = sorted(outputs[i][c] for i in valid if labels[i] == c and soft_q[i] >= candidate)
            n = len(own)
            psi.append(own[min(math.floor((1 - alpha) * n + 1e-9), n - 1)] if n else 0.0)
        if all(p >= alpha for p in psi):
            return candidate, psi
    return math.inf, None


def verdict(predicted, v, q, weight, alpha, cal_soft_q, cal_labels, q_min, psi, offsets):
    """Steps 9, 10 and 13 for one point."""
    classes = len(weight)
    centroid, soft_q, _ = branch(weight, v, predicted, q)
    n = []
    for c in range(classes):
        own = [s for s, y in zip(cal_soft_q, cal_labels, strict=True) if y == c]
        n.append(min(sum(1 for s in own if s < soft_q), len(own) - 1))
    eps = [math.sqrt(math.log(2 / (1 - alpha)) / (2 * k)) if k > 0 else 1.0 for k in n]
    clip = lambda a: min(1.0, max(0.0, a))  # noqa: E731
    down = [clip(v[c] - eps[c]) if c == predicted else clip(v[c] + eps[c]) for c in range(classes)]
    up = [clip(v[c] + eps[c]) if c == predicted else clip(v[c] - eps[c]) for c in range(classes)]
    lower, soft_q_lower, flipped = branch(weight, down, predicted, q)
    upper, _, _ = branch(weight, up, predicted, q)
    m = offsets[predicted].get(math.floor(soft_q_lower), 0.0)
    admitted = psi is not None and not flipped and soft_q_lower >= q_min and lower[predicted] - m >= psi[predicted]
    return {
        "admitted": admitted,
        "probability": max(0.0, lower[predicted] - m),
        "lower": lower,
        "centroid": centroid,
        "upper": upper,
        "soft_q": soft_q,
        "soft_q_lower": soft_q_lower,
        "effective_n": n,
    }
