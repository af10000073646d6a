"""hftbacktest 2.4.4 as the oracle of the matching engine: one driver, quoting functions that both engines share, adversarial tapes.

`run(Case(...))` plays a case in hftbacktest and returns what happened: every fill, positions, money, counts. A strategy states *wishes*, a
table `wishes[asset, side, level] = (tick, lots, time in force)`; `follow` turns wishes into cancels and new orders by fixed rules, so that
another engine that follows the same rules sends the same requests at the same times. The quoting functions know nothing of hftbacktest:
they take plain numbers and fill the table, and any engine may call them.

The driver speaks to hftbacktest's functions by their addresses, handed to a compiled function as arguments: it is compiled once for every
depth, queue and exchange, and kept in numba's cache. (hftbacktest's own classes cannot be cached and take ten seconds for each process.)
"""
# ruff: noqa: NPY002 (compiled code knows the older random numbers)
from __future__ import annotations

import ctypes
import os
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hftbacktest import BacktestAsset, binding
from hftbacktest._hftbacktest import build_hashmap_backtest, build_roivec_backtest
from hftbacktest.data import correct_event_order, validate_event_order
from hftbacktest.intrinsic import address_as_void_pointer
from hftbacktest.types import (
    BUY_EVENT,
    DEPTH_EVENT,
    DEPTH_SNAPSHOT_EVENT,
    SELL_EVENT,
    TRADE_EVENT,
    event_dtype,
    order_dtype,
    state_values_dtype,
)
from numba import carray, njit, types

BID, ASK = 0, 1                                       # second index of `wishes`
TICK, LOTS, FORCE = 0, 1, 2                           # its last index
POST_ONLY, GTC, IOC, FOK, MARKET = 0, 1, 2, 3, 4      # its times in force
NO_BID, NO_ASK = -(1 << 62), 1 << 62                  # best ticks beyond these are hftbacktest's words for an empty side

# ---- what both engines share: random numbers and quoting functions
# Each is called once for an asset and a decision, assets in order, only when the asset's local book has two sides that do not cross, as
# quote(asset, best_bid, best_ask, positions, parameters, scratch, wishes): whole numbers, positions int64[assets] in lots, parameters
# float64[:], scratch float64[1 + assets] as new_scratch makes it, wishes int64[assets, 2, levels, 3]; it fills wishes[asset], lots 0 =
# nothing wished. The table and the scratch start as told here, live through the run, and are changed by nobody else. An asset that is not
# asked (one side empty, or crossed) is left alone that turn: its orders stay. Then the wishes of the asset are followed, see `follow`.


@njit(cache=True)
def draw(scratch: np.ndarray, below: int) -> int:
    "A whole number from 0 to below - 1; the state is scratch[0], a whole number below 2^31 kept in a float64 (so it is exact)"
    state = (np.int64(scratch[0])*1103515245 + 12345) & 0x7fffffff
    scratch[0] = state
    return (state >> 8) % below


@njit(cache=True)
def _wish(wishes: np.ndarray, asset: int, side: int, level: int, tick: int, lots: int, force: int) -> None:
    wishes[asset, side, level, TICK], wishes[asset, side, level, LOTS], wishes[asset, side, level, FORCE] = tick, lots, force


@njit(cache=True)
def one_each_side(asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    "parameters: half spread in ticks, lots, largest position in lots. One post-only bid and ask around the mid, never inside the spread"
    half, lots, largest = parameters[0], np.int64(parameters[1]), np.int64(parameters[2])
    mid = 0.5*(best_bid + best_ask)
    wishes[asset] = 0
    if positions[asset] < largest: _wish(wishes, asset, BID, 0, min(np.int64(np.floor(mid - half)), best_bid), lots, POST_ONLY)
    if positions[asset] > -largest: _wish(wishes, asset, ASK, 0, max(np.int64(np.ceil(mid + half)), best_ask), lots, POST_ONLY)


@njit(cache=True)
def grid(asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    "parameters: half spread, lots, largest position, step between levels in ticks. As many levels a side as the table has, post-only"
    half, lots, largest, step = parameters[0], np.int64(parameters[1]), np.int64(parameters[2]), np.int64(parameters[3])
    mid = 0.5*(best_bid + best_ask)
    bid, ask = min(np.int64(np.floor(mid - half)), best_bid), max(np.int64(np.ceil(mid + half)), best_ask)
    wishes[asset] = 0
    for level in range(wishes.shape[2]):
        if positions[asset] + level*lots < largest: _wish(wishes, asset, BID, level, bid - level*step, lots, POST_ONLY)
        if positions[asset] - level*lots > -largest: _wish(wishes, asset, ASK, level, ask + level*step, lots, POST_ONLY)


@njit(cache=True)
def random_actions(asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    """parameters: most lots, reach in ticks, largest position, percent of orders that are not post-only, kinds of these: 3 = GTC, IOC, FOK,
    4 = MARKET too (which hftbacktest fills at no price when the other side is empty: see `unpriced`).

    Keeps half of what it wished before; else a random tick near the touch, across it, or far away; nothing at all now and then."""
    most, reach, largest = np.int64(parameters[0]), np.int64(parameters[1]), np.int64(parameters[2])
    taking, kinds = np.int64(parameters[3]), np.int64(parameters[4])
    if draw(scratch, 4) == 0: return                             # the wishes of the last decision stand
    silent = draw(scratch, 8) == 0
    for side in range(2):
        sign = 1 if side == BID else -1
        for level in range(wishes.shape[2]):
            if silent or sign*positions[asset] >= largest or draw(scratch, 3) == 0:
                _wish(wishes, asset, side, level, 0, 0, 0)
                continue
            if wishes[asset, side, level, LOTS] and draw(scratch, 2) == 0: continue
            touch = best_bid if side == BID else best_ask
            away = draw(scratch, reach + 3) - 2                  # two ticks across the own touch at most, the other best included
            if draw(scratch, 16) == 0: away = 50 + draw(scratch, 50)
            force = POST_ONLY
            if draw(scratch, 100) < taking: force = 1 + draw(scratch, kinds)
            _wish(wishes, asset, side, level, touch - sign*away, 1 + draw(scratch, most), force)


@njit(cache=True)
def taker(asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    "parameters: most lots, decisions between two orders on average, largest position, kinds as above. Now and then one order that takes"
    most, every, largest, kinds = np.int64(parameters[0]), np.int64(parameters[1]), np.int64(parameters[2]), np.int64(parameters[3])
    wishes[asset] = 0
    if draw(scratch, every): return
    side = BID if positions[asset] <= -largest else ASK if positions[asset] >= largest else draw(scratch, 2)
    sign, other = (1, best_ask) if side == BID else (-1, best_bid)
    _wish(wishes, asset, side, 0, other + sign*(draw(scratch, 4) - 1), 1 + draw(scratch, most), 1 + draw(scratch, kinds))


@njit(cache=True)
def two_assets(asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    "parameters: half spread, lots, largest position, ticks of lean for each lot the other assets hold. Quotes away from their inventory"
    half, lots, largest, lean = parameters[0], np.int64(parameters[1]), np.int64(parameters[2]), parameters[3]
    others = positions.sum() - positions[asset]
    mid = 0.5*(best_bid + best_ask) - lean*others
    wishes[asset] = 0
    if positions[asset] < largest: _wish(wishes, asset, BID, 0, min(np.int64(np.floor(mid - half)), best_bid), lots, POST_ONLY)
    if positions[asset] > -largest: _wish(wishes, asset, ASK, 0, max(np.int64(np.ceil(mid + half)), best_ask), lots, POST_ONLY)


@njit(cache=True)
def script(asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    """A play by hand. parameters: rows of (decision, asset, side, level, tick, lots, time in force), one after another.

    A row holds from its decision (the first is 0) until another row says otherwise about the same place of the table; scratch[1 + asset]
    counts the asset's decisions."""
    for row in range(len(parameters)//7):
        words = parameters[7*row:7*row + 7]
        if words[0] == scratch[1 + asset] and words[1] == asset:
            _wish(wishes, asset, np.int64(words[2]), np.int64(words[3]), np.int64(words[4]), np.int64(words[5]), np.int64(words[6]))
    scratch[1 + asset] += 1


QUOTERS = dict(one_each_side=one_each_side, grid=grid, random_actions=random_actions, taker=taker, two_assets=two_assets, script=script)
STRATEGIES = tuple(QUOTERS)


@njit(cache=True)
def quote(strategy, asset, best_bid, best_ask, positions, parameters, scratch, wishes):
    "Calls the strategy of that number (its place in STRATEGIES)"
    if strategy == 0: one_each_side(asset, best_bid, best_ask, positions, parameters, scratch, wishes)
    elif strategy == 1: grid(asset, best_bid, best_ask, positions, parameters, scratch, wishes)
    elif strategy == 2: random_actions(asset, best_bid, best_ask, positions, parameters, scratch, wishes)
    elif strategy == 3: taker(asset, best_bid, best_ask, positions, parameters, scratch, wishes)
    elif strategy == 4: two_assets(asset, best_bid, best_ask, positions, parameters, scratch, wishes)
    else: script(asset, best_bid, best_ask, positions, parameters, scratch, wishes)


def new_scratch(seed: int, assets: int = 1) -> np.ndarray:
    "What a run starts with: the random state, then a counter for each asset"
    scratch = np.zeros(1 + assets)
    scratch[0] = (seed*2654435761 + 97) % (1 << 31)
    return scratch


# ---- a case and its outcome

Queue = Literal['risk-averse', 'log', 'log2', 'l3'] | tuple[Literal['power', 'power2', 'power3'], float]


@dataclass(frozen=True)
class Case:
    "One run, told completely: another engine given the same case must give the same outcome"
    data: np.ndarray | list[np.ndarray]                 # rows of hftbacktest's `event_dtype`; a list = one for each asset
    strategy: str = 'one_each_side'                     # one of STRATEGIES
    parameters: tuple[float, ...] = (1.0, 1.0, 10.0)    # as the strategy's docstring says
    levels: int = 1                                     # levels a side in the table of wishes
    seed: int = 0                                       # of the strategy's random numbers
    interval_ns: int = 100_000_000                      # the first decision at the first row's time + interval, then every interval
    tick_size: float = 0.1
    lot_size: float = 0.001
    queue: Queue = 'risk-averse'
    latency: np.ndarray = field(default_factory=lambda: np.array([[0, 5_000_000, 10_000_000]]))  # (n, 3): request, exchange, response ns
    exchange: Literal['whole', 'partial'] = 'whole'     # 'whole' = orders fill entirely or not
    depth: Literal['hashmap', 'roi'] = 'hashmap'
    maker_fee: float = -0.00005                         # fraction of value, negative = rebate
    taker_fee: float = 0.0004
    replace: Literal['cancel', 'modify'] = 'cancel'

    @property
    def tapes(self) -> list[np.ndarray]: return [self.data] if isinstance(self.data, np.ndarray) else list(self.data)


@dataclass(frozen=True)
class Outcome:
    "What hftbacktest made of a case; money in its own floats"
    fills: np.ndarray           # int64 (n, 7), sorted: asset, exchange time ns, side +1/-1, tick, lots, maker 0/1, order number
    orders: np.ndarray          # int64 (m, 9), one row for each order, in order of number (from 1), as sent: see ORDER
    position_lots: np.ndarray   # int64 for each asset, and so on
    trades: np.ndarray
    volume_lots: np.ndarray
    balance: np.ndarray         # float64: as hftbacktest added it up
    fee: np.ndarray             # float64
    code: int                   # what the last `elapse` said: 1 = end of data; more than 9 = hftbacktest's error
    steps: int                  # decisions' turns, those with a one-sided book included
    submitted: int
    cancels: int                # requests to cancel
    modifies: int               # requests to modify
    late: int                   # orders that filled after we had asked to cancel or modify them: those requests come back rejected
    expired: int                # post-only orders that would have taken
    unfilled: int               # orders of other kinds that expired
    refused: int                # orders turned away on the road (an interpolated latency without an exchange time)
    not_cancellable: int        # turns in which an unwished order had to stay, its birth or its change being on the way
    unpriced: int               # market orders filled against an empty side, at no price at all: balance and fee mean nothing then

    def rows(self) -> np.ndarray:
        "The fills without order numbers, what engines are compared by: asset, exchange time ns, side, tick, lots, maker"
        return self.fills[:, :6]


ORDER = ('asset', 'side', 'tick', 'lots', 'time_in_force', 'sent_ns', 'status', 'filled_lots', 'asked')
ASSET, SIDE, _, _, _, SENT, STATUS, FILLED_LOTS, ASKED = range(len(ORDER))   # asked: 1 = a cancel, 2 = a change was asked for
COUNTS = ('steps', 'submitted', 'cancels', 'modifies', 'late', 'expired', 'unfilled', 'refused', 'not_cancellable', 'unpriced')
STEPS, SUBMITTED, CANCELS, MODIFIES, LATE, EXPIRED, UNFILLED, REFUSED, NOT_CANCELLABLE, UNPRICED = range(len(COUNTS))
_NONE, _NEW, _EXPIRED, _FILLED, _CANCELED, _PARTLY = 0, 1, 2, 3, 4, 5        # hftbacktest's states of an order, and of a request

# ---- hftbacktest's functions as arguments of a compiled function


class _Address(types.WrapperAddressProtocol):
    "A C function that compiled code may call"
    def __init__(self, function: Any, signature: Any) -> None:
        self.function, self.types = function, signature

    def __wrapper_address__(self) -> int: return ctypes.cast(self.function, ctypes.c_void_p).value or 0
    def signature(self) -> Any: return self.types


_p, _n, _f = types.intp, types.uint64, types.float64     # small whole numbers go as 64 bits: they fill a register of their own
_SIGNATURES = dict(
    elapse=types.int64(_p, _n), current_timestamp=types.int64(_p), position=_f(_p, _n), depth=_p(_p, _n), orders=_p(_p, _n),
    state_values=_p(_p, _n), clear_inactive_orders=_p(_p, _n),
    cancel=types.int64(_p, _n, _n, _n), modify=types.int64(_p, _n, _n, _f, _f, _n),
    submit_buy_order=types.int64(_p, _n, _n, _f, _f, _n, _n, _n), submit_sell_order=types.int64(_p, _n, _n, _f, _f, _n, _n, _n))
Calls = namedtuple('Calls', [*_SIGNATURES, 'best_bid_tick', 'best_ask_tick', 'get'])


_NAMES = dict(hashmap='hashmap', roi='roivec')


def _calls(depth: str) -> Calls:
    name = _NAMES[depth]
    best = [_Address(getattr(binding, f'{name}depth_best_{side}_tick'), types.int64(_p)) for side in ('bid', 'ask')]
    return Calls(*(_Address(getattr(binding.lib, f'{name}bt_{word}'), signature) for word, signature in _SIGNATURES.items()), *best,
                 _Address(binding.orders_get, _p(_p, _n)))


@njit(cache=True)
def _longer(table):
    "The same table with room for twice as many rows"
    other = np.zeros((2*len(table), table.shape[1]), table.dtype)
    other[:len(table)] = table
    return other


@njit(cache=True)
def _order(calls, dictionary, number):
    "The local order of that number"
    address = calls.get(dictionary, np.uint64(number))
    if address == 0: raise RuntimeError('hftbacktest does not know an order that we count as alive')
    return carray(address_as_void_pointer(address), 1, order_dtype)[0]


@njit(cache=True)
def follow(calls, pointer, asset, wishes, modify, tick_size, lot_size, alive, orders, sent, counts):
    """Cancels what is not wished for, sends what is wished for and not there; returns the number of the last order sent.

    For each side, bids first: (1) each order of ours, in order of number, is matched with the first unmatched wish of its tick, whatever
    the lots; one whose cancel is on the way is passed over. (2) Each unmatched order, in order of number, is cancelled (with `modify`:
    turned into the first unmatched wish left) if it may be, and stays this turn if not. (3) Each unmatched wish is sent, by level."""
    dictionary, now_ns = calls.orders(pointer, np.uint64(asset)), calls.current_timestamp(pointer)
    levels = wishes.shape[2]
    met, kept = np.zeros(levels, np.bool_), np.zeros(len(alive), np.bool_)
    for side in range(2):
        met[:] = False
        for k in range(len(alive)):
            row = orders[alive[k] - 1]
            kept[k] = row[ASSET] != asset or row[SIDE] != side
            if kept[k]: continue
            order = _order(calls, dictionary, alive[k])
            if order.req == _CANCELED: kept[k] = True
            for level in range(levels):
                if kept[k]: break
                if met[level] or wishes[asset, side, level, LOTS] == 0 or wishes[asset, side, level, TICK] != order.price_tick: continue
                met[level] = kept[k] = True
        for k in range(len(alive)):
            if kept[k]: continue
            order = _order(calls, dictionary, alive[k])
            if not ((order.status == _NEW or order.status == _PARTLY) and order.req == _NONE):
                counts[NOT_CANCELLABLE] += 1
                continue
            level = 0
            while level < levels and (met[level] or wishes[asset, side, level, LOTS] == 0): level += 1
            if modify and level < levels:
                met[level] = True
                price, quantity = wishes[asset, side, level, TICK]*tick_size, wishes[asset, side, level, LOTS]*lot_size
                if calls.modify(pointer, np.uint64(asset), np.uint64(alive[k]), price, quantity, np.uint64(0)):
                    raise RuntimeError('modify failed')
                orders[alive[k] - 1, ASKED] = 2
                counts[MODIFIES] += 1
            else:
                if calls.cancel(pointer, np.uint64(asset), np.uint64(alive[k]), np.uint64(0)): raise RuntimeError('cancel failed')
                orders[alive[k] - 1, ASKED] = 1
                counts[CANCELS] += 1
        for level in range(levels):
            tick, lots, force = wishes[asset, side, level]
            if met[level] or lots == 0: continue
            row = orders[sent]
            row[:6] = np.array([asset, side, tick, lots, force, now_ns])
            sent += 1
            counts[SUBMITTED] += 1
            submit = calls.submit_buy_order if side == BID else calls.submit_sell_order
            theirs = 1 if force == POST_ONLY else 3 if force == IOC else 2 if force == FOK else 0
            if submit(pointer, np.uint64(asset), np.uint64(sent), tick*tick_size, lots*lot_size, np.uint64(theirs),
                      np.uint64(force == MARKET), np.uint64(0)): raise RuntimeError('submit failed')
    return sent


@njit(cache=True)
def _look(calls, pointer, lot_size, alive, orders, fills, n, counts):
    "Reads each order of ours before it may be cleared; returns those still alive, the fills and how many"
    still = 0
    for k in range(len(alive)):
        row = orders[alive[k] - 1]
        order = _order(calls, calls.orders(pointer, np.uint64(row[ASSET])), alive[k])
        row[STATUS], row[FILLED_LOTS] = order.status, np.int64(np.rint((order.qty - order.leaves_qty)/lot_size))
        ghost = order.status == _CANCELED and np.rint(order.leaves_qty/lot_size) == 0  # partial: filled exactly, then cancelled
        if order.status == _FILLED or ghost:
            if n == len(fills): fills = _longer(fills)
            fill = fills[n]
            fill[0], fill[1], fill[2] = row[ASSET], order.exch_timestamp, 1 if row[SIDE] == BID else -1
            fill[3], fill[4], fill[5] = order.exec_price_tick, np.int64(np.rint(order.exec_qty/lot_size)), order.maker
            fill[6] = alive[k]
            n += 1
            if row[ASKED]: counts[LATE] += 1
            if order.exec_price_tick > NO_ASK or order.exec_price_tick < NO_BID: counts[UNPRICED] += 1
        elif order.status == _EXPIRED:
            counts[REFUSED if order.exch_timestamp == 0 else EXPIRED if row[4] == POST_ONLY else UNFILLED] += 1
        elif order.status != _CANCELED:
            if row[ASKED] and order.req == _NONE and order.status != _NONE:      # a change was made, or a request turned away on the road
                row[ASKED] = 0
            alive[still] = alive[k]
            still += 1
    return alive[:still], fills, n


@njit(cache=True)
def _play(
        pointer, calls, assets, interval_ns, tick_size, lot_size, strategy, parameters, scratch, wishes, modify, most_steps, counts, money):
    "The loop: let the time pass, read, clear, quote, follow"
    fills, orders, n, sent = np.zeros((256, 7), np.int64), np.zeros((256, 9), np.int64), 0, 0
    alive, positions = np.zeros(0, np.int64), np.zeros(assets, np.int64)
    while True:
        code = calls.elapse(pointer, np.uint64(interval_ns))
        alive, fills, n = _look(calls, pointer, lot_size, alive, orders, fills, n, counts)
        if code: break
        counts[STEPS] += 1
        if counts[STEPS] > most_steps: raise RuntimeError('the run does not end: an answer is due in a far future')
        for asset in range(assets):
            calls.clear_inactive_orders(pointer, np.uint64(asset))
            positions[asset] = np.int64(np.rint(calls.position(pointer, np.uint64(asset))/lot_size))
        for asset in range(assets):
            depth = calls.depth(pointer, np.uint64(asset))
            best_bid, best_ask = calls.best_bid_tick(depth), calls.best_ask_tick(depth)
            if best_bid <= NO_BID or best_ask >= NO_ASK or best_bid >= best_ask: continue
            quote(strategy, asset, best_bid, best_ask, positions, parameters, scratch, wishes)
            while len(orders) < sent + 2*wishes.shape[2]: orders = _longer(orders)
            before = sent
            sent = follow(calls, pointer, asset, wishes, modify, tick_size, lot_size, alive, orders, sent, counts)
            if sent > before: alive = np.concatenate((alive, np.arange(before + 1, sent + 1)))
    for asset in range(assets):
        values = carray(address_as_void_pointer(calls.state_values(pointer, np.uint64(asset))), 1, state_values_dtype)[0]
        money[asset, 0], money[asset, 1], money[asset, 2] = values.position, values.balance, values.fee
        money[asset, 3], money[asset, 4], money[asset, 5] = values.num_trades, values.trading_volume, values.trading_value
    return code, fills[:n], orders[:sent]


_QUEUES = {'l3': 'l3_fifo_queue_model', 'risk-averse': 'risk_adverse_queue_model',
           'log': 'log_prob_queue_model', 'log2': 'log_prob_queue_model2',
           'power': 'power_prob_queue_model', 'power2': 'power_prob_queue_model2', 'power3': 'power_prob_queue_model3'}
latency_dtype = np.dtype([('request', 'i8'), ('exchange', 'i8'), ('response', 'i8'), ('padding', 'i8')])


def _asset(case: Case, tape: np.ndarray, latency: np.ndarray) -> BacktestAsset:
    asset = BacktestAsset().data([tape]).linear_asset(1.0).tick_size(case.tick_size).lot_size(case.lot_size)
    asset = asset.trading_value_fee_model(case.maker_fee, case.taker_fee)
    asset = asset.no_partial_fill_exchange() if case.exchange == 'whole' else asset.partial_fill_exchange()
    if len(latency) == 1:
        request, exchange, response = (int(latency[word][0]) for word in ('request', 'exchange', 'response'))
        asset = asset.constant_order_latency(exchange - request, response - exchange)
    else: asset = asset.intp_order_latency(latency)
    word, *power = case.queue if isinstance(case.queue, tuple) else (case.queue,)
    asset = getattr(asset, _QUEUES[word])(*power)
    if case.depth == 'roi':
        kinds = tape['ev'] & 0xff
        prices = tape['px'][(kinds == TRADE_EVENT) | (kinds == DEPTH_EVENT) | (kinds == DEPTH_SNAPSHOT_EVENT)]
        if np.ptp(prices) > 2_000_000*case.tick_size: raise ValueError("prices too far apart for depth 'roi': use 'hashmap'")
        asset = asset.roi_lb(max(0.0, prices.min() - 1000*case.tick_size)).roi_ub(prices.max() + 1000*case.tick_size)
    return asset


@contextmanager
def _built(case: Case) -> Iterator[int]:
    "A backtest as hftbacktest knows it: a pointer, good as long as the block lasts"
    tapes = [np.ascontiguousarray(tape) for tape in case.tapes]
    if any(tape.dtype != event_dtype for tape in tapes): raise ValueError("data: rows of hftbacktest's event_dtype are needed")
    latency = np.zeros(len(case.latency), latency_dtype)
    latency['request'], latency['exchange'], latency['response'] = np.asarray(case.latency, np.int64).T
    assets = [_asset(case, tape, latency) for tape in tapes]  # hftbacktest keeps the addresses of tapes and latency, no copies
    pointer = (build_hashmap_backtest if case.depth == 'hashmap' else build_roivec_backtest)(assets)
    try: yield pointer
    finally: getattr(binding, f'{_NAMES[case.depth]}bt_close')(pointer)


def run(case: Case) -> Outcome:
    "Plays a case in hftbacktest; the fills that were read are checked against the sums that it keeps itself"
    if case.strategy not in STRATEGIES: raise ValueError(f'no strategy {case.strategy!r}: choose from {", ".join(STRATEGIES)}')
    assets = len(case.tapes)
    counts, money = np.zeros(len(COUNTS), np.int64), np.zeros((assets, 6))
    with _built(case) as pointer:
        code, fills, orders = _play(
            pointer, _calls(case.depth), assets, case.interval_ns, case.tick_size, case.lot_size, STRATEGIES.index(case.strategy),
            np.array(case.parameters, np.float64), new_scratch(case.seed, assets), np.zeros((assets, 2, case.levels, 3), np.int64),
            case.replace == 'modify', _most_steps(case), counts, money)
    fills = fills[np.lexsort(fills.T[::-1])]
    lots = np.rint(money[:, [0, 4]]/case.lot_size).astype(np.int64)
    outcome = Outcome(fills, orders, lots[:, 0], money[:, 3].astype(np.int64), lots[:, 1], money[:, 1], money[:, 2], int(code),
                      **dict(zip(COUNTS, counts.tolist())))
    _check_sums(case, outcome)
    return outcome


def _most_steps(case: Case) -> int:
    "An order turned away by the last row of an interpolated latency is answered decades later: hftbacktest would go on until then"
    times = [tape[clock] for tape in case.tapes for clock in ('exch_ts', 'local_ts')]
    slowest = 10*int(np.abs(np.diff(np.asarray(case.latency, np.int64)[:, [0, 2]], axis=1)).max())
    return int(max(clock.max() for clock in times) - min(clock.min() for clock in times) + slowest)//case.interval_ns + 10_000


def _check_sums(case: Case, outcome: Outcome) -> None:
    "No fill may be missing or told twice: what was read adds up to what hftbacktest says"
    for asset in range(len(case.tapes)):
        _, _, side, tick, lots, maker, _ = outcome.fills[outcome.fills[:, 0] == asset].T
        assert (side*lots).sum() == outcome.position_lots[asset], 'fills do not add up to the position'
        assert len(side) == outcome.trades[asset], 'not as many fills as hftbacktest counts trades'
        assert lots.sum() == outcome.volume_lots[asset], 'fills do not add up to the volume'
        if outcome.unpriced: continue
        value = (tick*case.tick_size)*(lots*case.lot_size)
        fee = np.where(maker, case.maker_fee, case.taker_fee)*value
        near = 1e-9*max(1.0, value.sum())
        assert abs(outcome.balance[asset] + (side*value).sum()) <= near, 'fills do not add up to the balance'
        assert abs(outcome.fee[asset] - fee.sum()) <= near, 'fills do not add up to the fee'


def _copied(address: int, dtype: np.dtype) -> np.void:
    return np.frombuffer((ctypes.c_char*dtype.itemsize).from_address(address), dtype)[0].copy()


class ByHand:
    """One asset's backtest, step by step from Python, without any compiled code: to see what hftbacktest does with a single order.

    Times, ticks and lots are whole numbers; every request returns hftbacktest's code (0 = fine)."""
    def __init__(self, case: Case, pointer: int) -> None:
        self.case, self.pointer, self.name = case, pointer, _NAMES[case.depth]

    @classmethod
    @contextmanager
    def of(cls, case: Case) -> Iterator[ByHand]:
        with _built(case) as pointer: yield cls(case, pointer)

    def _call(self, word: str, *arguments: Any) -> Any: return getattr(binding, f'{self.name}bt_{word}')(self.pointer, *arguments)
    def elapse(self, ns: int) -> int: return self._call('elapse', ns)
    def now_ns(self) -> int: return self._call('current_timestamp')
    def clear(self) -> None: self._call('clear_inactive_orders', 0)
    def cancel(self, number: int) -> int: return self._call('cancel', 0, number, False)

    def send(self, number: int, side: int, tick: int, lots: float, force: int = POST_ONLY) -> int:
        theirs = {POST_ONLY: 1, GTC: 0, IOC: 3, FOK: 2, MARKET: 0}[force]
        price, quantity = tick*self.case.tick_size, lots*self.case.lot_size
        submit = 'submit_buy_order' if side > 0 else 'submit_sell_order'
        return self._call(submit, 0, number, price, quantity, theirs, force == MARKET, False)

    def modify(self, number: int, tick: int, lots: float) -> int:
        return self._call('modify', 0, number, tick*self.case.tick_size, lots*self.case.lot_size, False)

    def order(self, number: int) -> np.void | None:
        "A copy of the local order, None where it is unknown"
        address = binding.orders_get(self._call('orders', 0), number)
        return _copied(address, order_dtype) if address else None

    def values(self) -> np.void:
        "Position, balance, fee, trades, volume, value as the strategy sees them"
        return _copied(self._call('state_values', 0), state_values_dtype)

    def best(self) -> tuple[int, int]:
        "Best bid and best ask, in ticks, of the local book"
        depth = self._call('depth', 0)
        return tuple(getattr(binding, f'{self.name}depth_best_{side}_tick')(depth) for side in ('bid', 'ask'))  # type: ignore[return-value]

    def best_quantities(self) -> tuple[float, float]:
        "What a strategy is told to stand at the best prices of the local book"
        kind = binding.ROIVectorMarketDepth_ if self.case.depth == 'roi' else binding.HashMapMarketDepth_
        depth = kind(self._call('depth', 0))
        return depth.best_bid_qty, depth.best_ask_qty

    def quantity(self, side: int, tick: int) -> float:
        "What the local book shows there"
        return getattr(binding, f'{self.name}depth_{"bid" if side > 0 else "ask"}_qty_at_tick')(self._call('depth', 0), tick)


# ---- tapes

def tape(
    rows: list[tuple[int, int, int, int, float, float]],  # kind, side +1 or -1, exchange ns, local ns, price, quantity
) -> np.ndarray:                                          # rows of `event_dtype` for both clocks, in hftbacktest's order
    "A tape by hand; kinds are hftbacktest's: 1 depth, 2 trade, 3 clear, 4 snapshot; +1 = bid, or a buyer's trade"
    data = np.zeros(len(rows), event_dtype)
    for row, (kind, side, exchange_ns, local_ns, price, quantity) in zip(data, rows):
        row['ev'], row['exch_ts'], row['local_ts'] = kind | (BUY_EVENT if side > 0 else SELL_EVENT), exchange_ns, local_ns
        row['px'], row['qty'] = price, quantity
    return in_order(data)


def in_order(data: np.ndarray) -> np.ndarray:
    "Rows that came in any order, split into rows for one clock where the clocks disagree"
    indexes = np.zeros((2, len(data) + 1), np.int64)  # hftbacktest's function reads one place past the end: here there is one
    for row, clock in zip(indexes, ('exch_ts', 'local_ts')): row[:-1] = np.argsort(data[clock], kind='stable')
    data = correct_event_order(data, indexes[0, :-1], indexes[1, :-1])
    validate_event_order(data)
    return data


@njit(cache=True)
def _fuzz(data, seed, middle, width, start_ns, tick_size, lot_size):
    "Fills data with messages of one to a dozen rows; returns how many rows"
    np.random.seed(seed)
    book = np.zeros((2, width), np.int64)
    n, now_ns, slow, third = 0, start_ns, np.random.randint(3), width//3
    for side in range(2):
        for place in range(width):
            if (place < width//2 - np.random.randint(2)) != (side == 0) or np.random.randint(4) == 0: continue
            book[side, place] = 1 + np.random.randint(9)
            local_ns = now_ns + 1_000_000
            n = _row(data, n, DEPTH_SNAPSHOT_EVENT, side, now_ns, local_ns, middle + place, book[side, place], tick_size, lot_size)
    while n < len(data) - 2*width - 4:
        what = np.random.randint(100)
        if what < 60: now_ns += np.random.randint(1, 20_000_000)
        elif what < 64: now_ns += np.random.randint(500_000_000)
        elif what < 65: now_ns += np.random.randint(5)*1_000_000_000
        elif what < 75: now_ns += np.random.randint(4)*1_000_000 - now_ns % 1_000_000  # whole milliseconds: where requests arrive too
        if now_ns < data[n - 1].exch_ts: now_ns = data[n - 1].exch_ts
        local_ns = now_ns + 1 + np.random.randint(3_000_000)
        if np.random.randint(20) < slow: local_ns += np.random.randint(60_000_000)
        bid, ask = -1, width
        for place in range(width):
            if book[0, place]: bid = place
            if book[1, width - 1 - place]: ask = width - 1 - place
        what, side = np.random.randint(100), np.random.randint(2)
        if (bid < 0 or ask == width) and np.random.randint(3) == 0: what, side = 99, 0 if bid < 0 else 1   # an empty side comes back
        best, sign = (bid, -1) if side == 0 else (ask, 1)
        if what < 45:                                     # a level anew: more, less, or gone; inside the spread too, not across
            place = min(max(best + sign*(np.random.randint(8) - 2), 0), width - 1)
            if (place >= ask if side == 0 else place <= bid): place = best if 0 <= best < width else (third if side == 0 else 2*third)
            lots = 0 if np.random.randint(3) == 0 else 1 + np.random.randint(12)
            book[side, place] = lots
            n = _row(data, n, DEPTH_EVENT, side, now_ns, local_ns, middle + place, lots, tick_size, lot_size)
        elif what < 85:                                   # trades that eat one side; the depth row before, after, or never
            left, manner = 1 + np.random.randint(15), np.random.randint(8)
            for _ in range(4):
                if best < 0 or best >= width or left <= 0: break
                part = min(left, book[side, best])
                if np.random.randint(6) == 0: part = book[side, best]
                left -= part
                book[side, best] -= part
                if manner == 0:
                    n = _row(data, n, DEPTH_EVENT, side, now_ns, local_ns, middle + best, book[side, best], tick_size, lot_size)
                n = _row(data, n, TRADE_EVENT, 1 - side, now_ns, local_ns, middle + best, max(part, 1), tick_size, lot_size)
                if manner > 1 or np.random.randint(2):
                    n = _row(data, n, DEPTH_EVENT, side, now_ns, local_ns, middle + best, book[side, best], tick_size, lot_size)
                while 0 <= best < width and book[side, best] == 0: best += sign
        elif what < 90:                                   # a print anywhere near, without a word about the book
            place = min(max(best + np.random.randint(7) - 3, 0), width - 1)
            n = _row(data, n, TRADE_EVENT, 1 - side, now_ns, local_ns, middle + place, 1 + np.random.randint(6), tick_size, lot_size)
        elif what < 96:                                   # one side walks over the other in one message; its levels go or get stale
            place = min(max(best - sign*(1 + np.random.randint(5)), 1), width - 2)
            deleted = np.random.randint(3)
            for other in range(width):
                if deleted < 2 or book[1 - side, other] == 0 or (other > place if side == 0 else other < place): continue
                book[1 - side, other] = 0
                n = _row(data, n, DEPTH_EVENT, 1 - side, now_ns, local_ns, middle + other, 0, tick_size, lot_size)
            book[side, place] = 1 + np.random.randint(9)
            n = _row(data, n, DEPTH_EVENT, side, now_ns, local_ns, middle + place, book[side, place], tick_size, lot_size)
            for other in range(width):
                if deleted > 0 or book[1 - side, other] == 0 or (other > place if side == 0 else other < place): continue
                book[1 - side, other] = 0
                n = _row(data, n, DEPTH_EVENT, 1 - side, now_ns, local_ns, middle + other, 0, tick_size, lot_size)
        elif what < 97:                                   # a side goes away, and comes back later
            for place in range(width):
                if book[side, place] == 0: continue
                book[side, place] = 0
                n = _row(data, n, DEPTH_EVENT, side, now_ns, local_ns, middle + place, 0, tick_size, lot_size)
        else:                                             # a snapshot of a side's missing levels inside the spread
            for k in range(3):
                place = (ask if ask < width else 2*third) - 1 - k if side == 0 else (bid if bid >= 0 else third) + 1 + k
                if not 0 <= place < width: continue
                book[side, place] = 1 + np.random.randint(9)
                n = _row(data, n, DEPTH_SNAPSHOT_EVENT, side, now_ns, local_ns, middle + place, book[side, place], tick_size, lot_size)
    return n


@njit(cache=True)
def _row(data, n, kind, side, exchange_ns, local_ns, tick, lots, tick_size, lot_size):
    "One row; a trade's side is the aggressor's; returns the next row's number"
    data[n].ev = kind | (BUY_EVENT if side == 0 else SELL_EVENT)
    data[n].exch_ts, data[n].local_ts, data[n].px, data[n].qty = exchange_ns, local_ns, tick*tick_size, lots*lot_size
    return n + 1


def fuzzed_tape(
    seed: int,                # the same seed, the same tape
    rows: int = 1500,         # about so many, before rows are split between the clocks
    tick_size: float = 0.1,
    lot_size: float = 0.001,
    width: int = 24,          # ticks from the lowest price to the highest
    middle: int = 1000,       # tick of the lowest price
) -> np.ndarray:              # rows of `event_dtype`, both clocks, in hftbacktest's order
    """A small tape made to break engines: equal times, late rows, prints at and through levels, with and without depth rows, levels that
    appear, shrink and go, a best that walks over the other side with the stale levels left or deleted, empty sides, gaps."""
    data = np.zeros(rows + 3*width, event_dtype)
    return in_order(data[:_fuzz(data, seed, middle, width, 1_700_000_000_000_000_000, tick_size, lot_size)])


def recorded_tape(
    recording: Path,  # a USD-M recording, gzipped lines
    folder: Path,     # where the converted rows are kept; never in the repository
) -> np.ndarray:      # rows of `event_dtype`
    "hftbacktest's own conversion of a recording, made once and kept"
    kept = folder/f'{recording.name.removesuffix(".gz")}.npy'
    if not kept.is_file():
        from hftbacktest.data.utils import binancefutures
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder/f'{kept.stem}.{os.getpid()}.npy'
        np.save(partial, binancefutures.convert(str(recording), buffer_size=2_000_000))
        partial.replace(kept)
    return np.load(kept)
