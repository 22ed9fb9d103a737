"""An evaluation as one HTML file: pictures and styles are inside, and nothing is fetched.

It can be mailed, printed and opened from a disk years later. It has no script, so that it is safe
to open whatever the names of the classes and files are; every text is escaped.
"""

import base64
import dataclasses
import struct
from collections.abc import Mapping, Sequence
from html import escape

from vitlab.errors import InputError
from vitlab.evaluation import glossary

# Of the metrics, the first of these that there is stands large at the head of its section.
_HEADLINES = (
    "accuracy",
    "PQ",
    "AP",
    "mIoU",
    "knn_accuracy",
    "linear_accuracy",
    "logistic_accuracy",
    "loss",
)
_SHARPNESS = 1.75  # Pixels of a picture for each of the page, so that it is sharp on fine screens.


@dataclasses.dataclass(frozen=True)
class Section:
    """What one evaluator found.

    Attributes:
        name: of the evaluator.
        kind: of the evaluator, by which the glossary knows names.
        facts: what was evaluated and how, in words, by what they are.
        metrics: by their names, without the evaluator's.
        pictures: bytes of PNG files by their names without `.png`.
        files: names of the other files beside them.
        classes: metrics of each class, by the metric and the class; None where it has none.
    """

    name: str
    kind: str
    facts: Mapping[str, str]
    metrics: Mapping[str, float]
    pictures: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    files: Sequence[str] = ()
    classes: Mapping[str, Mapping[str, float | None]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        title: the run's name.
        subtitle: a line below it.
        facts: about the run and the evaluation, in words, by what they are.
        sections: one for each evaluator.
        details: long texts by their titles, folded at the end.
    """

    title: str
    subtitle: str
    facts: Mapping[str, str]
    sections: Sequence[Section]
    details: Mapping[str, str]


def html_report(report: Report) -> str:
    """The page: UTF-8 text of one whole HTML document.

    Raises:
        InputError: a picture is no PNG.
    """
    sections = [_section(number, each) for number, each in enumerate(report.sections)]
    several = len(sections) > 1
    details = (
        f"<details>\n<summary>{escape(title)}</summary>\n"
        f'<pre tabindex="0">{escape(text)}</pre>\n</details>'
        for title, text in report.details.items()
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # The page asks for nothing; this makes it certain.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{escape(report.title)}: evaluation</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            "<header>",
            f"<h1>{escape(report.title)}</h1>",
            f"<p>{escape(report.subtitle)}</p>",
            "</header>",
            *([_contents(report.sections)] if several else []),
            "<main>",
            *([_overview(report.sections)] if several else []),
            *sections,
            '<section aria-labelledby="run">',
            '<h2 id="run">The run</h2>',
            _facts(report.facts),
            *details,
            "</section>",
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def shown(value: float) -> str:
    """A metric in four decimals, or in three digits where these would hide it."""
    return f"{value:.4f}" if not value or abs(value) >= 0.0005 else f"{value:.3g}"


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(
        f'<li><a href="#s{number}">{escape(each.name)}</a></li>'
        for number, each in enumerate(sections)
    )
    return f'<nav aria-label="Evaluators"><ul>{links}</ul></nav>'


def _overview(sections: Sequence[Section]) -> str:
    """All metrics of all evaluators in one table, to compare them."""
    names = list(dict.fromkeys(name for each in sections for name in each.metrics))
    heads = "".join(f'<th scope="col">{escape(each.name)}</th>' for each in sections)
    rows = (
        f'<tr><th scope="row"><code>{escape(name)}</code></th>'
        + "".join(f"<td>{_value(each.metrics.get(name))}</td>" for each in sections)
        + "</tr>"
        for name in names
    )
    table = f'<tr><th scope="col">Metric</th>{heads}</tr>', rows
    return (
        '<section aria-labelledby="overview">\n<h2 id="overview">Overview</h2>\n'
        f"{_table('All evaluators', *table)}\n</section>"
    )


def _section(number: int, section: Section) -> str:
    entries = {name: glossary.metric(section.kind, name) for name in section.metrics}
    rows = (
        f'<tr><th scope="row">{escape(entry.title)} <code>{escape(name)}</code></th>'
        f"<td>{_value(section.metrics[name])}</td>"
        f'<td class="text">{escape(entry.text)}</td></tr>'
        for name, entry in entries.items()
    )
    head = (
        '<tr><th scope="col">Metric</th><th scope="col">Value</th>'
        '<th scope="col" class="text">What it says</th></tr>'
    )
    parts = [
        f'<section aria-labelledby="s{number}">',
        f'<h2 id="s{number}">{escape(section.name)}</h2>',
        _headline(section),
        _facts(section.facts),
        _table(f"Metrics of {section.name}", head, rows),
        '<div class="pictures">',
        *(
            _figure(glossary.picture(section.kind, stem), section.pictures[stem], stem)
            for stem in sorted(section.pictures, key=glossary.place)
        ),
        "</div>",
        _classes(section),
    ]
    for name in section.files:
        what = glossary.file(name)
        path = escape(f"{section.name}/{name}")
        parts.append(f"<p>Beside this page: <code>{path}</code>{what and ', '}{escape(what)}.</p>")
    return "\n".join([*filter(None, parts), "</section>"])


def _headline(section: Section) -> str:
    for name in _HEADLINES:
        if name in section.metrics:
            title = glossary.metric(section.kind, name).title
            return f'<p class="headline">{_value(section.metrics[name])} {escape(title)}</p>'
    return ""


def _classes(section: Section) -> str:
    """All metrics of all classes, folded, as there may be thousands."""
    if not section.classes:
        return ""
    heads = "".join(f'<th scope="col">{escape(metric)}</th>' for metric in section.classes)
    names = dict.fromkeys(name for values in section.classes.values() for name in values)
    of_each = {name: [each.get(name) for each in section.classes.values()] for name in names}
    rows = (
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{'' if value is None else shown(value)}</td>" for value in values)
        + "</tr>"
        for name, values in of_each.items()
    )
    table = _table(
        f"Classes of {section.name}", f'<tr><th scope="col">Class</th>{heads}</tr>', rows
    )
    return f"<details>\n<summary>Each class in numbers</summary>\n{table}\n</details>"


def _facts(facts: Mapping[str, str]) -> str:
    pairs = (
        f"<div><dt>{escape(what)}</dt><dd>{escape(text)}</dd></div>" for what, text in facts.items()
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _table(caption: str, head: str, rows) -> str:
    # A wide table scrolls within its own box, which the keyboard can reach.
    caption = escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table>'
        f"<caption>{caption}</caption><thead>{head}</thead><tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _value(value: float | None) -> str:
    """Rounded for people; every digit is in the attribute."""
    return "" if value is None else f'<data value="{value!r}">{shown(value)}</data>'


def _figure(entry: glossary.Entry, png: bytes, stem: str) -> str:
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        raise InputError(f"the picture {stem!r} is no PNG")
    width, height = (round(side / _SHARPNESS) for side in struct.unpack(">II", png[16:24]))
    data = base64.b64encode(png).decode()
    return (
        f'<figure style="width:{width}px">\n<img src="data:image/png;base64,{data}" '
        f'alt="{escape(entry.title)}" width="{width}" height="{height}">\n'
        f"<figcaption><b>{escape(entry.title)}.</b> {escape(entry.text)}</figcaption></figure>"
    )


_STYLE = """
:root { --ink: #1d2129; --faint: #5c6470; --line: #d9dde3; --paper: #fff; --card: #f5f7f9;
  --accent: #0a5ea8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --faint: #a2abb8; --line: #3a414c;
  --paper: #14171c; --card: #1d2229; --accent: #7fbcf5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 66rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, p, dd, summary { overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
header p { margin: 0.2rem 0 0; color: var(--faint); }
h2 { margin: 0 0 0.6rem; font-size: 1.35rem; line-height: 1.25; }
section { margin-top: 2rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 1rem 0 0; padding: 0;
  list-style: none; }
a { color: var(--accent); }
.headline { margin: 0 0 0.8rem; color: var(--faint); }
.headline data { margin-right: 0.4rem; color: var(--accent); font-size: 2.4rem; font-weight: 650;
  line-height: 1.1; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
  gap: 0.7rem 1.5rem; margin: 0 0 1.3rem; }
dt { color: var(--faint); font-size: 0.85rem; }
dd { margin: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 0.4rem 0.8rem; text-align: right; vertical-align: baseline; }
th:first-child, .text { text-align: left; }
thead { background: var(--card); }
thead th { color: var(--faint); font-size: 0.85rem; font-weight: 600; }
tbody th { min-width: 9rem; font-weight: 500; }
tbody tr { border-top: 1px solid var(--line); }
td.text { min-width: 15rem; color: var(--faint); font-size: 0.9rem; }
code { color: var(--faint); font-size: 0.85em; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.6rem 1.2rem; align-items: flex-start;
  margin: 1.3rem 0; }
figure { min-width: min(20rem, 100%); max-width: 100%; margin: 0; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line);
  border-radius: 6px; background: #fff; }
figcaption { margin-top: 0.4rem; color: var(--faint); font-size: 0.9rem; }
figcaption b { color: var(--ink); }
details { margin-top: 0.6rem; border: 1px solid var(--line); border-radius: 6px; }
summary { padding: 0.5rem 0.8rem; cursor: pointer; }
pre { margin: 0; padding: 0.8rem; overflow-x: auto; border-top: 1px solid var(--line);
  background: var(--card); font-size: 0.8rem; line-height: 1.4; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 36rem) { dl { gap: 0.35rem; }
  dl div { display: grid; grid-template-columns: 7.5rem 1fr; gap: 0.6rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  nav, details { display: none; } .scroll { overflow: visible; }
  figure, tr, dl div { break-inside: avoid; } h2, .headline { break-after: avoid; } }
"""
