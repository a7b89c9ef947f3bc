"""Twenty calls of $0.30 against a budget of $1, through each package by its documented way; `race.py` runs them and counts.

Each racer says where its way is from, and takes the most protective one that stands there. It is run in an environment of its
own, so nothing but the standard library is imported before it starts.
"""

# mypy: disable-error-code="import-not-found"
# What races here is installed where it races, and not where types are checked.

from __future__ import annotations

import contextvars
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CALLS, CAP_USD, CALL_USD = 20, 1.0, 0.3
INPUT_TOKENS, OUTPUT_TOKENS = 20, 19_996  # at $3 and $15 per million: $0.30, and not a cent of it by chance
PRICE = (3.0, 15.0)  # USD per million tokens of each model here, input and output
ANTHROPIC, OPENAI = "anthropic==2.12.0", "openai==3.57.0"

WAYS = ("in turn", "threads", "tasks", "processes")
HERE, ALL = WAYS[:3], WAYS  # what is counted in one process, and what is shared by any number of them

Call = Callable[[int], Any]


class Refused(Exception):
    """Said by what has to be asked before a call, and does not raise by itself."""


class Race(NamedTuple):
    """How it is run.

    Attributes:
        how: one of `WAYS`.
        folder: where all of them may keep something.
        model: which costs `PRICE`.
    """

    how: str
    folder: Path
    model: str

    def ask(self, number: int) -> dict[str, Any]:
        """A request for Anthropic's SDK; no two are the same, so that nobody takes them for a loop."""
        ask = [{"role": "user", "content": f"Please write a very very long story {number:02}."}]
        return {"model": self.model, "max_tokens": OUTPUT_TOKENS, "messages": ask}

    def client(self) -> Any:
        """Anthropic's, as it comes."""
        import anthropic

        return anthropic.AsyncAnthropic() if self.how == "tasks" else anthropic.Anthropic()

    def either(self, sync: Call, task: Call) -> Call:
        """What is called here."""
        return task if self.how == "tasks" else sync

    def create(self, client: Any) -> Call:
        """Just a call of this client, which is awaited in tasks."""

        async def task(number: int) -> Any:
            return await client.messages.create(**self.ask(number))

        return self.either(lambda number: client.messages.create(**self.ask(number)), task)


def usd(reply: Any) -> float:
    """What a reply cost, for those who have to be told."""
    usage = reply.usage
    return float(usage.input_tokens * PRICE[0] + usage.output_tokens * PRICE[1]) / 1e6


# --- ours --------------------------------------------------------------------------------------------------------------------


@contextmanager
def tokenbudget_lab(race: Race) -> Iterator[Call]:
    """One ledger in a file, which the keeper owns."""
    import tokenbudget_lab as tbl

    with tbl.connect(race.folder / "ledger.duckdb") as ledger:
        study = ledger.budget("study", usd=1)
        yield race.create(tbl.instrument(race.client(), study, hold="worst", on_exceeded="raise"))


@contextmanager
def tokenbudget_lab_openai(race: Race) -> Iterator[Call]:
    """The same through OpenAI's SDK, to a model at $1.25 and $10: 24 and 29,997 tokens."""
    import openai

    import tokenbudget_lab as tbl

    with tbl.connect(race.folder / "ledger.duckdb") as ledger:
        study = ledger.budget("study", usd=1)
        client: Any = openai.AsyncOpenAI() if race.how == "tasks" else openai.OpenAI()
        under = tbl.instrument(client, study, hold="worst", on_exceeded="raise")

        def asked(number: int) -> dict[str, Any]:
            ask = [{"role": "user", "content": f"Write a long story about a ship, part {number + 10}."}]
            return {"model": race.model, "max_completion_tokens": 29_997, "messages": ask}

        async def task(number: int) -> Any:
            return await under.chat.completions.create(**asked(number))

        yield race.either(lambda number: under.chat.completions.create(**asked(number)), task)


# --- peers -------------------------------------------------------------------------------------------------------------------


@contextmanager
def token_budget_py(race: Race) -> Iterator[Call]:
    """A pool; `reserve` before a call, `commit` after it."""
    from token_budget import BudgetPool

    pool, client = BudgetPool(usd_cap=CAP_USD), race.client()

    def call(number: int) -> None:
        with pool.reserve(usd=CALL_USD) as held:
            held.commit(usd=usd(client.messages.create(**race.ask(number))))

    async def task(number: int) -> None:
        with pool.reserve(usd=CALL_USD) as held:
            held.commit(usd=usd(await client.messages.create(**race.ask(number))))

    yield race.either(call, task)


@contextmanager
def floe_guard(race: Race) -> Iterator[Call]:
    """`estimate_call`, `reserve` and `settle`; with its SQLite store where processes share the budget."""
    from floe_guard import BudgetGuard, SqliteStore

    more = {"window": "utc-day", "store": SqliteStore(str(race.folder / "floe.sqlite3"))} if race.how == "processes" else {}
    guard, client = BudgetGuard(limit_usd=CAP_USD, **more), race.client()

    def reserve() -> Any:
        return guard.reserve(guard.estimate_call(race.model, INPUT_TOKENS, max_completion_tokens=OUTPUT_TOKENS))

    def settle(reply: Any, held: Any) -> None:
        guard.settle(reply.model, reply.usage.input_tokens, reply.usage.output_tokens, reserved=held)

    def call(number: int) -> None:
        held = reserve()
        settle(client.messages.create(**race.ask(number)), held)

    async def task(number: int) -> None:
        held = reserve()
        settle(await client.messages.create(**race.ask(number)), held)

    yield race.either(call, task)


@contextmanager
def floe_guard_adapter(race: Race) -> Iterator[Call]:
    """Its adapter of Anthropic's SDK, which holds what the call before cost."""
    from floe_guard import BudgetGuard
    from floe_guard.integrations.anthropic import guarded_acompletion, guarded_completion

    guard, client = BudgetGuard(limit_usd=CAP_USD), race.client()

    async def task(number: int) -> None:
        await guarded_acompletion(guard, client, **race.ask(number))

    yield race.either(lambda number: guarded_completion(guard, client, **race.ask(number)), task)


@contextmanager
def agent_budget_guard(race: Race) -> Iterator[Call]:
    """A session's client, shared by all threads."""
    from agent_budget_guard import BudgetedSession

    yield race.create(BudgetedSession.anthropic(budget_usd=CAP_USD))


@contextmanager
def budget_guard_llm(race: Race) -> Iterator[Call]:
    """A guarded client, and a limit for the day."""
    import budget_guard

    budget_guard.configure(limits=budget_guard.Limits(daily_total=CAP_USD), on_exceeded="raise", on_unknown_model="raise")
    yield race.create(budget_guard.guard(race.client(), user="u1", feature="race"))


@contextmanager
def cendor_tokenguard(race: Race) -> Iterator[Call]:
    """`block`, which refuses before the call; threads carry the context along, as it asks them to."""
    from cendor.core import instrument
    from cendor.tokenguard import budget, configure

    configure(on_unpriced="raise")
    client = instrument(race.client())
    with budget(usd=CAP_USD, on_exceed="block"):
        yield in_context(race, race.create(client))


@contextmanager
def agentbudget(race: Race) -> Iterator[Call]:
    """A wrapped client in a session, asked before each call whether it would exceed."""
    import agentbudget as package

    with package.AgentBudget(max_spend="$1.00").session() as session:
        create = race.create(package.wrap_client(race.client(), session))

        def fits() -> None:
            if session.would_exceed(CALL_USD):
                raise Refused("would_exceed")

        def call(number: int) -> None:
            fits()
            create(number)

        async def task(number: int) -> None:
            fits()
            await create(number)

        yield race.either(call, task)


@contextmanager
def showback(race: Race) -> Iterator[Call]:
    """A guard that is checked before and after each call, and a tracker that is told of it."""
    from showback import BudgetGuard, SpendTracker

    tracker, client = SpendTracker(), race.client()
    guard = BudgetGuard(CAP_USD, tracker)

    def call(number: int) -> None:
        guard.check()
        reply = client.messages.create(**race.ask(number))
        tracker.record_llm(reply.model, reply.usage.input_tokens, reply.usage.output_tokens, agent="race")
        guard.check()

    with guard:
        yield call


@contextmanager
def giuggiai_meter(race: Race) -> Iterator[Call]:
    """A wrapped client under a budget that blocks, and fails closed."""
    import giuggiai_meter as gm

    price = {"model": race.model, "input": PRICE[0], "output": PRICE[1], "cache_write": 0, "cache_read": 0}
    prices = race.folder / ".config/giuggiai-meter/prices.json"
    prices.parent.mkdir(parents=True, exist_ok=True)
    prices.write_text(json.dumps([{**price, "effective_from": "2026-01-01"}]))
    rule = {"id": "race", "match": {"project": "race"}, "limit": CAP_USD, "period": "total", "since": "2026-01-01"}
    budgets = {"currency": "USD", "budgets": [{**rule, "on_exceed": "block", "fail": "closed"}]}
    yield race.create(gm.wrap(race.client(), project="race", budgets=budgets))


@contextmanager
def litellm(race: Race) -> Iterator[Call]:
    """Its BudgetManager: the cost is compared before a call, and updated after it."""
    import litellm

    package: Any = litellm  # it does not say what it exports
    manager, user = package.BudgetManager(project_name="race"), "1234"
    manager.create_budget(total_budget=CAP_USD, user=user)

    def fits() -> None:
        if manager.get_current_cost(user=user) > manager.get_total_budget(user):
            raise Refused("get_current_cost")

    def call(number: int) -> None:
        fits()
        manager.update_cost(completion_obj=package.completion(**race.ask(number)), user=user)

    async def task(number: int) -> None:
        fits()
        manager.update_cost(completion_obj=await package.acompletion(**race.ask(number)), user=user)

    yield race.either(call, task)


@contextmanager
def shekel(race: Race) -> Iterator[Call]:
    """Its hard cap, with the model's price given."""
    from shekel import budget

    client = race.client()
    with budget(max_usd=CAP_USD, price_per_1k_tokens={"input": PRICE[0] / 1e3, "output": PRICE[1] / 1e3}):
        yield in_context(race, race.create(client))


@contextmanager
def tokencap(race: Race) -> Iterator[Call]:
    """A wrapped client; its limit is in tokens, as many as a dollar pays for. Processes share its SQLite file."""
    import tokencap as package
    from tokencap.backends.sqlite import SQLiteBackend

    limit = int((INPUT_TOKENS + OUTPUT_TOKENS) * CAP_USD / CALL_USD)
    block = package.Threshold(at_pct=1.0, actions=[package.Action(kind=package.ActionKind.BLOCK)])
    policy = package.Policy(dimensions={"session": package.DimensionPolicy(limit=limit, thresholds=[block])})
    backend = SQLiteBackend(path=str(race.folder / "tokencap.db"))
    package.init(policy=policy, identifiers={"session": "race"}, backend=backend, quiet=True)
    yield race.create(package.wrap(race.client(), quiet=True))


@contextmanager
def llm_budget(race: Race) -> Iterator[Call]:
    """Its decorator, which estimates before the call; spend is kept in a SQLite file."""
    import llm_budget as package

    client = race.client()

    @package.budget(max_cost=CAP_USD, period="daily", on_exceed="raise")  # type: ignore[untyped-decorator, unused-ignore]
    def create(model: str, messages: Any) -> Any:
        return client.messages.create(model=model, messages=messages, max_tokens=OUTPUT_TOKENS)

    def call(number: int) -> None:
        ask = race.ask(number)
        create(model=ask["model"], messages=ask["messages"])

    yield call


def in_context(race: Race, call: Call) -> Call:
    """A call that sees the context of the block that it is made in, from any thread; tasks do so by themselves."""
    copies = [contextvars.copy_context() for _ in range(CALLS)]
    return call if race.how == "tasks" else lambda number: copies[number].run(call, number)


class Racer(NamedTuple):
    """A package, and what it promises.

    Attributes:
        way: through its budget.
        install: from PyPI; nothing is ours.
        source: where its way is documented.
        hows: in which ways it is to share one budget, by its documents.
        model: which it knows a price of.
    """

    way: Callable[[Race], AbstractContextManager[Call]]
    install: tuple[str, ...]
    source: str
    hows: tuple[str, ...]
    model: str = "claude-sonnet-4-6"


PYPI = "https://pypi.org/project"
RACERS = {
    "tokenbudget_lab": Racer(tokenbudget_lab, (), "README", ALL),
    "tokenbudget_lab, OpenAI": Racer(tokenbudget_lab_openai, (), "README", ALL, "gpt-5"),
    "token-budget-py": Racer(
        token_budget_py, ("token-budget-py==0.1.0", ANTHROPIC), f"{PYPI}/token-budget-py/0.1.0/ “Two-phase commit”", HERE
    ),
    "floe-guard": Racer(
        floe_guard, ("floe-guard==0.25.2", ANTHROPIC), f"{PYPI}/floe-guard/0.25.2/ “Persist one UTC-day budget”, reserve()", ALL
    ),
    "floe-guard, its adapter": Racer(
        floe_guard_adapter, ("floe-guard==0.25.2", ANTHROPIC), f"{PYPI}/floe-guard/0.25.2/ “Framework adapters”", HERE
    ),
    "agent-budget-guard": Racer(
        agent_budget_guard,
        ("agent-budget-guard==0.2.0", ANTHROPIC),
        f"{PYPI}/agent-budget-guard/0.2.0/ “Concurrent Agents”",
        WAYS[:2],
    ),
    "budget-guard-llm": Racer(
        budget_guard_llm, ("budget-guard-llm==0.1.2", ANTHROPIC), f"{PYPI}/budget-guard-llm/0.1.2/ “Limits”", HERE
    ),
    "cendor-tokenguard": Racer(
        cendor_tokenguard,
        ("cendor-tokenguard==1.8.0", ANTHROPIC),
        f"{PYPI}/cendor-tokenguard/1.8.0/ “Highlights”, on_exceed=block",
        HERE,
    ),
    "agentbudget": Racer(
        agentbudget,
        ("agentbudget==0.4.0", ANTHROPIC),
        f"{PYPI}/agentbudget/0.4.0/ “Explicit Per-Client Tracking”, “Finalization Reserve”",
        HERE,
        "claude-sonnet-4-5",
    ),
    "showback": Racer(showback, ("showback==0.2.0", ANTHROPIC), f"{PYPI}/showback/0.2.0/", WAYS[:2], "claude-sonnet-4-5"),
    "giuggiai-meter": Racer(
        giuggiai_meter,
        ("giuggiai-meter==0.2.1", ANTHROPIC),
        f"{PYPI}/giuggiai-meter/0.2.1/ “Budgets: decide before the call”",
        ALL,
    ),
    "LiteLLM BudgetManager": Racer(litellm, ("litellm==1.110.2",), "https://docs.litellm.ai/docs/budget_manager", HERE),
    "shekel": Racer(shekel, ("shekel==1.2.0", ANTHROPIC), f"{PYPI}/shekel/1.2.0/ “Hard cap”", HERE),
    "tokencap": Racer(
        tokencap, ("tokencap==0.2.0", ANTHROPIC), f"{PYPI}/tokencap/0.2.0/ “Full policy”, “Pre-configuring with init()”", ALL
    ),
    "llm-budget": Racer(
        llm_budget,
        ("llm-budget==0.2.0", ANTHROPIC),
        f"{PYPI}/llm-budget/0.2.0/ “@budget: Hard budget enforcement”",
        ("in turn", "threads", "processes"),
        "claude-sonnet-4-20250514",
    ),
}
NOT_RACED = {"agent-guard": "0.1.7 counts tokens and cost afterwards, and has no cap to set"}
