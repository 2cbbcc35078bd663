"""Rendering of a report: the self-contained ``index.html`` and the model card ``README.md``.

The template draws charts as SVG with text elements: they are sharp at any size, follow the reader's colour scheme, and
show class names in any script with the reader's fonts. An interactive plot library would add 4 MB of script to each
page, and the bitmaps of another library would have none of these advantages.
"""

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from mnv4_mm.engine.measured import NOT_MEASURABLE
from mnv4_mm.report.content import Points, Report
from mnv4_mm.runtime.draw import palette

WIDTH, HEIGHT = 480, 300  # of a chart, in units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 40  # margins around the axes of a chart
MAX_MATRIX = 20  # number of classes up to which the confusion matrix is shown
MAX_CURVES = 12  # number of classes up to which each has a precision-recall curve
MAX_POINTS = 400  # points of a curve; more would be indistinguishable in a chart
# Markdown's special characters -> HTML entities. `&`, `<` and `>` have already been escaped as HTML.
MARKDOWN = {ord(character): f'&#{ord(character)};' for character in '\\`*_[]|~$!'}


def write_page(report: Report, path: Path) -> None:
    """Write a report as a self-contained HTML page.

    Args:
        report: The report. Paths of its images are relative to the folder of ``path``.
        path: HTML file.
    """
    path.write_text(_render('page.html', report, path.parent), encoding='utf-8', errors='backslashreplace')


def write_card(report: Report, path: Path) -> None:
    """Write a report as a model card in Markdown, which links to the images of the report.

    Args:
        report: The report. Paths of its images are relative to the folder of ``path``.
        path: Markdown file.
    """
    path.write_text(_render('card.md', report, path.parent), encoding='utf-8', errors='backslashreplace')


def _render(template: str, report: Report, folder: Path) -> str:
    def data_uri(name: str) -> str:
        content = base64.b64encode((folder / name).read_bytes()).decode()
        return f'data:image/jpeg;base64,{content}'

    # All values are escaped, in the card too: viewers of Markdown render the HTML inside it.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('mnv4_mm.report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, percent=percent, data_uri=data_uri, markdown=escape_markdown)
    return environment.get_template(template).render(
        report=report,
        charts=_charts(report),
        confusion=_shaded(report) if len(report.confusion.names) <= MAX_MATRIX + 1 else None,
        unit='boxes' if report.task == 'detection' else 'pixels',
        score_names=list(report.classes[0].scores) if report.classes else [],
    )


def number(value: float | None, digits: int = 3) -> str:
    """Format a metric with this number of decimals; None becomes ``not measurable``."""
    return NOT_MEASURABLE if value is None else f'{value:.{digits}f}'


def percent(value: int, total: int) -> str:
    """Format the share of a total in per cent; ``-`` if the total is 0."""
    return f'{value / total:.1%}' if total else '-'


def escape_markdown(text: Any) -> Markup:
    """Escape HTML and special characters for a cell of a Markdown table. Line breaks become spaces."""
    escaped = str(jinja2.filters.escape(' '.join(str(text).split())))
    return Markup(escaped.translate(MARKDOWN))  # noqa: S704 (escaped above)


def _charts(report: Report) -> list[dict[str, Any]]:
    charts = []
    if any(report.losses.values()):
        charts.append(chart('Training loss', report.losses, 'step', bottom=0))
    if any(report.validation.values()):
        main = {name: points for name, points in report.validation.items() if points}
        charts.append(chart('Validation during training', main, report.unit, bottom=0, top=1))
    if report.precision_recall:
        curves = _mean_and_extremes(report) if len(report.precision_recall) > MAX_CURVES else report.precision_recall
        charts.append(chart('Precision by recall at IoU 0.5', curves, 'recall', bottom=0, top=1))
    return charts


def _mean_and_extremes(report: Report) -> dict[str, Points]:
    """Return the mean of all curves, and the curves of the three best and three worst classes by AP."""
    curves = report.precision_recall
    mean = [(points[0][0], sum(y for _, y in points) / len(curves)) for points in zip(*curves.values(), strict=True)]
    ranked = sorted(curves, key=lambda name: -sum(y for _, y in curves[name]))
    return {f'mean of {len(curves)} classes': mean, **{name: curves[name] for name in (*ranked[:3], *ranked[-3:])}}


def chart(
    title: str, series: Mapping[str, Points], x_label: str, bottom: float | None = None, top: float | None = None
) -> dict[str, Any]:
    """Compute the coordinates of a line chart.

    Args:
        title: Title of the chart.
        series: Points (x, y) of each line by name. Lines without points are left out; at least one line must have some.
        x_label: Label of the horizontal axis.
        bottom: Lower end of the vertical axis; the smallest value if None.
        top: Upper end of the vertical axis; the largest value if None.

    Returns:
        A dict with ``title``; ``x_label``; ``x_ticks`` and ``y_ticks`` as (position, text); and ``lines``, each with
        ``name``, ``colour``, ``points`` (text of an SVG polyline) and ``last`` (positions (x, y) of the points to mark:
        all if there are fewer than 30, otherwise none). Positions are in units of the SVG.
    """
    series = {name: points for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_axis = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(min(ys) if bottom is None else bottom, max(ys) if top is None else top, HEIGHT - BOTTOM, TOP)
    lines = []
    for (name, points), (red, green, blue) in zip(series.items(), palette(len(series)), strict=True):
        step = math.ceil(len(points) / MAX_POINTS)
        kept = points[::step] if points[-1] in points[::step] else [*points[::step], points[-1]]
        lines.append(
            dict(
                name=name,
                colour=f'rgb({red},{green},{blue})',
                points=' '.join(f'{x_axis(x):.1f},{y_axis(y):.1f}' for x, y in kept),
                last=[(round(x_axis(x), 1), round(y_axis(y), 1)) for x, y in kept] if len(kept) < 30 else [],
            )
        )
    return dict(
        title=title, x_label=x_label, x_ticks=x_axis.ticks(integer=max(xs) > 1), y_ticks=y_axis.ticks(), lines=lines
    )


class _Axis:
    """Linear map from values to positions on an axis of a chart."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = (low, high) if high > low else (low - 0.5, low + 0.5)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, integer: bool = False) -> list[tuple[float, str]]:
        values = map(float, MaxNLocator(nbins=5, integer=integer).tick_values(self.low, self.high))
        return [(round(self(value), 1), f'{value:g}') for value in values if self.low <= value <= self.high]


def _shaded(report: Report) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the rows of the confusion matrix as (class, cells); a cell is a count and its share of the row."""
    rows = []
    for name, counts in zip(report.confusion.names, report.confusion.counts, strict=True):
        total = sum(counts)
        rows.append((name, [(count, round(count / total, 3) if total else 0.0) for count in counts]))
    return rows
