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
# # Before you send
#
# You have a table of prompts and a model. What will it cost, and does it fit into what is left? The prompts are counted here, on
# this machine, and priced with a dated price list; nothing is sent. After a few calls the estimate learns from your own answers
# how long the next ones will be.

# %%
import tempfile
from pathlib import Path

import polars as pl

import tokenbudget_lab as tbl

ledger = tbl.connect(Path(tempfile.mkdtemp()) / "spend.duckdb")
study = ledger.budget("study", usd="0.05")

FOOD = ["the soup", "the bread", "the fish", "the coffee", "the cake"]
VERDICT = ["was cold", "was worth the wait", "came late", "made my day"]
reviews = pl.DataFrame(
    {
        "item": [f"q{n}" for n in range(400)],
        "review": [f"Review {n}: {FOOD[n % 5]} {VERDICT[n % 4]}, and the service was {n % 7} of 7." for n in range(400)],
    }
)
reviews.head(3)

# %% [markdown]
# ## One call each
#
# A prompt may be any Polars expression over your table. Before any answer has come, all that is known of the output is the most
# that you let the model write, so this is what it costs *at most*:

# %%
MODEL = "claude-haiku-5-5"
ASK = pl.lit("Is this review positive? Answer and explain briefly. ") + pl.col("review")

plan = tbl.estimate(
    reviews, prompt=ASK, model=MODEL, max_output_tokens=300, budget=study, label={"condition": "plain"}, progress=False
)
plan

# %% [markdown]
# More than there is, if every answer were as long as it may be. The estimate is a frame, too, with a row for each call:

# %%
plan.frame.head(3)

# %% [markdown]
# ## A pilot
#
# Send twenty of them. The client is under the budget, so that even a wrong guess cannot spend more than it has.

# %%
client = tbl.instrument(tbl.demo_client(latency_s=(0.01, 0.05)), study, tags={"condition": "plain"})
prompts = reviews.select("item", ASK.alias("prompt"))
for item, prompt in prompts.head(20).iter_rows():
    client.messages.create(model=MODEL, max_tokens=300, messages=[{"role": "user", "content": prompt}])
study

# %% [markdown]
# ## The rest of it
#
# Now the estimate knows how long your answers are, and says so with an interval:

# %%
rest = reviews.slice(20)
plan = tbl.estimate(
    rest, prompt=ASK, model=MODEL, max_output_tokens=300, budget=study, label={"condition": "plain"}, progress=False
)
plan

# %% [markdown]
# ## Another model, or overnight?
#
# What the same table costs at most with other models, whose answers nobody has seen yet, and as a batch, which costs half and
# takes up to a day:

# %%
rows = []
for model in ["claude-haiku-5-5", "claude-sonnet-5-5", "gpt-4o-mini", "gpt-4o"]:
    ways = {
        way: tbl.estimate(rest, prompt=ASK, model=model, max_output_tokens=300, batch=way == "batch", progress=False)
        for way in ["at_once", "batch"]
    }
    rows.append({"model": model, **{f"{way}_usd": each.cost_usd for way, each in ways.items()}})
pl.DataFrame(rows).with_columns(pl.col("at_once_usd", "batch_usd").round(4))

# %% [markdown]
# From the shell it is `tokenbudget estimate prompts.csv --model claude-haiku-5-5 --max-output-tokens 300`, which ends with 1 where
# the budget is not expected to pay for all.

# %%
ledger.close()

# %% [markdown]
# Next: [send it overnight](batch_overnight.ipynb), or [watch it run](watch_it_run.ipynb).
