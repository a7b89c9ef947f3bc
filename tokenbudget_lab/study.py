"""The demo: a small study against a cap, with parallel calls, failures, and a process that is killed in the middle of a call.

Nothing here is staged but the provider: the ledger, the caps, the refusals and the crash are real. The ledger stays.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from .balance import Balance
from .connection import Ledger, connect
from .counters.claude import ClaudeTokenCounter
from .demo import DemoItem, demo_client, demo_study
from .errors import BudgetExceeded
from .estimates import estimate
from .handles import Budget
from .instrumenting import instrument, tagged
from .ledger import Verification
from .render import ASCII, BLOCKS, amount, balance_text, colored_bar, escaped, left_of, of_limit

if TYPE_CHECKING:
    import anthropic

ROOT, CAP_USD = "study", Decimal("0.045")
SHARES_USD = {"zero-shot": Decimal("0.01"), "few-shot": Decimal("0.015"), "chain-of-thought": Decimal("0.03")}
PARALLEL = 20
LATENCY_S = (0.1, 0.8)
FAILURES, SEED = 0.3, 7
CRASHED_S = 3.0  # until the hold of the killed process expires
_LOOK_S, _SAY_S = 0.1, 1.0  # how often a terminal is drawn, and a log gets a line

_WHERE_IT_WENT = """
    select split_part(budget, '/', 2) as condition,
           count(*) filter (state in ('committed', 'counted')) as calls,
           coalesce(sum(tokens), 0)::bigint as tokens,
           coalesce(sum(cost_usd), 0) as cost_usd,
           count(*) filter (state = 'rolled_back') as failed,
           count(*) filter (basis = 'unknown' and state in ('committed', 'counted')) as unknown,
           coalesce(sum(cost_usd) filter (basis = 'unknown'), 0) as unknown_usd
    from calls where starts_with(budget, $root || '/') group by all
"""
_FOOTNOTE = (
    "\nFailed: attempts that the provider refused; what they held was given back.\n"
    "Unknown: the killed process's call. It may have been billed, so its hold\n"
    "counts as spent."
)


@dataclass(frozen=True, slots=True)
class Condition:
    """What one condition of the study came to.

    Attributes:
        calls: calls that count, those with an unknown fate included.
        cost_usd: what they cost, `unknown_usd` included.
        refused: calls that did not fit any more, and were not sent.
        failed: attempts that the provider refused, given back.
        unknown: calls that may have been billed, counted as they were held.
    """

    condition: str
    calls: int
    tokens: int
    cost_usd: Decimal
    refused: int
    failed: int
    unknown: int
    unknown_usd: Decimal


@dataclass(frozen=True, slots=True)
class Study:
    """How the demo ended.

    Attributes:
        ledger: where it is, without a password.
        balances: of the study and its conditions.
        refusal: what the first refused call was told.
        proof: what `verify` said.
        seconds: how long it took.
    """

    ledger: str
    balances: tuple[Balance, ...]
    conditions: tuple[Condition, ...]
    refusal: str
    proof: Verification
    seconds: float


def run(out: Console, where: str | None = None, *, embedded: bool = False) -> Study:
    """Run the demo and show it.

    Args:
        out: where to show it; drawn in place on a terminal, in lines elsewhere.
        where: the ledger's path or URL; in a new temporary folder where not given.
        embedded: own the file in this process, without a keeper.
    """
    began = time.monotonic()
    path = where or str(Path(tempfile.mkdtemp(prefix="tokenbudget-demo-")) / "demo.duckdb")
    items = demo_study()
    out.print(f"A study of {len(items)} calls, {PARALLEL} at a time, against a cap of {amount(CAP_USD, scale=CAP_USD)}.")
    out.print("The provider answers on this machine: no key, no network. It is slow, and some of its answers are errors.")
    with connect(path, embedded=embedded) as ledger:
        _budgets(ledger)
    Thread(target=import_module, args=("anthropic",), daemon=True).start()  # takes a second, and is needed next
    out.print(Text(_crash(path, embedded=embedded), style="bold"))
    with connect(path, embedded=embedded) as ledger:
        calls = _Calls(ledger)
        out.print(_plans(ledger, items))
        _watch(out, ledger, calls, items)
        _outlast_the_crash(out, ledger)
        report = _report(ledger, calls, time.monotonic() - began)
    show_closing(out, report)
    return report


def _budgets(ledger: Ledger) -> dict[str, Budget]:
    ledger.budget(ROOT, usd=CAP_USD)
    return {condition: ledger.budget(f"{ROOT}/{condition}", usd=usd) for condition, usd in SHARES_USD.items()}


# --- the crash -----------------------------------------------------------------------------------------------------------


def _crash(path: str, *, embedded: bool) -> str:
    """Let another process reserve, and kill it in the middle of its call."""
    code = f"import sys; from tokenbudget_lab.study import hold; hold(sys.stdin.read(), embedded={embedded})"
    home = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}
    with subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        env={**env, "PYTHONUTF8": "1"}, start_new_session=True,
    ) as child:  # a session of its own, so that Ctrl-C is this process's alone, which takes it along  # fmt: skip
        try:
            assert child.stdin is not None  # noqa: S101 - asked for above; tells the type checker
            assert child.stdout is not None  # noqa: S101 - the same
            child.stdin.write(path)  # not an argument, which everybody on the machine may read: it may have a password
            child.stdin.close()
            held = child.stdout.readline().strip()
        finally:
            child.kill()
    if not held:
        return f"Process {child.pid} was refused: what is left of the cap has no room for its call."
    return f"Process {child.pid} held {held} and was killed in the middle of its call. Its hold stays for now."


def hold(path: str, *, embedded: bool) -> None:
    """What the other process does: it reserves, asks, and does not live to see the answer."""
    item = next(item for item in demo_study() if item.condition == "chain-of-thought")
    ledger = connect(path, embedded=embedded)
    try:
        call = ledger.budget(f"{ROOT}/{item.condition}").reserve_sync(
            model=item.model,
            input_tokens=100,
            max_output_tokens=item.max_tokens,
            timeout=CRASHED_S,
            tags={"condition": item.condition},
        )
    except BudgetExceeded:  # a demo before this one has spent it
        return
    sys.stdout.write(f"{amount(call.usd, scale=CAP_USD)}\n")
    sys.stdout.flush()
    time.sleep(60)


def _outlast_the_crash(out: Console, ledger: Ledger) -> None:
    waiting = False
    while ledger.budget(ROOT).balance.calls_in_flight:
        if not waiting:
            out.print("Every call is answered; the killed one's hold has not expired yet …")
            waiting = True
        time.sleep(_LOOK_S)


# --- before anything is sent ---------------------------------------------------------------------------------------------


def _plans(ledger: Ledger, items: list[DemoItem]) -> Table:
    """What each condition would cost, counted by the provider's endpoint, and how many of its calls its cap pays for."""
    right = [
        Column(name, justify="right", no_wrap=True)
        for name in ("Input tokens", "Cost at most", "Cap", "Calls it surely pays for")
    ]
    table = Table("Planned", *right, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    with ClaudeTokenCounter(items[0].model, client=demo_client(latency_s=(0, 0))) as counter:
        for condition, cap in SHARES_USD.items():
            asked = [item for item in items if item.condition == condition]
            plan = estimate(
                [item.prompt for item in asked],
                model=asked[0].model,
                max_output_tokens=asked[0].max_tokens,
                budget=ledger.budget(f"{ROOT}/{condition}"),
                counter=counter,
            )
            fitting = f"{plan.calls_that_surely_fit} of {plan.calls}"
            most = plan.frame["hold_usd"].sum()  # whatever earlier answers say of the next ones
            table.add_row(
                condition,
                f"{plan.input_tokens:,}",
                amount(most, scale=CAP_USD),
                amount(cap, scale=CAP_USD),
                fitting,
            )
    return table


# --- the calls -----------------------------------------------------------------------------------------------------------


class _Calls:
    """The study's calls, and what became of them."""

    def __init__(self, ledger: Ledger) -> None:
        client = demo_client(latency_s=LATENCY_S, failure_rate=FAILURES, seed=SEED).with_options(max_retries=1)
        self.clients = {
            condition: instrument(client, budget, tags={"condition": condition}, hold="worst", wait=30)
            for condition, budget in _budgets(ledger).items()
        }
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.refusal = ""

    def make(self, item: DemoItem) -> None:
        """Make one call and note how it ended."""
        self.outcomes[item.condition, self._outcome(item)] += 1

    def _outcome(self, item: DemoItem) -> str:
        import anthropic

        try:
            self._send(item)
        except BudgetExceeded as refused:
            self.refusal = self.refusal or str(refused)
            return "refused"
        except anthropic.APIStatusError:
            return "failed"
        return "made"

    def _send(self, item: DemoItem) -> None:
        """What a researcher writes: the call, and nothing else."""
        ask: list[anthropic.types.MessageParam] = [{"role": "user", "content": item.prompt}]
        client = tagged(self.clients[item.condition], item=item.item)
        client.messages.create(model=item.model, max_tokens=item.max_tokens, messages=ask)

    def told(self) -> str:
        """How many calls ended how, so far."""
        totals = Counter[str]()
        for (_, outcome), n in list(self.outcomes.items()):
            totals[outcome] += n
        return " · ".join(f"{totals[outcome]} {outcome}" for outcome in ("made", "refused", "failed"))


def _watch(out: Console, ledger: Ledger, calls: _Calls, items: list[DemoItem]) -> None:
    """Run all calls and show the balance moving."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        running = [pool.submit(calls.make, item) for item in items]
        try:
            _show_while(out, ledger, calls, running)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for each in running:
        each.result()


def _show_while(out: Console, ledger: Ledger, calls: _Calls, running: list[Future[None]]) -> None:
    if out.is_terminal:
        with Live(console=out, auto_refresh=False) as live:
            while True:
                over = all(each.done() for each in running)
                live.update(Group(bars(ledger.budgets(ROOT), out), Text(f"  {calls.told()}")), refresh=True)
                if over:
                    return
                time.sleep(_LOOK_S)
    while not all(each.done() for each in running):
        out.print(f"{balance_text(ledger.budget(ROOT).balance, glyphs=_glyphs(out))} · {calls.told()}", soft_wrap=True)
        time.sleep(_SAY_S)


# --- the end -------------------------------------------------------------------------------------------------------------


def _report(ledger: Ledger, calls: _Calls, seconds: float) -> Study:
    rows = {row["condition"]: row for row in ledger.sql(_WHERE_IT_WENT, root=ROOT).to_dicts()}
    conditions = tuple(
        Condition(**rows[condition], refused=calls.outcomes[condition, "refused"])
        for condition in SHARES_USD
        if condition in rows
    )
    return Study(ledger.desk.where, tuple(ledger.budgets(ROOT)), conditions, calls.refusal, ledger.verify(), seconds)


def show_closing(out: Console, report: Study) -> None:
    """Print where the money went, the proof, and what to do next."""
    path = escaped(report.ledger)
    path = path if sys.platform == "win32" else shlex.quote(path)  # an address has `?` and `&`
    if not out.is_terminal:  # there the last picture still stands
        out.print(bars(report.balances, out))
    out.print(Text(), _table(report.conditions))
    out.print(Text(_FOOTNOTE, style="dim"))
    if report.refusal:
        out.print(Text(f"\nThe first refusal: {escaped(report.refusal)}"))
    out.print(Text(f"\nverify: {report.proof}", style="bold"))
    out.print(f"\n{report.seconds:.1f} s. The ledger stays; look into it:")
    sql = "select budget, sum(cost_usd) from calls group by all"
    for command in (f"status {path}", f"report {path} --by budget", f'sql {path} "{sql}"', f"verify {path}"):
        out.print(Text(f"  {_program()} {command}"), soft_wrap=True)


def _program() -> str:
    """How to call this command again: by its name, or by its path where that is not on the shell's way."""
    if shutil.which("tokenbudget") or Path(sys.argv[0]).name != "tokenbudget":
        return "tokenbudget"
    return os.path.relpath(sys.argv[0])


def bars(balances: list[Balance] | tuple[Balance, ...], out: Console) -> Table:
    """A bar for each budget: committed, held, left."""
    right = [Column(name, justify="right", no_wrap=True) for name in ("committed", "held", "left")]
    table = Table("", Column("", no_wrap=True), *right, "", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for balance in balances:
        for limit in (limit for limit in balance.limits if limit.budget == balance.budget):
            amounts = (of_limit(limit, limit.committed), of_limit(limit, limit.reserved), left_of(limit))
            name = escaped(balance.budget).replace(f"{ROOT}/", "  ")
            table.add_row(name, colored_bar(limit, 18, _glyphs(out)), *amounts, f"of {of_limit(limit, limit.limit)}")
    return table


def _table(conditions: tuple[Condition, ...]) -> Table:
    names = ("Calls", "Tokens", "Cost", "Per call", "Refused", "Failed", "Unknown")
    right = (Column(name, justify="right", no_wrap=True) for name in names)
    table = Table("Condition", *right, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for row in conditions:
        cost, unknown = (amount(value, scale=CAP_USD) for value in (row.cost_usd, row.unknown_usd))
        per_call = amount(row.cost_usd / row.calls, scale=CAP_USD) if row.calls else ""
        table.add_row(
            row.condition, str(row.calls), f"{row.tokens:,}", cost, per_call, str(row.refused), str(row.failed),
            f"{row.unknown} ({unknown})" if row.unknown else "0",
        )  # fmt: skip
    return table


def _glyphs(out: Console) -> str:
    return BLOCKS if out.encoding.lower().startswith("utf") else ASCII
