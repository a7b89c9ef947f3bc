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
# # Put a client under a budget
#
# You have an experiment that calls a model. One line puts its client under a budget: from then on every attempt is reserved before
# it is sent and committed with what the provider says it used, and what does not fit is not sent. Everything here runs without a
# key: `tbl.demo_client()` is Anthropic's own client, answered by a small server on this machine.

# %%
import tempfile
from pathlib import Path

import tokenbudget_lab as tbl

ledger = tbl.connect(Path(tempfile.mkdtemp()) / "spend.duckdb")  # yours: tbl.budget(...) keeps one in your data folder
study = ledger.budget("study", usd="0.02")

plain = tbl.demo_client(latency_s=(0.05, 0.2))  # yours: anthropic.Anthropic()
client = tbl.instrument(plain, study, tags={"condition": "zero-shot"})
type(client)

# %% [markdown]
# The client has the type that it had, so your code and your editor see no difference. A call is a call:

# %%
QUESTIONS = ["What is a budget?", "What is a ledger?", "What is a reservation?", "What is an overrun?"]


def ask(client, question, **more):
    message = {"role": "user", "content": question}
    return client.messages.create(model="claude-sonnet-5-5", max_tokens=200, messages=[message], **more)


reply = ask(client, QUESTIONS[0])
print(reply.usage.output_tokens, "tokens of output")
study

# %% [markdown]
# ## Streams, and labels on single calls
#
# A stream is measured when it has been read to its end. One that you leave early is counted by what came of it, and said to be
# `estimated`: the provider bills what it has written.

# %%
with client.messages.stream(
    model="claude-sonnet-5-5", max_tokens=200, messages=[{"role": "user", "content": "Think step by step: what is a cap?"}]
) as stream:
    for text in stream.text_stream:
        break  # enough

for number, question in enumerate(QUESTIONS):
    ask(tbl.tagged(client, item=f"q{number}"), question)

ledger.sql("select basis, tags['item'] as item, output_tokens, cost_usd from calls order by reserved").tail(5)

# %% [markdown]
# ## Twenty at a time
#
# In async code it is the same line. Calls that do not fit stand in line while others are in flight, because those may cost less
# than was held for them; what can never fit is refused at once, and nothing of it was sent.

# %%
async_client = tbl.instrument(tbl.async_demo_client(latency_s=(0.05, 0.2)), study, tags={"condition": "few-shot"}, hold="worst")
outcomes = await tbl.gather(
    *(lambda n=n: ask(tbl.tagged(async_client, item=f"q{n}"), f"{QUESTIONS[n % 4]} Answer {n} in a sentence.") for n in range(60)),
    budget=study,
    concurrency=20,
    progress=False,  # a bar with money; left out of what is kept here
)
refused = [each for each in outcomes if isinstance(each, tbl.BudgetExceeded)]
print(f"{len(outcomes) - len(refused)} answered, {len(refused)} refused")
print(next(iter(refused), "none was refused"))

# %% [markdown]
# ## What it came to
#
# The cap, the gauge and this table are computed from the same events, which are never changed; `verify` replays them all.

# %%
print(study.balance)
print(ledger.verify())
ledger.sql("""
    select calls.tags['condition'] as condition, count(*) as calls, sum(cost_usd) as usd,
           round(avg((events.detail -> 'call' ->> 'latency_s')::double), 2) as seconds
    from calls join events using (reservation) where events.kind = 'committed' group by all order by usd desc
""")

# %% [markdown]
# Raise the limit on purpose, and go on:

# %%
study.set_limit(usd="0.05", reason="a second round")
ask(client, "What is left?")
study

# %%
ledger.close()
