"""Budgets for experiments with language models: named, exact, and kept.

    import tokenbudget_lab as tbl

    study = tbl.budget("prompt-study", usd=5)
    with study.reserve(model="claude-sonnet-5-5", input_tokens=1_200, max_output_tokens=800) as call:
        reply = client.messages.create(...)
        call.commit(reply.usage)

The files read in this order: errors → usage → terms → reported → limits → events → commands → accounts → state → decide →
store → writer → reservation → ledger; then heads → recovery → stores → wire → keeper → rates → own_prices → pricing →
connection, and what is built on them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import charts as charts
    from .balance import Balance as Balance
    from .choosing import counter_for as counter_for
    from .comparing import compare as compare
    from .comparing import cost_per as cost_per
    from .comparing import frontier as frontier
    from .comparing import outliers as outliers
    from .connection import Ledger as Ledger
    from .connection import budget as budget
    from .connection import connect as connect
    from .counter import Count as Count
    from .counter import TokenCounter as TokenCounter
    from .counters.claude import ClaudeTokenCounter as ClaudeTokenCounter
    from .counters.estimation import EstimationTokenCounter as EstimationTokenCounter
    from .counters.fallback import FallbackTokenCounter as FallbackTokenCounter
    from .counters.openai import OpenAITokenCounter as OpenAITokenCounter
    from .demo import async_demo_client as async_demo_client
    from .demo import demo_client as demo_client
    from .efficiency import cache_savings as cache_savings
    from .efficiency import estimate_error as estimate_error
    from .efficiency import lost_spend as lost_spend
    from .efficiency import unused_holds as unused_holds
    from .errors import *  # noqa: F403 - every error is importable from here
    from .estimates import Estimate as Estimate
    from .estimates import estimate as estimate
    from .exporting import Exported as Exported
    from .frames import Export as Export
    from .frames import read_export as read_export
    from .frames import tag as tag
    from .gathering import gather as gather
    from .handles import Budget as Budget
    from .instrumenting import instrument as instrument
    from .instrumenting import tagged as tagged
    from .ledger import Alert as Alert
    from .ledger import Verification as Verification
    from .limits import Limit as Limit
    from .loops import allow_nested_loops as allow_nested_loops
    from .pacing import burn_down as burn_down
    from .pacing import forecast as forecast
    from .pacing import pace as pace
    from .pricing import Prices as Prices
    from .pricing import cost as cost
    from .pricing import worst_case as worst_case
    from .replies import read_reply as read_reply
    from .reported import Reported as Reported
    from .reports import Report as Report
    from .reports import report as report
    from .repricing import reprice as reprice
    from .reservation import Counted as Counted
    from .reservation import Receipt as Receipt
    from .reservation import Reservation as Reservation
    from .scopes import UntaggedThread as UntaggedThread
    from .scopes import tags as tags
    from .spending import spend as spend
    from .tracking import track as track
    from .usage import Usage as Usage
    from .widgets.dashboard import Dashboard as Dashboard
    from .widgets.dashboard import dashboard as dashboard
    from .widgets.gauge import Gauge as Gauge
    from .widgets.gauge import gauge as gauge

# Where each public name lives; loaded on first use, so that `import tokenbudget_lab` costs nothing.
_HOMES = {
    "Alert": "ledger",
    "Balance": "balance",
    "Budget": "handles",
    "ClaudeTokenCounter": "counters.claude",
    "Count": "counter",
    "Counted": "reservation",
    "Dashboard": "widgets.dashboard",
    "Estimate": "estimates",
    "Export": "frames",
    "Exported": "exporting",
    "EstimationTokenCounter": "counters.estimation",
    "FallbackTokenCounter": "counters.fallback",
    "Gauge": "widgets.gauge",
    "Ledger": "connection",
    "Limit": "limits",
    "OpenAITokenCounter": "counters.openai",
    "Prices": "pricing",
    "Receipt": "reservation",
    "Report": "reports",
    "Reported": "reported",
    "Reservation": "reservation",
    "TokenCounter": "counter",
    "UntaggedThread": "scopes",
    "Usage": "usage",
    "Verification": "ledger",
    "allow_nested_loops": "loops",
    "async_demo_client": "demo",
    "budget": "connection",
    "connect": "connection",
    "cost": "pricing",
    "counter_for": "choosing",
    "estimate": "estimates",
    "demo_client": "demo",
    "instrument": "instrumenting",
    "read_export": "frames",
    "read_reply": "replies",
    "report": "reports",
    "reprice": "repricing",
    "spend": "spending",
    "tag": "frames",
    "tagged": "instrumenting",
    "tags": "scopes",
    "gather": "gathering",
    "dashboard": "widgets.dashboard",
    "gauge": "widgets.gauge",
    "track": "tracking",
    "worst_case": "pricing",
    "burn_down": "pacing",
    "cache_savings": "efficiency",
    "compare": "comparing",
    "cost_per": "comparing",
    "estimate_error": "efficiency",
    "forecast": "pacing",
    "frontier": "comparing",
    "lost_spend": "efficiency",
    "outliers": "comparing",
    "pace": "pacing",
    "unused_holds": "efficiency",
}
_ERRORS = (
    "AccessDenied",
    "AmountMissing",
    "BatchUnread",
    "BudgetClosed",
    "BudgetDiffers",
    "BudgetExceeded",
    "BudgetLost",
    "CallsUnpriced",
    "ClockJumped",
    "CountFailed",
    "EncodingAltered",
    "EncodingMissing",
    "EndpointUnreachable",
    "ExportUnsound",
    "ExtraMissing",
    "FileInUse",
    "IdConflict",
    "InvalidType",
    "InvalidValue",
    "KeeperUnreachable",
    "LedgerBusy",
    "LedgerClosed",
    "LedgerCorrupt",
    "LedgerDamaged",
    "LedgerForked",
    "LedgerMissing",
    "LedgerUnavailable",
    "NoBudget",
    "NotALedger",
    "NotAdjustable",
    "NotCalled",
    "NotEntered",
    "NotMetered",
    "ParentMissing",
    "PriceUnknown",
    "QueryRefused",
    "Refused",
    "ReservationClosed",
    "ServerLost",
    "ServerUnreachable",
    "StoreFailed",
    "TokenBudgetError",
    "UnknownBudget",
    "UnknownReservation",
    "VersionMismatch",
    "WindowFixed",
    "WouldDeadlock",
)
_HOMES |= dict.fromkeys(_ERRORS, "errors")
_FOR_IPYTHON = ("load_ipython_extension", "unload_ipython_extension")  # %load_ext looks here for them
_MODULES = ("charts",)  # used by their own names: tbl.charts.latency(…)
__all__ = ["__version__", *sorted((*_HOMES, *_MODULES))]  # noqa: PLE0604 - the names stand above


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    home = "magics" if name in _FOR_IPYTHON else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
