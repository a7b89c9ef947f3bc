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
# # Watch it run
#
# An experiment of an hour is an hour in which you would like to know what it costs. A gauge says it while calls run, a dashboard says it
# of everything in a ledger, and a line under each cell says what that cell came to. What this page keeps is what stood there when
# each of them was closed: a picture with a date, which needs no kernel.

# %%
import asyncio
from concurrent.futures import ThreadPoolExecutor

import tokenbudget_lab as tbl

ledger = tbl.connect(":memory:")  # yours: a file, which other notebooks and a restarted kernel go on with
lab = ledger.budget("lab", usd="0.10", window="month")
study = ledger.budget("lab/study", usd="0.02", alerts=(0.5, 0.9))

MODEL = "claude-sonnet-5-5"
QUESTIONS = [f"Question {n}: is this review positive, and why?" for n in range(30)]


def ask(client, question, **more):
    return client.messages.create(model=MODEL, max_tokens=150, messages=[{"role": "user", "content": question}], **more)


# %% [markdown]
# ## A gauge
#
# Open it, and run your cells. It moves from threads and from async code, and shows what other notebooks spend of the same budget.
# Here it is open for one block; without `with` it stays until you close it.

# %%
client = tbl.instrument(tbl.demo_client(latency_s=(0.05, 0.3)), study, tags={"condition": "zero-shot"})

with tbl.gauge(study), ThreadPoolExecutor(8) as pool:
    replies = list(pool.map(lambda question: ask(client, question), QUESTIONS[:12]))

# %% [markdown]
# Solid is what has been committed, striped what calls in flight hold. The balance as a line of text is what `print` says:

# %%
print(study.balance)

# %% [markdown]
# ## What a cell came to
#
# The extension puts a cell under a budget, whatever is in it: `await`, shell commands, other magics. Its line stands under the cell,
# also when the cell ends in an error.

# %%
# %load_ext tokenbudget_lab

# %%
# %%budget study --tag condition=few-shot
plain = tbl.instrument(tbl.async_demo_client(latency_s=(0.05, 0.3)), study)
replies = await asyncio.gather(*(ask(plain, f"Review: good. Positive. {question}") for question in QUESTIONS[:10]))

# %% [markdown]
# Since the extension was loaded, every cell that spent something is remembered:

# %%
# %budget cells

# %% [markdown]
# ## The whole ledger
#
# A dashboard is the tree of budgets, the calls that run, spend over time and by a tag, the last refusals, and one control, which
# raises a limit in two steps. While a cell blocks, Jupyter hands over no click, so for a long run open it in a notebook of its own.

# %%
with tbl.dashboard(ledger, by="condition"), ThreadPoolExecutor(8) as pool:
    futures = [pool.submit(ask, tbl.tagged(client, item=f"q{n}"), question) for n, question in enumerate(QUESTIONS[:8])]
    try:
        lab.reserve_sync(usd=1)  # more than there is: one of the last refusals
    except tbl.BudgetExceeded:
        pass

# %% [markdown]
# ## Until the money is gone
#
# `tbl.track` is a progress bar that knows the budget. When the budget is gone the loop ends with an error, and its bar with a line:
# how many calls are done, what they cost, and what is left. The alerts at 50 % and 90 % stand under the cells that crossed them.

# %%
try:
    for question in tbl.track(QUESTIONS * 10, study):
        ask(client, question)
except tbl.BudgetExceeded as refusal:
    print(refusal)

# %%
study.set_limit(usd="0.04")  # worth it: go on
print(study.balance)
print(ledger.verify())
ledger.close()

# %% [markdown]
# In a terminal, `tokenbudget watch` shows the same, and `--on-alert COMMAND` runs a command of yours for each alert.
# Next: [where did the money go](where_did_the_money_go.ipynb).
