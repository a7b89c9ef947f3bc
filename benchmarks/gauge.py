"""What a gauge costs the calls that it watches: pairs of reserve and commit at 1,000 a second, in a kernel, with and without.

The ledger is in memory, where nothing but the interpreter is in the way of a call. The two are measured in turns, a second
each, so that what else this machine does meets both. A pair's time is told as the mean of each second, and the cost as the
median, with its quartiles, of what the seconds with a gauge took longer than those around them.
"""

from __future__ import annotations

import json
import queue
import statistics
import tempfile

from jupyter_client.manager import KernelManager

TURNS, RATE = 20, 1000
CELL = f"""
import json, time
import tokenbudget_lab as tbl

def pairs(study, seconds=1.0):
    "Mean seconds of a pair, at a fixed rate."
    start, made, took = time.perf_counter(), 0, 0.0
    while (now := time.perf_counter()) < start + seconds:
        if made < (now - start) * {RATE}:
            with study.reserve(usd="0.001") as call:
                call.commit(usd="0.001")
            took += time.perf_counter() - now
            made += 1
        else:
            time.sleep(0.0002)
    return took / made, made / seconds

with tbl.connect(":memory:") as ledger:
    study = ledger.budget("study", usd=1_000_000)
    pairs(study, 2)
    plain, watched = [], []
    for _ in range({TURNS}):
        plain.append(pairs(study))
        with tbl.gauge(study):
            watched.append(pairs(study))
    plain.append(pairs(study))
print(json.dumps([plain, watched]))
"""


def run(folder: str) -> list[list[list[float]]]:
    """Run the cell in a kernel of its own."""
    manager = KernelManager(ip="127.0.0.1")
    manager.start_kernel(extra_arguments=["--HistoryManager.enabled=False"], cwd=folder)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        asked, text = client.execute(CELL), ""
        while True:
            try:
                message = client.get_iopub_msg(timeout=120)
            except queue.Empty:
                raise SystemExit("the kernel does not answer") from None
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                text += content["text"]
            elif message["msg_type"] == "error":
                raise SystemExit("\n".join(content["traceback"]))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return json.loads(text)  # type: ignore[no-any-return] # as it was written
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = run(folder)
    longer = [with_it[0] / ((plain[n][0] + plain[n + 1][0]) / 2) - 1 for n, with_it in enumerate(watched)]
    rates = [statistics.median(rate for _, rate in rows) for rows in (plain, watched)]
    means = [1e3 * statistics.median(mean for mean, _ in rows) for rows in (plain, watched)]
    print(f"pairs a second, in memory: {rates[0]:,.0f} without a gauge, {rates[1]:,.0f} with one")
    low, middle, high = (100 * cut for cut in statistics.quantiles(longer, n=4))
    print(
        f"a pair: {means[0]:.3f} ms without, {means[1]:.3f} ms with; a gauge costs {middle:+.1f} % ({low:+.1f} to {high:+.1f})"
    )


if __name__ == "__main__":
    main()
