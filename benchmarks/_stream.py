"""A synthetic market of any length, in hftbacktest's row format: a zero-intelligence book in the manner of the Santa Fe models.

Limit orders arrive at distances with a heavy tail from the opposite best, parts of levels are cancelled, market orders eat the book level
by level: one trade row and one depth row for each level, at one time. A slowly wandering drift leans on the sides, so there are trends. The
same seed gives the same rows. It stands for no real market: it is there to measure speed on and to compare engines with.
"""
# ruff: noqa: NPY002 (compiled code knows the older random numbers)
from __future__ import annotations

import numpy as np
from hftbacktest.types import (
    BUY_EVENT,
    DEPTH_EVENT,
    DEPTH_SNAPSHOT_EVENT,
    EXCH_EVENT,
    LOCAL_EVENT,
    SELL_EVENT,
    TRADE_EVENT,
    event_dtype,
)
from numba import njit

TICK_SIZE, LOT_SIZE = 0.1, 0.001
START_TICK, START_NS = 600_000, 1_700_000_000_000_000_000
MESSAGES_PER_SECOND, LATENCY_NS, JITTER_NS = 500.0, 2_000_000, 500_000.0
REACH = 1 << 16       # ticks kept on each side of the start
FARTHEST = 400        # no order farther from the best, in ticks
WIDE = 40             # a market order stops eating when the spread is wider, in ticks
BOTH = EXCH_EVENT | LOCAL_EVENT
BID, ASK = 0, 1       # first index of the book; the ask's levels go up, the bid's go down


@njit(cache=True)
def _put(rows, n, kind, side, exchange_ns, local_ns, place, lots):
    "One row; `side` is the bid or ask of a level, for a trade the aggressor's; returns the next row's number"
    row = rows[n]
    row.ev = kind | BOTH | (BUY_EVENT if side == BID else SELL_EVENT)
    row.exch_ts, row.local_ts = exchange_ns, local_ns
    row.px, row.qty = (place + START_TICK - REACH)/10, lots/1000
    row.order_id, row.ival, row.fval = 0, 0, 0.0
    return n + 1


@njit(cache=True)
def _snapshot(rows, n, book, best, now_ns, local_ns):
    "A full book to start with: 400 levels a side"
    for level in range(FARTHEST):
        for side in range(2):
            place = best[side] + (level if side == ASK else -level)
            book[side, place] = 1 + np.int64(np.random.exponential(1500.0))
            n = _put(rows, n, DEPTH_SNAPSHOT_EVENT, side, now_ns, local_ns, place, book[side, place])
    return n


@njit(cache=True)
def _next_best(levels, place, outward):
    "The first level with something on it, from `place` outward"
    while levels[place] == 0: place += outward
    return place


@njit(cache=True)
def _market_order(rows, n, book, best, lean, now_ns, local_ns):
    "Eats the opposite side from its best on"
    aggressor = BID if np.random.random() < 0.5 + max(-0.35, min(0.35, lean)) else ASK
    lots = 1 + np.int64(np.random.exponential(60.0))
    if np.random.random() < 0.10: lots += min(6000, np.int64(np.random.random()**-0.6*250.0))
    side = 1 - aggressor
    while lots > 0 and n < len(rows) - 4:
        place = best[side]
        part = min(lots, book[side, place])
        n = _put(rows, n, TRADE_EVENT, aggressor, now_ns, local_ns, place, part)
        book[side, place] -= part
        lots -= part
        n = _put(rows, n, DEPTH_EVENT, side, now_ns, local_ns, place, book[side, place])
        if book[side, place] == 0:
            best[side] = _next_best(book[side], place, 1 if side == ASK else -1)
            if best[ASK] - best[BID] > WIDE: break
    return n


@njit(cache=True)
def _limit_order(rows, n, book, best, lean, now_ns, local_ns):
    "Adds to a level at a heavy-tailed distance from the opposite best"
    distance = np.int64((1.0 - np.random.random())**(-1.0/0.9))
    if distance > FARTHEST: distance = 1 + np.int64(np.random.random()*FARTHEST)
    lots = 1 + np.int64(np.random.exponential(300.0))
    side = BID if np.random.random() < 0.5 + 0.3*max(-0.5, min(0.5, lean)) else ASK
    place = best[1 - side] + (distance if side == ASK else -distance)
    if book[side, place] == 0 and (place < best[ASK] if side == ASK else place > best[BID]): best[side] = place
    book[side, place] += lots
    return _put(rows, n, DEPTH_EVENT, side, now_ns, local_ns, place, book[side, place])


@njit(cache=True)
def _cancel(rows, n, book, best, now_ns, local_ns):
    "Takes a part of a level away, or all of it; nothing where the level is empty"
    distance = np.int64((1.0 - np.random.random())**(-1.0/0.9)) - 1
    if distance > FARTHEST: distance = np.int64(np.random.random()*FARTHEST)
    whole = np.random.random() < 0.12
    side = BID if np.random.random() < 0.5 else ASK
    outward = 1 if side == ASK else -1
    place = best[side] + outward*distance
    there = book[side, place]
    if there == 0: return n
    part = there if whole else min(there, 1 + np.int64(np.random.exponential(300.0)))
    book[side, place] -= part
    if part == there and distance == 0: best[side] = _next_best(book[side], place + outward, outward)
    return _put(rows, n, DEPTH_EVENT, side, now_ns, local_ns, place, book[side, place])


@njit(cache=True)
def _fill(rows, seed):
    "Fills the rows, returns how many"
    np.random.seed(seed)
    book, best = np.zeros((2, 2*REACH), np.int64), np.array([REACH - 1, REACH])
    now_ns, last_local_ns, drift = START_NS, START_NS + LATENCY_NS, 0.0
    n = _snapshot(rows, 0, book, best, now_ns, last_local_ns)
    while n < len(rows) - 64:
        now_ns += np.int64(np.random.exponential(1e9/MESSAGES_PER_SECOND)) + 1
        last_local_ns = local_ns = max(last_local_ns, now_ns + LATENCY_NS + np.int64(np.random.exponential(JITTER_NS)))
        what = np.random.random()
        drift = 0.9995*drift + 0.004*np.random.normal()
        if what < 0.075: n = _market_order(rows, n, book, best, drift, now_ns, local_ns)
        elif what < 0.56: n = _limit_order(rows, n, book, best, drift, now_ns, local_ns)
        else: n = _cancel(rows, n, book, best, now_ns, local_ns)
        if best[ASK] - best[BID] > 2000 or best[BID] < 1000 or best[ASK] > 2*REACH - 1000: break
    return n


def stream(
    rows: int,      # at most so many rows, more than 900; the last few dozen may be left out
    seed: int = 7,  # the same seed, the same rows
) -> np.ndarray:    # rows of hftbacktest's `event_dtype`, both clocks in order, tick size 0.1, lot size 0.001
    "The synthetic market: quantities and prices are the decimals nearest to k/1000 and k/10"
    if rows <= 2*FARTHEST + 100: raise ValueError(f'stream: {rows} rows do not hold the snapshot; ask for more than {2*FARTHEST + 100}')
    made = np.zeros(rows, event_dtype)
    return made[:_fill(made, seed)]
