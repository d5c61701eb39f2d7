"""The results of ``slt-demo`` as HTML. All text from files and models is escaped here."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from slt_plugin.cli.demo_service import Hypothesis, Medium, Result

if TYPE_CHECKING:
    from slt_plugin.report.evidence import WordEvidence

# Gradio's variables follow the visitor's light or dark mode
CSS = """
.slt { color: var(--body-text-color); font-size: var(--text-md); }
.slt h3 { font-size: var(--text-md); font-weight: 600; margin: 1.1em 0 .4em; }
.slt h3:first-child { margin-top: 0; }
.slt p { margin: .3em 0; }
.slt .quiet { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
.slt table.alternatives { border-collapse: collapse; width: 100%; border: 0; }
.slt .alternatives tr { border: 0; }
.slt .alternatives th, .slt .alternatives td { text-align: left; padding: .3em .6em; border: 0;
  border-bottom: 1px solid var(--border-color-primary); }
.slt th { font-weight: 600; color: var(--body-text-color-subdued); font-size: var(--text-sm); }
.slt td:first-child, .slt td:nth-child(2) { width: 1%; white-space: nowrap; font-variant-numeric: tabular-nums; }
.slt .frame { position: relative; overflow: hidden; max-width: 320px; border-radius: 6px; background: #000; }
.slt .frame img { display: block; width: 100%; }
.slt .box { position: absolute; border: 3px solid #ffb000; outline: 1px solid #000; box-sizing: border-box; }
.slt .scroll { overflow-x: auto; }
.slt .strip { min-width: 720px; }
.slt .pictures { display: flex; gap: 1px; }
.slt .pictures > * { flex: 1 1 0; min-width: 0; aspect-ratio: 1; object-fit: cover; display: block; }
.slt .pictures svg { background: var(--background-fill-secondary); }
.slt .lane { position: relative; height: 2em; margin-top: 3px; }
.slt .word { position: absolute; top: 0; bottom: 0; box-sizing: border-box; padding: 0 .35em; line-height: 1.9em;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; border-radius: 4px; font-size: var(--text-sm);
  border: 1px solid var(--color-accent); background: var(--color-accent-soft); color: var(--body-text-color); }
.slt .word:hover, .slt .word:focus { overflow: visible; width: auto !important; z-index: 2; outline: none;
  background: var(--background-fill-primary); box-shadow: 0 0 0 2px var(--color-accent); }
.slt .axis { position: relative; height: 1.5em; border-top: 1px solid var(--border-color-primary); margin-top: 4px; }
.slt .axis span { position: absolute; white-space: nowrap; transform: translateX(-50%); font-size: var(--text-xs);
  color: var(--body-text-color-subdued); }
.slt .axis span:first-child { transform: none; }
.slt .axis span:last-child { transform: translateX(-100%); }
#slt-file .download { display: none; } /* nothing is served back */
.slt progress { width: 100%; height: .6em; accent-color: var(--color-accent); }
.slt .error { border: 1px solid #c62828; border-left-width: 6px; border-radius: 4px; padding: .6em .8em;
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
"""
SKELETON = {"body": "#7a869a", "left_hand": "#e6682c", "right_hand": "#2f86eb", "face": "#8a9a5b"}


def error(message: str) -> str:
    return f'<div class="slt"><div class="error" role="alert">{escape(message)}</div></div>'


def status(done: float, doing: str) -> str:
    return (
        f'<div class="slt"><p role="status">{escape(doing)} …</p>'
        f'<progress max="1" value="{done:g}" aria-label="{escape(doing)}"></progress></div>'
    )


def medium(found: Medium) -> str:
    """What is known of the uploaded file."""
    facts = [found.path.name]
    if found.seconds is not None:
        facts.append(f"{found.seconds:.2f} s")
    elif found.frames is not None:
        facts.append(f"{found.frames} frames of unknown rate")
    elif found.steps is not None:
        facts.append(f"{found.steps} steps")
    if found.size is not None:
        facts.append(f"{found.size[0]} × {found.size[1]} pixels")
    if found.fps is not None:
        facts.append(f"{found.fps:g} frames/s")
    return f'<div class="slt"><p role="status">{escape(" · ".join(facts))}</p></div>'


def result(found: Result) -> str:
    """Alternatives, the frame with the signer's box, and the strip."""
    parts = [_alternatives(found.hypotheses)]
    if found.strip is not None or found.words is not None:
        parts.append(_strip(found))
    if found.note:
        parts.append(f'<p class="quiet">{escape(found.note)}</p>')
    if found.frame is not None:
        parts.append(_frame(found))
    return f'<div class="slt">{"".join(parts)}</div>'


def _alternatives(hypotheses: Sequence[Hypothesis]) -> str:
    rows = "".join(
        f"<tr><td>{rank}</td><td>{h.score:.3f}</td><td>{escape(h.text) or '<i>(empty)</i>'}</td></tr>"
        for rank, h in enumerate(hypotheses, 1)
    )
    return (
        "<h3>Alternatives</h3><table class='alternatives'><thead><tr><th></th><th>score</th><th>text</th></tr></thead>"
        f"<tbody>{rows}</tbody></table><p class='quiet'>Score: mean log probability of a token (0 is certain).</p>"
    )


def _frame(found: Result) -> str:
    x0, y0, x1, y1 = found.box
    place = f"left:{x0:.2%};top:{y0:.2%};width:{x1 - x0:.2%};height:{y1 - y0:.2%}"
    return (
        "<h3>Signer box</h3>"
        f'<div class="frame"><img src="{escape(found.frame)}" alt="the middle frame of the video">'
        f'<div class="box" style="{place}"></div></div>'
        f'<p class="quiet">{escape(found.box_source)}: {x0:.3f}, {y0:.3f}, {x1:.3f}, {y1:.3f}</p>'
    )


def _strip(found: Result) -> str:
    seconds = found.seconds
    parts = []
    if found.strip is not None:
        pictures = _frames(found.strip) if found.strip["kind"] == "frames" else _skeletons(found.strip)
        parts.append(f'<div class="pictures">{pictures}</div>')
    if found.words is not None and seconds:
        parts += [_lane(lane, seconds) for lane in _lanes(found.words)]
    if seconds:
        parts.append(_axis(seconds))
    legend = (
        '<p class="quiet">Each word stands under the stretch of signing that it rests on: hiding that stretch costs '
        "the word the most probability.</p>"
        if found.words
        else ""
    )
    return f'<h3>Strip</h3><div class="scroll"><div class="strip">{"".join(parts)}</div></div>{legend}'


def _frames(strip: dict) -> str:
    return "".join(
        f'<img src="{escape(image)}" alt="frame at {time:.2f} s" title="{time:.2f} s">'
        for time, image in zip(strip["times"], strip["images"], strict=True)
    )


def _skeletons(strip: dict) -> str:
    return "".join(
        f'<svg viewBox="0 0 1 1" role="img" aria-label="skeleton at {time:.2f} s"><title>{time:.2f} s</title>'
        f"{_skeleton(points, strip['edges'], strip['parts'])}</svg>"
        for time, points in zip(strip["times"], strip["points"], strict=True)
    )


def _skeleton(points: Sequence, edges: Sequence, parts: Sequence[str]) -> str:
    drawn = []
    for i, j in edges:
        if points[i] is not None and points[j] is not None:
            (x1, y1), (x2, y2) = points[i], points[j]
            colour = SKELETON.get(parts[j], SKELETON["body"])
            drawn.append(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{colour}" stroke-width=".025"/>')
    linked = {number for edge in edges for number in edge}
    for number, point in enumerate(points):
        if point is not None and number not in linked:
            colour = SKELETON.get(parts[number], SKELETON["body"])
            drawn.append(f'<circle cx="{point[0]:g}" cy="{point[1]:g}" r=".012" fill="{colour}"/>')
    return "".join(drawn)


def _lanes(words: "Sequence[WordEvidence]") -> "list[list[WordEvidence]]":
    """Words in their order, each on the first line where its stretch is free."""
    lanes: list[list[WordEvidence]] = []
    for word in words:
        free = next((lane for lane in lanes if all(word.start >= w.end or word.end <= w.start for w in lane)), None)
        if free is None:
            lanes.append(free := [])
        free.append(word)
    return lanes


def _lane(words: "Sequence[WordEvidence]", seconds: float) -> str:
    return f'<div class="lane">{"".join(_word(word, seconds) for word in words)}</div>'


def _word(word: "WordEvidence", seconds: float) -> str:
    left, width = word.start / seconds, (word.end - word.start) / seconds
    told = f"{word.word}: {word.start:.2f} to {word.end:.2f} s; hidden, it loses {word.drop:.2f} nats"
    return (
        f'<span class="word" tabindex="0" style="left:{left:.2%};width:{width:.2%}" title="{escape(told)}" '
        f'aria-label="{escape(told)}" data-start="{word.start:.3f}" data-end="{word.end:.3f}">'
        f"{escape(word.word)}</span>"
    )


def _axis(seconds: float) -> str:
    """About eight round times, the first and the last among them."""
    step = 10 ** math.floor(math.log10(seconds / 8))
    step = next(step * factor for factor in (1, 2, 5, 10) if seconds / (step * factor) <= 8)
    times = [i * step for i in range(math.ceil(seconds / step)) if seconds - i * step > step / 2 or i == 0]
    marks = "".join(f'<span style="left:{time / seconds:.2%}">{time:g}</span>' for time in times)
    return f'<div class="axis">{marks}<span style="left:100%">{seconds:.2f} s</span></div>'
