"""hftbacktest's rules for whole fills in plain Python: what a matching engine has to do to give the same fills, and nothing else.

Written from its behaviour, slow on purpose, and compared with it on random markets by `test_hft_oracle.py`. Only its float arithmetic is
imitated (queues may be fractions), and two of its bugs, marked as such. Not covered: partial fills and clear rows, which are wrong there.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hft import ASK, BID, FOK, IOC, MARKET, POST_ONLY, STRATEGIES, Case, new_scratch, quote
from hftbacktest.types import BUY_EVENT, EXCH_EVENT, LOCAL_EVENT

DEPTH, TRADE, SNAPSHOT = 1, 2, 4
NOWHERE = {BID: -(1 << 63), ASK: (1 << 63) - 1}
NEVER = 1 << 63
SENT, NEW, EXPIRED, FILLED, CANCELED = range(5)


def whole(x: float) -> int:
    "To the nearest whole number, half away from zero"
    return 0 if math.isnan(x) else int(math.copysign(math.floor(abs(x) + 0.5), x))


def better(side: int, tick: int, other: int) -> bool: return tick > other if side == BID else tick < other


@dataclass
class Book:
    """Lots by tick. When a best walks over the other side, the other's best is sought beyond it, but its stale levels are kept and may come
    back; the search ends at the farthest tick ever set since the side was empty."""
    lot_size: float
    levels: dict[int, dict[int, float]] = field(default_factory=lambda: {BID: {}, ASK: {}})
    best: dict[int, int] = field(default_factory=lambda: dict(NOWHERE))
    farthest: dict[int, int] = field(default_factory=lambda: {BID: NOWHERE[ASK], ASK: NOWHERE[BID]})

    def beyond(self, side: int, tick: int) -> int:
        found = [t for t in self.levels[side] if better(side, tick, t) and not better(side, self.farthest[side], t)]
        return NOWHERE[side] if not found else max(found) if side == BID else min(found)

    def put(self, side: int, tick: int, quantity: float) -> tuple[float, int]:
        "Sets a level; returns what was there and the best before"
        before = self.levels[side].pop(tick, 0.0), self.best[side]
        if whole(quantity/self.lot_size) == 0:
            if tick == self.best[side]:
                self.best[side] = self.beyond(side, tick)
                if self.best[side] == NOWHERE[side]: self.farthest[side] = NOWHERE[1 - side]
            return before
        self.levels[side][tick] = quantity
        if better(side, tick, self.best[side]):
            self.best[side] = tick
            if self.best[BID] >= self.best[ASK]: self.best[1 - side] = self.beyond(1 - side, tick)
        if better(side, self.farthest[side], tick): self.farthest[side] = tick
        return before


def share_behind(queue: Any, front: float, back: float) -> float:
    "The part of a decrease that is taken from behind us, as the queue model guesses it; NaN where it has no answer"
    word, n = queue if isinstance(queue, tuple) else (queue, 1.0)
    def f(x: float) -> float:
        if word.startswith('log'): return math.log(1.0 + x) if x > -1.0 else math.nan
        return x**n
    with np.errstate(all='ignore'):
        if word == 'power3': return float(1.0 - np.float64(front/(front + back) if front + back else math.nan)**n)
        below = f(back) + f(front) if word in ('power', 'log') else f(back + front)
        return float(np.float64(f(back))/np.float64(below))


def least(a: float, b: float) -> float: return b if math.isnan(a) else a if math.isnan(b) else min(a, b)


class Interpolated:
    "hftbacktest's interpolation, rewritten from its behaviour: float64 in between, cut towards zero; two pointers that only go forward"
    def __init__(self, rows: list[tuple[int, int, int]]) -> None:
        self.rows, self.sent, self.answered = rows, 0, 0

    @staticmethod
    def line(x: int, x1: int, y1: int, x2: int, y2: int) -> int: return int(float(y2 - y1)/float(x2 - x1)*float(x - x1)) + y1

    def entry(self, now: int) -> int:
        "Nanoseconds to the exchange; negative = turned away, heard of after as many"
        first, last = self.rows[0], self.rows[-1]
        if now < first[0]: return first[1] - first[0]
        while self.sent + 1 < len(self.rows):
            (request, exchange, response), (request2, exchange2, response2) = self.rows[self.sent:self.sent + 2]
            if request <= now < request2:
                if exchange <= 0 or exchange2 <= 0: return -self.line(now, request, response - request, request2, response2 - request2)
                return self.line(now, request, exchange - request, request2, exchange2 - request2)
            self.sent += 1
        return last[1] - last[0]

    def answer(self, now: int) -> int:
        "Nanoseconds back, for what the exchange does now"
        first, last = self.rows[0], self.rows[-1]
        if now < first[1]: return first[2] - first[1]
        while self.answered + 1 < len(self.rows):
            (_, exchange, response), (_, exchange2, response2) = self.rows[self.answered:self.answered + 2]
            if exchange <= now < exchange2: return self.line(now, exchange, response - exchange, exchange2, response2 - exchange2)
            self.answered += 1
        return last[2] - last[1]


@dataclass
class Resting:
    "An order in the exchange's book"
    number: int
    side: int
    tick: int
    lots: int
    force: int
    front: float = 0.0   # quantity ahead
    traded: float = 0.0  # at its tick since the last depth row there


@dataclass
class Ours:
    "An order as the strategy knows it"
    side: int
    tick: int
    lots: int
    status: int = SENT
    request: str = 'new'   # what is on the way
    asked: bool = False
    refused: bool = False


class Asset:
    "One instrument: two books, orders at the exchange and as known, two roads"
    def __init__(self, case: Case, tape: np.ndarray, number: int) -> None:
        self.case, self.number = case, number
        names = ('ev', 'exch_ts', 'local_ts', 'px', 'qty')
        self.rows = [(ev, exchange_ns, local_ns, whole(price/case.tick_size), quantity)
                     for ev, exchange_ns, local_ns, price, quantity in zip(*(tape[name].tolist() for name in names))]
        self.exchange_rows = [row for row in self.rows if row[0] & EXCH_EVENT]
        self.local_rows = [row for row in self.rows if row[0] & LOCAL_EVENT]
        self.e = self.l = 0
        self.book, self.local_book = Book(case.lot_size), Book(case.lot_size)
        self.resting: dict[int, Resting] = {}
        self.ours: dict[int, Ours] = {}
        self.out: list[tuple[int, str, int, int, int]] = []           # to the exchange: time, request, number, tick, lots
        self.back: list[tuple[int, int, int, tuple[int, ...]]] = []   # to us: time, number, new status (-1 = rejected), details
        self.fills: list[tuple[int, ...]] = []
        self.position = 0
        self.latency = Interpolated([(int(a), int(b), int(c)) for a, b, c in np.asarray(case.latency)])  # one row: the same always

    def join(self, road: list[Any], due: int, *what: Any) -> None: road.append((max(due, road[-1][0]) if road else due, *what))

    def fill(self, order: Resting, now: int, tick: int, maker: int) -> None:
        self.resting.pop(order.number, None)
        sign = 1 if order.side == BID else -1
        self.join(self.back, now + self.latency.answer(now), order.number, FILLED, (self.number, now, sign, tick, order.lots, maker))

    def on_depth(self, side: int, tick: int, quantity: float, now: int) -> None:
        before, best = self.book.put(side, tick, quantity), self.book.best[side]
        for order in [*self.resting.values()]:
            if order.side != side or order.tick != tick: continue
            change, order.traded = before[0] - quantity - order.traded, 0.0
            if self.case.queue == 'risk-averse' or change < 0.0: order.front = least(order.front, quantity)
            else:
                back = before[0] - order.front
                p = share_behind(self.case.queue, order.front, back)
                if math.isinf(p): p = 1.0
                order.front = least(order.front - (1.0 - p)*change + least(back - p*change, 0.0), quantity)
        if better(side, best, before[1]):
            for order in [*self.resting.values()]:
                if order.side != side and not better(side, order.tick, best): self.fill(order, now, order.tick, 1)

    def on_trade(self, aggressor: int, tick: int, quantity: float, now: int) -> None:
        side = 1 - aggressor
        for order in [*self.resting.values()]:
            if order.side != side: continue
            if better(side, order.tick, tick): self.fill(order, now, order.tick, 1)
            elif order.tick == tick:
                order.front, order.traded = order.front - quantity, order.traded + quantity
                if whole(-order.front/self.case.lot_size) > 0: self.fill(order, now, tick, 1)

    def on_exchange_row(self) -> None:
        ev, now, _, tick, quantity = self.exchange_rows[self.e]
        self.e += 1
        side = BID if ev & BUY_EVENT else ASK
        if ev & 0xff == TRADE: self.on_trade(side, tick, quantity, now)
        elif ev & 0xff in (DEPTH, SNAPSHOT): self.on_depth(side, tick, quantity, now)

    def on_local_row(self) -> None:
        ev, _, _, tick, quantity = self.local_rows[self.l]
        self.l += 1
        if ev & 0xff in (DEPTH, SNAPSHOT): self.local_book.put(BID if ev & BUY_EVENT else ASK, tick, quantity)

    def accept(self, order: Resting, now: int) -> None:
        "A new order arrives"
        best = self.book.best[1 - order.side]
        if order.force == MARKET or not better(order.side, best, order.tick):  # their bug: MARKET fills against an empty side too
            if order.force == POST_ONLY: self.join(self.back, now + self.latency.answer(now), order.number, EXPIRED, ())
            else: self.fill(order, now, best, 0)
        elif order.force in (IOC, FOK): self.join(self.back, now + self.latency.answer(now), order.number, EXPIRED, ())
        else:
            order.front, order.traded = self.book.levels[order.side].get(order.tick, 0.0), 0.0
            self.resting[order.number] = order
            self.join(self.back, now + self.latency.answer(now), order.number, NEW, (order.tick,))

    def on_request(self, orders: list[Any]) -> None:
        now, request, number, tick, lots = self.out.pop(0)
        if request == 'new':
            _, side, _, _, force = orders[number - 1]
            self.accept(Resting(number, side, tick, lots, force), now)
            return
        order = self.resting.get(number)
        if order is None: self.join(self.back, now + self.latency.answer(now), number, -1, ())
        elif request == 'cancel':
            del self.resting[number]
            self.join(self.back, now + self.latency.answer(now), number, CANCELED, ())
        elif tick == order.tick and lots <= order.lots:
            order.lots = lots
            self.join(self.back, now + self.latency.answer(now), number, NEW, (tick,))
        else:
            del self.resting[number]
            order.tick = tick
            self.accept(order, now)  # their bug: the lots stay as they were

    def on_answer(self, counts: dict[str, int]) -> None:
        _, number, status, details = self.back.pop(0)
        if status == FILLED:
            self.fills.append((*details, number))
            self.position += details[2]*details[4]
        order = self.ours.get(number)
        if order is None: return
        if status < 0:  # rejected by the exchange, or turned away on the road
            if order.status == SENT: order.status, order.refused = EXPIRED, True
            if order.status == NEW: order.request = ''
            return
        order.status, order.request = status, ''
        if status == NEW: order.tick = details[0]

    def pass_time(self, until: int, orders: list[Any], counts: dict[str, int]) -> bool:
        "All that happens until then, that moment included; says whether anything is left. At equal times in this order of kinds"
        while True:
            due = (self.local_rows[self.l][2] if self.l < len(self.local_rows) else NEVER, self.back[0][0] if self.back else NEVER,
                   self.exchange_rows[self.e][1] if self.e < len(self.exchange_rows) else NEVER, self.out[0][0] if self.out else NEVER)
            first = min(due)
            if first > until: return first < NEVER
            kind = due.index(first)
            if kind == 0: self.on_local_row()
            elif kind == 1: self.on_answer(counts)
            elif kind == 2: self.on_exchange_row()
            else: self.on_request(orders)

    def clear(self, orders: list[Any], counts: dict[str, int]) -> None:
        "What is over is forgotten"
        for number, order in [*self.ours.items()]:
            if order.status in (SENT, NEW):
                if not order.request: order.asked = False
                continue
            if order.status == FILLED and order.asked: counts['late'] += 1
            if order.status == EXPIRED:
                counts['refused' if order.refused else 'expired' if orders[number - 1][4] == POST_ONLY else 'unfilled'] += 1
            del self.ours[number]

    def follow(self, wishes: np.ndarray, now: int, orders: list[Any], counts: dict[str, int]) -> None:
        "The rules of hft.follow"
        def ask(word: str, number: int, tick: int, lots: int) -> None:
            entry = self.latency.entry(now)
            if entry < 0: self.join(self.back, now - entry, number, -1, ())
            else: self.join(self.out, now + entry, word, number, tick, lots)
        for side in (BID, ASK):
            open_wishes = [tuple(int(x) for x in wish) for wish in wishes[side] if wish[1]]
            unwished = []
            for number, order in self.ours.items():
                if order.side != side or order.request == 'cancel': continue
                met = next((wish for wish in open_wishes if wish[0] == order.tick), None)
                if met: open_wishes.remove(met)
                else: unwished.append((number, order))
            for number, order in unwished:
                if order.status == SENT or order.request: counts['not_cancellable'] += 1
                elif self.case.replace == 'modify' and open_wishes:
                    tick, lots, _ = open_wishes.pop(0)
                    order.tick, order.request, order.asked = tick, 'modify', True
                    ask('modify', number, tick, lots)
                    counts['modifies'] += 1
                else:
                    order.request, order.asked = 'cancel', True
                    ask('cancel', number, 0, 0)
                    counts['cancels'] += 1
            for tick, lots, force in open_wishes:
                orders.append((self.number, side, tick, lots, force))
                self.ours[len(orders)] = Ours(side, tick, lots)
                ask('new', len(orders), tick, lots)
                counts['submitted'] += 1


def play(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    "The fills as Outcome has them, the orders sent (asset, side, tick, lots, time in force), and counts"
    assets = [Asset(case, tape, number) for number, tape in enumerate(case.tapes)]
    counts = dict.fromkeys(('steps', 'submitted', 'cancels', 'modifies', 'late', 'expired', 'unfilled', 'refused', 'not_cancellable'), 0)
    orders: list[Any] = []
    wishes, scratch = np.zeros((len(assets), 2, case.levels, 3), np.int64), new_scratch(case.seed, len(assets))
    parameters = np.array(case.parameters, np.float64)
    now = min(row[clock] for asset in assets for clock, rows in ((1, asset.exchange_rows), (2, asset.local_rows)) for row in rows[:1])
    while True:
        now += case.interval_ns
        going = [asset.pass_time(now, orders, counts) for asset in assets]
        for asset in assets: asset.clear(orders, counts)
        if not any(going): break
        counts['steps'] += 1
        positions = np.array([asset.position for asset in assets])
        for asset in assets:
            bid, ask = asset.local_book.best[BID], asset.local_book.best[ASK]
            if bid == NOWHERE[BID] or ask == NOWHERE[ASK] or bid >= ask: continue
            quote(STRATEGIES.index(case.strategy), asset.number, bid, ask, positions, parameters, scratch, wishes)
            asset.follow(wishes[asset.number], now, orders, counts)
    fills = np.array([fill for asset in assets for fill in asset.fills], np.int64).reshape(-1, 7)
    return fills[np.lexsort(fills.T[::-1])], np.array(orders, np.int64).reshape(-1, 5), counts
