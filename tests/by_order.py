"""Queues by order id: random streams of orders (synthetic), a plain oracle that keeps every queue as a list of names, the engine beside it.

`stream(seed)` draws what a venue that names orders would tell, in hftbacktest's rows: adds, cancels, changes, moves, executions. The engine
reads them through `tape_by_order`; the oracle reads the rows themselves, and knows nothing of levels with totals, of `since`, of prints
that a level's change repeats. Which orders of ours reached the exchange, and when they were cancelled, both take from the engine's table of
orders (that these are right is what `oracle.py` proves): a wrong fill changes that table, and the fills still differ.
"""
from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numba import njit

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.events import CLEAR, CONTROL, LAST, RESUME, TRADE, concat, from_rows
from cryptoexp.market.instrument import Instrument
from cryptoexp.market.tape import (
    ADD_ORDER,
    BUY_BIT,
    CANCEL_ORDER,
    EVENT_DTYPE,
    EXCHANGE_BIT,
    FILL_ORDER,
    LOCAL_BIT,
    MODIFY_ORDER,
    SELL_BIT,
    Tape,
    tape_by_order,
)
from cryptoexp.trading.backtest import prepare, run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.matching import Engine
from cryptoexp.trading.venue import Latency, QueueModel, Venue

MS = 1_000_000
TOY = Instrument('nowhere', 'TOYUSD', 'TOY', 'USD', '0.5', '0.1', kind='usdm')
ENTRY_MS, EVERY_MS, HOLD_NS = 5, 50, 10 * MS
FILL_COLUMNS = ['order_id', 'time_ns', 'tick', 'lots', 'reason']


# ---- what a venue tells

class Stream:
    "A market of named orders, and the rows that tell of it"
    def __init__(self, seed: int, quiet: bool = False) -> None:
        self.draw, self.quiet = random.Random(seed), quiet     # quiet: the best prices stay where they are
        self.confirms, self.tells = self.draw.random() < .5, self.draw.random() < .5   # a cancel or change after a fill; trade rows
        if quiet: self.confirms = True     # as hftbacktest wants it
        self.side, self.tick, self.left = dict[int, int](), dict[int, int](), dict[int, int]()
        self.rows, self.time_ms, self.latest_ms, self.number = list[tuple[Any, ...]](), 1, 0, 0

    def tell(self, kind: int, side: int, tick: int, lots: int, number: int) -> None:
        self.latest_ms = max(self.latest_ms, self.time_ms + self.draw.randint(1, 3))
        bits = EXCHANGE_BIT | LOCAL_BIT | (BUY_BIT if side > 0 else SELL_BIT if side < 0 else 0)
        self.rows.append((kind | bits, self.time_ms * MS, self.latest_ms * MS, tick * .5, lots / 10, number, 0, 0.))

    def best(self, side: int) -> int: return max(side * tick for number, tick in self.tick.items() if self.side[number] == side) * side
    def queue(self, side: int, tick: int) -> list[int]:
        return [one for one, at in self.tick.items() if self.side[one] == side and at == tick]

    def add(self, side: int, tick: int, lots: int) -> None:
        self.number += 1
        self.side[self.number], self.tick[self.number], self.left[self.number] = side, tick, lots
        self.tell(ADD_ORDER, side, tick, lots, self.number)

    def gone(self, number: int) -> None:
        for table in (self.side, self.tick, self.left): del table[number]

    def may_go(self, number: int) -> bool:
        "A side is never empty; in a quiet market no best level is"
        side, tick = self.side[number], self.tick[number]
        if self.quiet: return tick != self.best(side) or len(self.queue(side, tick)) > 1
        return sum(other == side for other in self.side.values()) > 1

    def change(self, number: int, tick: int, lots: int) -> None:
        "More lots or another price: to the end of the queue"
        side = self.side[number]
        if tick != self.tick[number] or lots > self.left[number]: del self.tick[number]
        self.tick[number], self.left[number] = tick, lots
        self.tell(MODIFY_ORDER, side, tick, lots, number)

    def execute(self, side: int, lots: int) -> None:
        "Somebody takes from the orders of a side, the oldest at the best price first"
        while lots:
            tick = self.best(side)
            number = self.queue(side, tick)[0]
            size = min(lots, self.left[number])
            if size == self.left[number] and not self.may_go(number): return
            lots -= size
            self.left[number] -= size
            if self.tells: self.tell(TRADE, -side, tick, size, 0)
            self.tell(FILL_ORDER, side, tick, size, number)
            if self.confirms and self.left[number]: self.tell(MODIFY_ORDER, side, tick, self.left[number], number)
            elif self.confirms: self.tell(CANCEL_ORDER, side, tick, size, number)
            if not self.left[number]: self.gone(number)

    def somewhere(self, side: int) -> int:
        "At the best price, behind it, or inside the spread"
        deepest = self.best(side) - side * self.draw.choice([0, 0, 0, 1, 1, 2, 3])
        if self.quiet or self.draw.random() < .8 or self.best(-1) - self.best(1) < 2: return deepest
        return self.best(side) + side * self.draw.randint(1, self.best(-1) - self.best(1) - 1)

    def step(self) -> None:
        draw = self.draw
        self.time_ms += draw.choice([0, 1, 1, 2, 3, 5, 9])
        if draw.random() < .1: self.time_ms += (ENTRY_MS + 2 - self.time_ms) % EVERY_MS     # when orders of ours may arrive
        what, number, side = draw.random(), draw.choice(list(self.tick)), draw.choice([1, -1])
        if len(self.tick) < 6: what = 0.
        elif len(self.tick) > 40: what = .55
        if what < .42: self.add(side, self.somewhere(side), draw.randint(1, 9))
        elif what < .62:
            if not self.may_go(number): return
            self.tell(CANCEL_ORDER, draw.choice([0, self.side[number]]), 0, draw.choice([0, self.left[number]]), number)
            self.gone(number)
        elif what < .70 and self.left[number] > 1: self.change(number, self.tick[number], draw.randint(1, self.left[number] - 1))
        elif what < .75: self.change(number, self.tick[number], self.left[number] + draw.randint(1, 4))
        elif what < .80 and self.may_go(number):
            tick = self.somewhere(self.side[number])
            if tick != self.tick[number]: self.change(number, tick, draw.randint(1, 9))
        else: self.execute(side, draw.randint(1, 12))


def stream(seed: int, steps: int = 400, quiet: bool = False) -> np.ndarray:   # EVENT_DTYPE
    "A synthetic market of orders with numbers"
    market = Stream(seed, quiet)
    market.tell(CLEAR, 0, 0, 0, 0)
    for side in (1, -1):
        for away in range(4):
            for _ in range(market.draw.randint(2, 4)): market.add(side, 1000 - side * (2 + away), market.draw.randint(1, 9))
    for _ in range(steps): market.step()
    return np.array(market.rows, EVENT_DTYPE)


# ---- the oracle

@dataclass
class Named:
    "An order in a queue, of the market or ours"
    number: int
    side: int
    tick: int
    left: int
    ours: bool = False
    spared: int = 0     # of ours: lots before it that the market lost to a print, where in truth another order of ours would have been hit


class Fifo:
    "Queues of names. Nothing is estimated: who joined earlier is served earlier"
    def __init__(self) -> None:
        self.queues: dict[tuple[int, int], list[Named]] = defaultdict(list)
        self.known, self.owned = dict[int, Named](), dict[int, Named]()
        self.taken: dict[tuple[int, int], int] = defaultdict(int)     # from a level of the other side, since it last changed
        self.fills, self.now = list[tuple[int, int, int, int, str]](), 0

    def total(self, side: int, tick: int) -> int: return sum(order.left for order in self.queues[side, tick] if not order.ours)
    def best(self, side: int) -> int:
        return side * max((side * tick for (which, tick), queue in self.queues.items() if which == side and any(
            not order.ours for order in queue)), default=-10**9)

    def ours(self, side: int) -> list[Named]:
        "Best price first"
        return sorted((order for order in self.owned.values() if order.side == side), key=lambda order: -side * order.tick)

    def fill(self, order: Named, lots: int, reason: str) -> None:
        if not lots: return
        self.fills.append((order.number, self.now, order.tick, lots, reason))
        order.left -= lots
        if order.left == 0: self.forget(order)

    def forget(self, order: Named) -> None:
        self.queues[order.side, order.tick].remove(order)
        del (self.owned if order.ours else self.known)[order.number]

    def join(self, order: Named) -> None:
        (self.owned if order.ours else self.known)[order.number] = order
        self.queues[order.side, order.tick].append(order)

    def before(self, ours: Named) -> int:
        "Lots of the market that joined before an order of ours"
        queue = self.queues[ours.side, ours.tick]
        return sum(order.left for order in queue[:queue.index(ours)] if not order.ours)

    def changed(self, side: int, tick: int) -> None:
        "A level holds another total: what it offers is offered to ours of the other side, at or through it"
        self.taken[side, tick] = 0
        for order in self.ours(side):       # nothing stands before ours that is not displayed
            if order.tick == tick: order.spared = min(order.spared, self.total(side, tick) - self.before(order))
        for order in self.ours(-side):
            if -side * (order.tick - tick) < 0: break
            size = min(order.left, self.total(side, tick) - self.taken[side, tick])
            self.taken[side, tick] += size
            self.fill(order, size, 'cross')

    def executed(self, order: Named, lots: int) -> None:
        "Ours at better prices first, then ours before it in its queue: together no more than the print"
        left = lots
        for one in self.ours(order.side):
            if order.side * (one.tick - order.tick) <= 0: break
            size = min(one.left, left)
            left -= size
            self.fill(one, size, 'through')
        side, tick, first, fronts = order.side, order.tick, True, []
        for one in list(self.queues[side, tick]):
            if not one.ours:
                assert one is order or not first, 'the stream serves its own orders out of turn'
                first = False
                continue
            front = self.before(one) + one.spared
            size = max(0, min(one.left, left - front))
            fronts.append((one, max(0, front - left)))
            left -= size
            self.fill(one, size, 'queue')
        order.left -= lots
        if not order.left: self.forget(order)
        for one, front in fronts:
            if one.left: one.spared = front - self.before(one)
        self.changed(side, tick)

    def row(self, row: Any) -> None:
        "What the venue tells"
        kind, number, tick, lots = int(row['ev']) & 0xff, int(row['order_id']), round(row['px'] / .5), round(row['qty'] * 10)
        order = self.known.get(number)
        if kind == ADD_ORDER:
            order = Named(number, 1 if int(row['ev']) & BUY_BIT else -1, tick, lots)
            self.join(order)
            self.changed(order.side, tick)
        elif kind == FILL_ORDER: self.executed(order, lots)
        elif order is None: assert kind in (TRADE, CLEAR, CANCEL_ORDER)     # the cancel of an order that was filled
        elif kind == MODIFY_ORDER and tick == order.tick and lots <= order.left:
            if lots < order.left:
                order.left = lots
                self.changed(order.side, tick)
        elif kind in (CANCEL_ORDER, MODIFY_ORDER):
            self.forget(order)
            self.changed(order.side, order.tick)
            if kind == CANCEL_ORDER: return
            self.join(Named(number, order.side, tick, lots))
            self.changed(order.side, tick)


def oracle(data: np.ndarray, orders: pd.DataFrame) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    "(fills of our orders, what the engine should have said of an order on arrival and did not)"
    market, wrong = Fifo(), []
    todo = [(int(one.arrived_ns), 1, int(one.order_id), one) for one in orders.itertuples() if one.arrived_ns]
    todo += [(int(one.ended_ns), 1, int(one.order_id), None) for one in orders.itertuples() if one.status == 'cancelled']
    rows = [(int(row['exch_ts']), 0, place, row) for place, row in enumerate(data)]     # what happens at a time is there before our orders
    for time_ns, mine, number, one in sorted(rows + todo, key=lambda row: row[:3]):
        market.now = time_ns
        if not mine: market.row(one)
        elif one is None:
            if number in market.owned: market.forget(market.owned[number])
        else:
            crosses = one.side * (one.tick - market.best(-one.side)) >= 0
            if crosses != (one.status == 'expired'): wrong.append((number, f'crosses {crosses}, {one.status}'))
            if not crosses: market.join(Named(number, int(one.side), int(one.tick), int(one.lots), True))
    return market.fills, wrong


# ---- the engine

@njit(cache=True)
def restless(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "Two levels a side somewhere near the touch, moved now and then. Parameters: seed, lots (0: a few), ticks inside the own touch at most"
    now = view.market[0]
    if scratch[1] == 0.0: scratch[0] = int(parameters[0]) * 7919 + 17
    state = int(scratch[0])
    for side in range(2):
        state = (state * 1103515245 + 12345) % 2147483648
        if scratch[1] == 0.0 or (state >> 8) % 4 == 0:
            away = (state >> 12) % 4 - int(parameters[2])
            for level in range(2):
                state = (state * 1103515245 + 12345) % 2147483648
                away += level * (1 + (state >> 8) % 2)
                at = 2 + 4 * side + 2 * level
                scratch[at] = now.bid_tick - away if side == 0 else now.ask_tick + away
                scratch[at + 1] = parameters[1] if parameters[1] > 0 else 1 + (state >> 16) % 8
        for level in range(2):
            at = 2 + 4 * side + 2 * level
            wishes[0, side, level, 0], wishes[0, side, level, 1] = int(scratch[at]), int(scratch[at + 1])
    scratch[0], scratch[1] = state, 1.0
    return 0


def settings() -> MarketMakingConfig:
    return MarketMakingConfig(trading_pair='TOY/USD', total_capital=1e9, maker_fee=0., taker_fee=0., max_drawdown=1., max_loss=1.,
                              max_inventory_exposure=1., refresh_interval=EVERY_MS / 1000)


def venue(queue: QueueModel | None = None) -> Venue:
    return Venue.from_config(settings(), latency=Latency.constant(ENTRY_MS, 5), queue=queue or QueueModel('l3'))


def tape_of(data: np.ndarray) -> Tape: return tape_by_order(data, TOY, ['a random stream'], synthetic=True)


def one_pass(tape: Tape, parameters: tuple[float, ...], queues: tuple[QueueModel, ...] = (QueueModel('l3'),), quoter: Any = restless,
             levels: int = 2) -> Any:
    "All queue models in one pass over the prepared tape"
    rules = np.concatenate([make_rules(settings(), TOY, venue(queue), unlimited=True) for queue in queues]).view(np.recarray)
    return run_configurations(prepare(tape), rules, np.array([parameters] * len(queues)), quoter, levels, cash_e8=10**17)


def batches(tape: Tape, size: int) -> Iterator[Any]:
    rows = tape.timeline()
    first = from_rows([(CONTROL | LAST, int(rows.local_ns[0]), int(rows.local_ns[0]), RESUME, 0, 0)])
    whole = concat([first, rows])
    for start in range(0, len(whole), size): yield whole[start:start + size]


def by_batches(tape: Tape, parameters: tuple[float, ...], size: int, quoter: Any = restless, compiled: bool = True) -> Engine:
    "The same rows, a few at a time"
    engine = Engine(TOY, settings(), quoter, 2, np.array(parameters), HOLD_NS, compiled=compiled, venue=venue(), by_order=True)
    engine._rules = make_rules(settings(), TOY, venue(), unlimited=True)
    for rows in batches(tape, size): engine.feed(rows)
    engine.finish()
    return engine


def rows_of_fills(fills: pd.DataFrame) -> list[tuple[Any, ...]]: return list(fills[FILL_COLUMNS].itertuples(index=False, name=None))


def compare(seed: int, steps: int = 400) -> tuple[list[str], list[tuple[Any, ...]]]:
    "(where engine and oracle part, in words; the oracle's fills)"
    data = stream(seed, steps)
    runs = one_pass(tape_of(data), (seed, 0, seed % 3))
    mine = rows_of_fills(runs.fills)
    expected, wrong = oracle(data, runs.orders)
    found = [f'seed {seed}: order {number}: {text}' for number, text in wrong]
    for at, (one, other) in enumerate(zip([*mine, None], [*expected, None])):
        if one != other: return [*found, f'seed {seed}, fill {at}: engine {one}, oracle {other}'], expected
    if len(mine) != len(expected): found.append(f'seed {seed}: {len(mine)} fills, {len(expected)} expected')
    return found, expected


if __name__ == '__main__':
    import sys
    for text in sys.argv[1:]: print(*compare(int(text)), sep='\n')
