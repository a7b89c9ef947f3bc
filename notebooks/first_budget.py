# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first budget, in five minutes
#
# You are about to run an experiment that calls a model, and it must not cost more than five dollars, whatever you do: run a cell
# twice, run twenty calls at once, restart the kernel. You name that limit once. Nothing here needs a key or the network.

# %%
import tempfile
from decimal import Decimal
from pathlib import Path

import tokenbudget_lab as tbl

path = Path(tempfile.mkdtemp()) / "spend.duckdb"  # yours: tbl.budget("study", usd=5) keeps one in your data folder
ledger = tbl.connect(path)
study = ledger.budget("study", usd=5)
study

# %% [markdown]
# ## Reserve, then commit
#
# What a call costs is known after it; whether it may be made has to be known before. So a call first *reserves* the most that it
# can cost, and afterwards *commits* what it did cost. The rest of what was held is free again.

# %%
with study.reserve(usd="0.30") as call:
    print("meanwhile:", study.balance)
    call.commit(usd="0.12")
print("afterwards:", study.balance)

# %% [markdown]
# A block that ends in an error before anything was sent gives back all that it held:

# %%
try:
    with study.reserve(usd="0.30"):
        raise ConnectionError("the network is down")
except ConnectionError as error:
    print(error)
print(study.balance)

# %% [markdown]
# ## Twenty at once
#
# A counter that is checked before each call and raised after it lets twenty parallel calls through together: all of them see the
# money that none of them has spent yet. Here each of them holds its share first. A dollar has room for three calls of 30 cents.

# %%
from concurrent.futures import ThreadPoolExecutor

pilot = ledger.budget("study/pilot", usd=1)  # below study: what it spends counts in both


def call_a_model(n):
    try:
        with pilot.reserve(usd="0.30", tags={"item": f"q{n}"}) as call:
            call.commit(usd="0.30")
        return "answered"
    except tbl.BudgetExceeded as refusal:
        return str(refusal)


with ThreadPoolExecutor(20) as pool:
    outcomes = list(pool.map(call_a_model, range(20)))
print(outcomes.count("answered"), "of 20 were answered. The others:")
print(next(outcome for outcome in outcomes if outcome != "answered"))

# %% [markdown]
# A refusal says by whose limit, what is left and what to do about it. It is an exception like any other: nothing was sent, and
# nothing is held. When the study is worth it, raise the limit; that is an event in the ledger, with its time and who did it.

# %%
pilot.set_limit(usd=2)
print(call_a_model(20))
pilot

# %% [markdown]
# ## The kernel restarts
#
# The ledger is a file, and what stands in it was there before your call got its answer. Open it again and go on where it was:

# %%
ledger.close()  # a kernel that is restarted or killed does no more than this

ledger = tbl.connect(path)
study = ledger.budget("study", usd=5)  # the same line as above finds the budget that is there
print(study.balance)
assert study.balance.committed_usd == Decimal("1.32")

# %% [markdown]
# ## Look at it
#
# Everything that happened is an event, in order, and never changed. Balances, pictures and reports are computed from these, and
# `verify` replays them all.

# %%
ledger.calls().select("budget", "state", "held_usd", "cost_usd", "reserved").collect()

# %%
print(ledger.verify())
ledger.close()

# %% [markdown]
# Next: [put the client that you already have under a budget](client_under_a_budget.ipynb), so that reserving and committing is
# done for you.
