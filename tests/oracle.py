"""A second matching engine, slow and plain: dictionaries, lists, Python integers and fractions.

It was written from the prose of the matching notebook and from the rules of the design, not from the compiled code, and shares nothing with
it but the numbers that stand for kinds and sides. `tests/test_engine.py` plays random markets through both and compares every row.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.events import (
    BEST_QUOTE, BUY, CLEAR, CONTROL, DEPTH, KILL, KIND_MASK, LAST, RESUME, SELL, SNAPSHOT, STALE, STOP, TRADE, Events,
)
from cryptoexp.market.instrument import Instrument
from cryptoexp.trading.quoting import new_view

E8 = 10 ** 8
Row = tuple[int, int, int, int]  # time, flags, tick, lots


def half_away(value: Fraction) -> int:
    "Rounded to a whole number, halves away from zero"
    size = math.floor(abs(value) + Fraction(1, 2))
    return size if value >= 0 else -size


class Book:
    "Lots by price, each side apart, and what we took from each level since it last changed"
    def __init__(self) -> None:
        self.levels: dict[int, dict[int, int]] = {1: {}, -1: {}}
        self.taken: dict[tuple[int, int], int] = {}

    def best(self, side: int) -> int | None:
        if not self.levels[side]: return None
        return max(self.levels[side]) if side > 0 else min(self.levels[side])

    def touch(self) -> tuple[int | None, int | None]: return self.best(1), self.best(-1)

    def put(self, side: int, tick: int, lots: int) -> None:
        self.taken.pop((side, tick), None)
        if lots: self.levels[side][tick] = lots
        else: self.levels[side].pop(tick, None)

    def apply(self, kind: int, flags: int, tick: int, lots: int) -> None:
        side = 1 if flags & BUY else -1
        if kind in (DEPTH, SNAPSHOT): self.put(side, tick, lots)
        elif kind == CLEAR:
            for one in [1] * bool(flags & BUY) + [-1] * bool(flags & SELL):
                for level in list(self.levels[one]): self.put(one, level, 0)
        elif kind == BEST_QUOTE:
            for level in [level for level in self.levels[side] if (level - tick) * side > 0]: self.put(side, level, 0)
            self.put(side, tick, lots)

    def left(self, side: int, tick: int) -> int:
        "What a level still has for us"
        return self.levels[side].get(tick, 0) - self.taken.get((side, tick), 0)

    def take(self, side: int, tick: int, lots: int) -> None: self.taken[side, tick] = self.taken.get((side, tick), 0) + lots


@dataclass(eq=False)
class Order:
    order_id: int
    side: int
    tick: int
    lots: int
    purpose: str
    post_only: bool
    immediate: bool
    placed_ns: int
    remaining: int = 0
    known_remaining: int = 0
    ahead: int = 0
    status: str = 'sent'
    reason: str = ''
    cancel_sent: bool = False
    arrived_ns: int = 0
    ended_ns: int = 0
    queue_ahead_lots: int = 0
    place: int = 0  # order of arrival at the exchange

    def row(self) -> tuple[Any, ...]:
        return (self.order_id, self.side, self.tick, self.lots, self.lots - self.remaining, self.status, self.purpose, self.reason,
                self.placed_ns, self.arrived_ns, self.ended_ns, self.queue_ahead_lots)


class Oracle:
    "One account on one simulated exchange; all rows are given at once, `advance` goes on to a moment"
    def __init__(self, instrument: Instrument, config: MarketMakingConfig, rows: Events, quoter: Callable[..., int], levels: int = 1,
                 parameters: Iterable[float] = (0.,), hold_ns: int = 250_000_000, use_best_quotes: bool = False):
        self.config, self.instrument, self.quoter, self.levels = config, instrument, quoter, levels
        self.parameters, self.scratch = np.array(list(parameters), float), np.zeros(64)
        self.unit = Fraction(instrument.tick_size) * Fraction(instrument.lot_size) * E8  # 1e-8 quote of one lot at one tick
        self.maker_rate, self.taker_rate = (Fraction(str(fee)) for fee in (config.maker_fee, config.taker_fee))
        self.entry_ns, self.response_ns = round(config.entry_latency_ms * 1e6), round(config.response_latency_ms * 1e6)
        self.interval_ns, self.use_best_quotes = round(config.refresh_interval * 1e9), use_best_quotes
        table = [tuple(int(cell) for cell in row) for row in zip(*(column.tolist() for column in rows.columns))]
        self.end_ns, self.first_ns = table[-1][2], table[0][2]
        table.append((CONTROL | LAST, self.end_ns, self.end_ns, STOP, 0, 0))
        table = [row for row in table if use_best_quotes or row[0] & KIND_MASK != BEST_QUOTE]
        self.reached: list[Row] = [(local, flags, tick, lots) for flags, _, local, tick, lots, _ in table]
        # a row that was on its way longer than the hold counts as if it had taken just that long
        self.happened: list[Row] = sorted(((max(exchange, local - hold_ns), flags, tick, lots) for flags, exchange, local, tick, lots, _
                                           in table), key=lambda row: row[0])
        self.reached_at = self.happened_at = 0
        self.now, self.next_decision = 0, self.first_ns + self.interval_ns
        self.requests: list[tuple[int, Order, bool]] = []
        self.news: list[tuple[int, Order, int, int, int, bool]] = []  # due, order, tick, lots, fee, ends
        self.exchange, self.local = Book(), Book()
        self.exchange_touch: tuple[int | None, int | None] = (None, None)
        self.local_touch: tuple[int | None, int | None] = (None, None)
        self.local_changed, self.snapshot_sides = False, set[int]()
        self.stale, self.stopped, self.halted = True, False, False
        self.cash = self.known_cash = round(config.total_capital * E8)
        self.position = self.known_position = instrument.lots(config.initial_base)
        self.start: int | None = None
        self.peak = 0
        self.desk: list[Order] = []     # not known to be dead
        self.resting: list[Order] = []  # at the exchange, in the order of arrival
        self.sent = self.arrivals = self.cancels = self.late_cancels = 0
        self.flow = dict(bought_lots=0, sold_lots=0, filled_buy_lots=0, filled_sell_lots=0)
        self.refused = {'no coins': 0, 'no funds or no room': 0, 'below the smallest order': 0, 'too many orders': 0}
        self.fills: list[tuple[Any, ...]] = []
        self.finished: list[Order] = []
        self.samples: list[tuple[int, ...]] = []
        self.views: list[tuple[Any, ...]] = []
        self.lowest_cash = self.cash

    # money
    def notional(self, tick: int, lots: int) -> int: return math.floor(tick * lots * self.unit + Fraction(1, 2))
    def fee(self, notional: int, rate: Fraction) -> int: return half_away(notional * rate)
    def reserve(self, tick: int, lots: int) -> int:
        notional = self.notional(tick, lots)
        return notional + max(self.fee(notional, self.maker_rate), self.fee(notional, self.taker_rate), 0)
    def equity(self) -> int:
        bid, ask = self.local_touch
        assert bid is not None and ask is not None
        return self.known_cash + self.notional(bid + ask, self.known_position) // 2
    def lot_value(self) -> float:
        bid, ask = self.local_touch
        return (bid + ask) * 0.5 * self.unit.numerator / self.unit.denominator  # type: ignore[operator]
    def cap_lots(self) -> int:
        equity = self.equity()
        return int(self.config.max_inventory_exposure * equity / self.lot_value()) if equity > 0 else 0
    def large_enough(self, tick: int, lots: int) -> bool:
        return lots >= max(1, self.instrument.min_lots) and self.notional(tick, lots) >= self.instrument.min_notional * E8
    def most_order(self, lots: int) -> int: return min(lots, self.instrument.max_lots or lots)

    # the exchange
    def fill(self, order: Order, tick: int, lots: int, maker: bool, reason: str) -> None:
        notional = self.notional(tick, lots)
        fee = self.fee(notional, self.maker_rate if maker else self.taker_rate)
        self.cash -= order.side * notional + fee
        self.position += order.side * lots
        self.lowest_cash = min(self.lowest_cash, self.cash)
        order.remaining -= lots
        if not order.remaining: self.end(order, 'filled')
        bid, ask = self.exchange_touch
        self.fills.append((self.now, order.order_id, order.side, tick, lots, maker, fee, -1 if bid is None else bid,
                           1 << 62 if ask is None else ask, reason))
        self.tell(order, tick, lots, fee)

    def end(self, order: Order, status: str, reason: str = '') -> None:
        order.status, order.ended_ns, order.reason = status, self.now, reason
        if order in self.resting: self.resting.remove(order)

    def tell(self, order: Order, tick: int = 0, lots: int = 0, fee: int = 0) -> None:
        self.news.append((self.now + self.response_ns, order, tick, lots, fee, order.status in ('filled', 'cancelled', 'expired')))

    def in_line(self, side: int, tick: int) -> list[Order]:
        "Our orders that a print or a level at `tick` reaches: best price first, then oldest"
        reached = [order for order in self.resting if order.side == side and (order.tick - tick) * side >= 0]
        return sorted(reached, key=lambda order: (-order.tick * side, order.place))

    def on_print(self, side: int, tick: int, lots: int) -> None:
        for order in self.in_line(side, tick):
            if lots == 0: return
            others = order.ahead if order.tick == tick else 0  # traded through: nobody stands before us any more
            order.ahead = max(0, others - lots)
            size = min(order.remaining, max(0, lots - others))
            if size: self.fill(order, order.tick, size, True, 'queue' if order.tick == tick else 'through')
            lots -= size

    def on_level(self, side: int, tick: int, lots: int) -> None:
        "A level of `side` now holds `lots`"
        for order in self.resting:
            if order.side == side and order.tick == tick: order.ahead = min(order.ahead, lots)
        for order in self.in_line(-side, tick):
            size = min(order.remaining, self.exchange.left(side, tick))
            if size <= 0: return
            self.exchange.take(side, tick, size)
            self.fill(order, order.tick, size, True, 'cross')

    def on_exchange_row(self, flags: int, tick: int, lots: int) -> None:
        kind, side = flags & KIND_MASK, 1 if flags & BUY else -1
        if kind == TRADE: self.on_print(-side, tick, lots)
        else:
            self.exchange.apply(kind, flags, tick, lots)
            if kind in (DEPTH, SNAPSHOT, BEST_QUOTE): self.on_level(side, tick, lots)
            if kind == SNAPSHOT: self.snapshot_sides.add(side)
            if kind == BEST_QUOTE: self.levels_are_known(side, beyond=tick)
        if flags & LAST and kind != TRADE:
            for one in self.snapshot_sides: self.levels_are_known(one)
            self.snapshot_sides.clear()
            self.exchange_touch = self.exchange.touch()

    def levels_are_known(self, side: int, beyond: int | None = None) -> None:
        "After a snapshot (or inside a new best price) a level that was not named holds nothing, so nobody stands before us there"
        for order in self.resting:
            if order.side == side and (beyond is None or (order.tick - beyond) * side > 0):
                order.ahead = min(order.ahead, self.exchange.levels[side].get(order.tick, 0))

    def on_arrival(self, order: Order) -> None:
        order.arrived_ns = self.now
        best = self.exchange.best(-order.side)
        crosses = best is not None and (order.tick - best) * order.side >= 0
        if crosses and order.post_only:
            self.end(order, 'expired', 'would take')
            return self.tell(order)
        if crosses:
            for tick in sorted(self.exchange.levels[-order.side], key=lambda tick: tick * order.side):
                if (order.tick - tick) * order.side < 0 or not order.remaining: break
                size = min(order.remaining, self.exchange.left(-order.side, tick))
                if size <= 0: continue
                self.exchange.take(-order.side, tick, size)
                self.fill(order, tick, size, False, 'take')
        if order.status == 'filled': return
        if order.immediate: self.end(order, 'expired', 'nothing left within its limit')
        else:
            self.arrivals += 1
            order.status, order.place = 'resting', self.arrivals
            order.ahead = order.queue_ahead_lots = self.exchange.levels[order.side].get(order.tick, 0)
            self.resting.append(order)
        self.tell(order)

    def on_request(self) -> None:
        _, order, cancel = self.requests.pop(0)
        if not cancel: self.on_arrival(order)
        elif order.status == 'resting':
            self.end(order, 'cancelled')
            self.tell(order)
        else: self.late_cancels += 1

    # our side
    def on_news(self) -> None:
        _, order, tick, lots, fee, ends = self.news.pop(0)
        if lots:
            self.known_cash -= order.side * self.notional(tick, lots) + fee
            self.known_position += order.side * lots
            order.known_remaining -= lots
            self.flow['filled_buy_lots' if order.side > 0 else 'filled_sell_lots'] += lots
        if ends:
            self.desk.remove(order)
            self.finished.append(order)

    def fresh(self) -> bool:
        bid, ask = self.local_touch
        return not self.stale and bid is not None and ask is not None and bid < ask

    def on_local_row(self, flags: int, tick: int, lots: int) -> None:
        kind = flags & KIND_MASK
        if kind == TRADE: self.flow['bought_lots' if flags & BUY else 'sold_lots'] += lots
        elif kind == CONTROL:
            if tick == STALE: self.stale = True
            if tick == RESUME: self.stale = False
            if tick == STOP: self.stopped = True
            if tick == KILL: self.halted = True
            if tick in (STALE, STOP, KILL): self.cancel_all()
        else:
            self.local.apply(kind, flags, tick, lots)
            self.local_changed = True
        if flags & LAST and (self.local_changed or kind == CONTROL):
            self.local_changed, self.local_touch = False, self.local.touch()
            if self.fresh(): self.check_stops()

    def check_stops(self) -> None:
        equity = self.equity()
        if self.start is None: self.start = self.peak = equity
        self.peak = max(self.peak, equity)
        too_far = equity < self.peak * (1.0 - self.config.max_drawdown) or equity < self.start * (1.0 - self.config.max_loss)
        if too_far and not self.halted:
            self.halted = True
            self.cancel_all()

    def new_order(self, side: int, tick: int, lots: int, purpose: str, post_only: bool, immediate: bool) -> Order:
        self.sent += 1
        order = Order(self.sent, side, tick, lots, purpose, post_only, immediate, self.now, lots, lots)
        self.desk.append(order)
        return order

    def send(self, side: int, tick: int, lots: int, purpose: str, post_only: bool) -> None:
        self.requests.append((self.now + self.entry_ns, self.new_order(side, tick, lots, purpose, post_only, not post_only), False))

    def cancel(self, order: Order) -> None:
        if order.cancel_sent: return
        order.cancel_sent = True
        self.cancels += 1
        self.requests.append((self.now + self.entry_ns, order, True))

    def cancel_all(self) -> None:
        for order in list(self.desk): self.cancel(order)

    def room(self, side: int, tick: int) -> int:
        "Lots that a new order may have: below the cap in the worst case and paid for, or coins that nobody else was promised"
        working = sum(order.known_remaining for order in self.desk if order.side == side)
        if side < 0: return max(0, self.known_position - working)
        free = self.known_cash - sum(self.reserve(order.tick, order.known_remaining) for order in self.desk if order.side > 0)
        if free <= 0: return 0
        dearest = max(self.maker_rate, self.taker_rate, Fraction(0))
        funded = math.floor(free / (tick * self.unit * (1 + dearest))) + 2  # rounding of fee and notional may give or take a lot
        while funded > 0 and self.reserve(tick, funded) > free: funded -= 1
        return max(0, min(self.cap_lots() - self.known_position - working, funded))

    def allowed(self, side: int, tick: int, lots: int) -> int:
        passed = self.most_order(min(lots, self.room(side, tick)))
        if passed > 0 and self.large_enough(tick, passed): return passed
        short = 'no funds or no room' if side > 0 else 'no coins'
        self.refused[short if passed < lots else 'below the smallest order'] += 1
        return 0

    def sell_now(self, lots: int, purpose: str) -> None:
        bid, ask = self.local_touch
        tick = int(0.5 * (bid + ask) * (1.0 - self.config.flatten_band)) + 1  # type: ignore[operator]
        if not self.desk and self.large_enough(tick, lots): self.send(-1, tick, self.most_order(lots), purpose, False)

    def decide(self) -> None:
        if self.stopped or not self.fresh(): return
        equity = self.equity()
        share = (equity - self.known_cash) / equity if equity > 0 else 0.0
        if self.halted:
            if self.config.flatten_on_halt: self.sell_now(self.known_position, 'flatten')
            return
        if self.config.reduce_by_taking and share > self.config.max_inventory_exposure:
            self.cancel_all()
            self.sell_now(int(self.known_position * (1.0 - self.config.target_share / share)), 'reduce')
            return
        bid, ask = self.local_touch
        assert bid is not None and ask is not None
        standard = self.most_order(int(self.config.order_size_percentage * equity / self.lot_value())) if equity > 0 else 0
        view = new_view(time_ns=self.now, bid_tick=bid, ask_tick=ask, bid_lots=self.local.levels[1][bid], ask_lots=self.local.levels[-1][ask],
                        position_lots=self.known_position, equity=equity / E8, share=share,
                        order_lots=standard if self.large_enough(bid, standard) else 0, **self.flow)
        self.views.append(tuple(view[0].tolist()))
        wishes = np.zeros((2, self.levels, 2), np.int64)
        self.quoter(view, self.parameters, self.scratch, wishes)
        self.flow = dict.fromkeys(self.flow, 0)
        above_cap = self.known_position >= self.cap_lots()
        slack = int(self.config.refresh_tolerance * 0.5 * (bid + ask))
        for side, wanted in ((1, wishes[0].tolist()), (-1, wishes[1].tolist())):
            open_wishes = [(tick, lots) for tick, lots in wanted if lots > 0 and not (side > 0 and above_cap)]
            quotes = [order for order in self.desk if order.side == side and order.purpose == 'quote' and not order.cancel_sent]
            for distance in range(slack + 1):  # an unchanged quote first, then the nearest outside of its wish
                for order in list(quotes):
                    match = next((wish for wish in open_wishes if (wish[0] - order.tick) * side == distance), None)
                    if match is not None:
                        open_wishes.remove(match)
                        quotes.remove(order)
            for order in quotes: self.cancel(order)
            for tick, lots in open_wishes:
                if size := self.allowed(side, tick, lots): self.send(side, tick, size, 'quote', True)

    def sample(self) -> None:
        self.next_decision += self.interval_ns
        bid, ask = self.exchange_touch
        if bid is None or ask is None: return
        quotes = [order for order in self.desk if order.purpose == 'quote' and not order.cancel_sent]
        self.samples.append((self.now, bid, ask, max((order.tick for order in quotes if order.side > 0), default=-1),
                             min((order.tick for order in quotes if order.side < 0), default=-1), self.position, self.cash))

    def enter(self, side: int, tick: int, lots: int) -> str:
        "An order by hand, at once, at the present moment; answers why it was refused, or ''"
        if self.stopped or self.halted: return 'the session is halted'
        if not self.fresh(): return 'the book is stale'
        before = dict(self.refused)
        if self.allowed(side, tick, lots) < lots:
            return next((name for name in before if self.refused[name] > before[name]), 'no funds or no room' if side > 0 else 'no coins')
        self.on_arrival(self.new_order(side, tick, lots, 'manual', False, False))
        return ''

    def advance(self, until_ns: int) -> Oracle:
        "All that is due up to a moment; at one nanosecond: rows that reach us, news, rows at the exchange, our requests, decisions"
        while True:
            due = [queue[at][0] if at < len(queue) else None for queue, at in (
                (self.reached, self.reached_at), (self.news, 0), (self.happened, self.happened_at), (self.requests, 0))] + [self.next_decision]
            first = min(time for time in due if time is not None)
            if first > until_ns:
                self.now = max(self.now, until_ns)
                return self
            self.now = max(self.now, first)
            what = due.index(first)
            if what == 0:
                self.reached_at += 1
                self.on_local_row(*self.reached[self.reached_at - 1][1:])
            elif what == 1: self.on_news()
            elif what == 2:
                self.happened_at += 1
                self.on_exchange_row(*self.happened[self.happened_at - 1][1:])
            elif what == 3: self.on_request()
            else:
                self.decide()
                self.sample()

    def finish(self) -> Oracle: return self.advance(self.end_ns + self.entry_ns + self.response_ns)

    def orders(self) -> list[tuple[Any, ...]]: return sorted(order.row() for order in self.finished)
