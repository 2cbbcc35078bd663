"""The findings and statistics of a data set as one HTML file."""

from collections.abc import Iterator, Sequence
from html import escape

from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.findings import KINDS, Finding
from mnv4_mm.version import __version__

MAX_FINDINGS = 1000  # listed of each kind
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: left }
tr { border-bottom: 1px solid #ddd } td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #3a7; height: .8em; display: inline-block } .fatal { color: #b00 } .dropped { color: #a50 }
summary { cursor: pointer } code { overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } tr { border-color: #444 } }
"""
BAR = 300  # length of the longest bar in pixels


def data_sheet(checked: CheckedData, allow_dropped: bool = False) -> str:
    """Return the findings and statistics of a data set as a self-contained HTML page.

    Text from the data set is escaped.

    Args:
        checked: The data set and the findings of its check.
        allow_dropped: Do not report it as an obstacle to training that more than 1 % of the images, boxes or masks are
            left out; see ``CheckedData.refusals``.
    """
    return '\n'.join(_lines(checked, checked.refusals(allow_dropped)))


def _lines(checked: CheckedData, refusals: Sequence[str]) -> Iterator[str]:
    name = escape(checked.root.resolve().name)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width">'
    yield f'<title>Data set {name}</title><style>{STYLE}</style></head><body>'
    yield f'<h1>Data set {name}</h1>'
    yield f'<p>{escape(checked.format)}, for {checked.task}; checked by mnv4_mm {escape(__version__)}.</p>'
    if refusals:
        yield '<h2 class="fatal">It cannot be trained on</h2><ul>'
        yield from (f'<li>{escape(reason)}</li>' for reason in refusals)
        yield '</ul>'
    if checked.notes:
        yield '<h2>Notes</h2><ul>'
        yield from (f'<li>{escape(note)}</li>' for note in checked.notes)
        yield '</ul>'
    yield '<h2>Counts</h2><table><tr><th></th><th>found</th><th>left out</th></tr>'
    for unit, count in checked.counts.items():
        yield f'<tr><td>{escape(unit)}</td>{_number(count.found)}{_number(count.dropped)}</tr>'
    yield '</table>'
    yield from _splits(checked)
    yield '<h2>Findings</h2>'
    if not checked.findings:
        yield '<p>None.</p>'
    for kind, findings in checked.grouped().items():
        yield from _findings(kind, findings)
    yield '</body></html>'


def _splits(checked: CheckedData) -> Iterator[str]:
    names = list(checked.splits)
    largest = max((count for split in checked.splits.values() for count in split.histogram.values()), default=0) or 1
    yield f'<h2>Classes</h2><table><tr><th>class</th>{"".join(f"<th>{escape(n)}</th><th></th>" for n in names)}</tr>'
    for label in checked.classes:
        cells = []
        for name in names:
            count = checked.splits[name].histogram.get(label, 0)
            cells.append(
                f'{_number(count)}<td><span class="bar" style="width: {BAR * count / largest:.0f}px"></span></td>'
            )
        yield f'<tr><td>{escape(label)}</td>{"".join(cells)}</tr>'
    yield '</table>'
    if any(split.box_sides for split in checked.splits.values()):
        yield '<h2>Sizes of boxes</h2><p>Square root of the area, in pixels of the original image.</p><table>'
        yield '<tr><th>class</th><th>split</th><th>smallest</th><th>quarter</th><th>half</th><th>three quarters</th>'
        yield '<th>largest</th></tr>'
        for label in checked.classes:
            for name in names:
                sides = checked.splits[name].box_sides.get(label)
                if sides:
                    points = [sides[round((len(sides) - 1) * share)] for share in (0, 0.25, 0.5, 0.75, 1)]
                    numbers = ''.join(_number(point) for point in points)
                    yield f'<tr><td>{escape(label)}</td><td>{escape(name)}</td>{numbers}</tr>'
        yield '</table>'
    yield '<h2>Images</h2><table><tr><th>split</th><th>images</th><th>without labels</th><th>sizes</th></tr>'
    for name, split in checked.splits.items():
        sizes = [f'{count} of {size}' for size, count in list(split.image_sizes.items())[:5]]
        more = f' and {len(split.image_sizes) - 5} other sizes' if len(split.image_sizes) > 5 else ''
        yield (
            f'<tr><td>{escape(name)}</td>{_number(split.images)}{_number(split.empty_images)}'
            f'<td>{escape(", ".join(sizes))}{more}</td></tr>'
        )
    yield '</table>'


def _findings(kind: str, findings: Sequence[Finding]) -> Iterator[str]:
    rule, remedy = KINDS[kind]
    yield (
        f'<details><summary><b class="{rule.value}">{rule.value}</b> {escape(kind)}, {len(findings)} times: '
        f'{escape(remedy)}</summary><ul>'
    )
    yield from (f'<li><code>{escape(str(finding))}</code></li>' for finding in findings[:MAX_FINDINGS])
    if len(findings) > MAX_FINDINGS:
        yield f'<li>and {len(findings) - MAX_FINDINGS} more</li>'
    yield '</ul></details>'


def _number(value: float) -> str:
    return f'<td class="number">{value:g}</td>' if isinstance(value, float) else f'<td class="number">{value}</td>'
