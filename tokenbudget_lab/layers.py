"""What each chart is drawn of: marks over rows, for Altair. Each function takes a frame of `plotted` and gives its layers.

Times are drawn as a clock on the wall shows them, whatever the zone of the machine that draws: they are handed over as if they
were UTC, on scales of UTC. Names stand in the rows as short texts, never in a field's name or an expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import polars as pl

from .limits import zone
from .pictures import HEIGHT, INK, SERIES, WIDTH, counted, drawing, rows, short, usd
from .placing import places
from .plotted import QUANTILES
from .render import COMMITTED, OVER

TALL = 340  # pixels, of a chart with points
ROW = 34  # pixels of a label's row
_DIGIT = (11, 14)  # pixels that a series' number takes: wide, high
_TICKS, _MOST_TICKS = 8, 100_000  # drawn, and looked at
_DAY, _YEAR = 86_400_000, 366 * 86_400_000  # milliseconds
_MEDIAN = "#E69F00"  # on the blue of a box, and beyond it
_UNITS = {"usd": "USD", "s": "seconds", "tokens": "tokens"}
_LINES = ("left", "even pace")


def bars(data: pl.DataFrame, every: str, per: str, tz: str | None) -> list[Any]:
    """Spend per period, a series upon the other."""
    alt, local = drawing(), tz or "UTC"
    series = data.unique("series").sort("series")
    several = series.height > 1
    names = dict(zip(series["series"].to_list(), _numbered(series, several=several), strict=True))
    shown = data.filter(pl.col("cost_usd") > 0).with_columns(_wall("period", local), _wall("until", local))
    first, last = (_wall_of(data, name, local, most=most) for name, most in (("period", False), ("until", True)))
    top = float((data["below_usd"] + data["cost_usd"]).max() or 1) or 1.0  # type: ignore[arg-type] # of decimals
    drawn = []
    for row in shown.iter_rows(named=True):
        inset = (row["until"] - row["period"]) * 0.06
        wide, high = (row["until"] - row["period"]) / (last - first) * WIDTH, float(row["cost_usd"]) / top * HEIGHT
        drawn.append(
            {
                "series": names[row["series"]],
                "number": str(row["series"]) if several and wide >= _DIGIT[0] and high >= _DIGIT[1] else "",
                "from": row["period"] + inset,
                "to": row["until"] - inset,
                "middle": (row["period"] + row["until"]) / 2,
                "usd": row["cost_usd"],
                "low": row["below_usd"],
                "high": row["below_usd"] + row["cost_usd"],
            }
        )
    middle = (data.select((_wall("until", local) - _wall("period", local)).min()).item()) / (last - first) * WIDTH / 2
    time = {
        "scale": alt.Scale(type="utc", domain=[first, last], nice=False),
        "axis": _time_axis(last - first, local, hours=every[-1] in "smh", values=_ticks(data, every, local), tickOffset=middle),
    }
    ink = alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(names.values()), range=_inks(series)),
        legend=alt.Legend(title=None, symbolType="square") if several else None,
    )
    money = alt.Y("low:Q", title=f"USD per {per}", scale=alt.Scale(domain=[0, top], nice=True), axis=alt.Axis(tickCount=5))
    base = alt.Chart(rows(drawn))
    blocks = base.mark_bar().encode(
        x=alt.X("from:T", **time), x2="to:T", y=money, y2="high:Q", color=ink, tooltip=["series:N", "usd:Q", "from:T"]
    )
    numbers = base.transform_calculate(at="(datum.low + datum.high) / 2").mark_text(color="white", fontWeight="bold")
    return [blocks, numbers.encode(x=alt.X("middle:T", **time), y="at:Q", text="number:N")] if several else [blocks]


def _ticks(data: pl.DataFrame, every: str, local: str) -> list[int]:
    """Beginnings of periods, as far apart from each other as the eye expects."""
    begun = data.select(_wall("period", local)).to_series().unique().sort()
    length: Any = (data["until"] - data["period"]).min()
    first: Any = data["period"].min()
    last: Any = data["period"].max()
    if (last - first) / length < _MOST_TICKS:
        whole = pl.select(pl.datetime_range(pl.lit(first), pl.lit(last), every).alias("period"))
        begun = whole.select(_wall("period", local)).to_series()
    return begun.gather_every(-(-begun.len() // _TICKS)).to_list()


def _numbered(series: pl.DataFrame, *, several: bool) -> list[str]:
    """The labels of series as a legend has them: by their numbers no two are the same."""
    return [
        f"{row['series']} · {short(row['label'])}" if several else short(row["label"]) for row in series.iter_rows(named=True)
    ]


def _inks(series: pl.DataFrame) -> list[str]:
    numbers = series["series"].to_list()
    return [SERIES[min(number, len(SERIES)) - 1] for number in numbers]


def steps(frame: pl.DataFrame, limit: Decimal, end: datetime | None, tz: str | None) -> list[Any]:
    """What was left after each call, what was over the limit, and an even pace."""
    alt, local = drawing(), tz or "UTC"
    walls = frame.select(_wall("at", local), pl.col("left_usd").cast(pl.Float64).alias("left"))
    line = [{"at": at, "left": left, "over": min(left, 0.0), "line": _LINES[0]} for at, left in walls.rows()]
    first, last = walls["at"][0], max(walls["at"].max(), walls["at"][0] + 1)
    pace = []
    if end is not None:
        goal = pl.DataFrame({"end": [end]}).select(_wall("end", local)).item()
        last = max(last, goal)
        pace = [{"at": first, "left": float(limit), "line": _LINES[1]}, {"at": goal, "left": 0.0, "line": _LINES[1]}]
    time = alt.X(
        "at:T",
        scale=alt.Scale(type="utc", domain=[first, last], nice=False),
        axis=_time_axis(last - first, local, tickCount=_TICKS),
    )
    high, low = float(limit) or 1.0, min(row["over"] for row in line)
    ends = [low - (high - low) * 0.09 if low < 0 else 0.0, high]  # below what is over the limit there is room to say so
    money = alt.Y("left:Q", title="USD left", scale=alt.Scale(domain=ends, nice=True), axis=alt.Axis(tickCount=6))
    lines = [*_LINES] if pace else [_LINES[0]]
    ink = alt.Color(
        "line:N", scale=alt.Scale(domain=lines, range=[COMMITTED, INK]), legend=alt.Legend(title=None) if pace else None
    )
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=lines, range=[[1, 0], [6, 4]]))
    zero = alt.Chart(rows([{"left": 0}])).mark_rule(color=INK).encode(y=money)
    layers = [zero]
    if low < 0:
        area = alt.Chart(rows(line)).mark_area(interpolate="step-after", color=OVER, opacity=0.6)
        layers.append(area.encode(x=time, y=alt.Y("over:Q"), y2=alt.datum(0)))
        word = alt.Chart(rows([{"at": line[-1]["at"], "left": low, "text": "over the limit"}]))
        layers.append(
            word.mark_text(
                align="right" if line[-1]["at"] - first > (last - first) / 4 else "left",
                dy=12,
                dx=4,
                color=OVER,
                fontWeight="bold",
            ).encode(x=time, y=money, text="text:N")
        )
    if pace:
        layers.append(alt.Chart(rows(pace)).mark_line(strokeWidth=2).encode(x=time, y=money, color=ink, strokeDash=dash))
    end_ink = OVER if line[-1]["over"] < 0 else COMMITTED
    layers.append(alt.Chart(rows(line[-1:])).mark_circle(color=end_ink, size=70, opacity=1).encode(x=time, y=money))
    stairs = alt.Chart(rows(line)).mark_line(interpolate="step-after", strokeWidth=2.5)
    return [*layers, stairs.encode(x=time, y=money, color=ink, strokeDash=dash, tooltip=["at:T", "left:Q"])]


def points(data: pl.DataFrame, x: str, y: str, label: str | None) -> tuple[list[Any], int]:
    """Conditions as points with their names, and how many names had no room."""
    alt = drawing()
    xs, ys = (data[name].cast(pl.Float64).to_list() for name in (x, y))
    names = (
        [str(n) for n in range(1, data.height + 1)]
        if label is None
        else [short(_text(value)) for value in data[label].to_list()]
    )
    domains = [_around(values) for values in (xs, ys)]
    best = data["frontier"].to_list()
    order = sorted(range(len(xs)), key=lambda n: not best[n])  # those on the frontier have their names first
    pixels = [
        (
            (xs[n] - domains[0][0]) / (domains[0][1] - domains[0][0]) * WIDTH,
            (domains[1][1] - ys[n]) / (domains[1][1] - domains[1][0]) * TALL,
        )
        for n in order
    ]
    joined = sorted(pixel for pixel, n in zip(pixels, order, strict=True) if best[n])
    found = dict(zip(order, places(pixels, [names[n] for n in order], WIDTH, TALL, joined), strict=True))
    drawn = [{"x": xs[n], "y": ys[n], "name": names[n], "kind": "frontier" if best[n] else "beaten"} for n in order]
    across = alt.X(
        "x:Q", title=axis_title(x), scale=alt.Scale(domain=domains[0], nice=False, zero=False), axis=alt.Axis(tickCount=6)
    )
    up = alt.Y(
        "y:Q", title=axis_title(y), scale=alt.Scale(domain=domains[1], nice=False, zero=False), axis=alt.Axis(tickCount=6)
    )
    frontier = alt.Chart(rows([row for row in drawn if row["kind"] == "frontier"]))
    layers = [frontier.mark_line(color=COMMITTED, strokeDash=[5, 3], strokeWidth=1.5).encode(x=across, y=up, order="x:Q")]
    for kind, filled, ink, size in (("beaten", False, INK, 55), ("frontier", True, COMMITTED, 90)):
        some = alt.Chart(rows([row for row in drawn if row["kind"] == kind]))
        mark = some.mark_point(filled=filled, color=ink, size=size, shape="circle", strokeWidth=1.8)
        layers.append(mark.encode(x=across, y=up, tooltip=["name:N", "x:Q", "y:Q"]))
    for n, place in found.items():
        if place is not None:
            one = alt.Chart(rows([{"x": xs[n], "y": ys[n], "name": names[n]}]))
            mark = one.mark_text(dx=place.dx, dy=place.dy, align=place.align, fontWeight="bold" if best[n] else "normal")
            layers.append(mark.encode(x=across, y=up, text="name:N"))
    return layers, sum(place is None for place in found.values())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _around(values: Sequence[float]) -> list[float]:
    """A scale's ends, with room for points and names."""
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or abs(high) * 0.12 or 1.0
    return [low - room if low < 0 else max(0.0, low - room), high + room]


def strips(data: pl.DataFrame) -> list[Any]:
    """Quantiles of each label as a box: 5 to 95 % the line, 25 to 75 % the box, the median across it."""
    alt = drawing()
    drawn = [
        {**{name: row[name] for name in QUANTILES}, "name": name, "median": f"{row['median_s']:,.3g} s"}
        for row, name in zip(data.iter_rows(named=True), _rows_named(data), strict=True)
    ]
    most = max(row["p95_s"] for row in drawn) or 1.0
    base = alt.Chart(rows(drawn))
    names = alt.Y("name:N", sort=[row["name"] for row in drawn], title=None, axis=alt.Axis(ticks=False, domain=False))
    low = alt.X("p05_s:Q", title="seconds", scale=alt.Scale(domain=[0, most * 1.12], nice=False), axis=_plain_axis())
    tips = ["name:N", *(f"{name}:Q" for name in QUANTILES)]
    return [
        base.mark_rule(color=COMMITTED, strokeWidth=1.5).encode(y=names, x=low, x2="p95_s:Q"),
        base.mark_bar(color=COMMITTED, size=14, opacity=1).encode(y=names, x="p25_s:Q", x2="p75_s:Q", tooltip=tips),
        base.mark_tick(color=_MEDIAN, thickness=3, size=22, opacity=1).encode(y=names, x="median_s:Q"),
        base.mark_text(align="left", dx=8).encode(y=names, x="p95_s:Q", text="median:N"),
    ]


def bullets(data: pl.DataFrame) -> list[Any]:
    """What each label held as an outline, and what it used as a bar in it."""
    alt = drawing()
    drawn = []
    for row, name in zip(data.iter_rows(named=True), _rows_named(data), strict=True):
        share = f" ({row['used_usd'] / row['held_usd']:.0%})".replace("%", " %") if row["held_usd"] else ""
        text = f"{usd(row['used_usd'])} of {usd(row['held_usd'])}{share}"
        end = max(row["held_usd"], row["used_usd"])
        drawn.append({"name": name, "held": row["held_usd"], "used": row["used_usd"], "end": end, "text": text})
    most = float(max(row["end"] for row in drawn)) or 1.0
    base = alt.Chart(rows(drawn))
    names = alt.Y("name:N", sort=[row["name"] for row in drawn], title=None, axis=alt.Axis(ticks=False, domain=False))
    across = alt.Scale(domain=[0, most * 1.38], nice=False)  # the texts stand behind the bars
    held = base.mark_bar(size=20, filled=False, stroke=INK, strokeWidth=1.5)
    return [
        held.encode(
            y=names,
            x=alt.X("held:Q", title="USD held (outline) and used (filled)", scale=across, axis=_plain_axis()),
            tooltip=["name:N", "text:N"],
        ),
        base.mark_bar(size=11, color=COMMITTED).encode(y=names, x="used:Q"),
        base.mark_text(align="left", dx=6).encode(y=names, x="end:Q", text="text:N"),
    ]


def _rows_named(data: pl.DataFrame) -> list[str]:
    """The labels of rows, each with its calls; no two the same."""
    found: list[str] = []
    for label, calls in data.select("label", "calls").rows():
        name, n = f"{short(label)} ({counted(calls)})", 1
        while name in found:
            n += 1
            name = f"{short(label)} #{n} ({counted(calls)})"
        found.append(name)
    return found


# --- axes ----------------------------------------------------------------------------------------------------------------


def axis_title(name: str, *, unit: bool = True) -> str:
    """A column's name as an axis has it: its unit in words.

    Examples:
        >>> axis_title("cost_usd"), axis_title("score"), axis_title("latency_s", unit=False)
        ('cost (USD)', 'score', 'latency')
    """
    what, _, ending = name.rpartition("_")
    if not what or ending not in _UNITS:
        return short(name.replace("_", " "))
    return short(what.replace("_", " ")) + (f" ({_UNITS[ending]})" if unit else "")


def _plain_axis() -> Any:
    """For rows: their figures stand beside them, so lines across would only cross these out."""
    return drawing().Axis(tickCount=6, grid=False)


def _time_axis(span_ms: float, local: str, *, hours: bool = True, **more: Any) -> Any:
    """Hours within two days, where something has them; days within a year, months beyond."""
    form = "%-d %b %H:%M" if hours and span_ms <= 2 * _DAY else "%-d %b" if span_ms <= _YEAR else "%b %Y"
    return drawing().Axis(title=local, format=form, grid=False, labelOverlap=True, **more)


def _wall(name: str, local: str) -> pl.Expr:
    """An instant as milliseconds of the clock on the wall."""
    return pl.col(name).dt.convert_time_zone(zone(local).key).dt.replace_time_zone(None).dt.epoch("ms").alias(name)


def _wall_of(data: pl.DataFrame, name: str, local: str, *, most: bool) -> int:
    wall = data.select(_wall(name, local)).to_series()
    found: Any = wall.max() if most else wall.min()
    return int(found)
