"""Tables as text, Markdown, LaTeX and HTML; each form escapes what has a meaning in it."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "†": r"\textdagger{}", "↓": r"$\downarrow$",
}  # fmt: skip
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 80rem; padding: 0 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0 }
caption { text-align: left; font-weight: bold; padding: .3rem 0 }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums }
thead tr, tbody + tbody { border-top: 1px solid; border-bottom: 1px solid }
li { overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Table:
    """Lines of cells.

    Attributes:
        header: one cell a column.
        groups: rows, in groups between which a line is drawn where the form has lines.
        numbers: columns that are set to the right.
    """

    title: str
    header: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    numbers: range

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [row for group in self.groups for row in group]


def as_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """For a terminal."""
    parts = [aligned([table.header, *table.rows], table.numbers) for table in tables]
    return "\n\n".join([*parts, "\n".join(notes)]) if notes else "\n\n".join(parts)


def as_markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """GitHub's dialect, columns of equal width."""
    parts = []
    for table in tables:
        cells = [[_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * (w - 1) + ":" if i in table.numbers else "-" * w for i, w in enumerate(widths)]
        lines = []
        for row in (cells[0], rule, *cells[1:]):
            padded = (c.rjust(w) if i in table.numbers else c.ljust(w) for i, (c, w) in enumerate(_pairs(row, widths)))
            lines.append("| " + " | ".join(padded) + " |")
        parts.append(f"**{_markdown(table.title)}**\n\n" + "\n".join(lines))
    if notes:
        parts.append("\n".join(f"- {_markdown(note)}" for note in notes))
    return "\n\n".join(parts)


def as_latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Floats of booktabs tables; the notes stand under the last one."""
    parts = [r"% needs \usepackage{booktabs}"]
    for number, table in enumerate(tables, start=1):
        columns = "".join("r" if i in table.numbers else "l" for i in range(len(table.header)))
        lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines.append(_latex_row(table.header))
        for group in filter(None, table.groups):
            lines += [r"\midrule", *map(_latex_row, group)]
        lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{latex(table.title)}}}"]
        if number == len(tables):
            lines += [rf"\par\footnotesize {latex(note)}" for note in notes]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(parts)


def as_html(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """A page of its own that loads nothing."""
    parts = []
    for table in tables:
        head = "".join(f"<th scope=col{_number(table, i)}>{html.escape(c)}</th>" for i, c in enumerate(table.header))
        bodies = "".join(
            f"<tbody>{''.join(_html_row(table, row) for row in group)}</tbody>" for group in filter(None, table.groups)
        )
        title = html.escape(table.title)
        parts.append(
            f'<div class=scroll tabindex=0 role=region aria-label="{title}"><table><caption>{title}</caption>'
            f"<thead><tr>{head}</tr></thead>{bodies}</table></div>"
        )
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(tables[0].title)}</title><style>{_STYLE}</style></head><body><main>"
        f"{''.join(parts)}<ul>{listed}</ul></main></body></html>"
    )


def as_csv(records: Sequence[Mapping[str, object]]) -> str:
    """One line a record, for programs: plain numbers, nothing where one is unknown.

    Args:
        records: of the same keys.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().removesuffix("\n")


def aligned(lines: Sequence[Sequence[str]], numbers: range) -> str:
    """Columns of equal width; those of ``numbers`` are set to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        cells = _pairs(line, widths)
        rows.append("  ".join(c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return "\n".join(rows)


def latex(text: str) -> str:
    """Text with every character escaped that LaTeX would take for a command."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex, cells)) + r" \\"


def _html_row(table: Table, row: Sequence[str]) -> str:
    first, *others = row
    cells = "".join(f"<td{_number(table, i)}>{html.escape(cell)}</td>" for i, cell in enumerate(others, start=1))
    return f"<tr><th scope=row>{html.escape(first)}</th>{cells}</tr>"


def _number(table: Table, column: int) -> str:
    return " class=number" if column in table.numbers else ""


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~#])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pairs(cells: Sequence[str], widths: Sequence[int]) -> zip:
    return zip(cells, widths, strict=True)
