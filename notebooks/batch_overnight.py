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
# # Two notebooks, and a batch overnight
#
# A batch costs half, and takes up to a day. That is long enough for a kernel to be restarted, a laptop to be closed, and a budget
# to be spent on something else. So the whole batch is held when it is sent, at batch prices, and the hold ends only when its results
# are settled: item by item, once, from whichever notebook reads them. No key is needed here; the provider answers on this machine.

# %%
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tokenbudget_lab as tbl

path = Path(tempfile.mkdtemp()) / "spend.duckdb"
ledger = tbl.connect(path)
study = ledger.budget("study", usd=1)
client = tbl.instrument(tbl.demo_client(latency_s=(0.1, 2.0)), study, tags={"condition": "batch"})  # a night is two seconds here

# %% [markdown]
# ## Evening
#
# What will it cost at most? Then send it.

# %%
prompts = {f"q{n}": f"Is this review positive? Review {n}: the food was good, the service was slow." for n in range(200)}
print(tbl.estimate(list(prompts.values()), model="claude-haiku-5-5", max_output_tokens=100, batch=True, budget=study, progress=False))

# %%
sent = client.messages.batches.create(
    requests=[
        {
            "custom_id": item,
            "params": {"model": "claude-haiku-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]},
        }
        for item, prompt in prompts.items()
    ]
)
print(sent.processing_status)
study

# %% [markdown]
# ## Meanwhile, in another notebook
#
# A second notebook (here another process of Python) opens the same file and names the same budget. It sees what the batch holds, and
# what it spends is seen here, at once: there is one ledger, and nobody has a count of their own.

# %%
ANOTHER = """
import sys
import tokenbudget_lab as tbl

with tbl.connect(sys.argv[1]) as ledger:
    study = ledger.budget("study", usd=1)
    print("the other sees:", study.balance)
    study.record(usd="0.25", tags={"condition": "pilot"}).result()
    try:
        study.reserve_sync(usd="0.75")
    except tbl.BudgetExceeded as refusal:
        print("and is refused:", refusal)
"""
print(subprocess.run([sys.executable, "-c", ANOTHER, str(path)], capture_output=True, text=True, check=True).stdout)
print("this one sees:", study.balance)

# %% [markdown]
# ## Night
#
# This notebook is closed. The hold stays, and nobody can spend that money meanwhile.

# %%
ledger.close()
time.sleep(2.5)

# %% [markdown]
# ## Morning, in whichever notebook
#
# The ledger knows what is on its way. Any client of the provider will do to settle it, as often as you like.

# %%
ledger = tbl.connect(path)
for batch in ledger.batches():
    print(batch)

client = tbl.demo_client(latency_s=(0.1, 2.0))
for _ in range(2):  # twice settles nothing twice
    (batch,) = ledger.sync_batches(client) or ledger.batches(ended=True)
    print(batch)

# %% [markdown]
# What was held and not used is free again, and every item has its own row among the events, under its `custom_id`:

# %%
print(ledger.budget("study").balance)
ledger.sql("""
    select key as item, input_tokens, output_tokens, usd, response_id
    from events where kind = 'part_committed' order by usd desc limit 5
""")

# %%
print(ledger.verify())
ledger.close()
