"""Figures of docs/explain, drawn from the project's own code: ``python docs/figures.py`` writes docs/explain/figures/*.svg."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from echo_pl.data.loading.order import shuffled_order
from echo_pl.diffusion.block_mask import CLEAN, CONTEXT, FIRST_NOISY, allowed, concatenate, context_coords, response_coords

FOLDER = Path(__file__).parent / "explain" / "figures"
COLOURS = {"context": "#9ecae1", "noisy": "#fdae6b", "clean": "#a1d99b", "mask": "#d9d9d9", "ink": "#333333"}


def rad_mask() -> Figure:
    """The attention table of RAD as the code computes it: 4 context tokens, 6 response tokens, blocks of 2."""
    P, R, L = 4, 6, 2
    device = torch.device("cpu")
    coords = concatenate(
        context_coords(torch.tensor([P]), P, L),
        response_coords(FIRST_NOISY, 0, R, L, device),
        response_coords(CLEAN, 0, R, L, device),
    )
    allowed_QK = allowed(coords, coords, "causal")[0]
    names = {CONTEXT: "context", FIRST_NOISY: "noisy", CLEAN: "clean"}
    copies = [names[int(copy)] for copy in coords.copy_BT[0]]
    labels = [f"c{i + 1}" for i in range(P)] + [f"xt{i + 1}" for i in range(R)] + [f"x0{i + 1}" for i in range(R)]
    figure, axes = plt.subplots(figsize=(5.6, 5.6))
    for query in range(len(labels)):
        for key in range(len(labels)):
            colour = COLOURS[copies[key]] if allowed_QK[query, key] else "white"
            axes.add_patch(Rectangle((key, query), 1, 1, facecolor=colour, edgecolor="#cccccc", linewidth=0.5))
    for edge in (P, P + R):
        axes.axhline(edge, color=COLOURS["ink"], linewidth=1)
        axes.axvline(edge, color=COLOURS["ink"], linewidth=1)
    _grid(axes, labels, labels)
    axes.set_xlabel("key: context | noisy response xt | clean response x0")
    axes.set_ylabel("query")
    axes.set_title("RAD: a filled cell may be attended to (blocks of 2)", fontsize=10)
    return figure


def _grid(axes: Axes, columns: list[str], rows: list[str]) -> None:
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), aspect="equal")
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, fontsize=7, rotation=90)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=7)
    axes.tick_params(length=0)


def trajectory() -> Figure:
    """One block of a teacher's trajectory: confidences, commits at tau = .9, and the step that each target is from."""
    words = ["no", "focal", "air", "space", "disease", "is", "seen", "."]
    confidences = [  # an example, step by step; None: committed before
        [0.97, 0.62, 0.55, 0.71, 0.66, 0.95, 0.58, 0.99],
        [None, 0.81, 0.92, 0.93, 0.88, None, 0.77, None],
        [None, 0.96, None, None, 0.98, None, 0.95, None],
    ]
    threshold = 0.9
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    for step, row in enumerate(confidences):
        for position, confidence in enumerate(row):
            committed_before = confidence is None
            commits = confidence is not None and confidence >= threshold
            colour = COLOURS["clean"] if committed_before else COLOURS["noisy"] if commits else COLOURS["mask"]
            axes.add_patch(Rectangle((position, step), 1, 1, facecolor=colour, edgecolor="white"))
            text = words[position] if committed_before or commits else "[mask]"
            value = "" if confidence is None else f"\n{confidence:.2f}"
            axes.text(position + 0.5, step + 0.5, text + value, ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, len(words)), ylim=(len(confidences), 0), title="One block of a trajectory: commit where confidence >= .9")
    axes.set_xticks([])
    axes.set_yticks([0.5, 1.5, 2.5], ["step 1", "step 2", "step 3"])
    axes.tick_params(length=0)
    axes.title.set_fontsize(10)
    return figure


def fused_cache() -> Figure:
    """Forwards of a report of three blocks, one step each: the vanilla cache against the fused one."""
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    vanilla = [("denoise 1", "noisy"), ("write 1", "clean"), ("denoise 2", "noisy"), ("write 2", "clean"), ("denoise 3", "noisy")]
    for place, (text, kind) in enumerate(vanilla):
        _forward(axes, place, 0, [(text, kind)])
    _forward(axes, 0, 1, [("denoise 1", "noisy")])
    for place in (1, 2):
        _forward(axes, place, 1, [(f"write {place}", "clean"), (f"denoise {place + 1}", "noisy")])
    axes.set(xlim=(0, 5), ylim=(2.05, -0.15), title="N = 3 blocks, one step each: 2N - 1 forwards (vanilla), N forwards (fused)")
    axes.set_xticks([i + 0.5 for i in range(5)], [f"forward {i + 1}" for i in range(5)], fontsize=8)
    axes.set_yticks([0.45, 1.45], ["vanilla", "fused"])
    axes.tick_params(length=0)
    axes.title.set_fontsize(10)
    return figure


def _forward(axes: Axes, place: int, row: int, parts: list[tuple[str, str]]) -> None:
    width = 0.94 / len(parts)
    for number, (text, kind) in enumerate(parts):
        left = place + 0.03 + number * width
        axes.add_patch(Rectangle((left, row + 0.05), width, 0.8, facecolor=COLOURS[kind], edgecolor=COLOURS["ink"], linewidth=0.6))
        axes.text(left + width / 2, row + 0.45, text.replace(" ", "\n"), ha="center", va="center", fontsize=8)


def data_order() -> Figure:
    """The order of an epoch, as the code draws it: shards shuffled, then studies within a bounded buffer."""
    counts, buffer = [8, 8, 8, 8], 8
    figure, axes = plt.subplots(figsize=(7.2, 2.4))
    colours = ["#9ecae1", "#fdae6b", "#a1d99b", "#bcbddc"]
    for row, epoch in enumerate((0, 1)):
        order = shuffled_order(counts, seed=0, epoch=epoch, buffer=buffer)
        places = next(getattr(order, name) for name in ("places", "indices") if hasattr(order, name))
        for position, place in enumerate(places.tolist()):
            slot = int((torch.tensor(order.starts[1:].tolist()) <= place).sum())
            shard = order.shards[slot]
            axes.add_patch(Rectangle((position, row), 1, 0.8, facecolor=colours[shard], edgecolor="white"))
            axes.text(position + 0.5, row + 0.4, str(place - int(order.starts[slot])), ha="center", va="center", fontsize=7)
    axes.set(xlim=(0, sum(counts)), ylim=(2, -0.1), xlabel="position in the epoch (colour: shard; number: study in its shard)")
    axes.set_yticks([0.4, 1.4], ["epoch 0", "epoch 1"])
    axes.set_xticks([0, 8, 16, 24, 32])
    axes.set_title("Data order: 4 shards of 8 studies, shuffle buffer 8, seed 0", fontsize=10)
    return figure


FIGURES = {"rad-mask": rad_mask, "trajectory": trajectory, "fused-cache": fused_cache, "data-order": data_order}


def main() -> int:
    """Write every figure."""
    plt.switch_backend("Agg")
    plt.rcParams["svg.hashsalt"] = "echo_pl"  # the same bytes at every run
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        if "--png" in sys.argv:
            figure.savefig(FOLDER / f"{name}.png", bbox_inches="tight", dpi=110)
        plt.close(figure)
        print(f"wrote {FOLDER / name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
