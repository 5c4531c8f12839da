"""Charts as inline SVG: drawn from numbers, coloured by the page's own style sheet.

Every function returns a ``<figure>`` whose text is escaped. Styles are class names of
``template.html``: ``winner``, ``baseline``, ``reference``, ``search``, ``extra``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 42


@dataclass(frozen=True)
class Line:
    """A curve: its points by x; one whose y is ``None`` breaks it."""

    label: str
    points: Sequence[tuple[float, float | None]]
    style: str
    thin: bool = False


@dataclass(frozen=True)
class Dot:
    """One trial in a scatter: where, how it looks, what it says when pointed at."""

    x: float
    y: float
    style: str
    title: str


@dataclass
class _Axes:
    """Maps values to the drawing and collects its elements."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int = HEIGHT
    left: int = LEFT
    parts: list[Markup] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        bottom = self.height - BOTTOM
        return (
            round(self.left + across * (WIDTH - RIGHT - self.left), 1),
            round(bottom - min(1.0, max(0.0, up)) * (bottom - TOP), 1),
        )

    def add(self, svg: str, *values: object) -> None:
        self.parts.append(Markup(svg).format(*values))

    def grid(self, x_title: str, y_ticks: bool = True) -> None:
        bottom = self.height - BOTTOM
        for tick in ticks(*self.x, whole=x_title in ("epoch", "trial")):
            x, _ = self.at(tick, self.y[0])
            self.add('<text x="{}" y="{}" class="mid">{}</text>', x, bottom + 16, _tick(tick))
            self.add('<path d="M{} {}V{}" class="grid"/>', x, TOP, bottom)
        for tick in ticks(*self.y) if y_ticks else []:
            _, y = self.at(self.x[0], tick)
            self.add(
                '<text x="{}" y="{}" class="end">{}</text>', self.left - 6, y + 4, _tick(tick)
            )
            self.add('<path d="M{} {}H{}" class="grid"/>', self.left, y, WIDTH - RIGHT)
        middle = (self.left + WIDTH - RIGHT) / 2
        self.add('<text x="{}" y="{}" class="mid">{}</text>', middle, self.height - 8, x_title)

    def path(self, points: Iterable[tuple[float, float | None]], style: str) -> None:
        steps: list[str] = []
        pen = "M"
        for x, y in points:
            if y is None or not math.isfinite(y):
                pen = "M"
                continue
            px, py = self.at(x, y)
            steps.append(f"{pen}{px:g} {py:g}")
            pen = "L"
        self.add('<path d="{}" class="line {}"/>', "".join(steps), style)

    def figure(self, title: str, legend: Iterable[tuple[str, str]] = (), note: str = "") -> Markup:
        keys = Markup("").join(
            Markup('<span class="key {}"><i></i>{}</span>').format(style, label)
            for label, style in legend
        )
        return Markup(
            '<figure><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" '
            'aria-label="{}">{}</svg><div class="legend">{}</div>{}</figure>'
        ).format(
            title, WIDTH, self.height, title, Markup("").join(self.parts), keys,
            Markup('<p class="note">{}</p>').format(note) if note else "",
        )  # fmt: skip


def ticks(low: float, high: float, wanted: int = 5, *, whole: bool = False) -> list[float]:
    """Round values between ``low`` and ``high``, about ``wanted`` of them; ``whole``: integers."""
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    if whole:
        step = max(1, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def _range(values: Iterable[float | None], margin: float = 0.06) -> tuple[float, float]:
    finite = [v for v in values if v is not None and math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    pad = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def lines(title: str, curves: Sequence[Line], x_title: str, note: str = "") -> Markup:
    """Curves over a common axis; nothing where there is no point to draw."""
    points = [p for c in curves for p in c.points if p[1] is not None]
    if not points:
        return Markup("")
    axes = _Axes(_range((x for x, _ in points), 0.02), _range(y for _, y in points))
    axes.grid(x_title)
    for curve in sorted(curves, key=lambda c: c.style == "baseline"):  # dashed, so on top
        axes.path(curve.points, f"{curve.style} thin" if curve.thin else curve.style)
    legend = [(c.label, c.style) for c in curves if not c.thin]
    return axes.figure(title, legend, note)


def pairs(
    title: str,
    metric: str,
    sides: Sequence[tuple[str, str, Sequence[float]]],
    seeds: Sequence[int],
) -> Markup:
    """Values by seed of several objectives, one row each, those of one seed joined by a line.

    Args:
        title: What the figure says.
        metric: Name of the axis.
        sides: Label, style and one value a seed, for each objective.
        seeds: The seeds, in the order of the values.
    """
    height = 90 + 56 * len(sides)
    axes = _Axes(_range(v for s in sides for v in s[2]), (0, len(sides)), height, left=14)
    axes.grid(metric, y_ticks=False)
    rows = [len(sides) - 0.62 - i for i in range(len(sides))]
    for seed_values in zip(*(s[2] for s in sides), strict=True):
        axes.path(list(zip(seed_values, rows, strict=True)), "pair")
    for row, (label, style, values) in zip(rows, sides, strict=True):
        for seed, value in zip(seeds, values, strict=True):
            x, y = axes.at(value, row)
            axes.add(
                '<circle cx="{}" cy="{}" r="5" class="dot {}"><title>{}, seed {}: {:.4f}</title>'
                "</circle>", x, y, style, label, seed, value,
            )  # fmt: skip
        x, y = axes.at(sum(values) / len(values), row)
        axes.add('<path d="M{} {}v22" class="mean {}"/>', x, y - 11, style)
    legend = [(label, style) for label, style, _ in sides]
    return axes.figure(title, legend, f"A dot a seed ({len(seeds)}); the bar is the mean.")


def intervals(
    title: str, metric: str, rows: Sequence[tuple[str, str, float, float, float]], note: str
) -> Markup:
    """Differences with their intervals, one row each, zero marked.

    Args:
        title: What the figure says.
        metric: Name of the axis.
        rows: Label, style, difference, low end and high end of each.
        note: A line under the figure.
    """
    height = 70 + 44 * len(rows)
    across = _range([0.0, *(v for r in rows for v in r[2:])])
    axes = _Axes(across, (0, len(rows)), height, left=14)
    axes.grid(metric, y_ticks=False)
    x, _ = axes.at(0.0, 0.0)
    axes.add('<path d="M{} {}V{}" class="zero"/>', x, TOP, height - BOTTOM)
    for i, (label, style, mid, low, high) in enumerate(rows):
        y = axes.at(mid, len(rows) - 0.72 - i)[1]
        left, centre, right = (axes.at(v, 0)[0] for v in (low, mid, high))
        axes.add('<path d="M{} {}H{}" class="bar {}"/>', left, y, right, style)
        axes.add(
            '<circle cx="{}" cy="{}" r="5" class="dot {}"><title>{:+.4f}</title></circle>',
            centre, y, style, mid,
        )  # fmt: skip
        short = label if len(label) <= 66 else label[:65] + "…"
        axes.add('<text x="{}" y="{}">{}</text>', axes.left, y - 10, short)
    return axes.figure(title, note=note)


def scatter(
    title: str,
    dots: Sequence[Dot],
    best: Sequence[tuple[float, float]],
    legend: Sequence[tuple[str, str]],
    axis: tuple[str, str],
    lost: Sequence[Dot] = (),
) -> Markup:
    """Scores by trial, the best so far as a staircase, trials without a score along the floor.

    A few scores far below the others would flatten all the rest, so the axis leaves them at its
    edge.
    """
    scores = sorted(d.y for d in dots)
    if not scores:
        return Markup("")
    low, high = scores[len(scores) // 4], scores[(3 * len(scores)) // 4]
    reach = 3 * (high - low) or abs(high) or 1.0
    shown = [s for s in scores if low - reach <= s <= high + reach]
    numbers = [d.x for d in (*dots, *lost)]
    axes = _Axes(_range(numbers, 0.03), _range([*shown, *(y for _, y in best)]))
    axes.grid(axis[0])
    for dot in dots:
        axes.add(
            '<circle cx="{}" cy="{}" r="3.2" class="dot {}"><title>{}</title></circle>',
            *axes.at(dot.x, dot.y), dot.style, dot.title,
        )  # fmt: skip
    for dot in lost:
        x, y = axes.at(dot.x, axes.y[0])
        axes.add(
            '<path d="M{} {}l6 6m0-6l-6 6" class="cross {}"><title>{}</title></path>',
            x - 3, y - 3, dot.style, dot.title,
        )  # fmt: skip
    stairs: list[tuple[float, float | None]] = []
    for x, y in best:
        stairs += [(x, stairs[-1][1])] if stairs else []
        stairs.append((x, y))
    if stairs:
        axes.path([*stairs, (max(numbers), stairs[-1][1])], "best")
    return axes.figure(title, legend, axis[1])
