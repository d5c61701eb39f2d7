"""The report's plots, each an ``<svg>`` element (see svg.py); None where there is nothing to draw."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from slt_plugin.report.curves import Curve, Curves
from slt_plugin.report.svg import INK, LINE, MUTED, SERIES, new_figure, style, to_svg

WIDTH, HEIGHT = 4.5, 2.8  # inches; on a phone the picture shrinks, and its text with it
MOST_WORDS = 40  # lengths from here on share one bar
DASHES = ("-", "--", ":", "-.")  # curves differ by more than colour
MOST_POINTS = 600  # of one curve: more cannot be seen, and make the page heavy


def loss_plot(curves: Curves, name: str) -> str | None:
    """The training's and the validation's loss over updates."""
    train = {"training": curves.train["loss"]} if "loss" in curves.train else {}
    valid = {_subset(subset): values["loss"] for subset, values in curves.valid.items() if "loss" in values}
    if not train and not valid:
        return None
    with style():
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(title="Loss", xlabel="updates")
        lines = {**train, **valid}
        _draw_curves(axes, lines)
        low = min(min(curve.values) for curve in lines.values())
        high = np.percentile(np.concatenate([curve.values for curve in lines.values()]), 98)
        margin = 0.06 * max(high - low, 1e-6)
        axes.set_ylim(low - margin, high + margin)  # the first steps' heights would flatten all the rest
        return to_svg(figure, name, f"Loss over updates. {_told(lines)}")


def score_plot(curves: Curves, name: str) -> str | None:
    """BLEU and chrF of the validations over updates, the best BLEU marked."""
    lines = {
        f"{label}, {subset}" if len(curves.valid) > 1 else label: values[key]
        for subset, values in curves.valid.items()
        for key, label in (("bleu", "BLEU"), ("chrf", "chrF"))
        if key in values
    }
    if not lines:
        return None
    with style():
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(title="Validation scores", xlabel="updates")
        _draw_curves(axes, lines, marker="o")
        axes.set_ylim(0, 1.12 * max(1.0, *(max(curve.values) for curve in lines.values())))
        first = next(iter(lines.values()))
        best = int(np.argmax(first.values))
        axes.annotate(
            f"{first.values[best]:.1f}", (first.updates[best], first.values[best]),
            xytext=(0, -13), textcoords="offset points", ha="right", color=INK, fontsize=9.5, weight="bold",
        )  # fmt: skip
        return to_svg(figure, name, f"Validation scores over updates. {_told(lines)}")


def length_plot(references: Sequence[int], hypotheses: Sequence[int], name: str) -> str | None:
    """How many sentences have so many words: references beside hypotheses."""
    if not references:
        return None
    last = min(MOST_WORDS, max(max(references), max(hypotheses), 1))
    counts = [np.bincount(np.minimum(lengths, last), minlength=last + 1) for lengths in (references, hypotheses)]
    with style():
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(title="Words a sentence", xlabel="words", ylabel="sentences")
        places = np.arange(last + 1)
        axes.bar(places - 0.2, counts[0], 0.4, color=SERIES[0], label="reference")
        axes.bar(places + 0.2, counts[1], 0.4, facecolor="none", edgecolor=SERIES[1], hatch="/////", label="hypothesis")
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if last == MOST_WORDS:
            axes.set_xlabel(f"words ({last}: and more)")
        axes.legend()
        means = f"mean {np.mean(references):.1f} in references, {np.mean(hypotheses):.1f} in hypotheses"
        return to_svg(figure, name, f"Sentences by number of words; {means}")


def score_by_length_plot(lengths: Sequence[int], scores: Sequence[float], name: str) -> str | None:
    """Mean sentence score over the reference's words, with the middle half of the sentences."""
    if not lengths:
        return None
    clipped = np.minimum(lengths, MOST_WORDS)
    values = np.asarray(scores, dtype=float)
    places = np.unique(clipped)
    groups = [values[clipped == place] for place in places]
    low, high = (np.array([np.percentile(group, q) for group in groups]) for q in (25, 75))
    means = np.array([group.mean() for group in groups])
    with style():
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(title="Sentence chrF by length", xlabel="words of the reference", ylabel="chrF")
        axes.vlines(places, low, high, color=SERIES[0], alpha=0.35, linewidth=6, label="middle half of the sentences")
        axes.plot(places, means, "o", color=INK, markersize=4.5, label="mean")
        axes.set_ylim(-2, 104)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left")
        told = "; ".join(
            f"{place} words: {mean:.1f} ({len(group)} sentences)"
            for place, mean, group in zip(places, means, groups, strict=True)
        )
        return to_svg(figure, name, f"Mean sentence chrF by words of the reference. {told}")


def score_histogram(scores: Sequence[float], name: str) -> str | None:
    """How many sentences reach which chrF."""
    if not scores:
        return None
    with style():
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(title="Sentence chrF", xlabel="chrF", ylabel="sentences")
        counts, _, _ = axes.hist(scores, bins=20, range=(0, 100), color=SERIES[0], rwidth=0.9)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        told = f"{int(counts[-1])} of {len(scores)} reach 95 or more, {int(counts[:10].sum())} are below 50"
        return to_svg(figure, name, f"Sentences by chrF; {told}")


def error_plot(counts: Mapping[str, int], name: str) -> str | None:
    """Substituted, left out and added words."""
    if not sum(counts.values()):
        return None
    with style():
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(title="Word errors")
        labels = list(counts)
        bars = axes.barh(labels, list(counts.values()), height=0.55, color=list(SERIES[1 : 1 + len(labels)]))
        axes.bar_label(bars, color=INK, padding=4, fontsize=9.5)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.14)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.spines["left"].set_color(LINE)
        told = ", ".join(f"{count} {label}" for label, count in counts.items())
        return to_svg(figure, name, f"Word errors: {told}")


def _draw_curves(axes, lines: Mapping[str, Curve], marker: str = "") -> None:
    for number, (label, curve) in enumerate(lines.items()):
        step = max(1, -(-len(curve.updates) // MOST_POINTS))
        shown = slice(None, None, -step)  # from the end, so that the last value is there
        few = len(curve.updates) == 1 or (marker and len(curve.updates) <= 60)
        axes.plot(
            curve.updates[shown],
            curve.values[shown],
            DASHES[number % len(DASHES)],
            color=SERIES[number % len(SERIES)],
            marker="o" if few else "",
            markersize=4,
            label=label,
        )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(color=MUTED)
    axes.legend()


def _subset(name: str) -> str:
    return "validation" if name == "valid" else f"validation on {name}"


def _told(lines: Mapping[str, Curve]) -> str:
    return "; ".join(f"{label}: {c.values[0]:.4g} at first, {c.values[-1]:.4g} at last" for label, c in lines.items())
