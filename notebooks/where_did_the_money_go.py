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
# # Where did the money go
#
# An experiment is over: two ways of asking, two models, forty questions each. This notebook goes from its ledger to the table in
# the paper: what each condition cost and how sure that is, what a correct answer cost, what was held for nothing, and the report.
# Everything here runs without a key: `tbl.demo_client()` is Anthropic's own client, answered by a small server on this machine.

# %%
import tempfile
from pathlib import Path

import polars as pl

import tokenbudget_lab as tbl

folder = Path(tempfile.mkdtemp())
ledger = tbl.connect(folder / "spend.duckdb")  # yours: the file that your experiment wrote
study = ledger.budget("study", usd=2)
client = tbl.instrument(tbl.async_demo_client(latency_s=(0.01, 0.05), seed=1), study)

MODELS = ["claude-haiku-5-5", "claude-sonnet-5-5"]
EXAMPLES = "Here are examples of good answers. " * 30


async def ask(model, condition, n):
    question = f"Is statement {n} true? Answer and give a reason."
    content = question if condition == "zero-shot" else EXAMPLES + question
    one = tbl.tagged(client, condition=condition, item=f"q{n}")
    reply = await one.messages.create(model=model, max_tokens=400, messages=[{"role": "user", "content": content}])
    # Graded by a rule of thumb of this notebook; yours compares with a reference.
    correct = (n * 7 + len(model) + len(condition)) % 10 < (8 if "sonnet" in model else 6) + (condition == "few-shot")
    return {"response_id": reply.id, "correct": correct}


conditions = [(model, condition) for model in MODELS for condition in ("zero-shot", "few-shot")]
answers = await tbl.gather(
    *(lambda m=m, c=c, n=n: ask(m, c, n) for m, c in conditions for n in range(40)),
    budget=study,
    concurrency=16,
    progress=False,
)
results = pl.DataFrame(answers)
study

# %% [markdown]
# ## What each condition cost
#
# `spend` sums by any columns and tags. Amounts that are measured, estimated and unknown stay apart, and calls without a price are
# counted rather than taken for nothing.

# %%
tbl.spend(ledger, by=["model", "condition"]).select(
    "model", "condition", "calls", "input_tokens", "output_tokens", "cost_usd", "estimated_usd", "unknown_usd", "unpriced_calls"
)

# %% [markdown]
# `compare` says how sure the means are: 95 in 100 bootstrap intervals per call, and the ratio to a baseline.

# %%
tbl.compare(ledger, "condition", baseline="zero-shot", where={"model": MODELS[1]}).select(
    "condition",
    "units",
    pl.col("mean_usd", "mean_lower_usd", "mean_upper_usd").round(6),
    pl.col("ratio", "ratio_lower", "ratio_upper").round(2),
)

# %% [markdown]
# ## What a correct answer cost
#
# Your own results join the ledger by `response_id`, or by a tag. What finds no partner would be counted aloud.

# %%
per_correct = tbl.cost_per(ledger, results, score="correct", by=["model", "condition"])
tbl.frontier(per_correct, score="mean_score").select(
    "model", "condition", "items", "mean_score", "cost_usd", pl.col("cost_per_score_usd").round(5), "on_frontier"
)

# %% [markdown]
# ## What was held for nothing, and how good the counts were
#
# A call holds what it may cost until it has ended. Once twenty answers of a kind are known, the default holds what 99 in 100 of them
# stay under.

# %%
tbl.unused_holds(ledger, "model").select("model", "calls", "held_usd", "used_usd", pl.col("used_fraction").round(2))

# %%
tbl.estimate_error(ledger, "counted_by").select("counted_by", "calls", pl.col("error", "mean_absolute_error").round(3))

# %% [markdown]
# ## Would another model have been cheaper, or a batch?
#
# The same token counts at other prices; what cannot be priced would be null, with a reason.

# %%
calls = ledger.calls().filter(pl.col("state") == "committed")
as_batch = tbl.reprice(calls, batch=True)["repriced_usd"].sum()
on_opus = tbl.reprice(calls, model="claude-opus-5-5")["repriced_usd"].sum()
print(f"as it was ${study.balance.committed_usd:.4f}, as a batch ${as_batch:.4f}, on Opus ${on_opus:.4f}")

# %% [markdown]
# ## What would a hundred more calls of a kind cost?
#
# `forecast` has the rate, when the limit is reached, and what planned calls will take, nine times in ten.

# %%
tbl.forecast(study, calls=100, where={"condition": "few-shot", "model": MODELS[1]}).select(
    "budget", pl.col("left", "planned", "planned_lower", "planned_upper").round(3), "fits"
)

# %% [markdown]
# ## The table and the sentences for the paper
#
# A report is read once and has every format: a page for the group, a `booktabs` table, CSV, JSON, Parquet. `report.table` is the
# frame behind it, with exact amounts, and `report.methods` the sentences; what would be estimated, unknown or without a price is
# said in both.

# %%
report = tbl.report(ledger, by=["model", "condition"], title="What the conditions cost")
report.table.select("model", "condition", "calls", "input_tokens", "output_tokens", "cost_usd")

# %%
print(report.methods)

# %%
print(report.tex)

# %% [markdown]
# The page has no script and asks for nothing, so it can be mailed. The command line makes the same of any number of ledgers:
# `tokenbudget report 'runs/*.duckdb' --by model,condition -o report.html`.

# %%
page = report.save(folder / "report.html")
print(page.name, f"{page.stat().st_size / 1000:.0f} kB")
ledger.close()
