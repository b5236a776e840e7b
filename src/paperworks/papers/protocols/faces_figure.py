"""The figure of SwinFace."""

from __future__ import annotations

from typing import Any

from paperworks.papers.protocols.faces_arms import APART, LAST, METHOD


def draw(figure: Any, results: Any) -> None:
    """Test faces with what was said of them; scores by task of three ways to learn; levels that branches take."""
    import numpy as np

    blue, orange, green = "#2462c4", "#b9500b", "#0a7868"
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.25, 1.1, 0.9))
    expressions = ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral")

    def curve(name: str) -> Any:
        return np.array(results.curves("levels-help", METHOD.name, name)[0][1])

    pixels = curve("faces").reshape(8, 3, -1)
    size = round(pixels.shape[-1] ** 0.5)
    for i, axis in enumerate(left.subplots(2, 4).ravel()):
        axis.imshow(pixels[i].reshape(3, size, size).transpose(1, 2, 0) / 255)
        told = [expressions[int(curve(f"{what}: expression")[i])] for what in ("said", "true")]
        years = [round(curve(f"{what}: age")[i]) for what in ("said", "true")]
        axis.set_title(f"{told[0]}, {years[0]}\n({told[1]}, {years[1]})", fontsize=7)
        axis.set(xticks=(), yticks=())
    axis = middle.subplots()
    learned = any(results.metric("levels-help", METHOD.name, "identity").values())
    tasks = (*(("identity",) if learned else ()), "age", "expression", "attributes", "score")
    rows = (
        ("levels-help", METHOD, "together, all levels", blue),
        ("levels-help", LAST, "together, last level", orange),
        ("together-is-better-than-apart", APART, "apart, all levels", green),
    )
    for number, (claim, arm, label, colour) in enumerate(rows):
        for place, task in enumerate(tasks):
            values = np.array(list(results.metric(claim, arm.name, task).values()))
            at = place + 0.25 * (number - 1)
            axis.plot(values, np.full(len(values), at), "o", color=colour, alpha=0.35, markersize=3)
            axis.plot(
                [values.mean()], [at], "|", color=colour, markersize=11, markeredgewidth=2.4,
                label=label if place == 0 else None,
            )  # fmt: skip
    axis.set(xlabel="better than guessing", yticks=range(len(tasks)), ylim=(len(tasks) - 0.4, -0.6))
    axis.set_yticklabels([*tasks[:-1], "mean"])
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.72), fontsize=7)  # beside the expressions, which are hard
    axis = right.subplots()
    for task, colour in (("age", orange), ("expression", blue), ("attributes", green)):
        shares = np.array([values for _, values in results.curves("levels-help", METHOD.name, f"levels: {task}")])
        levels = np.arange(1, shares.shape[1] + 1)
        axis.plot(levels, shares.T * shares.shape[1], color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(levels, shares.mean(0) * shares.shape[1], "o-", color=colour, label=task)
    axis.axhline(1, color="#5d6874", linewidth=1, linestyle="--")
    axis.set(xlabel="level, fine to coarse", ylabel="gate / mean gate", xticks=levels)
    axis.legend(loc="best", fontsize=7)
