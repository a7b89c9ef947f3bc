"""From a path to a ledger: this is where the core, a store, the keeper and the prices are brought together."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ledger as core
from .commands import AcceptClock, CopyFile
from .costs import Prices as AnyPrices
from .desk import Desk
from .errors import InvalidValue, LedgerBusy, LedgerDamaged
from .handles import Budget
from .ids import new_id
from .ledger import DEFAULT_TIMEOUT_S
from .pricing import Prices
from .progress import in_notebook
from .servers import is_url
from .store import Loss, Store
from .usage import Money

if TYPE_CHECKING:
    import polars as pl

    from .batching import Batch, BatchState
    from .exporting import Exported
    from .place import Place

RECOVERY_S = 20.0  # how long a recovery tries to get the file from keepers that are started again
_open: weakref.WeakSet[Ledger] = weakref.WeakSet()
_default_lock = threading.Lock()
_default: Ledger | None = None


class Ledger(core.Ledger):
    """A ledger with prices and frames: what `connect` gives.

    Args:
        store: where the events are kept, when it is made by hand; this process must be the only one that writes there.
        desk: what takes commands instead (a keeper's link).
        prices: what turns usage into money; genai-prices and the user's `prices.toml` where not given.
        timeout: seconds until a reservation ends by itself, where none is given per reserve.
        clock_ns: Unix nanoseconds, for the writer.
        ids: where ids come from.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        desk: Desk | None = None,
        prices: AnyPrices | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT_S,
        clock_ns: Callable[[], int] = time.time_ns,
        ids: Callable[[], str] = new_id,
    ) -> None:
        super().__init__(store=store, desk=desk, prices=prices or Prices.of_user(), timeout=timeout, clock_ns=clock_ns, ids=ids)
        if in_notebook():
            from .noticing import CellNotices

            self.notices = CellNotices()
        _open.add(self)

    def set_price(
        self,
        model: str,
        *,
        input_usd_per_mtok: Money,
        output_usd_per_mtok: Money,
        cache_read_usd_per_mtok: Money | None = None,
        cache_write_5m_usd_per_mtok: Money | None = None,
        cache_write_1h_usd_per_mtok: Money | None = None,
        batch_discount: Money | None = None,
    ) -> None:
        """Say the price of a model that the catalogue does not know, or pay another one; for this connection.

        Args:
            model: its name.
            input_usd_per_mtok, output_usd_per_mtok: USD per million tokens.
            cache_read_usd_per_mtok, cache_write_5m_usd_per_mtok, cache_write_1h_usd_per_mtok: as input where not given.
            batch_discount: the part that a batch saves; without it a batch has no price.
        """
        prices = self.prices
        if not isinstance(prices, Prices):
            raise InvalidValue("prices", "this ledger has a price list of its own; set the price there")
        prices.set_price(
            model,
            input_usd_per_mtok=input_usd_per_mtok,
            output_usd_per_mtok=output_usd_per_mtok,
            cache_read_usd_per_mtok=cache_read_usd_per_mtok,
            cache_write_5m_usd_per_mtok=cache_write_5m_usd_per_mtok,
            cache_write_1h_usd_per_mtok=cache_write_1h_usd_per_mtok,
            batch_discount=batch_discount,
        )

    def events(self) -> pl.LazyFrame:
        """Every event, in order, as a Polars LazyFrame; the columns are described in `tokenbudget_lab.frames`."""
        from .frames import events

        return events(self.desk)

    def calls(self) -> pl.LazyFrame:
        """One row per reservation or record, from hold to outcome; the columns are described in `tokenbudget_lab.frames`."""
        from .frames import calls

        return calls(self.desk)

    def reservations(self) -> pl.LazyFrame:
        """The open reservations and what they still hold; the columns are described in `tokenbudget_lab.frames`."""
        from .frames import reservations

        return reservations(self.desk)

    def balances(self) -> pl.LazyFrame:
        """What each budget and all below it have committed and hold; the columns are described in `tokenbudget_lab.frames`."""
        from .frames import balances

        return balances(self.desk)

    def sql(self, query: str, **parameters: Any) -> pl.DataFrame:
        """Ask in SQL: one SELECT over `events`, `calls`, `reservations`, `budgets` and `balances`.

        It runs in a sandbox of this process, never where the ledger is owned: it can neither change the ledger nor read
        anything else.

        Args:
            query: DuckDB's SQL; `$name` stands for a parameter.
            parameters: values by name.

        Raises:
            QueryRefused: not one SELECT, or it reaches outside.
        """
        from .sandbox import run

        return run(self.desk, query, parameters)

    def batches(self, *, ended: bool = False) -> list[BatchState]:
        """The batches that are not settled to the end, the oldest first; `ended`: the others too."""
        from .batching import batches

        return batches(self, ended=ended)

    def batch(self, name: str) -> Batch:
        """A batch by its id, the provider's or the ledger's, to settle it by hand.

        Raises:
            UnknownReservation: it is not in this ledger.
        """
        from .batching import batch

        return batch(self, name)

    def sync_batches(self, client: Any) -> Any:
        """Settle the batches whose results a provider has, wherever they were sent from; as often as you like.

        Args:
            client: of the provider's SDK; an instrumented one or not. With an async client, await what is returned.

        Returns:
            The batches that were open, as they are now: a list of `BatchState`.
        """
        return importlib.import_module(".instrumenting", __package__).sync_batches(self, client)

    def backup(self, path: str | os.PathLike[str]) -> Path:
        """Copy the ledger to a file of its own, while others go on using it.

        The copy is one whole file with everything that was acknowledged when it was taken; it opens like any ledger.

        Args:
            path: where the copy is to be; nothing may be there.

        Returns:
            The path, in full.

        Raises:
            InvalidValue: something is there, or the ledger is in memory.
            StoreFailed: there was no room, or the copy is not what it was taken from.
        """
        from .recovery import finish_backup

        target = Path(path).expanduser().absolute()
        if target.exists() or target.is_symlink():
            raise InvalidValue("path", f"{target} is there already, and a backup overwrites nothing")
        if not target.parent.is_dir():
            raise InvalidValue("path", f"the folder {target.parent} does not exist")
        copy, seq, head = self.ask(CopyFile(self.new_id()))
        return finish_backup(Path(copy), target, seq, head)

    def export(self, folder: str | os.PathLike[str], *, progress: bool | None = None) -> Exported:
        """Write the events to Parquet files, one folder per month, for DuckDB, Polars, Spark, and `tbl.read_export`.

        The next time only newer events are written, into new files. What is written is read back, and its chain of hashes must
        end with the ledger's head, before it counts; interrupted, the export is what it was.

        Args:
            folder: a new or an empty folder, or an export of this ledger.
            progress: a bar for long ones; by itself in a terminal or notebook.

        Raises:
            InvalidValue: the folder is a file, a link, has something else in it, or another ledger's export.
            ExportUnsound: what was read back is not what the ledger has, or what was there is not whole.
            LedgerUnavailable: another export is being written there.
            StoreFailed: there was no room.

        Examples:
            >>> import tempfile, tokenbudget_lab as tbl
            >>> with tempfile.TemporaryDirectory() as folder, tbl.connect(":memory:") as ledger:
            ...     receipt = ledger.budget("lab", usd=1).record(usd="0.25")
            ...     ledger.export(folder).rows, tbl.read_export(folder).calls().collect()["cost_usd"].sum()
            (3, Decimal('0.250000000000'))
        """
        from .exporting import export

        return export(self, folder, progress=progress)


def accept_clock(where: str | os.PathLike[str] | None = None) -> None:
    """Say that this machine's clock is right, where a ledger takes no writes because it was moved.

    Args:
        where: the ledger; the default one where not given.
    """
    with connect(where) as ledger:
        ledger.ask(AcceptClock(ledger.new_id()))


def recover(where: str | os.PathLike[str], *, accept_loss: bool = False) -> str:
    """Open a ledger that may be damaged, and say what is known of it; one that is sound stays open to those who use it.

    Args:
        where: its path.
        accept_loss: go on without what is lost: a copy of what was found is kept, and the loss becomes an event.

    Returns:
        What was found and done, in a sentence.

    Raises:
        LedgerDamaged: something is lost, and nobody accepted that.
        LedgerBusy: another process owns the file.
    """
    from .place import place_of

    place, alone = place_of(where), sys.platform == "win32"
    lost: Loss | None = None
    try:
        with connect(place.file, embedded=alone) as ledger:
            proof = ledger.verify()
    except LedgerDamaged:
        if not accept_loss:
            raise
        lost = _give_up(place)
        with connect(place.file, embedded=alone) as ledger:
            proof = ledger.verify()
    if lost is None:
        return f"nothing is lost; {proof}"
    gone = lost.acknowledged - lost.seq + 1
    return f"went on without events {lost.seq} to {lost.acknowledged} ({gone} lost; a copy is in {lost.copy}); {proof}"


def _give_up(place: Place) -> Loss | None:
    """Own a damaged ledger for as long as it takes to write down what is lost; `None` where somebody else has done that."""
    from . import link
    from .stores.duckdb import DuckDBStore

    deadline = time.monotonic() + RECOVERY_S
    while True:
        if sys.platform != "win32":
            link.stop(place)
        try:
            store = DuckDBStore(place, role="recovery", accept_loss=True)
        except LedgerBusy:  # its clients have started another keeper meanwhile
            if place.read_owner().get("role") != "keeper" or time.monotonic() > deadline:
                raise
            continue
        lost = store.loss
        core.Ledger(store=store).close()
        return lost


def connect(
    where: str | os.PathLike[str] | None = None,
    *,
    embedded: bool = False,
    timeout: float | timedelta = DEFAULT_TIMEOUT_S,
    prices: AnyPrices | None = None,
) -> Ledger:
    """Open a ledger; a file is made if it does not exist.

    Args:
        where: a path to a DuckDB file, a `postgresql://` URL, or `":memory:"`; the default ledger where not given.
        embedded: own the file in this process, without a keeper: a bit faster alone, and nobody else can use it meanwhile.
        timeout: seconds until a reservation ends by itself, where none is given per reserve; 1 s to 48 h.
        prices: what turns usage into money; genai-prices and the user's `prices.toml` where not given.

    Raises:
        LedgerBusy: another process owns the file.
        NotALedger: it is something else.
        KeeperUnreachable: the process that owns the file does not come up.
        LedgerMissing, ServerUnreachable, AccessDenied: of a database; there `tokenbudget init` makes a ledger.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     ledger.budget("lab", usd=20).balance.left_usd
        Decimal('20')
    """
    if where is None:
        where = default_path()
        if where != ":memory:" and not is_url(where) and not Path(where).expanduser().exists():
            # She is to know where her money is kept.
            print(f"tokenbudget: new default ledger {Path(where).expanduser()}", file=sys.stderr)  # noqa: T201 - as said
    if is_url(where):
        from .stores.postgres import PostgresStore

        return Ledger(store=PostgresStore(str(where)), prices=prices, timeout=timeout)
    if where == ":memory:":
        from .stores.memory import MemoryStore

        return Ledger(store=MemoryStore(), prices=prices, timeout=timeout)
    from .place import place_of

    place = place_of(where)
    if embedded:
        from .stores.duckdb import DuckDBStore

        return Ledger(store=DuckDBStore(place), prices=prices, timeout=timeout)
    from .link import Link

    return Ledger(desk=Link(place), prices=prices, timeout=timeout)


def default_path() -> str | Path:
    """The default ledger: `TOKENBUDGET_LEDGER`, else one file in the user's data folder, whatever the working folder.

    A relative `TOKENBUDGET_LEDGER` is refused: the cap would depend on where a notebook is started.
    """
    named = os.environ.get("TOKENBUDGET_LEDGER")
    if named:
        if named != ":memory:" and "://" not in named and not Path(named).expanduser().is_absolute():
            reason = f"{named!r} is relative, and a cap must not depend on the working folder; write it in full"
            raise InvalidValue("TOKENBUDGET_LEDGER", reason)
        return named
    import platformdirs

    folder = Path(platformdirs.user_data_dir("tokenbudget_lab", appauthor=False, ensure_exists=True))
    return folder / "ledger.duckdb"


def open_ledgers() -> list[Ledger]:
    """The ledgers that are open in this process."""
    return [ledger for ledger in list(_open) if not ledger.closed]


def default_ledger() -> Ledger:
    """The default ledger, opened once in this process."""
    global _default  # noqa: PLW0603 - one per process, by intent
    with _default_lock:
        if _default is None or _default.closed:
            _default = connect()
        return _default


def budget(name: str, **limits: Any) -> Budget:
    """Create or get a budget in the default ledger; takes what `Ledger.budget` takes.

    It is kept across cells, kernels and notebooks: running the cell again gets the same budget.

    Args:
        name: a path such as `prompt-study` or `lab/prompt-study`.
        limits: `usd=`, `tokens=`, `requests=`, `window=`, `limits=`, `tz=`, `alerts=`.
    """
    return default_ledger().budget(name, **limits)


def _close_all() -> None:
    """At exit: what was handed in is written, what failed unread is told."""
    for ledger in list(_open):
        try:
            ledger.close()
        except Exception as error:  # noqa: BLE001 - the interpreter is going down; say it and go on with the others
            print(f"tokenbudget: {ledger!r}: {error}", file=sys.stderr)  # noqa: T201 - nobody is left to catch it


atexit.register(_close_all)
