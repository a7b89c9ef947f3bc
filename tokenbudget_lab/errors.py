"""Every error of the package, in one hierarchy.

An error says what happened, what it means and what to do; its numbers are attributes. Each one passes all its arguments
on to `Exception`, so it pickles through a process pool and travels from the keeper to its clients.
"""

from __future__ import annotations

import re
import shlex
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from typing import Any

_EXACT = Context(prec=60)  # the caller's own may round to three digits
# Keys as providers print them, and passwords in URLs; what looks like one is neither stored nor shown.
_SECRETS = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-(?:[A-Za-z0-9]{10,}|(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,})"
    r"|Bearer\s+\S+|(?i:bearer)\s+(?=\S*\d)\S{8,}|A[KS]IA[0-9A-Z]{12,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}|xox[a-z]-[A-Za-z0-9-]{8,}"
    r"|AIza[0-9A-Za-z_-]{20,}|(?:hf|gsk|r8)_[A-Za-z0-9]{16,}|(?:xai|pplx)-[A-Za-z0-9]{16,}|nvapi-[A-Za-z0-9_-]{16,})"
    r"|(?<=://)[^\s/?#@:]*:[^\s/?#@]+(?=@)"
)


class TokenBudgetError(Exception):
    """The root: `except tbl.TokenBudgetError` catches whatever this package raises on purpose.

    An error's text is what `_text` says of its numbers, with all that a terminal could not show, or would act on, escaped, and
    what looks like a key redacted, where it may be the caller's words.
    """

    _quotes = True  # what the caller wrote

    def _text(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return shown(redacted(self._text()) if self._quotes else self._text())


# --- what the caller wrote ---------------------------------------------------------------------------------------------


class InvalidValue(TokenBudgetError, ValueError):
    """An argument that means nothing here; nothing was written.

    Attributes:
        argument: its name.
        reason: what is wrong with it and what would be right.
    """

    def __init__(self, argument: str, reason: str) -> None:
        argument, reason = redacted(argument), redacted(reason)
        super().__init__(argument, reason)
        self.argument, self.reason = argument, reason

    def _text(self) -> str:
        return f"{self.argument}: {self.reason}"


class InvalidType(InvalidValue, TypeError):
    """An argument of a type that cannot be read without guessing."""


class NotEntered(TokenBudgetError, RuntimeError):
    """A request was touched before it was asked: enter it, await it, or call its `_sync` twin."""


class NotCalled(TokenBudgetError):
    """A call that `gather` did not start, because another one had ended in a way after which none was to follow.

    Attributes:
        after: how that one had ended, as text.
    """

    def __init__(self, after: str) -> None:
        after = redacted(after)
        super().__init__(after)
        self.after = after

    def _text(self) -> str:
        return f"not called, and nothing was sent: no call was to follow one that ended with {self.after}"


class WouldDeadlock(TokenBudgetError, RuntimeError):
    """A blocking wait by the thread whose own reservations it would be waiting for."""


# --- what the ledger refuses ---------------------------------------------------------------------------------------------


class Refused(TokenBudgetError):
    """The ledger decided against a command; nothing of it was counted."""


class BudgetExceeded(Refused):
    """The reservation does not fit; nothing was held and nothing must be sent.

    Attributes:
        budget: whose limit it is (the budget itself or one of its ancestors).
        asked_by: the budget that was asked.
        resource: `usd`, `tokens` or `requests`.
        requested, left, limit, reserved: amounts of that resource; USD as `Decimal`.
        calls_in_flight: open reservations that count under that limit.
        resets: when the window ends, ISO 8601 in UTC; `None` without a window.
    """

    def __init__(
        self,
        budget: str,
        asked_by: str,
        resource: str,
        requested: Decimal | int,
        left: Decimal | int,
        limit: Decimal | int,
        reserved: Decimal | int = 0,
        calls_in_flight: int = 0,
        resets: str | None = None,
    ) -> None:
        super().__init__(budget, asked_by, resource, requested, left, limit, reserved, calls_in_flight, resets)
        self.budget, self.asked_by, self.resource = budget, asked_by, resource
        self.requested, self.left, self.limit, self.reserved = requested, left, limit, reserved
        self.calls_in_flight, self.resets = calls_in_flight, resets

    def _text(self) -> str:
        if self.resource == "usd":
            want, limit, held = (money(v) for v in (self.requested, self.limit, self.reserved))
            left = money(self.left, rounding=ROUND_FLOOR)
        else:
            unit = f" {self.resource}"
            want, left, limit, held = (
                f"{self.requested:,}{unit}",
                f"{self.left:,}",
                f"{self.limit:,}{unit}",
                f"{self.reserved:,}",
            )
        calls = f"{self.calls_in_flight} call{'s' if self.calls_in_flight != 1 else ''} in flight"
        text = f"{self.asked_by}: {want} requested, {left} of {limit} left"
        if self.budget != self.asked_by:
            text += f" in {self.budget}"
        if self.reserved:
            text += f" ({held} held by {calls})"
        if self.resets:
            text += f"; resets {self.resets}"
        return text + "; nothing was sent. Raise the limit with set_limit(...) or ask for less."


class UnknownBudget(Refused, LookupError):
    """No budget of that name.

    Attributes:
        budget: the name asked for.
        nearest: names that look like it.
    """

    def __init__(self, budget: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(budget, nearest)
        self.budget, self.nearest = budget, tuple(nearest)

    def _text(self) -> str:
        hint = f"; did you mean {', '.join(self.nearest)}?" if self.nearest else "."
        return f"no budget named {self.budget!r}{hint} Create it by giving it a limit: ledger.budget({self.budget!r}, usd=5)"


class BudgetLost(UnknownBudget):
    """A call came to be committed whose reservation and budget were both lost with a damaged file: nowhere to count it.

    Attributes:
        budget: the name of the budget that is gone.
        spent: what the call used, as text.
    """

    def __init__(self, budget: str, spent: str) -> None:
        super().__init__(budget, ())
        self.args = (budget, spent)
        self.spent = spent

    def _text(self) -> str:
        return (
            f"the budget {self.budget!r} was lost with the damaged file, and so was this call's reservation: {self.spent} "
            f"spent and not counted. Make the budget again, with its limits: ledger.budget({self.budget!r}, usd=…), then "
            "commit this call once more, or record(...) it there."
        )


class ParentMissing(UnknownBudget, ValueError):
    """A budget's parent must exist before it, because a charge counts in both."""

    def _text(self) -> str:
        return f"the parent budget {self.budget!r} does not exist; create it first: ledger.budget({self.budget!r}, usd=…)"


class BudgetDiffers(Refused):
    """The budget exists with other limits; running a cell again never changes a limit.

    Attributes:
        budget: its name.
        existing, given: the limits, as text.
    """

    def __init__(self, budget: str, existing: str, given: str) -> None:
        super().__init__(budget, existing, given)
        self.budget, self.existing, self.given = budget, existing, given

    def _text(self) -> str:
        return (
            f"{self.budget} exists with {self.existing}, not {self.given}; nothing was changed. "
            f"Get it without limits: ledger.budget({self.budget!r}); change it on purpose: .set_limit(...)"
        )


class BudgetClosed(Refused):
    """The budget or one of its ancestors was closed: no new reservation, no child, no limit.

    Attributes:
        budget: the one that is closed.
    """

    def __init__(self, budget: str) -> None:
        super().__init__(budget)
        self.budget = budget

    def _text(self) -> str:
        return f"{self.budget} is closed; its history stays, but it takes no new reservations. Use another budget."


class WindowFixed(Refused):
    """A budget's windows and time zone are fixed at creation, because past charges were counted in them.

    Attributes:
        budget: its name.
        existing: its windows and zone.
        given: what was asked for.
    """

    def __init__(self, budget: str, existing: str, given: str) -> None:
        super().__init__(budget, existing, given)
        self.budget, self.existing, self.given = budget, existing, given

    def _text(self) -> str:
        return (
            f"{self.budget} counts per {self.existing}, not {self.given}; that is fixed at creation. "
            "Make a budget of another name."
        )


class NoBudget(TokenBudgetError, LookupError):
    """An instrumented client was called where no budget is in force; nothing was sent."""

    def _text(self) -> str:
        return (
            "no budget is in force here, so nothing was sent. Give the client one, tbl.instrument(client, study), or call it "
            "inside `with study.use():`."
        )


class NotMetered(TokenBudgetError, NotImplementedError):
    """An instrumented client was asked for something that costs money in a way that is not known here; nothing was sent.

    Attributes:
        what: the request.
        why: what is not known of it.
    """

    def __init__(self, what: str, why: str = "what it costs is not known here") -> None:
        super().__init__(what, why)
        self.what, self.why = what, why

    def _text(self) -> str:
        return (
            f"{self.what}: {self.why}, so nothing was sent. Call it on the client that you instrumented from, and count what "
            "it cost: budget.record(usd=…)."
        )


class BatchUnread(TokenBudgetError):
    """The file of a batch's requests could not be read before the batch was sent; nothing was sent.

    Attributes:
        file: its id at the provider.
        reason: what was in the way.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def _text(self) -> str:
        return (
            f"the batch's input file {told(self.file)} could not be read ({self.reason}), so what the batch would cost is not "
            "known and it was not sent. Check input_file_id; where the provider was busy, try again."
        )


class AmountMissing(Refused, ValueError):
    """A resource that is limited on the way up was not given, and nothing unknown is counted as zero.

    Attributes:
        budget: whose limit asks for it.
        resource: which one.
    """

    def __init__(self, budget: str, resource: str) -> None:
        super().__init__(budget, resource)
        self.budget, self.resource = budget, resource

    def _text(self) -> str:
        return (
            f"{self.budget} limits {self.resource}, and no {self.resource} were given: pass {self.resource}=… "
            "(0 is allowed, when it is said), or model=… with input_tokens=… and max_output_tokens=…"
        )


class PriceUnknown(Refused, LookupError):
    """No price for the model, and a cost or a limit in USD that needs one.

    Attributes:
        model: its name.
        reason: what the catalogue said, where it said something.
        undone: what was refused because of it: nothing was `sent`, or `recorded`; empty where only a cost was asked for.
    """

    def __init__(self, model: str, reason: str = "", undone: str = "") -> None:
        super().__init__(model, reason, undone)
        self.model, self.reason, self.undone = model, reason, undone

    def _text(self) -> str:
        name, why = told(self.model), f" ({self.reason})" if self.reason else ""
        meant, else_ = (f" and nothing was {self.undone}", "pass usd=…") if self.undone else ("", "write it into prices.toml")
        return (
            f"no price for {name}{why}, so its cost in USD is unknown{meant}. "
            f"Say it: ledger.set_price({name}, input_usd_per_mtok=…, output_usd_per_mtok=…), or {else_}"
        )


class CountFailed(TokenBudgetError):
    """Tokens could not be counted in this way; nothing is guessed in its place.

    Attributes:
        method: how they were to be counted.
        reason: why not.
        index: which one of many, from 0; `None` where one was counted.
    """

    def __init__(self, method: str, reason: str, index: int | None = None) -> None:
        super().__init__(method, reason, index)
        self.method, self.reason, self.index = method, reason, index

    def _text(self) -> str:
        which = "" if self.index is None else f" of item {self.index:,}"
        return f"tokens{which} cannot be counted by {self.method}: {self.reason}"


class EncodingMissing(CountFailed):
    """An encoding's table is not on this machine, and a count downloads nothing.

    Attributes:
        method: the encoding.
        reason: where it was looked for.
    """

    def _text(self) -> str:
        return f"the table of {self.method} is not here ({self.reason}); `tokenbudget vendor-encodings` brings it"


class EndpointUnreachable(CountFailed):
    """The endpoint that counts cannot be reached, or does not answer in time; whoever asks next would wait as long.

    Attributes:
        method: how they were to be counted.
        reason: why not.
    """


class EncodingAltered(CountFailed):
    """An encoding's table is not the one that tiktoken's registry expects, and nothing is counted with it.

    Attributes:
        method: the encoding's table.
        reason: where it is, and which hash it has.
    """

    def _text(self) -> str:
        return f"the table of {self.method} is not OpenAI's ({self.reason}); remove it, then `tokenbudget vendor-encodings`"


class CallsUnpriced(PriceUnknown):
    """Calls without a cost count in a budget that limits USD, so nobody knows what is left of it.

    Attributes:
        budget: whose limit it is.
        calls: how many there are.
    """

    def __init__(self, budget: str, calls: int) -> None:
        super().__init__("")
        self.args = (budget, calls)
        self.budget, self.calls = budget, calls

    def _text(self) -> str:
        return (
            f"{self.budget} limits usd, and {self.calls} call{'' if self.calls == 1 else 's'} without a cost count in it, so "
            "nobody knows what is left, and nothing was sent. Say what each cost: "
            f"ledger.budget({self.budget!r}).adjust(call, usd=…); they are those without a cost_usd in ledger.calls()."
        )


class ReservationClosed(Refused):
    """The reservation has ended, in another way than this command asks for; nothing was written.

    Attributes:
        reservation: its id.
        state: how it ended: `committed`, `rolled_back`, `released` or `counted`.
        first: what was recorded, as text.
        given: what this command asked for, as text.
    """

    def __init__(self, reservation: str, state: str, first: str = "", given: str = "") -> None:
        super().__init__(reservation, state, first, given)
        self.reservation, self.state, self.first, self.given = reservation, state, first, given

    def _text(self) -> str:
        told = f" with {self.first}" if self.first else ""
        asked = f"; asked for {self.given}" if self.given else ""
        return (
            f"reservation {self.reservation} is {self.state}{told}{asked}. "
            "To correct an amount use adjust(...), for other spend record(...)."
        )


class UnknownReservation(Refused, LookupError):
    """No reservation of that id in this ledger.

    Attributes:
        reservation: the id.
    """

    def __init__(self, reservation: str) -> None:
        super().__init__(reservation)
        self.reservation = reservation

    def _text(self) -> str:
        return f"no reservation {self.reservation} in this ledger; it may belong to another one."


class NotAdjustable(Refused):
    """Only spend that was counted can be adjusted: committed, recorded, or counted as unknown.

    Attributes:
        target: the id.
        state: what it is instead.
    """

    def __init__(self, target: str, state: str) -> None:
        super().__init__(target, state)
        self.target, self.state = target, state

    def _text(self) -> str:
        return f"{self.target} is {self.state}; only committed, recorded or counted spend can be adjusted."


class IdConflict(Refused):
    """The same id or `key=` came with another content.

    Attributes:
        id: the id or key.
        detail: what differs.
    """

    def __init__(self, id: str, detail: str = "") -> None:
        super().__init__(id, detail)
        self.id, self.detail = id, detail

    def _text(self) -> str:
        return f"{self.id!r} was used before with another content ({self.detail}); use a new key for a new call."


# --- what stands in the way ------------------------------------------------------------------------------------------------


class LedgerUnavailable(TokenBudgetError):
    """The ledger cannot answer; nothing may be sent on a guess."""

    _quotes = False  # paths, and what the system said


class LedgerClosed(LedgerUnavailable):
    """This ledger object was closed; connect again."""

    def __init__(self, where: str = "") -> None:
        super().__init__(where)
        self.where = where

    def _text(self) -> str:
        return f"the ledger {self.where} is closed in this process; open it again with tbl.connect(...)".replace("  ", " ")


class LedgerForked(LedgerUnavailable):
    """A forked child uses its parent's ledger, which would corrupt it.

    Attributes:
        parent: pid of the process that opened it.
    """

    def __init__(self, parent: int) -> None:
        super().__init__(parent)
        self.parent = parent

    def _text(self) -> str:
        return f"this ledger was opened by process {self.parent}; a forked child opens its own: tbl.connect(...)"


class LedgerBusy(LedgerUnavailable):
    """Another process owns the file.

    Attributes:
        path: the file.
        pid, host: who holds it; `None` where it did not say.
        advice: what to do.
    """

    def __init__(self, path: str, pid: int | None = None, host: str | None = None, advice: str = "") -> None:
        super().__init__(path, pid, host, advice)
        self.path, self.pid, self.host, self.advice = path, pid, host, advice

    def _text(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        where = f" on {self.host}" if self.host else ""
        return f"{self.path} is held by {who}{where}. {self.advice}".rstrip()


class FileInUse(LedgerUnavailable):
    """Another program has opened the ledger's file with DuckDB, past its owner.

    Attributes:
        path: the file.
        pid: which process.
    """

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(path, pid)
        self.path, self.pid = path, pid

    def _text(self) -> str:
        return (
            f"{self.path} is open in process {self.pid}, which uses DuckDB on the file itself; nothing was changed. Close it "
            "there; queries belong to ledger.sql(...), or to a copy made by `tokenbudget backup`."
        )


class KeeperUnreachable(LedgerUnavailable):
    """No keeper answered in time.

    Attributes:
        path: the ledger's file.
        reason: what was tried and what happened.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def _text(self) -> str:
        return f"the keeper of {self.path} does not answer: {self.reason}. `tokenbudget keeper status {self.path}` tells more."


class VersionMismatch(LedgerUnavailable):
    """Client, keeper or file speak different versions.

    Attributes:
        what: `protocol` or `schema`.
        ours, theirs: the versions.
    """

    def __init__(self, what: str, ours: int, theirs: int) -> None:
        super().__init__(what, ours, theirs)
        self.what, self.ours, self.theirs = what, ours, theirs

    def _text(self) -> str:
        return (
            f"{self.what} version {self.theirs} found, this package speaks {self.ours}; "
            f"use the same version of tokenbudget_lab everywhere, then restart the kernels{self._update()}."
        )

    def _update(self) -> str:
        older = self.what == "schema" and 0 < self.theirs < self.ours
        return "; `tokenbudget init`, by whoever made a ledger on PostgreSQL, brings that up to date" if older else ""


class NotALedger(LedgerUnavailable):
    """The file is something else, or not readable as a ledger; it was not touched.

    Attributes:
        path: the file.
        reason: what was found.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def _text(self) -> str:
        return f"{self.path} is no ledger: {self.reason}. Nothing was made or changed; choose another path."


class LedgerMissing(LedgerUnavailable):
    """There is no ledger at an address; none was made, because a mistyped address must not be a fresh budget.

    Attributes:
        where: the address, without its password.
        reason: what is there instead.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def _text(self) -> str:
        make = f"tokenbudget init --ledger {shlex.quote(self.where)}"  # an address has `?` and `&`
        return f"there is no ledger at {self.where}: {self.reason}. `{make}` makes one."


class ServerUnreachable(LedgerUnavailable):
    """The database server does not answer.

    Attributes:
        where: the address, without its password.
        reason: what was tried and what happened.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def _text(self) -> str:
        return (
            f"the PostgreSQL server of {self.where} cannot be reached: {self.reason}. "
            "Check host, port and network, and whether it runs."
        )


class AccessDenied(LedgerUnavailable):
    """The database server does not let this user in, or not do this.

    Attributes:
        where: the address, without its password.
        reason: what the server said.
        advice: what to do.
    """

    def __init__(self, where: str, reason: str, advice: str) -> None:
        super().__init__(where, reason, advice)
        self.where, self.reason, self.advice = where, reason, advice

    def _text(self) -> str:
        return f"{self.where} refused: {self.reason}. {self.advice}."


class StoreFailed(LedgerUnavailable):
    """The store could not write; what this command asked for was not acknowledged and is not counted.

    Attributes:
        reason: what the store said.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def _text(self) -> str:
        return (
            f"the ledger could not be written ({self.reason}); nothing was acknowledged. "
            "Make room or repair the disk, then try again."
        )


class ServerLost(StoreFailed):
    """The database server did not answer in the midst of something, and not for long enough afterwards.

    What was asked for was not acknowledged; sent again with the same key or id, it is decided once.

    Attributes:
        where: the address, without its password.
        reason: what happened.
    """

    def __init__(self, where: str, reason: str) -> None:
        LedgerUnavailable.__init__(self, where, reason)
        self.where, self.reason = where, reason

    def _text(self) -> str:
        return f"{self.where} did not answer ({self.reason}); nothing was acknowledged. Try again when the server is there."


class LedgerCorrupt(LedgerUnavailable):
    """The events do not fit together.

    Attributes:
        seq: the first event that breaks the chain or the fold.
        reason: how.
    """

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(seq, reason)
        self.seq, self.reason = seq, reason

    def _text(self) -> str:
        return (
            f"event {self.seq} does not fit: {self.reason}. Nothing more is written; copy the file away before anything else."
        )


class LedgerDamaged(LedgerCorrupt):
    """Acknowledged events are missing from the file, or are not the ones that were: it is open for reading only.

    Attributes:
        seq: the first event that is missing or another.
        reason: what was found.
        where: the ledger.
        acknowledged: the last event that was acknowledged.
        copy: the folder with the file and its log as they were found.
    """

    def __init__(self, seq: int, reason: str, where: str, acknowledged: int, copy: str) -> None:
        LedgerUnavailable.__init__(self, seq, reason, where, acknowledged, copy)
        self.seq, self.reason, self.where, self.acknowledged, self.copy = seq, reason, where, acknowledged, copy

    def _text(self) -> str:
        return (
            f"{self.where} is damaged from event {self.seq} on ({self.reason}); events up to {self.acknowledged} were "
            f"acknowledged. It is open for reading only, and a copy of what was found is in {self.copy}. Put a good copy back "
            f"if you have one; `tokenbudget recover {self.where} --accept-loss` goes on without what is lost, and says so in "
            "the log."
        )


class ClockJumped(LedgerUnavailable):
    """The machine's clock was moved: nothing is written, because a clock that is ahead opens windows that are not due.

    Attributes:
        where: the ledger.
        seconds: by how much, against the time since the machine started or the last event; negative is back.
    """

    def __init__(self, where: str, seconds: float) -> None:
        super().__init__(where, seconds)
        self.where, self.seconds = where, seconds

    def _text(self) -> str:
        way = "ahead" if self.seconds > 0 else "back"
        return (
            f"the clock of this machine went {way} by {abs(self.seconds):,.0f} s, so {self.where} takes no writes. Put the "
            f"clock right; if it is right now, say so with `tokenbudget clock accept {self.where}`."
        )


class ExportUnsound(TokenBudgetError):
    """An export is not what it says, or what was written is not what was read back; of that nothing counts.

    Attributes:
        folder: where the export is.
        reason: what does not fit.
    """

    _quotes = False  # a path, and numbers

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def _text(self) -> str:
        return f"the export {self.folder} does not fit: {self.reason}. The ledger is as it was; export into another folder."


class QueryRefused(TokenBudgetError, ValueError):
    """`ledger.sql` takes one SELECT over the ledger's own tables, nothing else.

    Attributes:
        reason: what was refused.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def _text(self) -> str:
        return f"query refused: {self.reason}"


class ExtraMissing(TokenBudgetError, ImportError):
    """An optional part of the package that was not installed.

    Attributes:
        extra: its name, as pip takes it.
        packages: what it brings.
    """

    def __init__(self, extra: str, packages: str) -> None:
        super().__init__(extra, packages)
        self.extra, self.packages = extra, packages

    def _text(self) -> str:
        return f'{self.extra} need {self.packages}, which is not installed: pip install "tokenbudget_lab[{self.extra}]"'


def shown(text: str) -> str:
    r"""A text as it can be shown: control, zero-width and right-to-left marks as escapes.

    Examples:
        >>> print(shown("lab\u202egnp"), shown("étude"), shown("\x1b[31m"))
        lab\u202egnp étude \x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def redacted(text: str) -> str:
    """A text without what looks like an API key, a token, or a password in a URL.

    Examples:
        >>> redacted("leaked sk-abcdefghijkl to https://me:secret@host")
        'leaked [redacted] to https://[redacted]@host'
    """
    return _SECRETS.sub("[redacted]", text)


def told(value: object, most: int = 80) -> str:
    """A value in an error: its repr, but never a megabyte of it, and no key.

    Examples:
        >>> told("12"), told(10**5000)
        ("'12'", 'an integer of 16610 bits')
    """
    try:
        text = redacted(repr(value))
    except ValueError:  # Python writes no integer of thousands of digits
        return f"an integer of {int(value).bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def money(usd: Decimal | int | Any, *, rounding: str = ROUND_HALF_EVEN) -> str:
    """Write an amount the way people read it: two decimals, more where they matter.

    What is left is rounded down (`ROUND_FLOOR`), so that an amount that is shown is an amount that fits.

    Examples:
        >>> money(Decimal("0.3")), money(Decimal("1234.5")), money(Decimal("0.000042"))
        ('$0.30', '$1,234.50', '$0.000042')
        >>> money(Decimal("4.9997"), rounding=ROUND_FLOOR)
        '$4.99'
    """
    value = Decimal(usd)
    sign = "-" if value < 0 else ""
    value = value.copy_abs()  # abs() would round it to the caller's decimal context
    if value and value < Decimal("0.01"):
        return f"{sign}${value:f}".rstrip("0") if value >= Decimal("1e-12") else f"{sign}$0.00"
    cents = value.quantize(Decimal("0.01"), rounding=rounding, context=_EXACT)
    return f"{sign}${cents:,.2f}"
