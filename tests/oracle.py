"""A second matching engine, slow and plain: dictionaries, lists, Python integers and fractions.

It was written from the prose of the matching notebook and from the rules of the design, not from the compiled code, and shares nothing with
it but the numbers that stand for kinds and sides. `tests/test_engine.py` plays random markets through both and compares every row.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.events import (
    BEST_QUOTE,
    BUY,
    CLEAR,
    CONTROL,
    DEPTH,
    KILL,
    KIND_MASK,
    LAST,
    RESUME,
    SELL,
    SNAPSHOT,
    STALE,
    STOP,
    TRADE,
    Events,
)
from cryptoexp.market.instrument import Instrument
from cryptoexp.trading.quoting import new_view

E8 = 10 ** 8
# where the engine is known to differ from its prose; each has a test of its own, marked as expected to fail, in test_engine.py
AS_BUILT: frozenset[str] = frozenset()  # words for rules in which the engine is known to differ; none today
Row = tuple[int, int, int, int]  # time, flags, tick, lots


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
        if self.levels[side].get(tick, 0) != lots: self.taken.pop((side, tick), None)
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
                 parameters: Iterable[float] = (0.,), hold_ns: int = 250_000_000, use_best_quotes: bool = False,
                 as_built: frozenset[str] = frozenset()):
        self.config, self.instrument, self.quoter, self.levels = config, instrument, quoter, levels
        self.parameters, self.scratch = np.array(list(parameters), float), np.zeros(64)
        self.as_built = as_built
        self.unit = Fraction(instrument.tick_size) * Fraction(instrument.lot_size) * E8  # 1e-8 quote of one lot at one tick
        self.maker_rate, self.taker_rate = (int(Fraction(str(fee)) * E8) for fee in (config.maker_fee, config.taker_fee))
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
        self.refused = {'no coins': 0, 'no funds or no room': 0, 'below the smallest order': 0, 'too many orders': 0,
            'price out of range': 0, 'unknown time in force': 0, 'above the largest order': 0, 'order rate': 0, 'the book is stale': 0,
            'the session is halted': 0, 'the session has ended': 0, 'not as the venue asks': 0}
        self.refusals: list[list[Any]] = []   # first and last time, side, tick, lots, reason, purpose, how many
        self.sent_in: dict[tuple[str, int], int] = {}   # orders by window: ten seconds, or a day
        self.fills: list[tuple[Any, ...]] = []
        self.finished: list[Order] = []
        self.samples: list[tuple[int, ...]] = []
        self.views: list[tuple[Any, ...]] = []
        self.lowest_cash = self.cash

    # money
    def notional(self, tick: int, lots: int) -> int:
        "Exact, then rounded half up"
        return (2 * tick * lots * self.unit.numerator + self.unit.denominator) // (2 * self.unit.denominator)
    def fee(self, notional: int, rate: int) -> int:
        "Rounded half away from zero"
        size = (2 * notional * abs(rate) + E8) // (2 * E8)
        return size if rate >= 0 else -size
    def reserve(self, tick: int, lots: int) -> int:
        notional = self.notional(tick, lots)
        rate = max(self.maker_rate, self.taker_rate, 0)
        fee = self.fee(notional, rate)
        return notional + fee + (min((lots + 1) // 2, fee + 1) if rate else 0)  # each part's fee may be rounded up
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
        if order.purpose == 'manual' and order.arrived_ns == self.now:  # whoever enters an order by hand is told at once what it took
            self.learn(order, tick, lots, fee)
            self.tell(order)
        else: self.tell(order, tick, lots, fee)

    def learn(self, order: Order, tick: int, lots: int, fee: int) -> None:
        self.known_cash -= order.side * self.notional(tick, lots) + fee
        self.known_position += order.side * lots
        order.known_remaining -= lots
        self.flow['filled_buy_lots' if order.side > 0 else 'filled_sell_lots'] += lots

    def end(self, order: Order, status: str, reason: str = '') -> None:
        order.status, order.ended_ns, order.reason = status, self.now, reason
        if order in self.resting: self.resting.remove(order)

    def tell(self, order: Order, tick: int = 0, lots: int = 0, fee: int = 0) -> None:
        self.news.append((self.now + self.response_ns, order, tick, lots, fee, order.status in ('filled', 'cancelled', 'expired')))

    def in_line(self, side: int, tick: int) -> list[Order]:
        "Our orders that a print or a level at `tick` reaches: best price first, then oldest"
        reached = [order for order in self.resting if order.side == side and (order.tick - tick) * side >= 0]
        return sorted(reached, key=lambda order: (-order.tick * side, order.order_id if 'age' in self.as_built else order.place))

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
            if kind == BEST_QUOTE and 'front' not in self.as_built: self.levels_are_known(side, beyond=tick)
        if flags & LAST and kind != TRADE:
            for one in self.snapshot_sides if 'front' not in self.as_built else ():
                named = self.exchange.levels[one]
                if named: self.levels_are_known(one, beyond=min(named, key=lambda tick: tick * one) - one)   # up to the last level
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
        if lots: self.learn(order, tick, lots, fee)
        if ends:
            self.desk.remove(order)
            self.finished.append(order)
        if self.fresh(): self.check_stops()

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
        if flags & LAST:
            if self.local_changed or kind == CONTROL: self.local_changed, self.local_touch = False, self.local.touch()
            else: return  # a print moves no price of the book, and fills are weighed when their news arrives
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
        if free <= 0 or tick <= 0: return 0
        dearest = max(self.maker_rate, self.taker_rate, 0)
        if 'float funds' in self.as_built:
            funded = int(free / (tick * self.unit.numerator / self.unit.denominator * (1.0 + dearest / E8)) * (1.0 - 1e-12))
        else:
            low, high = 0, free * E8 * self.unit.denominator // (tick * self.unit.numerator * (E8 + dearest)) + 2
            while low < high:  # the most lots whose reserve the free cash covers
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self.reserve(tick, middle) <= free else (low, middle - 1)
            funded = low
        return max(0, min(self.cap_lots() - self.known_position - working, funded))

    def refuse(self, side: int, tick: int, lots: int, reason: str, purpose: str) -> int:
        "Count it, and note it: quotes refused for one reason on one side are one row a minute, unless one by hand came between"
        self.refused[reason] += 1
        same = next((row for row in reversed(self.refusals) if (row[2], row[5]) == (side, reason)), None)
        if same and same[6] == purpose == 'quote' and same[0] // (60 * 10**9) == self.now // (60 * 10**9):
            same[1], same[7] = self.now, same[7] + 1
        else: self.refusals.append([self.now, self.now, side, tick, lots, reason, purpose, 1])
        return 0

    def allowed(self, side: int, tick: int, lots: int, purpose: str = 'quote') -> int:
        low, high = self.local_touch
        if low is not None and high is not None:
            middle, wide = Fraction(low + high, 2), 1 + Fraction(str(self.config.price_band))
            if not middle / wide <= tick <= middle * wide: return self.refuse(side, tick, lots, 'price out of range', purpose)
        passed = self.most_order(min(lots, self.room(side, tick)))
        if passed > 0 and self.large_enough(tick, passed): return self.within_counts(side, tick, lots, passed, purpose)
        short = 'no funds or no room' if side > 0 else 'no coins'
        return self.refuse(side, tick, lots, short if passed < lots else 'below the smallest order', purpose)

    def refusal_rows(self) -> list[tuple[Any, ...]]:
        "By time, then sells before buys, then by reason"
        names = list(self.refused)
        return sorted((tuple(row) for row in self.refusals), key=lambda row: (row[0], row[2], names.index(row[5])))

    def within_counts(self, side: int, tick: int, wished: int, lots: int, purpose: str) -> int:
        "Neither too large nor one too many"
        most = self.config.max_order_notional
        if most is not None and self.notional(tick, lots) > round(Fraction(str(most)) * E8):
            return self.refuse(side, tick, wished, 'above the largest order', purpose)
        windows = [(('ten seconds', self.now // 10**10), self.config.max_orders_per_10s),
                   (('day', self.now // (86_400 * 10**9)), self.config.max_orders_per_day)]
        if any(limit is not None and self.sent_in.get(window, 0) >= limit for window, limit in windows):
            return self.refuse(side, tick, wished, 'order rate', purpose)
        for window, _ in windows: self.sent_in[window] = self.sent_in.get(window, 0) + 1
        return lots

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
            excess, (low, high) = int(self.known_position * (1.0 - self.config.target_share / share)), self.local_touch
            if self.large_enough(int(0.5 * (low + high) * (1.0 - self.config.flatten_band)) + 1, excess):  # type: ignore[operator]
                self.cancel_all()
                return self.sell_now(excess, 'reduce')
        bid, ask = self.local_touch
        assert bid is not None and ask is not None
        standard = self.most_order(int(self.config.order_size_percentage * equity / self.lot_value())) if equity > 0 else 0
        view = new_view(time_ns=self.now, bid_tick=bid, ask_tick=ask, bid_lots=self.local.levels[1][bid],
            ask_lots=self.local.levels[-1][ask],
                        position_lots=self.known_position, equity=equity / E8, share=share,
                        order_lots=standard if self.large_enough(bid, standard) else 0, usable=1, **self.flow)
        self.views.append(tuple(view.market[0].tolist()))
        wishes = np.zeros((1, 2, self.levels, 3), np.int64)
        self.quoter(view, self.parameters, self.scratch, wishes)
        self.flow = dict.fromkeys(self.flow, 0)
        above_cap = self.known_position >= self.cap_lots()
        slack = int(self.config.refresh_tolerance * 0.5 * (bid + ask))
        for side, wanted in ((1, wishes[0, 0, :, :2].tolist()), (-1, wishes[0, 1, :, :2].tolist())):
            open_wishes = [(tick, lots) for tick, lots in wanted if lots > 0]
            if side > 0 and above_cap:
                for tick, lots in open_wishes: self.refuse(side, tick, lots, 'no funds or no room', 'quote')
                open_wishes = []
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
        guard = ('the session has ended' if self.stopped else 'the session is halted' if self.halted else
                 'the book is stale' if not self.fresh() else '')
        before = dict(self.refused)
        if guard: self.refuse(side, tick, lots, guard, 'manual')
        elif self.allowed(side, tick, lots, 'manual') < lots and before == self.refused:   # for a part there would have been room
            self.refuse(side, tick, lots, 'no funds or no room' if side > 0 else 'no coins', 'manual')
        if before != self.refused: return next(name for name in before if self.refused[name] > before[name])
        self.on_arrival(self.new_order(side, tick, lots, 'manual', False, False))
        if self.fresh(): self.check_stops()   # whoever trades by hand knows at once, and so do the limits
        return ''

    def advance(self, until_ns: int) -> Oracle:
        "All that is due up to a moment; at one nanosecond: rows that reach us, news, rows at the exchange, our requests, decisions"
        while True:
            due = [queue[at][0] if at < len(queue) else None for queue, at in (
                (self.reached, self.reached_at), (self.news, 0), (self.happened, self.happened_at), (self.requests,
                    0))] + [self.next_decision]
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


# Random markets, random accounts, random quoters

MS = 1_000_000


def wild(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Quotes at random around the touch (parameters: seed, % of calls that repeat, range and lead of offsets, lots, their unit)"
    now = view.market[0]
    random = int(scratch[0]) if scratch[1] > 0 else int(parameters[0])
    scratch[1] += 1
    levels = wishes.shape[2]
    random = (random * 1103515245 + 12345) % 2147483648
    if scratch[1] == 1 or (random >> 8) % 100 >= parameters[1]:
        for side in range(2):
            random = (random * 1103515245 + 12345) % 2147483648
            offset = (random >> 8) % int(parameters[2]) - int(parameters[3])
            step = 1 + (random >> 20) % 2
            for level in range(levels):
                random = (random * 1103515245 + 12345) % 2147483648
                lots = (random >> 8) % int(parameters[4]) * int(parameters[5])
                if (random >> 20) % 3 == 0: lots = now.order_lots
                outside = offset + level * step + (now.bought_lots + now.filled_sell_lots + now.position_lots) % 2
                scratch[8 + 4 * level + 2 * side] = now.bid_tick - outside if side == 0 else now.ask_tick + outside
                scratch[9 + 4 * level + 2 * side] = lots if scratch[8 + 4 * level + 2 * side] > 0 else 0
    for level in range(levels):
        for side in range(2):
            wishes[0, side, level, 0] = int(scratch[8 + 4 * level + 2 * side])
            wishes[0, side, level, 1] = int(scratch[9 + 4 * level + 2 * side])
    scratch[0] = random
    return random % 4


# tick size, lot size, smallest and largest order in units, smallest notional, lots in a unit
GRIDS = [('1', '1', 1, 0, '0', 1), ('0.01', '0.00001', 2, 9, '0.00003', 1), ('0.000001', '0.00000001', 1, 7, '0', 1_234_567),
         ('0.5', '0.1', 1, 0, '0', 1), ('0.001', '0.0000001', 1, 0, '0', 37)]


@dataclass
class Scenario:
    instrument: Instrument
    config: MarketMakingConfig
    rows: Events
    levels: int
    parameters: list[float]
    hold_ns: int
    use_best_quotes: bool
    cuts: list[int]                                 # rows at which batches end
    manual: dict[int, list[tuple[int, int, int]]]   # orders by hand after the batch of this number


def market(draw: np.random.Generator, steps: int, best_quotes: bool, fine: bool) -> list[tuple[int, int, int, int, int, int]]:
    "Rows of a small random market, seldom crossed after a message, in the order of arrival"
    book = {BUY: {100 - n: int(draw.integers(1, 12)) for n in range(6)}, SELL: {101 + n + int(draw.integers(3)): int(draw.integers(1,
        12)) for n in range(6)}}
    time, depth_local, stale = 10 * MS, 0, 0
    messages: list[tuple[int, int, list[tuple[int, int, int]]]] = []

    def emit(rows: list[tuple[int, int, int]], stream: bool = True, at: int = 0) -> None:
        nonlocal depth_local
        late = int(draw.integers(1, 20)) * MS if draw.random() < .97 else int(draw.integers(20, 80)) * MS
        if fine: late += int(draw.integers(1000))
        local = time + late
        if stream: local = depth_local = max(local, depth_local)
        rows[-1] = (rows[-1][0] | LAST, *rows[-1][1:])
        messages.append((time + at, local, rows))

    def snapshot(perturb: bool) -> None:
        if perturb:
            for side in book:
                for tick in list(book[side]):
                    if draw.random() < .3 and len(book[side]) > 1: del book[side][tick]
                    elif draw.random() < .5: book[side][tick] = int(draw.integers(1, 14))
        emit([(CLEAR | BUY | SELL, 0, 0), *((SNAPSHOT | side, tick, lots) for side in book for tick, lots in book[side].items())])

    def best_quote() -> None:
        bid, ask = max(book[BUY]), min(book[SELL])
        emit([(BEST_QUOTE | BUY, bid, book[BUY][bid]), (BEST_QUOTE | SELL, ask, book[SELL][ask])])

    def control(code: int) -> None:
        nonlocal depth_local
        depth_local = max(depth_local, time)
        messages.append((depth_local, depth_local, [(CONTROL | LAST, code, 0)]))

    snapshot(False)
    control(RESUME)
    for step in range(steps):
        time += int(draw.choice([0, 1, 1, 2, 3, 5, 10, 30, 60])) * MS + (int(draw.integers(1000)) if fine else 0)
        if stale:
            stale -= 1
            if not stale:
                snapshot(True)
                control(RESUME)
        what = draw.random()
        side = BUY if draw.random() < .5 + (100 - max(book[BUY])) / 50 else SELL  # prices come home
        other, sign = BUY + SELL - side, 1 if side == BUY else -1
        best = {BUY: max(book[BUY]), SELL: min(book[SELL])}
        if what < .35:      # a level changes
            tick = best[side] - sign * int(draw.integers(-1, 6))
            if (best[other] - tick) * sign <= 0 or tick < 2: continue
            lots = int(draw.integers(0, 14)) if draw.random() < .7 else 0
            if (lots == 0 and len(book[side]) < 2) or (lots == 0 and tick not in book[side]): continue
            if lots: book[side][tick] = lots
            else: del book[side][tick]
            if best_quotes and draw.random() < .7: best_quote()
            else: emit([(DEPTH | side, tick, lots)])
        elif what < .55:    # one side gives way, the other follows
            gone = [tick for tick in book[other] if (tick - best[other]) * sign <= int(draw.integers(0, 3))]
            rows = [(DEPTH | other, tick, 0) for tick in gone]
            for tick in gone: del book[other][tick]
            if not book[other]:
                book[other][best[other] + sign * 4] = 5
                rows.append((DEPTH | other, best[other] + sign * 4, 5))
            new = best[other]
            if all((tick - new) * sign > 0 for tick in book[other]):
                book[side][new] = int(draw.integers(1, 9))
                rows.append((DEPTH | side, new, book[side][new]))
            if draw.random() < .5: rows.reverse()
            if best_quotes: best_quote()
            else: emit(rows)
        elif what < .85:    # a print, and what it leaves
            volume, tick = int(draw.integers(1, 14)), best[other] + sign * int(draw.choice([0, 0, 0, 0, 1, 2, -1]))
            emit([(TRADE | side, tick, volume)], stream=False)
            left = book[other].get(tick, 0) - volume
            if left > 0 and draw.random() < .8:
                book[other][tick] = left
                emit([(DEPTH | other, tick, left)])
        elif what < .88: emit([(TRADE | side, int(draw.integers(90, 112)), int(draw.integers(1, 30)))], stream=False)
        elif what < .90: snapshot(True)
        elif what < .92 and not stale:
            if draw.random() < .5: emit([(CLEAR | BUY | SELL, 0, 0)])
            control(STALE)
            stale = int(draw.integers(2, 12))
        elif what < .95: control(0)
        elif what < .951 and step > steps // 2: control(KILL if draw.random() < .7 else STOP)
        elif what < .96:    # crossed for a while, then mended
            emit([(DEPTH | side, best[other], 3)])
            time += int(draw.integers(1, 40)) * MS
            emit([(DEPTH | side, best[other], 0)])
        elif best_quotes: best_quote()
    messages.sort(key=lambda message: message[1])
    return [(flags, exchange, local, tick, lots, 0) for exchange, local, rows in messages for flags, tick, lots in rows]


def scenario(seed: int, steps: int = 300) -> Scenario:
    "Everything random about one comparison"
    draw = np.random.default_rng(seed)
    pick = lambda *options: options[int(draw.integers(len(options)))]
    tick, lot, least, most, min_notional, unit = pick(*GRIDS[:1] * 3, *GRIDS)
    instrument = Instrument('nowhere', 'TOY', 'TOY', 'USD', tick, lot, least * unit, most * unit, min_notional)
    hundred = float(instrument.price(100) * instrument.amount(unit))  # a unit at a price of 100 ticks
    levels = pick(1, 1, 2, 3)
    cap = pick(.05, .2, .5, 1.)
    rare = np.random.default_rng(seed + 1_000_003)   # draws of its own: the other draws stay what they were
    limits: dict[str, Any] = dict(max_order_notional=([None] * 11 + [hundred * 2.5])[rare.integers(12)],
                                  max_orders_per_10s=([None] * 11 + [25])[rare.integers(12)],
                                  max_orders_per_day=([None] * 11 + [60])[rare.integers(12)],
                                  price_band=([1.0] * 5 + [0.02, 0.05, 0.1])[rare.integers(8)])
    config = MarketMakingConfig(
        **limits, trading_pair='TOY/USD', total_capital=hundred * pick(7, 30, 100, 1000), order_size_percentage=pick(.01, .05, .3),
        max_inventory_exposure=cap, inventory_target=pick(None, 0., cap), maker_fee=pick(0., .001, -.0005, .00075), taker_fee=pick(.001,
            .0005, .004),
        initial_base=float(instrument.amount(pick(0, 0, 5, 40) * unit)), refresh_interval=pick(.001, .005, .02, .02, .1),
        refresh_tolerance=pick(0., .01, .03), max_drawdown=pick(1., 1., .05, .01), max_loss=pick(1., 1., .05, .01),
        flatten_on_halt=pick(False, True), flatten_band=pick(.03, .011, .1), reduce_by_taking=pick(False, False, True),
        entry_latency_ms=pick(0., 1., 5., 12.5), response_latency_ms=pick(0., 1., 5., 30.))
    best_quotes, fine = pick(False, False, True), pick(False, True)
    table = [(*row[:4], row[4] * unit, row[5]) for row in market(draw, steps, best_quotes, fine)]
    rows = Events(*(np.array(column, np.uint8 if n == 0 else np.int64) for n, column in enumerate(zip(*table))))
    cuts = sorted(set(draw.integers(1, len(rows), int(draw.integers(0, 12))).tolist()))
    manual = {n: [(pick(1, -1), int(draw.integers(95, 107)), int(draw.integers(1, 9)) * unit) for _ in range(int(draw.integers(1, 4)))]
              for n in range(1, len(cuts)) if draw.random() < .5} if seed % 3 == 0 else {}
    parameters = [float(seed), pick(0., 60., 95.), pick(2., 4., 8.), pick(0., 1., 2.), pick(3., 9., 20.), float(unit)]
    return Scenario(instrument, config, rows, levels, parameters, pick(8, 25, 250) * MS, best_quotes, cuts, manual)


def batches(case: Scenario) -> Iterable[Events]:
    for start, end in zip([0, *case.cuts], [*case.cuts, len(case.rows)]): yield case.rows[start:end]


def play_engine(case: Scenario, quoter: Callable[..., int] = wild, compiled: bool = True) -> Any:
    "The scenario through the shell of the compiled engine"
    from cryptoexp.trading.matching import Engine, enter_order
    engine = Engine(case.instrument, case.config, quoter, case.levels, np.array(case.parameters), case.hold_ns, case.use_best_quotes,
        compiled)
    for number, batch in enumerate(batches(case)):
        engine.feed(batch)
        for order in case.manual.get(number, []) if engine.desk is not None else []: enter_order(engine, *order)
    engine.finish()
    return engine


def play_oracle(case: Scenario, quoter: Callable[..., int] = wild, as_built: frozenset[str] = AS_BUILT) -> Oracle:
    "The scenario through the plain engine"
    oracle = Oracle(case.instrument, case.config, case.rows, quoter, case.levels, case.parameters, case.hold_ns, case.use_best_quotes,
        as_built)
    latest, opened = 0, False
    for number, batch in enumerate(batches(case)):
        latest, opened = int(batch.local_ns[-1]), opened or bool(((batch.flags >= LAST) & (batch.kind != CONTROL)).any())
        oracle.advance(latest - case.hold_ns - 1)
        for order in case.manual.get(number, []) if opened else []: oracle.enter(*order)
    return oracle.finish()


def differences(case: Scenario, engine: Any, oracle: Oracle) -> list[str]:
    "Where the two disagree, the earliest row of each table first; empty: nowhere"
    found = []
    tables = dict(fills=(engine.fills, oracle.fills), orders=(engine.orders, oracle.orders()), samples=(engine.samples, oracle.samples),
                  refused=(engine.refused, oracle.refusal_rows()))
    for name, (table, expected) in tables.items():
        mine = list(table.itertuples(index=False, name=None))
        for at, (one, other) in enumerate(zip(mine, expected)):
            if one != other:
                found.append(f'{name}[{at}]: engine {one}, oracle {other}')
                break
        if len(mine) != len(expected): found.append(f'{name}: engine {len(mine)} rows, oracle {len(expected)}')
    state = engine.desk.state[0]
    numbers = dict(cash_e8=oracle.cash, position_lots=oracle.position, known_cash_e8=oracle.known_cash,
                   known_position_lots=oracle.known_position, orders_sent=oracle.sent, cancels_sent=oracle.cancels,
                   late_cancels=oracle.late_cancels, halted=int(oracle.halted),
                   own_lots=sum(fill[4] for fill in oracle.fills), peak_e8=oracle.peak,
                   start_e8=-1 if oracle.start is None else oracle.start)
    found += [f'{name}: engine {state[name]}, oracle {number}' for name, number in numbers.items() if state[name] != number]
    refused = engine.desk.refusals[0].tolist()
    if refused != list(oracle.refused.values()): found.append(f'refusals: engine {refused}, oracle {list(oracle.refused.values())}')
    return found


def compare(seed: int, steps: int = 300, compiled: bool = True) -> tuple[list[str], Any, Oracle]:
    case = scenario(seed, steps)
    engine, oracle = play_engine(case, compiled=compiled), play_oracle(case)
    return differences(case, engine, oracle), engine, oracle


if __name__ == '__main__':
    import sys
    import time
    began, wrong = time.time(), 0
    first, last = int(sys.argv[1]), int(sys.argv[-1])
    stop_at = int(sys.argv[2]) if len(sys.argv) > 3 else 10 ** 9
    total: dict[str, int] = {}
    for seed in range(first, last + 1):
        found, engine, oracle = compare(seed)
        for key, number in dict(fills=len(oracle.fills), orders=oracle.sent, samples=len(oracle.samples), halted=int(oracle.halted),
                                **{f'reason {fill[9]}': 0
                                    for fill in oracle.fills}, **oracle.refused).items(): total[key] = total.get(key, 0) + number
        for fill in oracle.fills: total[f'reason {fill[9]}'] += 1
        for order in oracle.finished:
            total[f'{order.purpose} {order.status}'] = total.get(f'{order.purpose} {order.status}', 0) + 1
        if found:
            wrong += 1
            print(f'seed {seed}:', *found[:4], sep='\n    ')
            if wrong >= stop_at: break
    print(f'{wrong} of {seed - first + 1} seeds differ, {time.time() - began:.1f} s')
    print(total)
