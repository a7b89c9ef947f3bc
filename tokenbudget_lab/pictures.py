"""A chart as a value, and the pictures of it: made on this machine, without a browser and without a network.

Their readers may rely on three things: a picture refers to nothing outside itself, it can be read on light and on dark pages,
and what a user named is text in it, cut where it is long, and never markup.
"""

from __future__ import annotations

import base64
import struct
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from .errors import ExtraMissing, InvalidValue, money, redacted, told
from .render import COMMITTED, HELD, OVER, escaped

if TYPE_CHECKING:
    from types import ModuleType

WIDTH, HEIGHT = 560, 260
INK = "#7A7A7A"  # as far from white as from the dark pages of notebooks
FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
# Told apart by whoever does not see red or green, three to one against white and against black; the last is for the rest.
SERIES = (COMMITTED, HELD, "#009E73", "#C2649A", OVER, "#8064A2", "#4A8DB7", "#8A8A8A")
NONE = "(none)"
_FITS = 28  # characters of a label
_LINE = 88  # characters of a line under the title
_ENDINGS = (".svg", ".png", ".html")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>svg {{ max-width: 100%; height: auto; }}</style></head>
<body>{svg}</body></html>
"""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Chart:
    """What a function of `tbl.charts` gives. A notebook shows it.

    Attributes:
        altair: the chart of Altair, for whoever wants to change it.
        data: what is drawn, as a Polars frame, with money as `Decimal`.
        title: its first line.
        notes: what stands under it: sums, and what is estimated, unknown, left out.
    """

    altair: Any
    data: pl.DataFrame
    title: str
    notes: tuple[str, ...] = ()

    @property
    def svg(self) -> str:
        """The picture as SVG; transparent, and without references to anything outside."""
        drawing()
        import vl_convert

        # Of Vega-Lite it is the newest that vl-convert has: what Altair 6 writes is valid in all of version 6.
        version = vl_convert.get_vegalite_versions()[-1]
        drawn: str = vl_convert.vegalite_to_svg(self.altair.to_dict(), vl_version=version, allowed_base_urls=[])
        said = escape(". ".join((self.title, *self.notes)))
        return drawn.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)

    def png(self, scale: float = 2) -> bytes:
        """The picture as PNG, transparent.

        Args:
            scale: pixels of the picture for each of the screen: 2 is sharp on most, 4 in print.
        """
        return _png(self.svg, scale)

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file: the ending says whether it is SVG, PNG, or a page of HTML with the SVG in it.

        Raises:
            InvalidValue: the ending is none of `.svg`, `.png`, `.html`.
        """
        place = Path(path)
        ending = place.suffix.lower()
        if ending not in _ENDINGS:
            raise InvalidValue("path", f"{told(str(path))} ends with none of {', '.join(_ENDINGS)}")
        if ending == ".png":
            place.write_bytes(self.png())
        else:
            text = f"{self.svg}\n" if ending == ".svg" else _PAGE.format(title=escape(self.title), svg=self.svg)
            place.write_text(text, encoding="utf-8")
        return place

    def _repr_mimebundle_(self, **_wanted: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """SVG, PNG and text: an untrusted notebook takes the SVG out, and the PNG stays."""
        svg, scale = self.svg, 2
        png = _png(svg, scale)
        width, height = struct.unpack(">II", png[16:24])
        data = {
            "image/svg+xml": svg,
            "image/png": base64.b64encode(png).decode("ascii"),
            "text/plain": repr(self),
        }
        return data, {"image/png": {"width": width // scale, "height": height // scale}}

    def __repr__(self) -> str:
        return f"<chart: {'; '.join((self.title, *self.notes))}>"


def drawing() -> ModuleType:
    """Altair, once it is known that what makes pictures of its charts is there too.

    Raises:
        ExtraMissing: one of the two is not.
    """
    try:
        import altair as alt
        import vl_convert  # noqa: F401 - asked for here, used where a picture is made
    except ImportError as error:
        raise ExtraMissing("charts", "altair and vl-convert-python") from error
    return alt


def _png(svg: str, scale: float) -> bytes:
    import vl_convert

    made: bytes = vl_convert.svg_to_png(svg, scale=scale)
    return made


# --- text ----------------------------------------------------------------------------------------------------------------


def usd(amount: Decimal | float) -> str:
    """An amount in a chart: with `USD`, since notebooks typeset what stands between two dollar signs.

    Examples:
        >>> usd(Decimal("3.1")), usd(Decimal("-1200"))
        ('USD 3.10', '-USD 1,200.00')
    """
    return money(Decimal(str(amount))).replace("$", "USD ")


def short(text: str | None, fits: int = _FITS) -> str:
    r"""What a user named, as text that fits: nothing invisible in it, cut where it is long, `(none)` where it is null.

    Examples:
        >>> short(None), short("a\nb"), short("x" * 100, 8)
        ('(none)', 'a\\nb', 'xxxxxxx…')
    """
    if text is None:
        return NONE
    text = escaped(redacted(text[: 4 * fits]))  # what is cut away need not be looked at
    return text if len(text) <= fits else f"{text[: fits - 1]}…"


def counted(number: int, what: str = "call") -> str:
    """A number with its noun.

    Examples:
        >>> counted(1), counted(2000)
        ('1 call', '2,000 calls')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def doubts(sums: Mapping[str, Any]) -> list[str]:
    """What has to be said beside an amount of money: how much of it is not measured, and what is not in it."""
    parts = [f"{usd(sums[f'{basis}_usd'])} {basis}" for basis in ("estimated", "unknown") if sums.get(f"{basis}_usd")]
    said = [f"of it {' and '.join(parts)}"] if parts else []
    if sums.get("unpriced_calls"):
        said.append(f"{counted(sums['unpriced_calls'])} without a price, not in it")
    return said


# --- what every chart has in common -----------------------------------------------------------------------------------------


def chart(layers: Sequence[Any], data: pl.DataFrame, title: str, notes: Iterable[str], height: float = HEIGHT) -> Chart:
    """Layers of marks as one chart, in the colours that are read on light and dark pages."""
    alt = drawing()
    said = tuple(notes)
    heading = alt.TitleParams(text=title, subtitle=_lines(said), anchor="start", frame="group", offset=12)
    made = alt.layer(*layers).properties(width=WIDTH, height=height, title=heading, background="transparent")
    axis = {"labelColor": INK, "titleColor": INK, "tickColor": INK, "domainColor": INK, "gridColor": INK, "gridOpacity": 0.25}
    letters = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    styled = (
        made.configure_view(stroke=None)
        .configure_axis(**axis, **letters, labelLimit=300, labelFlush=False)
        .configure_legend(labelColor=INK, titleColor=INK, **letters, labelLimit=230, symbolSize=120, symbolOpacity=1)
        .configure_title(color=INK, subtitleColor=INK, font=FONT, subtitleFont=FONT, fontSize=14, subtitleFontSize=11)
        .configure_text(color=INK, font=FONT, fontSize=11)
        .configure_point(opacity=1)
    )
    return Chart(styled, data, title, said)


def _lines(notes: Sequence[str]) -> list[str]:
    """Notes in as few lines as hold them; none is broken unless it is longer than a line."""
    found: list[str] = []
    for note in notes:
        if found and len(found[-1]) + len(note) + 3 <= _LINE:
            found[-1] += f" · {note}"
        else:
            found += textwrap.wrap(note, _LINE)
    return found


def nothing(data: pl.DataFrame, title: str, what: str = "no calls", notes: Sequence[str] = ()) -> Chart:
    """A chart that says that there is nothing to draw."""
    alt = drawing()
    text = alt.Chart(rows([{"text": what}])).mark_text(fontSize=16).encode(text="text:N")
    return replace(chart([text], data, title, notes, height=HEIGHT / 3), notes=(what, *notes))


def rows(values: Sequence[Mapping[str, Any]]) -> Any:
    """Rows of a chart: they stand in it, and are all there is; Altair reads no frame, and so has no limit to refuse."""
    plain = [{name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()} for row in values]
    return drawing().Data(values=plain)
