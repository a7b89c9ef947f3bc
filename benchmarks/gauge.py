"""What a gauge costs the calls that it watches: pairs of reserve and commit at 1,000 a second, in a kernel, with and without.

The ledger is in memory, where nothing but the interpreter is in the way of a call. Short rounds with and without a gauge take
turns, so that what else this machine does meets both, and each round with one is compared with the two beside it. What is
compared is the CPU time that the whole process used while pairs were made: whatever the gauge's thread does in their way is in
it, and what other processes do is not. The cost is the median over all rounds, with the interval in which it is with 95 %.
What the gauge's own thread uses, and the one that sends what it shows, is counted apart, also while no pair is made: it can be
told more closely.
"""

from __future__ import annotations

import json
import math
import queue
import statistics
import tempfile

from jupyter_client.manager import KernelManager

TURNS, ROUND_S, SETTLE_S, RATE = 100, 0.5, 0.2, 1000
CELL = f"""
import json, threading, time
import tokenbudget_lab as tbl

def round_of(study):
    "What opening or closing a gauge has left to do is over when it begins."
    pairs(study, {SETTLE_S})
    return pairs(study, {ROUND_S})

def own():
    "CPU seconds of the gauge's thread, and of the one that sends what a kernel shows."
    threads = [thread for thread in threading.enumerate() if thread.name in ("tokenbudget-watch", "IOPub")]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) for thread in threads)

def pairs(study, seconds):
    "CPU seconds and seconds of a pair at a fixed rate, how many were made in a second, and the gauge's CPU seconds for each."
    start, made, took, used, watching = time.perf_counter(), 0, 0.0, 0.0, own()
    while (now := time.perf_counter()) < start + seconds:
        if made < (now - start) * {RATE}:
            before = time.process_time()
            with study.reserve(usd="0.001") as call:
                call.commit(usd="0.001")
            used += time.process_time() - before
            took += time.perf_counter() - now
            made += 1
        else:
            time.sleep(0.0002)
    watching = own() - watching
    return used / made, took / made, made / seconds, watching / made

with tbl.connect(":memory:") as ledger:
    study = ledger.budget("study", usd=1_000_000)
    pairs(study, 3)
    plain, watched = [], []
    for _ in range({TURNS}):
        plain.append(round_of(study))
        with tbl.gauge(study):
            watched.append(round_of(study))
    plain.append(round_of(study))
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
                message = client.get_iopub_msg(timeout=300)
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
    cpu, wall = [longer(plain, watched, which) for which in range(2)]
    rates = [statistics.median(row[2] for row in rows) for rows in (plain, watched)]
    means = [1e3 * statistics.median(row[0] for row in rows) for rows in (plain, watched)]
    print(f"pairs a second, in memory: {rates[0]:,.0f} without a gauge, {rates[1]:,.0f} with one")
    print(
        f"CPU of a pair: {means[0]:.3f} ms without, {means[1]:.3f} ms with; a gauge costs {told(cpu)}; of its time {told(wall)}"
    )
    share = sorted(row[3] * 1e3 / means[0] for row in watched)
    print(f"the CPU of the threads that look and send, whenever they run, is {told(share)} of that of the pairs")


def longer(plain: list[list[float]], watched: list[list[float]], which: int) -> list[float]:
    """By what part each round with a gauge took more than the two beside it, in order."""
    return sorted(
        2 * with_it[which] / (before[which] + behind[which]) - 1
        for before, with_it, behind in zip(plain, watched, plain[1:], strict=False)
    )


def told(parts: list[float]) -> str:
    """The median of these, and where it is with 95 %, whatever their distribution."""
    middle, reach = len(parts) / 2, 0.98 * math.sqrt(len(parts))
    low, high = parts[math.floor(middle - reach)], parts[min(len(parts) - 1, math.ceil(middle + reach))]
    return f"{100 * statistics.median(parts):+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
