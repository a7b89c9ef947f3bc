"""What every pair reserves and commits, and where: the same for the ledger and for its peer."""

from __future__ import annotations

from tokenbudget_lab.usage import pico_of

BUDGETS = ("lab", "lab/study", "lab/study/run")
LIMIT_USD = 1_000_000  # in all three; never reached
HOLD_USD, USED_USD = "0.30", "0.20"
LIMIT_PICO, HOLD_PICO, USED_PICO = (pico_of("usd", amount) for amount in (LIMIT_USD, HOLD_USD, USED_USD))
TIMEOUT_US = 600_000_000  # as a ledger's default
