"""The decisions: what each command does, exactly; the only place where a reservation is granted or refused.

A decision reads the fold, makes events or refuses, and each event is folded at once, so the next command of the same batch
sees it. Nothing here waits, reads a clock or touches a disk.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from heapq import heappop
from math import ceil
from typing import Any, Literal

from .accounts import Check, Node
from .commands import (
    AcceptClock,
    Adjust,
    Cancel,
    CloseBudget,
    Command,
    Commit,
    Extend,
    GetBalance,
    GetBudget,
    GetEntry,
    GetHead,
    ListBudgets,
    Lose,
    Record,
    Reserve,
    Rollback,
    Sent,
    SetBudget,
    SetLimit,
)
from .errors import (
    AmountMissing,
    BudgetClosed,
    BudgetDiffers,
    BudgetExceeded,
    BudgetLost,
    CallsUnpriced,
    IdConflict,
    InvalidValue,
    NotAdjustable,
    ParentMissing,
    PriceUnknown,
    ReservationClosed,
    UnknownBudget,
    UnknownReservation,
    WindowFixed,
)
from .events import SCHEMA_VERSION, Event, chained, from_detail, to_detail
from .ids import new_id, part_id
from .limits import Cap, decimal_or_int, describe, instant, path_of, window_bounds
from .state import COMMITTED, COUNTED, NOTHING, OPEN, RECORDED, ROLLED_BACK, Entry, First, State, Three, first_of
from .usage import usd_of

Answer = tuple[Any, ...]
# What each command that ends something is called on its event, and which others are remembered by their ids.
_ENDS: dict[type, str] = {Commit: "committed", Rollback: "rolled_back", Lose: "expired", CloseBudget: "closed"}
_KEEPS: dict[type, str] = {
    SetBudget: "budget_set",
    SetLimit: "budget_set",
    Extend: "extended",
    Sent: "sent",
    Adjust: "adjusted",
}
MINUTE_US = 60_000_000
PAGE = 10_000  # budgets and their limits in one answer to `ListBudgets`: a few megabytes


def amounts(three: Three) -> str:
    """USD, tokens and requests as text, for errors."""
    usd, tokens, requests = three
    parts = [f"${usd_of(usd)}"] if usd is not None else []
    parts += [f"{tokens} tokens"] if tokens is not None else []
    parts += [f"{requests} requests"] if requests is not None else []
    return ", ".join(parts) or "nothing"


class Decisions:
    """Decide commands one after another over one `State`.

    Args:
        state: the fold of all events so far.
        ids: where ids for the writer's own events come from.

    Attributes:
        events: what was decided and not yet taken to the store.
        freed: whether something happened since the last look that could let a waiter in.
    """

    def __init__(self, state: State, ids: Callable[[], str] = new_id) -> None:
        self.state, self.ids = state, ids
        state.forgets = False  # but at a batch's end: what was looked up for a command must be there when it is decided
        self.events: list[Event] = []
        self.freed = False
        self.refusals: dict[tuple[str, str, str], list[int]] = {}  # → [minute, how many were not written]
        self._decide: dict[type, Callable[[Any, int, str | None], Answer]] = {
            SetBudget: self._set_budget,
            SetLimit: self._set_limit,
            CloseBudget: self._close_budget,
            Reserve: self._reserve,
            Extend: self._extend,
            Sent: self._sent,
            Commit: self._commit,
            Rollback: self._rollback,
            Lose: self._lose,
            Record: self._record,
            Adjust: self._adjust,
            Cancel: self._cancel,
            GetBudget: self._get_budget,
            GetBalance: self._get_balance,
            ListBudgets: self._list_budgets,
            GetEntry: self._get_entry,
            GetHead: self._get_head,
        }

    def decide(self, command: Command, ts: int, origin: str | None = None) -> Answer:
        """Decide one command; expire what is due first.

        Args:
            command: what is asked.
            ts: now, Unix microseconds.
            origin: who asks, as JSON.

        Raises:
            Refused: with the reason; nothing of the command was counted.
        """
        state, id = self.state, command.id
        ts = max(ts, state.ts)
        if state.due and state.due[0][0] <= ts:
            self.expire(ts)
        if id in state.open or id in state.ended or id in state.ends or id in state.done:
            self._must_be_its_own(command)
        return self._decide[type(command)](command, ts, origin)

    def _must_be_its_own(self, command: Command) -> None:
        """An id that came with another command before is no repeat."""
        id, kind = command.id, type(command)
        state = self.state
        if id in state.ends:
            what, subject, part = state.ends[id]
            now = (_ENDS.get(kind), getattr(command, "reservation", None) or getattr(command, "budget", None))
            if now != (what if part is None else "committed", subject) or getattr(command, "part", None) != part:
                raise IdConflict(id, f"first {what} of {subject}")
        elif id in state.done:
            if _KEEPS.get(kind) != state.done[id].kind:
                raise IdConflict(id, f"first {state.done[id].kind}, event {state.done[id].seq}")
        elif kind not in (Reserve, Record):
            raise IdConflict(id, "first a reservation or record")

    def unknown_ids(self, command: Command) -> tuple[list[str], list[tuple[str, str]]]:
        """Ids and keys that a decision needs and that only the store may still know."""
        state = self.state
        if not state.forgotten_until:
            return [], []
        wanted: list[str] = []
        keys: list[tuple[str, str]] = []
        target = getattr(command, "reservation", None) or getattr(command, "target", None)
        if target is not None and target not in state.open and target not in state.ended and type(command) is not Cancel:
            wanted.append(target)
        if state.recovered and type(command) is Commit and command.part is not None and target not in state.open:
            orphan = part_id(command.reservation, command.part)
            if orphan is not None and orphan not in state.ended:
                wanted.append(orphan)
        known = command.id in state.open or command.id in state.ended or command.id in state.done or command.id in state.ends
        if not known and state.may_be_forgotten(command.id):
            wanted.append(command.id)
        key = getattr(command, "key", None) if state.forgotten_keys else None
        if key is not None and isinstance(command, Reserve | Record) and (command.budget, key) not in state.keys:
            keys.append((command.budget, key))
        return wanted, keys

    # --- budgets -------------------------------------------------------------------------------------------------------

    def create(self, ledger_id: str, ts: int, origin: str | None = None) -> None:
        """The first event of a ledger."""
        self._emit("created", ts, self.ids(), "", origin=origin, detail=to_detail(ledger=ledger_id, schema=SCHEMA_VERSION))

    def recover(self, ts: int, origin: str | None, **lost: Any) -> None:
        """Note what was lost with a damaged file and given up."""
        self._emit("recovered", max(ts, self.state.ts), self.ids(), "", origin=origin, detail=to_detail(**lost))

    def accept_clock(self, c: AcceptClock, clock: int, origin: str | None) -> Answer:
        """Note that a clock is right, though what it says may be behind the last event."""
        event = self._emit("clock_accepted", max(clock, self.state.ts), c.id, "", origin=origin, detail=to_detail(clock=clock))
        return (c.id, event.seq)

    def _node(self, name: str) -> Node:
        node = self.state.nodes.get(name)
        if node is None:
            raise UnknownBudget(name, tuple(difflib.get_close_matches(name, self.state.nodes, n=3)))
        return node

    @staticmethod
    def _must_be_open(node: Node) -> None:
        for above in node.path:
            if above.closed:
                raise BudgetClosed(above.name)

    def _set_budget(self, c: SetBudget, ts: int, origin: str | None) -> Answer:
        caps, alerts = tuple(Cap(*cap) for cap in c.caps), tuple(c.alerts)
        done = self.state.done.get(c.id)
        if done is not None:
            _must_be_same(done, c, "budget_set", c.budget, agrees=caps == _caps(done))
            return (c.budget, caps, c.tz, alerts, False, True)
        node = self.state.nodes.get(c.budget)
        if node is not None:
            same_zone = node.tz == c.tz or not any(cap.window in ("day", "week", "month") for cap in caps)
            if node.caps != caps or not same_zone or (alerts and alerts != node.alerts):
                raise BudgetDiffers(c.budget, _told(node.caps, node.tz, node.alerts), _told(caps, c.tz, alerts))
            return (*_definition(node), False)
        parent = c.budget.rpartition("/")[0]
        if parent:
            if parent not in self.state.nodes:
                raise ParentMissing(parent)
            self._must_be_open(self.state.nodes[parent])
        detail = to_detail(caps=caps, tz=c.tz, alerts=alerts)
        self._emit("budget_set", ts, c.id, c.budget, origin=origin, detail=detail)
        return (*_definition(self.state.nodes[c.budget]), True)

    def _set_limit(self, c: SetLimit, ts: int, origin: str | None) -> Answer:
        node = self._node(c.budget)
        done = self.state.done.get(c.id)
        if done is not None:
            caps = {cap.window: cap for cap in _caps(done)}
            window = c.window if c.window is not None else next(iter(caps)) if len(caps) == 1 else ""
            _must_be_same(done, c, "budget_set", c.budget, agrees=_agrees(c, caps.get(window, Cap("", None, None, None))))
        else:
            self._must_be_open(node)
            cap = self._cap_to_change(node, c)
            changed = Cap(
                cap.window, *(b if a is None else a for a, b in zip((c.usd, c.tokens, c.requests), cap[1:], strict=True))
            )
            expected = [old for new, old in zip((c.usd, c.tokens, c.requests), cap[1:], strict=True) if new is not None]
            if changed != cap and c.instead_of in (None, *expected):
                others = (other for other in node.caps if other.window != cap.window)
                detail = to_detail(caps=sorted([*others, changed]), tz=node.tz, alerts=node.alerts, reason=c.reason)
                self._emit("budget_set", ts, c.id, c.budget, origin=origin, detail=detail)
                self.freed = True
        return (*_definition(node), False)

    @staticmethod
    def _cap_to_change(node: Node, c: SetLimit) -> Cap:
        caps = {cap.window: cap for cap in node.caps}
        window = c.window if c.window is not None else next(iter(caps)) if len(caps) == 1 else ""
        if window not in caps and (window or caps):
            raise WindowFixed(node.name, describe(node.caps, node.tz), window or "lifetime")
        return caps.get(window, Cap("", None, None, None))

    def _close_budget(self, c: CloseBudget, ts: int, origin: str | None) -> Answer:
        node = self._node(c.budget)
        if not node.closed:
            self._emit("closed", ts, c.id, c.budget, origin=origin)
            self.freed = True  # its waiters are to be told
        return (node.name,)

    # --- reserve ---------------------------------------------------------------------------------------------------------

    def _reserve(self, c: Reserve, ts: int, origin: str | None) -> Answer:
        known = self.state.entry(c.id) or self._by_key(c.budget, c.key)
        if known is not None:
            return _granted(_same(known, c, c.id if known.id == c.id else c.key))
        node = self._node(c.budget)
        self._must_be_open(node)
        checks = node.checks(ts)
        for check in checks:
            if not _fits(check, c):
                for any_check in checks:
                    _complete(any_check, c)
                raise self._exceeded(c, node, check, ts, origin)
        state = self.state
        expires = ts + c.timeout if c.timeout else None
        body = (
            state.seq + 1, ts, "reserved", c.id, c.budget, c.id, c.key, node.open_windows(ts), c.usd, c.tokens, None, None,
            c.requests,
            "unknown" if c.if_lost == "count" else None, None, None, None, None, None, expires, c.provider, c.model, None,
            origin, c.tags, c.detail,
        )  # fmt: skip
        event = chained(state.head, body)
        state.apply(event)
        self.events.append(event)
        return (c.id, event.seq, ts, expires, OPEN)

    def _by_key(self, budget: str, key: str | None) -> Entry | None:
        return None if key is None else self.state.entry(self.state.keys.get((budget, key)))

    def could_fit_later(self, c: Reserve, ts: int) -> bool:
        """Whether a refused reserve may stand in line: holds that end, or a new window, could make room for it."""
        node = self.state.nodes.get(c.budget)
        if node is None:
            return False
        for totals, *limits in node.checks(max(ts, self.state.ts)):
            spent = (totals.committed_usd, totals.committed_tokens, totals.committed_requests)
            lasting = not totals.account.cap.window
            for limit, used, asked in zip(limits, spent, (c.usd, c.tokens, c.requests), strict=True):
                if limit is not None and (asked or 0) + (used if lasting else 0) > limit:
                    return False
        return True

    def _exceeded(self, c: Reserve, node: Node, check: Check, ts: int, origin: str | None) -> BudgetExceeded:
        totals, *limits = check
        for resource, limit, asked in zip(("usd", "tokens", "requests"), limits, (c.usd, c.tokens, c.requests), strict=True):
            used, held = getattr(totals, f"committed_{resource}"), getattr(totals, f"reserved_{resource}")
            if limit is not None and used + held + (asked or 0) > limit:
                break
        account = totals.account
        end = window_bounds(account.cap.window, account.node.tz, account.node.anchor, ts)[1] if account.cap.window else None
        error = BudgetExceeded(
            account.node.name,
            node.name,
            resource,
            decimal_or_int(resource, asked or 0),
            decimal_or_int(resource, (limit or 0) - used - held),
            decimal_or_int(resource, limit or 0),
            decimal_or_int(resource, held),
            totals.open_count,
            f"{instant(end):%Y-%m-%d %H:%M} UTC" if end else None,
        )
        if not (c.wait and self.could_fit_later(c, ts)):
            self._refused(c, ts, origin, error)
        return error

    def refuse(self, c: Reserve, ts: int, origin: str | None, error: BudgetExceeded) -> None:
        """Note the refusal of a waiter whose time ran out."""
        self._refused(c, max(ts, self.state.ts), origin, error)

    def _refused(self, c: Reserve, ts: int, origin: str | None, error: BudgetExceeded) -> None:
        key, minute = (c.budget, error.budget, error.resource), ts // MINUTE_US
        seen = self.refusals.get(key)
        if seen is not None and seen[0] == minute:
            seen[1] += 1
            return
        self._write_refusals(ts, now=False)
        self.refusals[key] = [minute, 0]
        detail = to_detail(by=error.budget, resource=error.resource, left=str(error.left), limit=str(error.limit), count=1)
        self._emit("refused", ts, c.id, c.budget, held_usd=c.usd, held_tokens=c.tokens, requests=c.requests,
                   provider=c.provider, model=c.model, origin=origin, tags=c.tags, detail=detail)  # fmt: skip

    def counts_refusals(self) -> bool:
        """Whether there are refusals that were only counted."""
        return any(count for _, count in self.refusals.values())

    def flush_refusals(self, ts: int, *, now: bool = False) -> None:
        """The end of a batch: write the refusals of past minutes that were only counted, and forget what is old."""
        self._write_refusals(ts, now=now)
        self.state.forget(self.state.ts)

    def _write_refusals(self, ts: int, *, now: bool) -> None:
        """One event per budget and resource."""
        for key, (minute, count) in list(self.refusals.items()):
            if now or ts // MINUTE_US > minute:
                del self.refusals[key]
                if count:
                    budget, by, resource = key
                    detail = to_detail(by=by, resource=resource, count=count, minute=minute * MINUTE_US)
                    self._emit("refused", max(ts, self.state.ts), self.ids(), budget, detail=detail)

    # --- how a reservation ends --------------------------------------------------------------------------------------------

    def _entry(self, id: str) -> Entry:
        entry = self.state.entry(id)
        if entry is None:
            raise UnknownReservation(id)
        return entry

    def _extend(self, c: Extend, ts: int, origin: str | None) -> Answer:
        entry = self._entry(c.reservation)
        done = self.state.done.get(c.id)
        if done is not None:
            _must_be_same(
                done, c, "extended", entry.node.name, agrees=(done.reservation, done.expires) == (entry.id, done.ts + c.timeout)
            )
            return (entry.id, entry.seq, done.ts, done.expires, entry.state)
        if entry.state != OPEN:
            raise ReservationClosed(entry.id, entry.state, _ended(entry), "an extension")
        if entry.expires is not None and ts + c.timeout > entry.expires:
            self._emit("extended", ts, c.id, entry.node.name, reservation=entry.id, expires=ts + c.timeout, origin=origin)
        return (entry.id, entry.seq, ts, entry.expires, entry.state)

    def _sent(self, c: Sent, ts: int, origin: str | None) -> Answer:
        entry = self._entry(c.reservation)
        done = self.state.done.get(c.id)
        if done is not None:
            _must_be_same(done, c, "sent", entry.node.name, agrees=(done.reservation, done.response_id) == (entry.id, c.name))
        elif entry.state != OPEN:
            raise ReservationClosed(entry.id, entry.state, _ended(entry), f"sent as {c.name}")
        else:
            self._emit("sent", ts, c.id, entry.node.name, reservation=entry.id, response_id=c.name, origin=origin,
                       provider=entry.provider, model=entry.model)  # fmt: skip
        return (entry.id, entry.state)

    def _commit(self, c: Commit, ts: int, origin: str | None) -> Answer:
        entry = self.state.entry(c.reservation)
        if entry is None or (c.part is not None and entry.first is not None and _is_orphan(entry.first)):
            return self._commit_orphan(c, ts, origin)
        if c.part is not None:
            return self._commit_part(c, entry, ts, origin)
        used, basis = self._used(c, entry.rest)
        if entry.state in (COMMITTED, ROLLED_BACK, RECORDED):
            first = entry.first
            ours = entry.state == COMMITTED or (first is not None and _is_orphan(first))
            if ours and first is not None and used == first[2:5]:
                return _counted(entry.id, first)
            raise ReservationClosed(entry.id, entry.state, _ended(entry), amounts(used))
        late = True if entry.state != OPEN else None
        windows, was = (entry.windows, entry.end_counted()) if late else ((), None)  # enough for a replay that has forgotten it
        over = _exceeds(used, entry.rest)
        state = self.state
        body = (
            state.seq + 1, ts, "committed", c.id, entry.node.name, entry.id, None, windows, None, None, *used,
            basis, c.input_tokens, c.output_tokens, c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens, None,
            entry.provider, entry.model, c.response_id, origin, (), _flagged(c.detail, late=late, overrun=over, was=was),
        )  # fmt: skip
        event = chained(state.head, body)
        state.apply(event)
        self.events.append(event)
        self.freed = True
        return _counted(entry.id, first_of(event), self._alerts(entry, ts))

    def _commit_orphan(self, c: Commit, ts: int, origin: str | None) -> Answer:
        """A call whose reservation was lost with a damaged file: the money is gone, so it counts, as a record.

        Each part of a batch is a record of its own. Where the budget was lost too, it counts in the nearest one above.
        """
        id = part_id(c.reservation, c.part)
        if not self.state.recovered or c.budget is None or id is None:
            raise UnknownReservation(c.reservation)
        requests = 1 if c.requests is None else c.requests
        known = self.state.entry(id)
        if known is not None:
            first = known.first
            if first is not None and (c.usd, c.tokens, requests) == first[2:5]:
                return _counted(id, first)
            told = f"{c.reservation} part {c.part}", COMMITTED, _ended(known), amounts((c.usd, c.tokens, requests))
            raise ReservationClosed(*told)
        name = next((name for name in path_of(c.budget) if name in self.state.nodes), None)
        if name is None:
            raise BudgetLost(c.budget, amounts((c.usd, c.tokens, requests)))
        lost = {"orphan": True, "budget": c.budget if c.budget != name else None, "part": c.part}
        lost["reservation"] = c.reservation if c.part is not None else None
        event = self._emit(
            "recorded", ts, c.id, name, reservation=id, windows=self._node(name).open_windows(ts), usd=c.usd,
            tokens=c.tokens, requests=requests, basis=c.basis, input_tokens=c.input_tokens,
            output_tokens=c.output_tokens, cache_read_tokens=c.cache_read_tokens, cache_write_tokens=c.cache_write_tokens,
            reasoning_tokens=c.reasoning_tokens, response_id=c.response_id, origin=origin,
            detail=to_detail(**{**_loaded(c.detail), **lost}),
        )  # fmt: skip
        self.freed = True
        return _counted(id, first_of(event), self._alerts(self._entry(id), ts))

    def _commit_part(self, c: Commit, entry: Entry, ts: int, origin: str | None) -> Answer:
        used, basis = self._used(c, NOTHING)
        first = (entry.parts or {}).get(c.part or "")
        if first is not None:
            if used == first[2:5]:
                return _counted(entry.id, first)
            raise ReservationClosed(f"{entry.id} part {c.part}", COMMITTED, amounts(first[2:5]), amounts(used))
        if entry.state != OPEN:
            raise ReservationClosed(entry.id, entry.state, _ended(entry), f"part {c.part}")
        usd, tokens, requests = used
        event = self._emit(
            "part_committed", ts, c.id, entry.node.name, reservation=entry.id, key=c.part, usd=usd, tokens=tokens,
            requests=requests, basis=basis, input_tokens=c.input_tokens, output_tokens=c.output_tokens,
            cache_read_tokens=c.cache_read_tokens, cache_write_tokens=c.cache_write_tokens, reasoning_tokens=c.reasoning_tokens,
            provider=entry.provider, model=entry.model, response_id=c.response_id, origin=origin, detail=c.detail,
        )  # fmt: skip
        self.freed = True
        return _counted(entry.id, first_of(event), self._alerts(entry, ts))

    @staticmethod
    def _used(c: Commit, held: Three) -> tuple[Three, str]:
        """What a commit counts: a resource that it does not know is counted as held, and said to be unknown."""
        basis, usd, tokens = c.basis, c.usd, c.tokens
        held_usd, held_tokens, held_requests = held
        if usd is None and held_usd is not None:
            usd, basis = held_usd, "unknown"
        if tokens is None and held_tokens is not None:
            tokens, basis = held_tokens, "unknown"
        return (usd, tokens, held_requests if c.requests is None else c.requests), basis

    def _rollback(self, c: Rollback, ts: int, origin: str | None) -> Answer:
        entry = self._entry(c.reservation)
        if entry.state in (COMMITTED, COUNTED, RECORDED):
            raise ReservationClosed(entry.id, entry.state, _ended(entry), "a rollback")
        if entry.state == OPEN:
            self._emit("rolled_back", ts, c.id, entry.node.name, reservation=entry.id, origin=origin,
                       provider=entry.provider, model=entry.model)  # fmt: skip
            self.freed = True
        return (entry.id, entry.state)

    def _lose(self, c: Lose, ts: int, origin: str | None) -> Answer:
        entry = self._entry(c.reservation)
        if entry.state == OPEN:
            self._expire(entry, ts, c.id, origin, to_detail(lost=True))
        return (entry.id, entry.state)

    def expire(self, ts: int) -> None:
        """End every reservation whose time has run out."""
        due, tick = self.state.due, ""
        while due and due[0][0] <= ts:
            expires, _, id = heappop(due)
            if self.state.expires(id) == expires:
                tick = tick or self.ids()
                self._expire(self._entry(id), ts, tick, None, None)
                due = self.state.due

    def _expire(self, entry: Entry, ts: int, command: str, origin: str | None, detail: str | None) -> None:
        counts = entry.if_lost == "count"
        usd, tokens, requests = entry.rest if counts else NOTHING
        self._emit(
            "expired", ts, command, entry.node.name, reservation=entry.id, usd=usd, tokens=tokens, requests=requests,
            basis="unknown" if counts else None, provider=entry.provider, model=entry.model, origin=origin, detail=detail,
        )  # fmt: skip
        self.freed = True
        if counts:
            self._alerts(entry, ts)

    # --- spend without a reservation, and corrections -------------------------------------------------------------------------

    def _record(self, c: Record, ts: int, origin: str | None) -> Answer:
        known = self.state.entry(c.id) or self._by_key(c.budget, c.key)
        if known is not None:
            first = known.first
            same = known.state == RECORDED and known.node.name == c.budget
            if not same or first is None or (c.usd, c.tokens, c.requests) != first[2:5]:
                raise IdConflict(
                    c.key or c.id, f"first {amounts(known.used or known.held)}, now {amounts((c.usd, c.tokens, c.requests))}"
                )
            return _counted(known.id, first)
        node = self._node(c.budget)
        if c.ts is not None and c.ts > ts:
            raise InvalidValue("at", f"{instant(c.ts)} lies in the future")
        for check in node.checks(ts):
            _complete(check, c)
        windows = node.open_windows(ts) if c.ts is None else node.windows_at(c.ts)[0]
        detail = c.detail if c.ts is None else to_detail(**{**_loaded(c.detail), "spent": c.ts})
        event = self._emit(
            "recorded", ts, c.id, c.budget, reservation=c.id, key=c.key, windows=windows, usd=c.usd, tokens=c.tokens,
            requests=c.requests,
            basis=c.basis, input_tokens=c.input_tokens, output_tokens=c.output_tokens, cache_read_tokens=c.cache_read_tokens,
            cache_write_tokens=c.cache_write_tokens, reasoning_tokens=c.reasoning_tokens, provider=c.provider, model=c.model,
            response_id=c.response_id, origin=origin, tags=c.tags, detail=detail,
        )  # fmt: skip
        self.freed = True  # a waiter may have to be told that it can never fit any more
        return _counted(c.id, first_of(event), self._alerts(self._entry(c.id), ts))

    def _adjust(self, c: Adjust, ts: int, origin: str | None) -> Answer:
        entry = self._entry(c.target)
        if c.budget is not None and all(above.name != c.budget for above in entry.node.path):
            raise NotAdjustable(entry.id, f"of {entry.node.name}, not of {c.budget}")
        done = self.state.done.get(c.id)
        if done is not None:
            _must_be_same(done, c, "adjusted", entry.node.name, agrees=done.reservation == entry.id and _agrees(c, done))
            return _counted(entry.id, first_of(done))
        if entry.state not in (COMMITTED, RECORDED, COUNTED) or entry.used is None:
            raise NotAdjustable(entry.id, entry.state)
        asked = zip((c.usd, c.tokens, c.requests), entry.used, strict=True)
        usd, tokens, requests = (old if new is None else new for new, old in asked)
        detail = to_detail(reason=c.reason, was=(*entry.used, entry.unpriced_count))
        event = self._emit(
            "adjusted", ts, c.id, entry.node.name, reservation=entry.id, windows=entry.windows, usd=usd, tokens=tokens,
            requests=requests, basis="measured", provider=entry.provider, model=entry.model, origin=origin, detail=detail,
        )  # fmt: skip
        self.freed = True
        return _counted(entry.id, first_of(event), self._alerts(entry, ts))

    def _alerts(self, entry: Entry, ts: int) -> tuple[Answer, ...]:
        """Note each threshold that a charge crossed: once per budget, resource, window, limit and threshold."""
        told: list[Answer] = []
        if not entry.node.alerting:
            return ()
        for totals in entry.slots:
            account = totals.account
            spent = zip(("usd", "tokens", "requests"), account.cap[1:], totals.numbers()[:3], strict=True)
            for resource, limit, used in spent:
                for threshold in account.node.alerts if limit else ():
                    mark = (resource, limit, threshold)
                    if used < _reached(threshold, limit or 0) or mark in totals.alerted:
                        continue
                    detail = to_detail(
                        window=account.cap.window, start=totals.start, resource=resource, limit=limit, threshold=threshold
                    )
                    self._emit("alerted", ts, self.ids(), account.node.name, reservation=entry.id, detail=detail)
                    told.append((account.node.name, resource, threshold, used, limit))
        return tuple(told)

    # --- reading ---------------------------------------------------------------------------------------------------------

    def _cancel(self, c: Cancel, ts: int, origin: str | None) -> Answer:  # noqa: ARG002 - the writer drops the waiter itself
        entry = self.state.entry(c.target)
        return (c.target, entry.state if entry else None)

    def _get_budget(self, c: GetBudget, ts: int, origin: str | None) -> Answer:  # noqa: ARG002 - all decisions have one form
        return (*_definition(self._node(c.budget)), False)

    def _get_balance(self, c: GetBalance, ts: int, origin: str | None) -> Answer:  # noqa: ARG002 - all decisions have one form
        return self._balance(self._node(c.budget), ts)

    def _balance(self, node: Node, ts: int) -> Answer:
        rows = []
        for totals in node.current(ts):
            account = totals.account
            bounds = window_bounds(account.cap.window, account.node.tz, account.node.anchor, ts)
            rows.append((account.node.name, *account.cap, *bounds, *totals.numbers()))
        return (node.name, ts, any(above.closed for above in node.path), node.tz, tuple(rows))

    def _list_budgets(self, c: ListBudgets, ts: int, origin: str | None) -> Answer:  # noqa: ARG002 - all decisions have one form
        if c.below is not None:
            self._node(c.below)
        page: list[Answer] = []
        rows = 0
        for name in sorted(self.state.nodes if c.after is None else (n for n in self.state.nodes if n > c.after)):
            node = self.state.nodes[name]
            if c.below is None or any(above.name == c.below for above in node.path):
                page.append(self._balance(node, ts))
                rows += _rows(page[-1])
                if rows >= PAGE:
                    break
        return tuple(page)

    def _get_entry(self, c: GetEntry, ts: int, origin: str | None) -> Answer:  # noqa: ARG002 - all decisions have one form
        entry = self._entry(c.target)
        return (entry.id, entry.node.name, entry.state, entry.expires, entry.held, entry.used or NOTHING)

    def _get_head(self, c: GetHead, ts: int, origin: str | None) -> Answer:  # noqa: ARG002 - all decisions have one form
        state = self.state
        return (state.ledger_id, state.seq, state.head, state.digest(), state.open_count, len(state.open) + len(state.ended))

    def _emit(self, kind: str, ts: int, command: str, budget: str, **fields: Any) -> Event:
        draft = Event(self.state.seq + 1, ts, kind, command, budget, **fields)
        event = chained(self.state.head, draft[:-1])
        self.state.apply(event)
        self.events.append(event)
        return event


def is_full(page: Answer) -> bool:
    """Whether there may be more budgets behind those of an answer to `ListBudgets`."""
    return sum(map(_rows, page)) >= PAGE


def _rows(balance: Answer) -> int:
    return 1 + len(balance[-1])


def _fits(check: Check, c: Reserve) -> bool:
    totals, usd, tokens, requests = check
    return (
        (
            usd is None
            or (c.usd is not None and not totals.unpriced_count and totals.committed_usd + totals.reserved_usd + c.usd <= usd)
        )
        and (tokens is None or (c.tokens is not None and totals.committed_tokens + totals.reserved_tokens + c.tokens <= tokens))
        and (
            requests is None
            or (c.requests is not None and totals.committed_requests + totals.reserved_requests + c.requests <= requests)
        )
    )


def _complete(check: Check, c: Reserve | Record) -> None:
    """A resource that is limited must be given; nothing unknown is counted as zero."""
    totals, usd, tokens, requests = check
    name = totals.account.node.name
    if usd is not None and c.usd is None:
        undone = "sent" if isinstance(c, Reserve) else "recorded"
        raise PriceUnknown(c.model, "", undone) if c.model else AmountMissing(name, "usd")
    if usd is not None and totals.unpriced_count and isinstance(c, Reserve):
        raise CallsUnpriced(name, totals.unpriced_count)
    if tokens is not None and c.tokens is None:
        raise AmountMissing(name, "tokens")
    if requests is not None and c.requests is None:
        raise AmountMissing(name, "requests")


def _same(entry: Entry, c: Reserve, id: str | None) -> Entry:
    if entry.state == RECORDED or entry.node.name != c.budget or entry.held != (c.usd, c.tokens, c.requests):
        raise IdConflict(
            str(id),
            f"first {amounts(entry.held)} in {entry.node.name}, now {amounts((c.usd, c.tokens, c.requests))} in {c.budget}",
        )
    return entry


@lru_cache(maxsize=1024)
def _reached(threshold: float, limit: int) -> int:
    """The least amount that is a fraction of a limit, the fraction as it is written: 0.55 of 100 is 55, not a bit more."""
    return ceil(Fraction(repr(threshold)) * limit)


def _must_be_same(done: Event, c: Command, kind: str, budget: str, *, agrees: bool) -> None:
    """A command that was decided before comes again as it was."""
    if not agrees or (done.kind, done.budget) != (kind, budget):
        raise IdConflict(c.id, f"first {done.kind} on {done.budget}, event {done.seq}")


def _agrees(c: SetLimit | Adjust, first: Cap | Event) -> bool:
    return all(
        new in (None, old)
        for new, old in zip((c.usd, c.tokens, c.requests), (first.usd, first.tokens, first.requests), strict=True)
    )


def _caps(event: Event) -> tuple[Cap, ...]:
    return tuple(Cap(*cap) for cap in from_detail(event)["caps"])


def _granted(entry: Entry) -> Answer:
    return (entry.id, entry.seq, entry.ts, entry.expires, entry.state)


def _counted(id: str, first: First, alerts: tuple[Answer, ...] = ()) -> Answer:
    seq, ts, usd, tokens, requests, basis, detail = first
    flags = (False, False)
    if detail is not None and ("overrun" in detail or "late" in detail):
        what = json.loads(detail)
        flags = (bool(what.get("overrun")), bool(what.get("late")))
    return (id, seq, ts, usd, tokens, requests, basis, *flags, alerts)


def _exceeds(used: Three, held: Three) -> Literal[True] | None:
    """Whether more of any resource was used than held; written out, because every commit asks it."""
    (usd, tokens, requests), (held_usd, held_tokens, held_requests) = used, held
    over = (
        (held_usd is not None and (usd or 0) > held_usd)
        or (held_tokens is not None and (tokens or 0) > held_tokens)
        or (held_requests is not None and (requests or 0) > held_requests)
    )
    return over or None


def _is_orphan(first: First) -> bool:
    return first[6] is not None and bool(json.loads(first[6]).get("orphan"))


def _ended(entry: Entry) -> str:
    return amounts(entry.used) if entry.used is not None else ""


def _loaded(detail: str | None) -> dict[str, Any]:
    return from_detail(Event(0, 0, "", "", "", detail=detail))


def _flagged(detail: str | None, *, late: bool | None, overrun: bool | None, was: tuple[int | None, ...] | None) -> str | None:
    return to_detail(**_loaded(detail), late=late, overrun=overrun, was=was) if late or overrun else detail


def _definition(node: Node) -> Answer:
    return (node.name, node.caps, node.tz, node.alerts, node.closed)


def _told(caps: tuple[Cap, ...], tz: str, alerts: tuple[float, ...]) -> str:
    return describe(caps, tz) + (f", alerts at {', '.join(f'{a:.0%}' for a in alerts)}" if alerts else "")
