"""How fast a transaction becomes an event, and whether memory stays flat.

    python benchmarks/monitor.py [--blocks FOLDER] [--transactions 1000000] [--labels FOLDER]

Real transactions of block 574200 (with the outputs they spend as far as they were made in it) and of block 300025 (with all of them)
go through the whole pipeline: record from bytes, history, every detector, score. The rate is of one core, in CPU time, since the
machine may have other work; wall time is told beside it. For the memory the transactions come again and again with other
identities and other scripts (made up, and said so): a stream in which every address and every output is new. Large blocks are kept
apart as `run` keeps them (see the notebook of the history), but for `--as-it-is`."""
from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from cryptoexp.chain.block import read_block, read_spent, with_spent
from cryptoexp.chain.history import History, large_blocks_apart
from cryptoexp.chain.labels import Labels, read_labels
from cryptoexp.chain.scoring import Scorer
from cryptoexp.chain.transaction import Transaction, outputs_by_outpoint, read_transaction, transaction_bytes, with_previous
from cryptoexp.config import data_folder


def rss() -> float:
    "Resident memory, MB"
    text = Path('/proc/self/status').read_text() if Path('/proc/self/status').exists() else ''
    found = [line for line in text.splitlines() if line.startswith('VmRSS')]
    return int(found[0].split()[1]) / 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def renewed(tx: Transaction, turn: int) -> Transaction:
    "The same transaction with other identities: every hash and every script gets the number of the turn"
    mark = turn.to_bytes(4, 'big')
    new_id = lambda txid: mark.hex() + txid[8:]
    new_script = lambda script: script[:4] + mark + script[8:] if len(script) > 20 and script[:1] != b'\x6a' else script
    inputs = tuple(one if one.is_coinbase or one.txid is None else msgspec.structs.replace(
        one, txid=new_id(one.txid), previous=one.previous and msgspec.structs.replace(one.previous, script=new_script(one.previous.script)))
        for one in tx.inputs)
    outputs = tuple(msgspec.structs.replace(output, script=new_script(output.script)) for output in tx.outputs)
    return msgspec.structs.replace(tx, txid=new_id(tx.txid), inputs=inputs, outputs=outputs)


def stream(transactions: list[Transaction], number: int) -> Iterator[Transaction]:
    for place in range(number): yield renewed(transactions[place % len(transactions)], place // len(transactions) + 1)


def from_bytes(transactions: tuple[Transaction, ...]) -> tuple[float, int]:
    "CPU seconds to make the records from bytes, and their number"
    raw = [transaction_bytes(tx) for tx in transactions]
    begin = time.process_time()
    for data in raw: read_transaction(data)
    return time.process_time() - begin, len(raw)


def speed(name: str, transactions: list[Transaction], labels: Labels, raw: tuple[Transaction, ...]) -> None:
    "Rate and latencies of one block, best of three"
    best, spans = float('inf'), np.empty(0)
    for _ in range(3):
        scorer, taken, clock = Scorer(labels), np.empty(len(transactions)), time.process_time_ns
        gc.collect()
        begin, wall = time.process_time(), time.perf_counter()
        for place, tx in enumerate(transactions):
            start = clock()
            scorer.step(tx)
            taken[place] = clock() - start
        seconds, wall = time.process_time() - begin, time.perf_counter() - wall
        if seconds < best: best, best_wall, spans = seconds, wall, taken
    parse, count = from_bytes(raw)
    whole = best / len(transactions) + parse / count
    print(f'{name}: {1 / whole:,.0f} transactions a second of CPU, record from bytes included '
          f'({len(transactions) / best:,.0f} without; {len(transactions) / best_wall:,.0f} of wall time); '
          f'one takes {np.percentile(spans, 50) / 1e3:,.0f} µs (median), {np.percentile(spans, 99) / 1e3:,.0f} µs (99 %), '
          f'{spans.max() / 1e6:,.1f} ms at most; mainnet brings 7 a second: {1 / whole / 7:,.0f} times as many; '
          f'a block of 4,000 takes {4_000 * whole:.2f} s')


def memory(transactions: list[Transaction], labels: Labels, number: int, depth: int, most: int) -> None:
    "Resident memory over a long stream"
    scorer, shown = Scorer(labels, history=History(depth, most)), max(1, number // 10)
    print(f'memory over {number:,} made-up variants of these transactions; {depth:,} can be withdrawn, {most:,} addresses stay in memory:')
    spans, begin, full = array('q'), time.process_time(), 0.0     # nanoseconds; MB when the bounds are reached
    for place, tx in enumerate(stream(transactions, number), 1):
        start = time.process_time_ns()
        scorer.step(tx, place * 142_857_143)      # 7 a second
        spans.append(time.process_time_ns() - start)
        if place % 1_000 == 0:     # a store would take them
            scorer.history.leave()
            scorer.history.relinked = {}
        if place % shown == 0:
            taken, now = np.array(spans), rss()
            full = full or (now if scorer.history.given_up else 0.0)
            print(f'  {place:>9,}: {now:,.0f} MB; {len(scorer.history.accounts):,} addresses, '
                  f'{len(scorer.history.clusters.live.number):,} in clusters, '
                  f'{scorer.history.given_up:,} given up; {1e9 * len(taken) / taken.sum():,.0f} a second, '
                  f'99 % within {np.percentile(taken, 99) / 1e3:,.0f} µs', flush=True)
            del spans[:]
    if full: print(f'  from the first row with all bounds reached to the last: {rss() - full:+,.0f} MB, {rss() / full - 1:+.1%}')
    print(f'  in all {time.process_time() - begin:,.0f} s of CPU, making the variants included; '
          f'a snapshot has {len(scorer.snapshot()):,} bytes')


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    words.add_argument('--blocks', type=Path, default=None, help='folder with block574200.raw, block300025.raw and its undo file')
    words.add_argument('--labels', type=Path, default=None, help='folder with TagPacks and lists; default: those beside the blocks')
    words.add_argument('--transactions', type=int, default=1_000_000, help='length of the stream for the memory; 0: leave it out')
    words.add_argument('--depth', type=int, default=20_000)
    words.add_argument('--most', type=int, default=250_000)
    words.add_argument('--as-it-is', action='store_true', help='leave large blocks to the C library')
    chosen = words.parse_args()
    folder = chosen.blocks or (data_folder() or sys.exit('no recordings here: give --blocks'))/'bitcoin'
    labels = read_labels(chosen.labels or folder)
    later = read_block((folder/'block574200.raw').read_bytes()).transactions
    made = outputs_by_outpoint(later)
    filled = [with_previous(tx, made.get) for tx in later]
    spent = read_spent((folder/'block300025-undo.raw').read_bytes())
    older = with_spent(read_block((folder/'block300025.raw').read_bytes()), spent).transactions
    speed('block 574200', filled, labels, later)
    speed('block 300025, all that is spent known', list(older), labels, older)
    if not chosen.as_it_is: large_blocks_apart()
    if chosen.transactions: memory(filled + list(older), labels, chosen.transactions, chosen.depth, chosen.most)


if __name__ == '__main__': main()
