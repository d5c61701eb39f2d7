"""The report's parts that need no script: functions from `Results` to HTML, None where there is nothing to say."""

import shlex
from collections.abc import Mapping

from slt_plugin.common.messages import listing
from slt_plugin.report.markup import Html, bar, facts, join, label, table, tag, value_of, whisker
from slt_plugin.report.page_data import Sentences
from slt_plugin.report.results_folder import Results
from slt_plugin.scoring.metrics import LOWER_IS_BETTER, METRICS

HEADLINE = ("bleu4", "chrf", "rouge_l", "wer")
SHORT = {"wer": "WER", "cer": "CER", "word_accuracy": "word accuracy"}
FEW = 20  # sentences of a group below which its scores say little
SHOWN_CONFUSIONS = 15
SHOWN_LANDMARKS = 12
UNKNOWN = "–"


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)


def short_name(metric: str) -> str:
    """For cards and narrow columns."""
    return SHORT.get(metric) or metric_name(metric).partition(" (")[0]


def score_cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else UNKNOWN


def interval_of(results: Results, metric: str) -> tuple[float, float] | None:
    found = results.part("intervals").get(metric)
    good = isinstance(found, (list, tuple)) and len(found) == 2 and all(isinstance(x, (int, float)) for x in found)
    return (float(found[0]), float(found[1])) if good else None


def lead(results: Results) -> Html:
    """What was evaluated, in two sentences."""
    metrics = results.metrics
    checkpoints = metrics.get("checkpoints") or []
    many = f"{'average' if metrics.get('averaged') else 'ensemble'} of " if len(checkpoints) > 1 else ""
    return tag(
        "p",
        f"{metrics.get('sentences', len(results.hypotheses))} sentences",
        f", {many}" if checkpoints else "",
        tag("code", listing(checkpoints, 4)) if checkpoints else None,
        f", {metrics['created']}" if metrics.get("created") else "",
        ".",
        class_="lead",
    )


def scores(results: Results) -> Html:
    """Cards for the metrics that people look for first, all of them with intervals and signatures below."""
    values = results.part("metrics")
    cards = []
    for metric in [name for name in HEADLINE if name in values] or list(values)[:4]:
        interval = interval_of(results, metric)
        lower = metric in LOWER_IS_BETTER
        cards.append(
            tag(
                "div",
                tag("div", short_name(metric), class_="name"),
                tag("div", f"{values[metric]:.2f}", class_="value"),
                tag("div", f"95 %: {interval[0]:.2f} to {interval[1]:.2f}", class_="range") if interval else None,
                whisker(values[metric], interval),
                tag("div", "lower is better", class_="better muted") if lower else None,
                class_="card",
            )
        )
    signatures = results.part("signatures")
    rows = []
    for metric, value in values.items():
        interval = interval_of(results, metric)
        shown = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else UNKNOWN
        name = join(
            [metric_name(metric), tag("span", " ↓", title="lower is better") if metric in LOWER_IS_BETTER else None]
        )
        rows.append([name, f"{value:.2f}", shown, tag("code", signatures.get(metric, UNKNOWN), class_="signature")])
    return join(
        [
            tag("div", cards, class_="cards"),
            tag(
                "div",
                tag("div", table(["metric", "score", "95 % interval", "signature"], rows), class_="scroll"),
                _notes(results),
                class_="panel",
            ),
        ]
    )


def _notes(results: Results) -> Html:
    metrics, notes = results.metrics, []
    if results.part("intervals"):
        notes.append("Intervals: bootstrap over the sentences of this test set; they say nothing about other seeds.")
    if metrics.get("lowercase"):
        notes.append("Scored with both sides lower-cased, which raises scores.")
    if results.truecased:
        notes.append(
            "Hypotheses were given capitals before scoring (truecase=true). "
            + (
                "Sentences, word differences and errors below are of them as scored; alternatives, words over time and "
                "hypotheses.jsonl have them as generated."
                if results.part("truecased")
                else "An earlier version did not keep them: sentences and errors below are of hypotheses as generated, "
                "and may look worse than these scores. Run slt-evaluate again."
            )
        )
    skipped = metrics.get("skipped") or []
    if skipped:
        notes.append(f"Not scored: {len(skipped)} of {metrics.get('rows')} rows ({listing(skipped)}).")
    if metrics.get("references"):
        notes.append(f"References: {metrics['references']}.")
    return tag("div", [tag("p", note) for note in notes], class_="muted small") if notes else Html("")


def faithfulness(results: Results) -> Html | None:
    """Whether the stretches shown for words hold."""
    evidence = results.evidence or {}
    found = results.metrics.get("faithfulness") or evidence.get("faithfulness")
    if not isinstance(found, Mapping) or not isinstance(found.get("share"), (int, float)):
        return None
    share, required = float(found["share"]), float(found.get("required", 0.7))
    passed = share >= required
    verdict = tag("span", "✓ passed" if passed else "✗ not passed", class_=f"verdict {'good' if passed else 'bad'}")
    caution = None if passed else tag("p", "Do not read the stretches of this model as explanations.", class_="note")
    return tag(
        "div",
        tag("h3", "Are the stretches of signing faithful?"),
        tag("p", tag("span", f"{100 * share:.0f} %", class_="big-share"), " ", verdict),
        bar(share, mark=required),
        tag(
            "p", f"{found.get('faithful')} of {found.get('words')} words; at least {100 * required:.0f} % are required."
        ),
        caution,
        tag("p", found.get("method") or evidence.get("method") or "", class_="muted small"),
        class_="panel",
    )


def masked_parts(results: Results) -> Html | None:
    """Scores with hands, face or body taken away."""
    found = {name: value for name, value in results.part("masked_parts").items() if isinstance(value, Mapping)}
    if len(found) < 2:
        return None
    whole = found.get("all", {})
    metrics = [name for name in HEADLINE if any(name in value for value in found.values())]
    metrics = metrics or list(next(iter(found.values())))[:4]
    first = metrics[0]
    rows = []
    for name, values in found.items():
        value = values.get(first)
        known = isinstance(value, (int, float))
        rows.append(
            [
                "everything" if name == "all" else label(name).replace("no ", "without "),
                *(score_cell(values.get(metric)) for metric in metrics),
                bar(value / max(whole.get(first) or 100.0, 1e-9)) if known else "",
            ]
        )
    head = ["landmarks", *(short_name(metric) for metric in metrics), f"{short_name(first)} left"]
    return tag(
        "div",
        tag("h3", "Scores without parts of the landmarks"),
        table(head, rows),
        tag(
            "p",
            "The model was trained with all of them: a large loss says that it uses a part, a small one that it can do "
            "without.",
            class_="muted small",
        ),
        class_="panel",
    )


def saliency(results: Results) -> Html | None:
    """Which landmarks matter, over all sentences that were looked at."""
    sums: dict[tuple[str, str], list[float]] = {}
    for sentence in (results.evidence or {}).get("sentences", []):
        found = sentence.get("saliency")
        if not found or not found.get("values"):
            continue
        steps = found["values"]
        for at, name in enumerate(zip(found["parts"], found["landmarks"], strict=True)):
            mean = sum(abs(step[at] or 0.0) for step in steps) / len(steps)
            sums.setdefault(name, []).append(mean)
    if not sums:
        return None
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    parts: dict[str, float] = {}
    for (part, _), mean in means.items():
        parts[part] = parts.get(part, 0.0) + mean
    whole = sum(parts.values()) or 1.0

    def rows(values: Mapping) -> list[list[object]]:
        most = max(values.values()) or 1.0
        ordered = sorted(values.items(), key=lambda item: -item[1])
        return [[name, f"{100 * value / whole:.1f}", bar(value / most)] for name, value in ordered]

    landmarks = {landmark_name(*name): value for name, value in means.items()}
    named = {label(part): value for part, value in parts.items()}
    count = max(map(len, sums.values()))
    return tag(
        "div",
        tag("h3", "Landmarks that the output depends on"),
        table(["part", "share in %", "most = full"], rows(named)),
        tag(
            "details",
            tag("summary", f"The {min(SHOWN_LANDMARKS, len(landmarks))} strongest landmarks"),
            table(["landmark", "share in %", "most = full"], rows(landmarks)[:SHOWN_LANDMARKS]),
        ),
        tag(
            "p",
            f"Saliency over {count} sentences (gradient times input of the output's log probability, absolute); open "
            "one of them for its course over time.",
            class_="muted small",
        ),
        class_="panel",
    )


def landmark_name(part: str, name: str) -> str:
    """As people read it: the part is said once."""
    return f"{label(part)} {label(name.removeprefix(f'{part}.'))}"


def breakdowns(results: Results) -> Html | None:
    """One table for each property that the test set was divided by."""
    groups: dict[str, list[Mapping]] = {}
    for group in results.metrics.get("breakdown") or []:
        groups.setdefault(str(group["by"]), []).append(group)
    if not groups:
        return None
    names = {"length": "words of the reference", "text_lang": "target language", "sign_lang": "sign language"}
    tables = []
    for by, members in groups.items():
        metrics = [name for name in HEADLINE if any(name in group["scores"] for group in members)]
        metrics = metrics or list(members[0]["scores"])[:4]
        head = [names.get(by, label(by)), "sentences", *(short_name(m) for m in metrics)]
        rows = [
            [str(group["value"]), f"{group['sentences']:,}", *(score_cell(group["scores"].get(m)) for m in metrics)]
            for group in members
        ]
        few = [at for at, group in enumerate(members) if group["sentences"] < FEW]
        note = tag("p", f"Grey: fewer than {FEW} sentences, which says little.", class_="muted small") if few else None
        title = tag("h3", f"By {names.get(by, label(by))}")
        tables.append(tag("div", title, tag("div", table(head, rows, few=few), class_="scroll"), note, class_="panel"))
    return tag("div", tables, class_="grid wide")


def confusions(sentences: Sentences) -> Html | None:
    """The most frequent word errors."""
    shown = sentences.confusions.most_common(SHOWN_CONFUSIONS)
    if not shown:
        return None
    nothing = tag("span", "nothing", class_="muted")
    rows = [
        [tag("bdi", theirs) if theirs else nothing, tag("bdi", ours) if ours else nothing, f"{count:,}"]
        for (theirs, ours), count in shown
    ]
    return tag(
        "div",
        tag("h3", "Most frequent word errors"),
        tag("div", table(["reference", "output", "times"], rows), class_="scroll"),
        class_="panel",
    )


def speed_and_model(results: Results) -> Html | None:
    """What the model is and costs."""
    panels = []
    model = results.part("model")
    if model:
        training = model.get("training")
        known = {
            "parameters": model.get("parameters"),
            "trained of them": model.get("trainable"),
            "checkpoint file, MB": model.get("checkpoint_mb"),
            "weights, MB": model.get("weights_mb"),
            "GFLOPs a second of signing": model.get("gflops_per_second_of_signing"),
        }
        if isinstance(training, Mapping):
            known |= {f"training: {label(name)}": value for name, value in training.items() if value is not None}
        known = {name: value for name, value in known.items() if name != "weights, MB" or value is not None}
        notes = [tag("p", note, class_="muted small") for note in model.get("notes") or []]
        panels.append(tag("div", tag("h3", "Model"), facts(known), notes, class_="panel"))
    speed = results.part("speed")
    if speed:
        units = {"seconds": "decoding, seconds", "peak_memory_mb": "peak memory, MB"}
        named = {units.get(name, label(name)): value for name, value in speed.items()}
        panels.append(tag("div", tag("h3", "Speed of decoding"), facts(named), class_="panel"))
    return tag("div", panels, class_="grid wide") if panels else None


def dataset(results: Results) -> Html | None:
    found = results.part("dataset")
    if not found:
        return None
    where = results.metrics.get("manifest")
    return tag("div", facts(found), tag("p", tag("code", where), class_="small") if where else None, class_="panel")


def making(results: Results) -> Html | None:
    """Everything needed to make these numbers again."""
    metrics, parts = results.metrics, []
    command = metrics.get("command")
    if isinstance(command, list):
        text = shlex.join(map(str, command))
        parts.append(join([tag("h3", "Command"), _pre(text, "Command")]))
    general = {
        "checkpoints": metrics.get("checkpoints"),
        "target language": metrics.get("target_lang"),
        "seed": metrics.get("seed"),
        "results": str(results.folder),
    }
    parts.append(facts({name: value for name, value in general.items() if value is not None}))
    provenance = results.part("provenance")
    if provenance:
        content = facts({checkpoint: _origin(found) for checkpoint, found in provenance.items()})
        parts.append(tag("details", tag("summary", "Provenance of weights"), content, open=True))
    for name in ("generation", "versions"):
        found = results.part(name)
        if found:
            parts.append(tag("details", tag("summary", label(name).capitalize()), value_of(found)))
    config = metrics.get("config")
    if config:
        text = config if isinstance(config, str) else str(config)
        parts.append(tag("details", tag("summary", "Configuration"), _pre(text, "Configuration")))
    return tag("div", parts, class_="panel")


def _origin(found: object) -> object:
    """Of one checkpoint: what its weights were imported or started from."""
    if not isinstance(found, Mapping):
        return "nothing is recorded"
    known = {name: value for name, value in found.items() if value}
    return known or "trained from random weights, or nothing is recorded"


def _pre(text: str, name: str) -> Html:
    """Text as it is; focusable, because it scrolls."""
    return tag("pre", text, tabindex=0, role="region", aria_label=name)
