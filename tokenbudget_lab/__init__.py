"""Budgets for experiments with language models: named, exact, and kept.

    import tokenbudget_lab as tbl

    study = tbl.budget("prompt-study", usd=5)
    with study.reserve(model="claude-sonnet-5-5", input_tokens=1_200, max_output_tokens=800) as call:
        reply = client.messages.create(...)
        call.commit(reply.usage)

The files read in this order: errors → usage → limits → events → commands → accounts → state → decide → store → writer →
reservation → ledger; then heads → recovery → stores → wire → keeper → pricing → connection, and what is built on them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .balance import Balance as Balance
    from .connection import Ledger as Ledger
    from .connection import budget as budget
    from .connection import connect as connect
    from .counter import Count as Count
    from .counter import TokenCounter as TokenCounter
    from .counters.estimation import EstimationTokenCounter as EstimationTokenCounter
    from .demo import async_demo_client as async_demo_client
    from .demo import demo_client as demo_client
    from .errors import *  # noqa: F403 - every error is importable from here
    from .frames import tag as tag
    from .handles import Budget as Budget
    from .ledger import Alert as Alert
    from .ledger import Verification as Verification
    from .limits import Limit as Limit
    from .pricing import cost as cost
    from .reservation import Counted as Counted
    from .reservation import Receipt as Receipt
    from .reservation import Reservation as Reservation
    from .usage import Usage as Usage

# Where each public name lives; loaded on first use, so that `import tokenbudget_lab` costs nothing.
_HOMES = {
    "Alert": "ledger",
    "Balance": "balance",
    "Budget": "handles",
    "Count": "counter",
    "Counted": "reservation",
    "EstimationTokenCounter": "counters.estimation",
    "Ledger": "connection",
    "Limit": "limits",
    "Receipt": "reservation",
    "Reservation": "reservation",
    "TokenCounter": "counter",
    "Usage": "usage",
    "Verification": "ledger",
    "async_demo_client": "demo",
    "budget": "connection",
    "connect": "connection",
    "cost": "pricing",
    "demo_client": "demo",
    "tag": "frames",
}
_ERRORS = (
    "AmountMissing",
    "BudgetClosed",
    "BudgetDiffers",
    "BudgetExceeded",
    "BudgetLost",
    "CallsUnpriced",
    "ClockJumped",
    "CountFailed",
    "EncodingMissing",
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
    "LedgerUnavailable",
    "NotALedger",
    "NotAdjustable",
    "NotEntered",
    "ParentMissing",
    "PriceUnknown",
    "QueryRefused",
    "Refused",
    "ReservationClosed",
    "StoreFailed",
    "TokenBudgetError",
    "UnknownBudget",
    "UnknownReservation",
    "VersionMismatch",
    "WindowFixed",
    "WouldDeadlock",
)
_HOMES |= dict.fromkeys(_ERRORS, "errors")
__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - the names stand above


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
