"""`tbl.report(...)`: what was spent, as a page, a table for a paper, and files for programs.

All formats say the same figures, read once. What is shown may be rounded, cut and escaped; CSV, JSON and Parquet are exact.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from .errors import InvalidType, InvalidValue, told
from .figures import Figures, gather
from .report_data import as_json, csv, parquet
from .report_html import fragment, page
from .report_methods import methods
from .report_text import markdown, plain, tex
from .sources import By, Moment, Source, Where

_NOTEBOOK_ROWS = 25


class Report:
    """A report, in any format.

    Attributes:
        figures: what all formats say.
    """

    def __init__(self, figures: Figures) -> None:
        self.figures = figures

    @property
    def table(self) -> pl.DataFrame:
        """A row per group, see `tbl.spend`; every group, and amounts exact. The total is no row of it."""
        return self.figures.table

    @property
    def total(self) -> pl.DataFrame:
        """The sum of the whole, one row."""
        return self.figures.total

    @property
    def periods(self) -> pl.DataFrame:
        """A row per period that has calls."""
        return self.figures.periods

    @property
    def budgets(self) -> pl.DataFrame:
        """A row per budget and limit of its own: limit, committed, held and left, each in its `resource`."""
        return self.figures.budgets

    @property
    def methods(self) -> str:
        """A few sentences for a paper: calls, models, dates, cost, what of it is estimated or unknown, and whose prices."""
        return methods(self.figures)

    @property
    def html(self) -> str:
        """A page of its own that asks for nothing, under 200 kB."""
        return page(self.figures)

    @property
    def markdown(self) -> str:
        """Markdown with tables; 500 rows at most."""
        return markdown(self.figures)

    @property
    def tex(self) -> str:
        """A booktabs table for TeX; 40 rows at most."""
        return tex(self.figures)

    @property
    def csv(self) -> str:
        """The table; text that begins like a formula has an apostrophe in front."""
        return csv(self.figures)

    @property
    def json(self) -> str:
        """All of the report; amounts are strings of exact decimals."""
        return as_json(self.figures)

    @property
    def parquet(self) -> bytes:
        """The table with its types, as the bytes of a file."""
        return parquet(self.figures)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a file whose ending says the format; nobody sees half of it.

        Args:
            path: ends with `.html`, `.md`, `.csv`, `.json`, `.tex` or `.parquet`.
            force: whether a file that is there is replaced; a link is replaced, never followed.

        Returns:
            The path, in full.

        Raises:
            InvalidValue: another ending, a folder that is not there, a file that is, or one that cannot be written; then
                what was there before is there still.
        """
        target = writable(path, force=force)
        content = FORMATS[target.suffix.lower()](self)
        put(target, content.encode() if isinstance(content, str) else content, force=force)
        return target

    def __repr__(self) -> str:
        return plain(self.figures)

    def _repr_html_(self) -> str:
        return fragment(self.figures, most_rows=_NOTEBOOK_ROWS)


FORMATS: dict[str, Callable[[Report], str | bytes]] = {
    ".html": lambda report: report.html,
    ".md": lambda report: report.markdown,
    ".csv": lambda report: report.csv,
    ".json": lambda report: report.json,
    ".tex": lambda report: report.tex,
    ".parquet": lambda report: report.parquet,
}


def report(
    sources: Source | Any,
    by: By = "model",
    *,
    every: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
    title: str | None = None,
) -> Report:
    """What was spent, by any labels, for people, papers and programs.

    Args:
        sources: a ledger, a budget (with all below it), an export, a frame of `ledger.calls()`, or a list of these.
        by: columns of `ledger.calls()`, `ledger`, fields of the origin, tags, or expressions, see `tbl.spend`; 16 at most.
        every: a length of time, such as `1d`: then the table has a row per period too. The chart has periods in any case.
        since, until, month, tz: which time, see `tbl.spend`.
        where: which calls, see `tbl.spend`.
        title: says what it is about; made of `by` and `month` where not given.

    Raises:
        InvalidType, InvalidValue: a source, label, time or condition is none.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=5)
        ...     receipts = [lab.record(usd="0.5", tags={"arm": arm}) for arm in "aab"]
        ...     told = tbl.report(ledger, by="arm")
        >>> told.table.select("arm", "calls", "cost_usd").rows()
        [('a', 2, Decimal('1.000000000000')), ('b', 1, Decimal('0.500000000000'))]
    """
    return Report(
        gather(
            sources, by, every=every, since=since, until=until, month=month, tz=tz, where=where, title=title,
        )
    )  # fmt: skip


# --- files -------------------------------------------------------------------------------------------------------------------


def writable(path: str | Path, *, force: bool) -> Path:
    """The place of a file that is to be written, checked before there is work to lose.

    Raises:
        InvalidType: no path.
        InvalidValue: another ending than those of `FORMATS`, a folder that is not there, or a file that is.
    """
    if not isinstance(path, str | Path):
        raise InvalidType("path", f"{told(path)} is {type(path).__name__}, not a path")
    target = place(path)
    if target.suffix.lower() not in FORMATS:
        raise InvalidValue("path", f"{told(str(path))} ends with none of {', '.join(FORMATS)}, which say the format")
    try:
        if not target.parent.is_dir():
            raise InvalidValue("path", f"the folder {target.parent} does not exist")
        if target.is_dir():
            raise InvalidValue("path", f"{target} is a folder")
        if (target.exists() or target.is_symlink()) and not force:
            raise InvalidValue("path", f"{target} is there already; force replaces it")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise InvalidValue("path", f"{told(str(path))} cannot be written ({error.strerror})") from None
    return target


def place(path: str | Path) -> Path:
    """A path in full.

    Raises:
        InvalidValue: a NUL in it, or nobody has the home that `~` names.
    """
    if "\0" in os.fspath(path):
        raise InvalidValue("path", f"{told(path)} is no path")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise InvalidValue("path", f"{told(path)}: {error}") from None


def put(target: Path, content: bytes, *, force: bool) -> None:
    """Write beside it, then rename: interrupted anywhere, the old file or none is there, and nothing else.

    A name in its folder is claimed by making it, so that of two who may not overwrite one is told.
    """
    draft, claimed = target.with_name(f".tbl-{secrets.token_hex(8)}.tmp"), False
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not force:
            target.open("xb").close()
            claimed = True
        draft.replace(target)
    except FileExistsError:
        draft.unlink(missing_ok=True)
        raise InvalidValue("path", f"{target} is there already; force replaces it") from None
    except BaseException as error:
        if claimed and draft.exists():
            target.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InvalidValue("path", f"{target} could not be written ({error.strerror})") from error
        raise
