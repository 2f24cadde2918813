"""``make bench``: same work, one run, medians of five interleaved repeats, on all cores.

"All cores" is, for each contender, the better of one-thread processes on every core, which share the work, and one
process with as many threads; its batch size is the best of several, found first. Training counts only if both sides end
at the same held-out loss. The whole experiment starts cold on both sides: ours as the command that a user types, theirs
as one process for each student, all cores busy.

FLOP are counted from the matrix products alone (no attention scores, no look-ups): 2 for each weight and token forward,
2 more backward for the activations, 2 more for each weight that is trained; the head only where it runs. The limit is a
large single-precision matrix product on all cores, measured in the same run. ``--quick`` runs everything once at tiny
sizes, to see that it runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from benchmarks import work
from undertone.training import Student

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
QUICK = "--quick" in sys.argv
REPEATS = 1 if QUICK else 5
ROWS = 200 if QUICK else 4000
BATCHES = (128,) if QUICK else (128, 256, 512, 1024)
SEEDS = (0,) if QUICK else (0, 1)
SMALL = ["data={prompts: 300, held_out: 50}", "evaluation.samples=2", "training.epochs=1"]
EXPERIMENT = [f"seeds={list(SEEDS)}", *(SMALL if QUICK else ["data.prompts=3000"])]
"""Fewer prompts than the 8000 of the preset, for ten repeats in minutes: fixed costs weigh more, ours above all."""
SAME_LOSS = 0.03
"""Nats: orders of rows differ between trainers, and with them the loss, by less than this."""

Pools = dict[int, ProcessPoolExecutor]


def pools() -> Pools:
    """Threads a process -> the processes that together use all cores."""
    spawn = get_context("spawn")
    made = {1: ProcessPoolExecutor(CORES, mp_context=spawn, initializer=work.use_threads, initargs=(1,))}
    if CORES > 1:
        made[CORES] = ProcessPoolExecutor(1, mp_context=spawn, initializer=work.use_threads, initargs=(CORES,))
    return made


def shares(items: Sequence[Any], count: int) -> list[list[Any]]:
    """Every ``count``-th item: parts of equal work."""
    return [list(items[at::count]) for at in range(count)]


def spread(
    pool: ProcessPoolExecutor, function: Callable[..., Any], parts: Sequence[tuple[Any, ...]]
) -> tuple[float, Any]:
    """Wall seconds until every process has done its part, and what they returned."""
    started = time.perf_counter()
    futures = [pool.submit(function, *part) for part in parts]
    results = [future.result() for future in futures]
    return time.perf_counter() - started, results


def sampling(made: Pools, kind: str, new: int) -> dict[str, Any]:
    """Tokens a second, ours against ``generate``."""
    prompts = made[1].submit(work.prompts_of, kind, ROWS).result()

    def once(function: Callable[..., int], threads: int, batch: int) -> tuple[float, float]:
        processes = CORES // threads
        parts = [(part, batch, new) for part in shares(prompts, processes)]
        seconds, tokens = spread(made[threads], function, parts)
        return sum(tokens) / seconds, seconds

    best = {}
    for function in (work.sample_ours, work.sample_theirs):
        tried = {(threads, batch): once(function, threads, batch)[0] for threads in made for batch in BATCHES}
        best[function] = max(tried, key=lambda choice: tried[choice])
    record = _duel(f"sampling, {kind}", lambda f: once(f, *best[f])[0], work.sample_ours, work.sample_theirs, best)
    tokens = made[1].submit(work.sample_ours, prompts, BATCHES[0], new).result()
    return {**record, "flop": made[1].submit(work.sampling_flop, prompts, tokens).result() / tokens}


def training(made: Pools, name: str, student: Student) -> dict[str, Any]:
    """Rows a second over students that are trained side by side, ours against ``SFTTrainer``."""
    rows = work.rows_of(ROWS // 2)
    examples = made[1].submit(work.examples_of, rows).result()
    losses: dict[str, float] = {}
    tokens = sum(len(example.ids) for example in examples)

    def once(function: Callable[..., tuple[float, float]], threads: int) -> float:
        processes = CORES // threads
        _, done = spread(made[threads], function, [(student, examples)] * processes)
        losses[function.__name__] = done[0][1]
        return float(processes * tokens / max(seconds for seconds, _ in done))

    best = {}
    for function in (work.fit_ours, work.fit_theirs):
        tried = {(threads,): once(function, threads) for threads in made}
        best[function] = max(tried, key=lambda choice: tried[choice])
    record = _duel(f"training, {name}", lambda f: once(f, *best[f]), work.fit_ours, work.fit_theirs, best)
    if max(losses.values()) - min(losses.values()) > SAME_LOSS:
        sys.exit(f"not the same work: held-out losses {losses}")
    flop = made[1].submit(work.training_flop, examples, student).result() / tokens
    return {**record, "held_out_nll": losses, "flop": flop}


def experiment(batch: int) -> dict[str, Any]:
    """Runs a second of the whole of owl-numbers, ours against generate + SFTTrainer + generate; both start cold."""
    students = [(arm, seed, EXPERIMENT, batch) for seed in SEEDS for arm in ("treated", "control")]

    def ours() -> float:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "undertone", "run", "owl-numbers", *EXPERIMENT, "--out", f"{folder}/run"]
            subprocess.run(command, check=True, capture_output=True)
        return 1 / (time.perf_counter() - started)

    def theirs() -> float:
        started = time.perf_counter()
        spawn = get_context("spawn")
        with ProcessPoolExecutor(CORES, mp_context=spawn, initializer=work.use_threads, initargs=(1,)) as pool:
            spread(pool, work.cell_theirs, students)
        return 1 / (time.perf_counter() - started)

    return _duel("whole experiment", lambda side: side(), ours, theirs, {})


def _duel(name: str, speed: Callable[[Any], float], ours: Any, theirs: Any, best: dict[Any, Any]) -> dict[str, Any]:
    """A B A B …: medians of both, and the ratio's median over repeats."""
    pairs = [(speed(ours), speed(theirs)) for _ in range(REPEATS)]
    return {
        "name": name,
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "ratios": [round(a / b, 3) for a, b in pairs],
        "settings": {f.__name__: choice for f, choice in best.items()},
    }


def main() -> None:
    """Run all, print a table, write ``benchmarks/results.json``."""
    from rich.console import Console
    from rich.table import Table

    work.model()  # a lab model is built here, outside every timer
    made = pools()
    limit = sum(spread(made[1], work.flops, [()] * CORES)[1])
    records = [sampling(made, "numbers", 9), sampling(made, "questions", 6)]
    records += [training(made, "biases", work.BIASES), training(made, "LoRA r 8", work.LORA)]
    for pool in made.values():
        pool.shutdown()
    records.append(experiment(records[0]["settings"]["sample_theirs"][1]))
    table = Table(title=f"{work.MODEL}, {CORES} cores, medians of {REPEATS}; limit {limit / 1e9:.0f} GFLOP/s", box=None)
    for column in ("work", "undertone", "baseline", "ratio", "lowest … highest", "share of the FLOP limit"):
        table.add_column(column)
    for record in records:
        unit = "tok/s" if "flop" in record else "runs/s"
        table.add_row(
            record["name"], f"{record['ours']:.4g} {unit}", f"{record['theirs']:.4g} {unit}",
            f"{record['ratio']:.2f}×", f"{min(record['ratios']):.2f} … {max(record['ratios']):.2f}",
            f"{record['flop'] * record['ours'] / limit:.1%}" if "flop" in record else "",
        )  # fmt: skip
    Console(width=120).print(table)
    result = {"cores": CORES, "flops_limit": limit, "load": os.getloadavg(), "records": records}
    if not QUICK:
        Path(__file__).with_name("results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
