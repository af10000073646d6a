"""The matching engine against a plain one of its own kind (`oracle.py`), and rule by rule."""
from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from mutants import Mutant, missed, run_check
from oracle import MS, Book, Scenario, compare, play_engine, play_oracle, scenario, wild
from pandas.testing import assert_frame_equal

from cryptoexp.config import ConfigError, MarketMakingConfig
from cryptoexp.market.events import (
    BUY,
    CLEAR,
    CONTROL,
    DEPTH,
    EXCHANGE_ONLY,
    KILL,
    KIND_MASK,
    LAST,
    LOCAL_ONLY,
    RESUME,
    SELL,
    SNAPSHOT,
    STALE,
    STOP,
    TRADE,
    from_rows,
)
from cryptoexp.market.instrument import Instrument
from cryptoexp.market.tape import Tape
from cryptoexp.trading.backtest import prepare, run_configurations
from cryptoexp.trading.limits import aimed, make_rules
from cryptoexp.trading.matching import Engine, enter_order
from cryptoexp.trading.models import model_of
from cryptoexp.trading.quoting import LEANING, MARKET_ORDER, compile_quoter, constant_spread, outward
from cryptoexp.trading.venue import Latency, Venue

TABLES = ('fills', 'orders', 'samples', 'refused')
LARGE = (45, 55)   # markets in which orders are of more than 127 lots
TOY = Instrument('nowhere', 'TOY', 'TOY', 'USD', '1', '1')
Quoter = Callable[..., int]


def settings(**fields: Any) -> MarketMakingConfig:
    plain = dict(trading_pair='TOY/USD', total_capital=100_000., maker_fee=0., taker_fee=0., max_drawdown=1., max_loss=1.)
    return MarketMakingConfig(**{**plain, **fields})


def opening(bids: dict[int, int], asks: dict[int, int], at_ms: int = 1) -> list[tuple[int, ...]]:
    rows = [(CLEAR | BUY | SELL, 0, 0), *((SNAPSHOT | BUY, *level) for level in bids.items()),
        *((SNAPSHOT | SELL, *level) for level in asks.items())]
    rows[-1] = (rows[-1][0] | LAST, *rows[-1][1:])
    return [*((flags, at_ms * MS - 1000, at_ms * MS, tick, lots, 0) for flags, tick, lots in rows), control(at_ms, RESUME)]


def control(at_ms: int, code: int) -> tuple[int, ...]: return (CONTROL | LAST, at_ms * MS, at_ms * MS, code, 0, 0)
def happens(at_ms: int, flags: int, tick: int, lots: int) -> tuple[int, ...]: return (flags | LAST, at_ms * MS, (at_ms + 1) * MS, tick,
    lots, 0)


def play(quoter: Quoter, *rows: tuple[int, ...], levels: int = 1, config: MarketMakingConfig | None = None,
    bids: dict[int, int] | None = None,
         asks: dict[int, int] | None = None, instrument: Instrument = TOY, until_ms: int = 2000, finish: bool = True,
         compiled: bool = False) -> Engine:
    "A few rows by hand on a book of ten at 100 and ten at 110 (or as given); decisions at 101 ms, 201 ms, …"
    engine = Engine(instrument, config or settings(), quoter, levels, compiled=compiled)
    table = [*opening(bids or {100: 10}, asks or {110: 10}), *rows, control(until_ms, 0)]
    engine.feed(from_rows(sorted(table, key=lambda row: row[2])))  # type: ignore[arg-type]
    if finish: engine.finish()
    return engine


def silent(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int: return 0


def bids(*levels: tuple[int, int]) -> Quoter:
    def always(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        for level, wish in enumerate(levels): wishes[0, 0, level, :2] = wish
        return 0
    return always


def digest(engine: Engine) -> str:
    return hashlib.sha256(''.join(getattr(engine, table).to_csv(index=False) for table in TABLES).encode()).hexdigest()


def test_a_cancel_without_latency_comes_before_the_decision_of_its_moment() -> None:
    "A stale book at 201 ms cancels the offer of all five coins; it is whole again at the same nanosecond, and they are offered anew"
    def offers(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 1, 0, :2] = 112, 5
        return 0
    config = settings(entry_latency_ms=0., response_latency_ms=0., initial_base=5., refresh_interval=0.1)
    engine = play(offers, control(201, STALE), control(201, RESUME), config=config, until_ms=540, finish=False)
    assert engine.orders.status.tolist() == ['cancelled'] and not len(engine.refused)
    assert engine.samples.quote_ask_tick.tolist() == [112, 112] and int(engine.desk.state[0].orders_sent) == 2


def test_what_an_order_by_hand_rests_for_is_news() -> None:
    "It is told at once what it takes; a later print at 100 is heard of after the response latency of 30 ms"
    engine = play(silent, config=settings(entry_latency_ms=5., response_latency_ms=30.), until_ms=300, finish=False)
    assert enter_order(engine, 1, 110, 4)[1] == '' and enter_order(engine, 1, 100, 3)[1] == ''
    account = engine.desk.accounts[0]
    assert (int(account.position_lots), int(account.known_position_lots)) == (4, 4)
    engine.feed(from_rows([happens(400, TRADE | SELL, 100, 13), control(420, 0)]))
    engine.feed(from_rows([control(700, 0)]))
    assert (int(account.position_lots), int(account.known_position_lots)) == (7, 7)
    assert engine.fills.time_ns.tolist()[-1] == 400*MS
    before = play(silent, config=settings(entry_latency_ms=5., response_latency_ms=30.), until_ms=300, finish=False)
    assert enter_order(before, 1, 100, 3)[1] == ''
    before.feed(from_rows([happens(400, TRADE | SELL, 100, 13), control(420 + 250, 0)]))   # the exchange is held back by 250 ms
    state = before.desk.accounts[0]
    assert (int(state.position_lots), int(state.known_position_lots)) == (3, 0)


# 1. Against the oracle

@pytest.mark.parametrize('block', range(8))
def test_oracle_agrees(block: int) -> None:
    "Two engines written apart, one of them too simple to be wrong in the same way: every fill, order and sample is the same"
    for seed in range(block * 35, block * 35 + 35):
        found, _, _ = compare(seed)
        assert not found, f'replay: PYTHONPATH=. python tests/oracle.py {seed}\n' + '\n'.join(found)


@pytest.mark.long
@pytest.mark.parametrize('block', range(40))
def test_oracle_agrees_on_more(block: int) -> None:
    for seed in range(10_000 + block * 50, 10_050 + block * 50):
        found, _, _ = compare(seed, 500)
        assert not found, f'seed {seed}, 500 steps\n' + '\n'.join(found)


def test_the_random_markets_reach_every_rule() -> None:
    "A comparison proves nothing about what never happens in it"
    seen: dict[str, int] = defaultdict(int)
    for seed in range(0, 280, 4):
        result = play_oracle(scenario(seed))
        for fill in result.fills: seen[f'fill: {fill[9]}'] += 1
        for order in result.finished: seen[f'{order.purpose} {order.status}'] += 1
        for reason, count in result.refused.items(): seen[reason] += count
        seen['late cancels'] += result.late_cancels
        seen['halted'] += result.halted
    wanted = ['fill: queue', 'fill: through', 'fill: cross', 'fill: take', 'quote filled', 'quote cancelled', 'quote expired', 'manual filled',
              'flatten filled', 'reduce filled', 'no coins', 'no funds or no room', 'below the smallest order', 'above the largest order', 'order rate',
              'price out of range', 'the book is stale', 'the session is halted', 'late cancels', 'halted']
    assert not [name for name in wanted if not seen[name]], dict(seen)


# 2. Where the calls are cut, who asks the model, and which process it is

@pytest.mark.parametrize('seed', [1, 4, 8, 11, 17, 23])
def test_cuts_and_compilation_leave_no_trace(seed: int) -> None:
    "Promise 1: the same tables for any batch size, with the quoter compiled or in Python"
    case, draw = replace(scenario(seed), manual={}), np.random.default_rng(seed)
    whole = play_engine(replace(case, cuts=[]))
    ways = [(list(range(1, len(case.rows))), True), (sorted(set(draw.integers(1, len(case.rows), 40).tolist())), True), ([], False),
            (list(range(1, len(case.rows), 7)), False)]
    for cuts, compiled in ways:
        other = play_engine(replace(case, cuts=cuts), compiled=compiled)
        for table in TABLES: assert_frame_equal(getattr(whole, table), getattr(other, table))
        assert whole.desk.refusals.tolist() == other.desk.refusals.tolist() and whole.desk.bound.tolist() == other.desk.bound.tolist()
        assert whole.intake.late_rows == other.intake.late_rows


def test_another_process_writes_the_same_bytes() -> None:
    "Promise 1: in another process, fed row by row, with the model in Python"
    here = [digest(play_engine(replace(scenario(seed), manual={}, cuts=[]))) for seed in (2, 5)]
    code = ('from dataclasses import replace; from oracle import *; from test_engine import digest\n'
            'for seed in (2, 5):\n    case = replace(scenario(seed), manual={})\n'
            '    print(digest(play_engine(replace(case, cuts=list(range(1, len(case.rows)))), compiled=False)))')
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(oracle.__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == here, done.stderr


def test_output_that_fills_its_arrays() -> None:
    "The engine stops when its tables are nearly full and goes on where it was: 70,000 decisions, more than the arrays hold"
    engine = play(silent, config=settings(refresh_interval=.001), until_ms=70_000, compiled=True)
    assert (np.diff(engine.samples.time_ns) == MS).all() and len(engine.samples) > 69_000


# 3. Rules that hold in every random market

@pytest.fixture(scope='module')
def sessions() -> list[tuple[Scenario, Engine, list[tuple[Any, ...]]]]:
    "Random sessions without orders by hand, the model in Python, with everything that it was shown"
    result = []
    for seed in range(500, 540):
        case, views = replace(scenario(seed), manual={}), []
        def watched(view: Any, *rest: Any, views: list = views) -> int:
            views.append(tuple(view.market[0].tolist()))
            return wild(view, *rest)
        result.append((case, play_engine(case, watched, compiled=False), views))
    return result


def happened(case: Scenario) -> list[tuple[int, int, int, int]]:
    "Rows as the exchange saw them: time, flags, tick, lots"
    times = np.maximum(case.rows.exchange_ns, case.rows.local_ns - case.hold_ns)
    return list(zip(times.tolist(), case.rows.flags.tolist(), case.rows.tick.tolist(), case.rows.lots.tolist()))


def test_no_look_ahead(sessions: Any) -> None:
    "Promise 6: what the model is shown follows from the rows whose local time has come, and from nothing else"
    for case, _, views in sessions:
        book, at, touch, bought, sold = Book(), 0, (None, None), 0, 0
        rows = list(zip(case.rows.local_ns.tolist(), case.rows.flags.tolist(), case.rows.tick.tolist(), case.rows.lots.tolist()))
        for view in views:
            while at < len(rows) and rows[at][0] <= view[0]:
                _, flags, tick, lots = rows[at]
                at += 1
                if flags & KIND_MASK == TRADE:
                    if flags & BUY: bought += lots
                    else: sold += lots
                elif flags & KIND_MASK != 5 or case.use_best_quotes:
                    book.apply(flags & KIND_MASK, flags, tick, lots)
                    if flags & LAST: touch = book.touch()
            assert view[1:3] == touch
            assert view[3:5] == (book.levels[1][view[1]], book.levels[-1][view[2]])
            assert view[9:11] == (bought, sold)
            bought = sold = 0


def test_no_print_feeds_two(sessions: Any) -> None:
    "Own orders never share one print, and never get more than was there: at each moment our fills are at most what was printed to us"
    for case, engine, _ in sessions:
        printed: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        shown: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for time, flags, tick, lots in happened(case):
            kind, side = flags & KIND_MASK, 1 if flags & BUY else -1
            if kind == TRADE: printed[time, -side].append((tick, lots))
            elif kind in (DEPTH, SNAPSHOT, 5): shown[time, -side].append((tick, lots))
        for (time, side), fills in engine.fills[engine.fills.maker].groupby(['time_ns', 'side']):
            for reasons, source in ((('queue', 'through'), printed), (('cross',), shown)):
                some = fills[fills.reason.isin(reasons)]
                if not len(some): continue
                worst = some.tick.min() if side > 0 else some.tick.max()
                best = some.tick.max() if side > 0 else some.tick.min()
                assert (some.lots > 0).all()
                assert some.lots.sum() <= sum(lots for tick, lots in source[time, side] if (best - tick) * side >= 0)
                assert any((worst - tick) * side >= 0 for tick, _ in source[time, side])


def test_fills_lie_within_an_orders_life(sessions: Any) -> None:
    "Nothing fills before it arrives, after it died, for more than it is, or beyond its limit"
    for case, engine, _ in sessions:
        joined = engine.fills.merge(engine.orders, on='order_id', suffixes=('', '_order'))
        assert len(joined) == len(engine.fills)
        assert ((joined.time_ns >= joined.arrived_ns) & (joined.time_ns <= joined.ended_ns)).all()
        assert ((joined.tick_order - joined.tick) * joined.side >= 0).all() and (joined.side == joined.side_order).all()
        each = engine.orders.set_index('order_id')
        assert (each.filled_lots <= each.lots).all()
        assert engine.fills.groupby('order_id').lots.sum().equals(each.filled_lots[each.filled_lots > 0].rename('lots'))
        assert ((each.status == 'filled') == (each.filled_lots == each.lots)).all()
        entry = round(case.config.entry_latency_ms * 1e6)
        assert (each.arrived_ns == each.placed_ns + entry).all() and (each.ended_ns >= each.arrived_ns).all()
        assert each.index.tolist() == list(range(1, len(each) + 1))  # every order that was sent has an end that is told


def test_spot_never_shorts_and_pays_what_it_buys(sessions: Any) -> None:
    "Spot never shorts; the exchange's cash is never below zero (but for the rounding of fees, see test_cash_covers_fees_of_parts)"
    for case, engine, _ in sessions:
        fills, unit = engine.fills, Fraction(case.instrument.tick_size) * Fraction(case.instrument.lot_size) * 10 ** 8
        position, cash = case.instrument.lots(case.config.initial_base), round(case.config.total_capital * 1e8)
        for fill in fills.itertuples():
            position += fill.side * fill.lots
            notional = math.floor(fill.tick * fill.lots * unit + Fraction(1, 2))
            assert abs(fill.fee_e8 - notional * Fraction(str(case.config.maker_fee
                if fill.maker else case.config.taker_fee))) <= Fraction(1, 2)
            cash -= fill.side * notional + fill.fee_e8
            assert position >= 0 and cash >= -len(fills)
        assert (position, cash) == (engine.desk.state[0].position_lots, engine.desk.state[0].cash_e8)
        assert (position, cash) == (engine.desk.state[0].known_position_lots, engine.desk.state[0].known_cash_e8)


def test_exposure_stays_below_the_cap_in_the_worst_case(sessions: Any) -> None:
    "When a bid is sent, the position with every bid that may still fill, cancelled ones on their way included, is within the cap"
    checked = 0
    for case, engine, views in sessions:
        unit = case.instrument.money_multiplier / case.instrument.money_divisor
        most = {view[0]: case.config.max_inventory_exposure * view[6] * 1e8 / ((view[1] + view[2]) * .5 * unit) for view in views}
        orders, fills = engine.orders[engine.orders.side > 0], engine.fills
        placed, ended, lots, ids = (orders[name].to_numpy() for name in ('placed_ns', 'ended_ns', 'lots', 'order_id'))
        moment, owner, moved = fills.time_ns.to_numpy(), fills.order_id.to_numpy(), (fills.side * fills.lots).to_numpy()
        for time in np.unique(placed)[::5]:
            fresh = placed == time
            alive = fresh | ((placed < time) & (ended > time))
            past = (moment <= time) & ~np.isin(owner, ids[fresh])  # at zero latency the new order fills at the same moment
            position = case.instrument.lots(case.config.initial_base) + moved[past].sum()
            waiting = lots[alive].sum() - moved[past & np.isin(owner, ids[alive])].sum()
            # sales that we have not heard of make the position smaller than we know, never larger
            assert position + waiting <= most[time] * (1 + 1e-12)
            checked += 1
    assert checked > 400


def test_a_halted_session_sends_nothing_more(sessions: Any) -> None:
    "After a stop, a kill or the end of the session nothing is sent but the flattening that was asked for, and nothing is left resting"
    halted = 0
    for case, engine, views in sessions:
        rows = case.rows
        ends = rows.local_ns[(rows.kind == CONTROL) & np.isin(rows.tick, (STOP, KILL))]
        if not len(ends): continue
        halted += 1
        late = engine.orders[engine.orders.placed_ns >= ends[0]]
        assert (late.purpose == 'flatten').all() and (not len(late) or case.config.flatten_on_halt)
        assert not [view for view in views if view[0] >= ends[0]]
        assert (engine.orders.ended_ns > 0).all()
        resting = engine.orders[(engine.orders.ended_ns > ends[0]) & (engine.orders.purpose == 'quote')]
        assert (resting.ended_ns <= ends[0] + round(case.config.entry_latency_ms * 1e6)).all()
    assert halted


def test_a_stale_book_is_never_quoted_on(sessions: Any) -> None:
    "Promise 3: while the book is stale nothing is sent, not even to flatten, and what rests is cancelled within the entry latency"
    checked = 0
    for case, engine, _ in sessions:
        rows, since = case.rows, None
        for code, time in [(int(tick), int(time)) for tick, time, kind in zip(rows.tick, rows.local_ns, rows.kind) if kind == CONTROL]:
            if code == STALE: since = time
            if code == RESUME and since is not None:
                orders = engine.orders
                assert not ((orders.placed_ns >= since) & (orders.placed_ns < time)).any()
                before = orders[(orders.placed_ns < since) & (orders.ended_ns > since)]
                assert (before.ended_ns <= since + round(case.config.entry_latency_ms * 1e6)).all()
                since, checked = None, checked + 1
    assert checked > 10


# 4. Rules by hand

def test_profit_floor_of_every_pair() -> None:
    "ask (1 − f) − bid (1 + f) ≥ m mid for each pair as quoted, in exact fractions, also where one side was kept; leaning is the exemption"
    coin = Instrument('nowhere', 'TOY', 'TOY', 'USD', '0.01', '0.0001')
    fee, keep, pairs, kept = Fraction('0.001'), Fraction('0.002'), 0, 0
    for tolerance in (0., .0001, .001):
        draw, rows, bid = np.random.default_rng(5), [], 61_837
        for step in range(4000):
            new, time = bid + int(draw.integers(-12, 13)), 10 + step * 10
            rows += [(flags, time * MS, (time + 3) * MS, tick, lots, 0) for flags, tick, lots in (
                (DEPTH | BUY, bid, 0), (DEPTH | SELL, bid + 1, 0), (DEPTH | BUY, new, 9000), (DEPTH | SELL | LAST, new + 1, 9000))]
            bid = new
        config = MarketMakingConfig(trading_pair='TOY/USD', initial_base=1.7, total_capital=9000., refresh_tolerance=tolerance)
        looks: dict[int, tuple[int, int]] = {}
        def watched(view: Any, *rest: Any, looks: dict = looks) -> int:
            code = constant_spread(view, *rest)
            looks[int(view.market[0].time_ns)] = (int(view.market[0].bid_tick + view.market[0].ask_tick), code)
            return code
        engine = Engine(coin, config, watched, 1, model_of(config)[1], compiled=False)
        engine.feed(from_rows([*opening({61_837: 9000}, {61_838: 9000}), *rows]))  # type: ignore[arg-type]
        engine.finish()
        for sample in engine.samples.itertuples():
            if sample.quote_bid_tick < 0 or sample.quote_ask_tick < 0 or sample.time_ns not in looks: continue
            twice_mid, code = looks[sample.time_ns]
            if code == LEANING: continue
            assert sample.quote_ask_tick * (1 - fee) - sample.quote_bid_tick * (1 + fee) >= keep * twice_mid / 2
            pairs += 1
        kept += len(engine.samples) - len(engine.orders) // 2
    assert pairs > 900 and kept > 0


def test_an_unchanged_quote_keeps_its_order() -> None:
    "The queue is what we wait for: the same wish for two seconds is one order, which keeps what it has waited for"
    prints = [happens(150 + 100 * step, TRADE | SELL, 100, 1) for step in range(12)]
    engine = play(bids((100, 5), (98, 2)), *prints, levels=2, config=settings(refresh_interval=.01))
    assert len(engine.orders) == 2 and engine.fills.order_id.tolist() == [1, 1]
    assert engine.fills.time_ns.tolist() == [1150 * MS, 1250 * MS]  # ten pieces stood before it


def test_drawdown_and_loss_stop_the_session() -> None:
    "Either line halts for good: all is cancelled, nothing is quoted, and a recovery does not bring it back"
    falls = [happens(500, DEPTH | BUY, 100, 0), happens(600, DEPTH | BUY, 104, 5), happens(900, DEPTH | BUY, 108, 5)]
    base: dict[str, Any] = dict(initial_base=1000, max_inventory_exposure=1., inventory_target=1.)
    for stops, halts in ((dict(max_drawdown=.01), True), (dict(max_loss=.01), True), (dict(max_drawdown=.09, max_loss=.09), False)):
        engine = play(bids((80, 1)), *falls, bids={100: 10, 80: 5}, config=settings(**base, **stops))
        assert bool(engine.desk.state[0].halted) == halts
        assert (len(engine.orders) == 1 and engine.orders.ended_ns[0] == 506 * MS) == halts


def test_a_broken_book_stops_nobody() -> None:
    "Stops are judged on a fresh, two-sided, uncrossed book only"
    base: dict[str, Any] = dict(initial_base=1000, max_inventory_exposure=1., max_drawdown=.01)
    one_sided = [happens(500, CLEAR | BUY, 0, 0), happens(700, DEPTH | BUY, 100, 10)]
    crossed = [happens(500, DEPTH | SELL, 20, 3), happens(700, DEPTH | SELL, 20, 0)]
    stale = [control(500, STALE), happens(520, DEPTH | BUY, 100, 0), happens(530, DEPTH | BUY, 50, 1), happens(700, DEPTH | BUY, 100, 10),
        control(800, RESUME)]
    for rows in (one_sided, crossed, stale): assert not play(silent, *rows, config=settings(**base)).desk.state[0].halted


def test_flattening_walks_the_depth_within_its_band() -> None:
    "Flatten is an immediate-or-cancel order: best level first, nothing below the band, again at the next decision, and not while stale"
    depth = {100: 4, 99: 3, 97: 5, 90: 1000}
    base: dict[str, Any] = dict(initial_base=20, flatten_on_halt=True, flatten_band=.05, max_inventory_exposure=1.)
    engine = play(silent, control(150, KILL), control(350, STALE), control(750, RESUME), bids=depth, asks={102: 10},
        config=settings(**base))
    assert engine.fills[['tick', 'lots', 'reason', 'maker']].values.tolist() == [[100, 4, 'take', False], [99, 3, 'take', False], [97, 5, 'take', False]]
    first = engine.orders.iloc[0]
    assert (first.purpose, first.status, first.filled_lots, first.lots, first.placed_ns) == ('flatten', 'expired', 12, 20, 201 * MS)
    assert (engine.orders.tick >= 101 * .95).all() and not engine.orders.placed_ns.between(350 * MS, 750 * MS).any()
    calm = play(silent, control(150, KILL), bids=depth, asks={102: 10}, config=settings(**{**base, 'flatten_on_halt': False}))
    assert not len(calm.orders)


def test_reduce_by_taking() -> None:
    "Above the cap, if opted in: cancel all, then sell down to the target as a taker; otherwise wait"
    base: dict[str, Any] = dict(total_capital=7_000., initial_base=30, max_inventory_exposure=.2, flatten_band=.1)
    rise = happens(450, DEPTH | BUY, 101, 50)
    quoter = bids((90, 1))
    engine = play(quoter, rise, bids={100: 50}, asks={102: 50}, config=settings(**base, reduce_by_taking=True))
    assert engine.orders.purpose[0] == 'reduce' and engine.fills.reason.tolist() == ['take']
    assert engine.fills.lots[0] == 20   # 30 pieces are 30.2 % of equity; a third of that is the target
    assert engine.orders.placed_ns[0] == 101 * MS and engine.orders.purpose[1] == 'quote'
    assert not len(play(quoter, rise, bids={100: 50}, asks={102: 50}, config=settings(**base)).orders)


def test_two_orders_of_one_price_share_the_queue() -> None:
    "A print of 14 at a price with eight others first: the older order gets its five, the younger what is left, one"
    prints = [happens(150, DEPTH | BUY, 100, 8), happens(160, TRADE | SELL, 100, 14)]
    engine = play(bids((100, 5), (100, 5)), *prints, levels=2)
    assert engine.fills[['order_id', 'lots']].values.tolist() == [[1, 5], [2, 1]]


def test_every_level_of_ours_is_watched() -> None:
    "Cancels of others help the second bid as well: of a print of eight through 100, one goes to the better bid, three to others, four to us"
    rows = [happens(150, DEPTH | BUY, 99, 3), happens(160, TRADE | SELL, 99, 8)]
    engine = play(bids((100, 1), (99, 5)), *rows, levels=2, bids={100: 10, 99: 10})
    assert engine.fills[['order_id', 'lots']].values.tolist() == [[1, 1], [2, 4]]


def test_what_we_take_stays_taken() -> None:
    "Liquidity that we took is not there for our next order until that level changes; a change elsewhere brings nothing back"
    engine = play(silent, finish=False)
    assert enter_order(engine, 1, 110, 10)[0]['remaining'] == 0
    assert enter_order(engine, 1, 110, 3)[0]['remaining'] == 3
    engine.feed(from_rows([happens(2010, DEPTH | SELL, 111, 9), control(2400, 0)]))  # type: ignore[list-item]
    assert enter_order(engine, 1, 110, 2)[0]['remaining'] == 2
    engine.feed(from_rows([happens(2410, DEPTH | SELL, 110, 4), control(2800, 0)]))  # type: ignore[list-item]
    engine.finish()
    assert engine.fills[['order_id', 'lots', 'reason']].values.tolist() == [[1, 10, 'take'], [2, 3, 'cross'], [3, 1, 'cross']]


def test_working_bids_hold_their_cash() -> None:
    "1,050 USD: five pieces at 100 hold 545 with their fee, so at 99 there is money for four, though the cap has room for five"
    engine = play(bids((100, 5), (99, 9)), levels=2, asks={101: 10}, config=settings(
        total_capital=1050., maker_fee=.09, taker_fee=.09, max_inventory_exposure=1.))
    assert engine.orders.lots.tolist() == [5, 4]


def test_news_travels() -> None:
    "A fill changes the exchange's account at once and ours when we hear of it: the model is shown the old position until then"
    seen: dict[int, int] = {}
    def watch(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        seen[int(view.market[0].time_ns) // MS] = int(view.market[0].position_lots)
        wishes[0, 0, 0, :2] = 100, 5
        return 0
    play(watch, happens(190, TRADE | SELL, 99, 5), config=settings(response_latency_ms=111.))
    assert [seen[time] for time in (201, 301, 401)] == [0, 5, 5]   # 190 + 111 ms: known at the very decision of 301


# 5. Where the first engine differed from its prose, found by the oracle and mended

def test_a_quote_at_its_wished_price_is_never_cancelled() -> None:
    "An unchanged quote keeps its place: bids at 97 and 100, wishes 100 and 98 with three ticks of tolerance; the one at 100 stays"
    def shifting(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 0, :, :2] = [(97, 5), (100, 5)] if view.market[0].time_ns < 150 * MS else [(100, 5), (98, 5)]
        return 0
    orders = play(shifting, levels=2, config=settings(refresh_tolerance=.03)).orders.set_index('order_id')
    assert orders.ended_ns[2] > 2000 * MS and len(orders) == 2


def test_an_older_order_is_served_before_a_younger_one() -> None:
    "A snapshot without our level says that nobody stands there; an order that joins later is behind us, not before us"
    def second(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 0, :1 + (view.market[0].time_ns > 600 * MS), :2] = 100, 5
        return 0
    rows = [*opening({99: 10}, {110: 10}, 300)[:-1], happens(800, TRADE | SELL, 100, 5)]
    assert play(second, *rows, levels=2).fills.order_id.tolist() == [1]


def test_a_stop_is_noticed_when_the_fill_is_heard_of() -> None:
    "Limits are checked on every event: fees of a fill, known at 211 ms, break the drawdown limit, so nothing is sent after that"
    base: dict[str, Any] = dict(maker_fee=.05, taker_fee=.05, max_drawdown=.0015)
    orders = play(bids((100, 50)), happens(205, TRADE | SELL, 90, 60), asks={102: 10}, config=settings(**base)).orders
    assert (orders.placed_ns < 211 * MS).all()


def test_cash_covers_fees_of_parts() -> None:
    "An order that spends all cash, filled lot by lot: ten fees of 0.75 units are ten units, not eight"
    coin = Instrument('nowhere', 'TOY', 'TOY', 'USD', '0.01', '0.000001')
    config = settings(total_capital=10_008e-8, maker_fee=.00075, taker_fee=.00075, max_inventory_exposure=1.)
    prints = [happens(200 + step, TRADE | SELL, 1000, 1) for step in range(10)]
    engine = play(bids((1000, 10)), *prints, bids={999: 5}, asks={1001: 5}, config=config, instrument=coin)
    assert engine.desk.state[0].cash_e8 >= 0


def test_money_for_ten_buys_ten() -> None:
    "An order of exactly the cash can be paid: 1,000 USD are ten pieces at 100"
    assert play(bids((100, 10)), config=settings(total_capital=1000., max_inventory_exposure=1.), asks={101: 10},
        bids={98: 10}).orders.lots[0] == 10


def test_a_wish_at_zero_is_refused() -> None:
    "A model that forgets a price (tick 0, lots 10) is a refusal, not the end of the session"
    assert not len(play(bids((0, 10))).orders)


@pytest.mark.parametrize('order', [(1, 110, 0), (1, 110, -5), (2, 110, 3)])
def test_an_order_by_hand_needs_a_side_and_lots(order: tuple[int, int, int]) -> None:
    "Nothing, less than nothing and a doubled side are refused, or raise; they never become orders"
    engine = play(silent, config=settings(initial_base=10), finish=False)
    try: assert enter_order(engine, *order)[1]
    except ValueError: pass
    assert engine.desk.state[0].order_count == 0


def test_the_first_to_arrive_is_the_first_in_line() -> None:
    "An order by hand arrives at once, before a quote that was sent earlier and is still on its way"
    engine = Engine(TOY, settings(entry_latency_ms=300.), bids((100, 5)), compiled=False)
    engine.feed(from_rows([*opening({99: 10}, {110: 10}), control(450, 0)]))  # type: ignore[list-item]
    assert enter_order(engine, 1, 100, 5)[1] == ''
    engine.feed(from_rows([happens(600, TRADE | SELL, 100, 5), control(900, 0)]))  # type: ignore[list-item]
    engine.finish()
    assert engine.orders.purpose[engine.fills.order_id[0] - 1] == 'manual'


def test_reducing_never_silences_the_asks() -> None:
    "Above the cap by a hair, the target at the cap: nothing worth selling, but the ask side is still quoted (reduce-only)"
    def asks(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 1, 0, :2] = 111, 1
        return 0
    config = settings(total_capital=800. * 105, initial_base=201, max_inventory_exposure=.2, inventory_target=.2, reduce_by_taking=True)
    assert len(play(asks, config=config).orders)


def test_a_cheap_coin_on_a_fine_grid_can_be_bought() -> None:
    "Lots of 1e-8 ADA are worth half a unit of money each: what is held back for rounded fees must not be as much as the coins"
    ada = Instrument('nowhere', 'ADA', 'TOY', 'USD', '0.0001', '0.00000001')
    config = settings(total_capital=10_000., maker_fee=.001, taker_fee=.001, max_inventory_exposure=1.)
    order = play(bids((5345, 15_000 * 10 ** 8)), bids={5344: 10}, asks={5346: 10}, config=config, instrument=ada).orders.iloc[0]
    assert order.lots == 15_000 * 10 ** 8   # 8,017.50 USD


def test_a_stop_is_noticed_after_an_order_by_hand() -> None:
    "A fill by hand is known at once, and so is what it cost: no quote goes out between it and the next depth row"
    config = settings(taker_fee=.05, maker_fee=.05, max_drawdown=.0015, max_inventory_exposure=1.)
    engine = play(bids((99, 1)), asks={102: 100}, config=config, until_ms=300, finish=False)  # the engine has come to 49 ms
    assert enter_order(engine, 1, 102, 60)[1] == ''   # five per cent of 6,120 USD are 0.3 % of equity
    engine.feed(from_rows([happens(700, TRADE | BUY, 102, 1), happens(1200, DEPTH | BUY, 98, 1), control(1600, 0)]))  # type: ignore[list-item]
    engine.finish()
    assert engine.desk.state[0].halted and engine.orders.purpose.tolist() == ['manual']


# 6. Would a broken rule be noticed?

# ---- inverse contracts

PERPETUAL = Instrument('nowhere', 'TOYUSD', 'TOY', 'USD', tick_size='1', lot_size='1')


def on_margin(kind: str, held: int, **fields: Any) -> tuple[list[float], list[int], int]:
    "A session that begins with a position: its first share of equity, its first quotes, and the position it ends with"
    venue = Venue(kind=kind, contract_size=100 if kind == 'inverse' else None, maker_fee=0., taker_fee=0.)
    config = settings(volatility_widening=0., spread_percentage=.001, min_profit_threshold=.002, **fields)
    model, own = model_of(aimed(config, PERPETUAL, venue))
    shares: list[float] = []
    quotes: list[int] = []

    def quoter(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        code = model.quoter(view, parameters, scratch, wishes)
        shares.append(float(view.market[0].share))
        quotes.extend(wishes[0, :, 0, 0].tolist())
        return code

    rows = from_rows([*opening({9_990: 500}, {10_010: 500}), control(2_000, RESUME)])
    runs = run_configurations(prepare([(rows, PERPETUAL)]), make_rules(config, PERPETUAL, venue), own[None], quoter, model.levels,
                              cash_e8=(10 if kind == 'inverse' else 10_000_000)*10**8, position_lots=np.array([[held]]), compiled=False)
    return shares, quotes[:2], int(runs.desk.accounts[0].position_lots)


@pytest.mark.parametrize('kind', ['linear', 'inverse'])
def test_a_position_leans_home_whatever_the_contract(kind: str) -> None:
    "The value of a long inverse position is owed dollars, but its share of equity is positive: quotes lean to sell it"
    flat, longer, shorter = (on_margin(kind, held) for held in (0, 300, -300))
    assert flat[0][0] == 0 and longer[0][0] > .05 and shorter[0][0] < -.05
    assert flat[1] == [9_990, 10_010], 'without a target nothing is aimed at'
    assert (longer[1], shorter[1]) == ([9_990, 10_005], [9_995, 10_010]), 'the side that brings it home comes nearer'


@pytest.mark.parametrize('kind', ['linear', 'inverse'])
@pytest.mark.parametrize('held', [60, -60])
def test_reducing_by_taking_never_changes_sides(kind: str, held: int) -> None:
    *_, left = on_margin(kind, held, reduce_by_taking=True, max_inventory_exposure=.002)
    assert left == 0
    if held > 0: assert 0 < on_margin(kind, held, reduce_by_taking=True, inventory_target=.001, max_inventory_exposure=.002)[2] < 60


MUTANTS = [Mutant(*words) for words in (  # the first is whole and must not be noticed
    ('nothing', 'matching', 'order.remaining -= lots', 'order.remaining -= lots'),
    ('a cancel without latency comes after the decision', 'matching',
     'if min(clock.next_request_ns, clock.light_due_ns) <= horizon: continue', 'if False: continue'),
    ('what an order by hand rests for is known at once', 'matching', ' and lots > 0 and order.arrived_ns == time_ns:', ' and lots > 0:'),
    ('a print does not shrink as it fills', 'matching', 'budget[config, 1] = left - size', 'budget[config, 1] = left'),
    ('the queue ahead is not served first', 'matching',
     'available = left if through else int(np.floor(left - order.front + 1e-9))', 'available = left'),
    ('prints do not advance the queue', 'matching', 'order.front = 0.0 if through else max(0.0, order.front - left)', 'pass'),
    ('cancels of others never help', 'matching', 'order.front = min(order.front, float(lots))', 'pass'),
    ('a level that grows pushes us back', 'matching', 'order.front = min(order.front, float(lots))', 'order.front = float(lots)'),
    ('younger orders first', 'matching',
     '    if first == 0: desk.heads[index, order.tick] = slot + 1\n    else:',
     '    order.next, desk.heads[index, order.tick] = first, slot + 1\n'
     '    if first != 0: desk.orders[first - 1].before = slot + 1\n    if False:'),
    ('worse prices first', 'matching',
     """    clock.serial += 1
    _tighten(desk, asset, bids)
    level = side.own_bid if bids else side.own_ask
    last = max(tick, side.own_bid_low) if bids else min(tick, side.own_ask_high)
""", """    clock.serial += 1
    _tighten(desk, asset, bids)
    last = side.own_bid if bids else side.own_ask
    level, step = (max(tick, side.own_bid_low) if bids else min(tick, side.own_ask_high)), -step
"""),
    ('an order joins in front', 'matching', 'order.front = order.queue_ahead_lots * rule.lot_up / rule.lot_down', 'order.front = 0.0'),
    ('a level that crosses fills all', 'matching',
     'size = min(order.remaining, lots - _taken_from(desk, order.config, 1 - index, tick))', 'size = order.remaining'),
    ('a level that crosses fills nothing', 'matching',
     'size = min(order.remaining, lots - _taken_from(desk, order.config, 1 - index, tick))', 'size = 0'),
    ('what crossed us is not used up', 'matching', 'if size > 0: _take_from(desk, order.config, 1 - index, tick, size)', 'pass'),
    ('what we take comes back at once', 'matching', '_take_from(desk, order.config, index, tick, size)', 'pass'),
    ('what we take never comes back', 'matching',
     'if desk.marks[index, tick] != 0 and before != lots: _untake(desk, index, tick)\n        _apply(', '_apply('),
    ('a taker takes one level only', 'matching',
     'size, False, BY_TAKING)\n        tick += int(order.side)', 'size, False, BY_TAKING)\n        break'),
    ('a taker pays his limit', 'matching',
     '_fill(desk, slot, time_ns, tick, size, False, BY_TAKING)', '_fill(desk, slot, time_ns, order.tick, size, False, BY_TAKING)'),
    ('a taker pays the maker fee', 'matching', 'rule.maker_fee_e8 if maker else rule.taker_fee_e8', 'rule.maker_fee_e8'),
    ('post-only takes', 'matching', 'if crosses and order.force == POST_ONLY:', 'if False:'),
    ('immediate-or-cancel rests', 'matching', 'if order.force >= IMMEDIATE: order.status', 'if False: order.status'),
    ('orders arrive at once', 'matching', 'order, entry = desk.orders[slot], rule.entry_ns', 'order, entry = desk.orders[slot], 0'),
    ('news arrives at once', 'matching', 'due = time_ns + rule.response_ns', 'due = time_ns'),
    ('we trade on the book of the exchange', 'matching',
     'side.local_bid, side.local_ask, side.local_changed = seen_bid, seen_ask, changed',
     'side.local_bid, side.local_ask, side.local_changed = side.exchange_bid, side.exchange_ask, changed'),
    ('a request overtakes what happens at its arrival', 'matching',
     'if not _exchange_run(desk, exchange_rows, horizon)', 'if not _exchange_run(desk, exchange_rows, horizon - (clock.next_request_ns <= horizon))'),
    ('a decision overtakes a row', 'matching',
     '_local_run(desk, local_rows, min(until_ns, clock.next_news_ns))', '_local_run(desk, local_rows, min(until_ns, clock.next_news_ns) - (until_ns == clock.next_decision_ns))'),
    ('the cap forgets working bids', 'limits', 'most - position_lots - working_bid_lots', 'most - position_lots'),
    ('a cancel on its way frees the room', 'matching',
     'if order.side != side or order.asset != asset: continue', 'if order.side != side or order.cancel_sent: continue'),
    ('working bids reserve no cash', 'matching', 'if side > 0 and rules[0].margin == 0:', 'if False:'),
    ('the reserve forgets the fee', 'limits', '    fee = fee_e8(notional, rate)\n    return', '    fee = 0\n    return'),
    ('coins are sold twice', 'limits', 'max(0, position_lots - working_ask_lots)', 'max(0, position_lots)'),
    ('no price band', 'matching', 'elif not in_band(', 'elif False and not in_band('),
    ('the band is as wide below as above', 'limits', '2 * tick * wide >= twice * MONEY_SCALE', '2 * tick * MONEY_SCALE >= twice * (2 * MONEY_SCALE - wide)'),
    ('a refusal is not written down', 'matching', '    row.count += 1', '    row.count = 1'),
    ('no smallest notional', 'limits', ' and abs(worth_e8(tick, lots, rule)) >= rule.min_notional_e8', ''),
    ('no largest order', 'matching', 'passed = min(lots, room, rules[0].max_lots)', 'passed = min(lots, room)'),
    ('fees are cut off', 'limits', '(notional % MONEY_SCALE) * size + MONEY_SCALE // 2)', '(notional % MONEY_SCALE) * size)'),
    ('bids go on above the cap', 'matching', 'if position >= most: _withdraw(desk, config, asset, BID)', 'pass'),
    ('a quote inside its wish is kept', 'matching', ' or outside < 0 or outside > slack', ' or abs(outside) > slack'),
    ('no tolerance', 'matching', ' or outside < 0 or outside > slack', ' or outside != 0'),
    ('every quote is replaced', 'matching', 'desk.orders[best_slot].kept, desk.matched[best_level] = 1, 1', 'return'),
    ('a stale book is quoted on', 'matching', 'return not side.stale and', 'return'),
    ('orders rest through staleness', 'matching',
     'if (code != STALE and code != STOP and code != KILL) or clock.parity_end: return', 'if code != STOP and code != KILL: return'),
    ('a crossed book is quoted on', 'matching',
     'return not side.stale and side.local_bid != NO_BID and side.local_ask != NO_ASK and side.local_bid < side.local_ask',
     'return not side.stale and side.local_bid != NO_BID and side.local_ask != NO_ASK'),
    ('a kill is ignored', 'matching', 'elif code == KILL: desk.state[config].halted = 1', 'elif code == KILL: pass'),
    ('drawdown is ignored', 'limits', 'equity < peak * (1.0 - rules[0].max_drawdown) or ', ''),
    ('loss is ignored', 'limits', ' or equity < start * (1.0 - rules[0].max_loss)', ''),
    ('the peak does not rise', 'matching', 'state.peak_e8 = max(state.peak_e8, equity)', 'pass'),
    ('flattening without a band', 'matching', 'return int(middle * (1.0 - band)) + 1', 'return int(middle * 0.5) + 1'),
    ('flattening beside working orders', 'matching',
     'if desk.state[config].order_count == 0 and not _any_light(desk, config, time_ns) and enough(', 'if enough('),
    ('reducing sells all', 'matching', 'excess = int(position * (1.0 - rule.target_share / share))', 'excess = position'),
    ('the model sees its fills at once', 'matching',
     'view.position_lots, view.equity = account.known_position_lots,', 'view.position_lots, view.equity = account.position_lots,'),
    ('late rows are seen late', 'matching',
     'happened = np.maximum(events.exchange_ns, events.local_ns - self.hold_ns)', 'happened = events.exchange_ns'),
    ('a run of rows passes our orders by', 'matching',
     'own_low <= tick <= own_bid and heads[0, tick] != 0', 'tick == own_bid and heads[0, tick] != 0'),
    ('a snapshot leaves the queue before us', 'matching',
     'if side.snapshot_bid: _nobody_there(desk, asset, True, desk.edges[asset, AT_EXCHANGE, 0, WORST] - 1)', 'if False: _nobody_there(desk, asset, True, desk.edges[asset, AT_EXCHANGE, 0, WORST] - 1)'),
    ('news of fills is not weighed', 'matching', 'if news.lots > 0: _weigh(desk, config)', 'if False: _weigh(desk, config)'),
    ('a repeated total brings back what we took', 'matching',
     'if desk.marks[index, tick] != 0 and before != lots: _untake(desk, index, tick)\n        _apply(',
     'if desk.marks[index, tick] != 0: _untake(desk, index, tick)\n        _apply('),
)]


BY_HAND = ('test_every_level_of_ours_is_watched', 'test_working_bids_hold_their_cash', 'test_cash_covers_fees_of_parts',
           'test_an_older_order_is_served_before_a_younger_one',
           'test_two_orders_of_one_price_share_the_queue', 'test_a_stop_is_noticed_when_the_fill_is_heard_of',
           'test_a_cancel_without_latency_comes_before_the_decision_of_its_moment', 'test_what_an_order_by_hand_rests_for_is_news')
CHECK = """
import signal
from oracle import *
import test_engine
def late(*_): raise TimeoutError('no end')
signal.signal(signal.SIGALRM, late)
for check in sys.argv[2:]:
    signal.alarm(420)
    try: found = compare(int(check), 150)[0] if check.isdigit() else getattr(test_engine, check)() or []
    except (AssertionError, IndexError, ArithmeticError, TimeoutError) as error: found = [repr(error)]
    if found: print('noticed by', check, found[0]); break
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_broken_rule_is_noticed(tmp_path: Path) -> None:
    "Each line that carries a rule, broken in a copy of the engine, makes the comparison with the oracle fail"
    checks = [*BY_HAND, *map(str, [33, 23, 87, 0, 10, 7, 1, 12, 3, 11, 4, *range(100, 150)])]   # the quick ones first
    wrong, rows = missed(tmp_path, MUTANTS, lambda folder, mutant: run_check(folder, mutant, CHECK, checks))
    assert not wrong, '\n'.join(wrong)
    print(*rows, sep='\n')


def between_two_ticks(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    bid = wishes[0, 0]
    bid[0, 0], bid[0, 1] = view.market[0].bid_tick - parameters[0], 1
    return 0


@pytest.mark.parametrize('compiled', [False, True])
def test_a_price_between_two_ticks_is_an_error_in_python_too(compiled: bool) -> None:
    rows = from_rows([*opening({100: 10}, {110: 10}), control(1000, 0)])
    for away in (.5, 1.):
        engine = Engine(TOY, settings(), between_two_ticks, parameters=np.array([away]), compiled=compiled)
        if away == 1: engine.feed(rows)
        else:
            with pytest.raises(ValueError, match='whole number'): engine.feed(rows)


def test_what_no_run_can_mean_is_refused() -> None:
    "Times from nowhere, rows of neither clock, shapes and answers that are none: an error that says what, and where"
    rows = from_rows([*opening({100: 10}, {110: 10}), control(1000, 0)])
    tape = Tape(rows, TOY)
    assert len(tape.timeline()) == len(rows)
    with pytest.raises(ValueError, match=r'row 4 .* reached us 2.000 s before a row above it; sort by local_ns'):
        Tape(from_rows([*opening({100: 10}, {110: 10}, 3000), control(1000, 0)]), TOY).timeline()
    with pytest.raises(ValueError, match=r'row 6 .* reached us 1.500 s before a row above it'):   # steps of half a second, one after another
        backwards = [control(3000 - step, 0) for step in (0, 500, 1000, 1500)]
        Tape(from_rows([*opening({100: 10}, {110: 10}, 2990)[:3], *backwards]), TOY).timeline()
    with pytest.raises(ValueError, match='nanoseconds since 1970'):
        Tape(from_rows([*opening({100: 10}, {110: 10}), control(2 * 366 * 86_400_000, 0)]), TOY).timeline()
    with pytest.raises(ValueError, match='concerns neither clock'):
        play(constant_spread, (DEPTH | BUY | LAST | EXCHANGE_ONLY | LOCAL_ONLY, MS, 2 * MS, 100, 1, 0))
    with pytest.raises(ValueError, match=r'not an array of shape \(1, 2\)'):
        Engine(TOY, settings(), wild, parameters=np.zeros((1, 2)))
    def silent(*_: Any) -> None: return None
    with pytest.raises(TypeError, match='silent answers None'): play(silent)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='more than an hour'): Latency.samples(np.array([[1, 2**62, 2**62 + 5]]))


# What is the same, compiled or not

@pytest.mark.parametrize('compiled', [True, False])
@pytest.mark.parametrize('wrong, error', [('nan', ValueError), ('inf', OverflowError), ('through a helper', ValueError), ('a division', ArithmeticError),
                                          ('a division in integers', ArithmeticError), ('an error', KeyError)])
def test_a_model_that_fails_says_where(wrong: str, error: type[Exception], compiled: bool) -> None:
    "A price that is no number, a division by zero, an error of its own: the same end, compiled or in Python, with moment, row and configuration"
    number = {'nan': math.nan, 'inf': math.inf, 'through a helper': math.nan}.get(wrong, 100.0)
    divides, whole, fails, helped = (wrong == name for name in ('a division', 'a division in integers', 'an error', 'through a helper'))
    def model(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        now = view.market[0]
        scratch[1] += 1
        if scratch[1] < 3: return 0
        if fails: raise KeyError('no such thing')
        if divides: scratch[2] = (now.bid_tick + .5) / scratch[0]
        if whole: scratch[2] = now.bid_tick // now.position_lots
        if helped: wishes[0, 0, 0, 0] = max(7, outward(100., number, number, now.bid_tick, now.ask_tick)[0])
        else: wishes[0, 0, 0, 0] = max(7, math.floor(number))
        wishes[0, 0, 0, 1] = 1
        return 0
    assert compile_quoter(model) is not None
    with pytest.raises(error) as caught: play(model, compiled=compiled)
    said = ' '.join(caught.value.__notes__)
    assert re.search(r'asked at 3\d\d000000 ns for configuration 0, when row \d+ of those that drive the book had reached us', said), said


def test_a_market_order_needs_no_price() -> None:
    "Nothing is wished for but an amount: it takes what there is, is weighed at the best it could meet, and is sent once while it is on its way"
    def buys(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        if view.market[0].filled_buy_lots: scratch[0] = 1
        if scratch[0] == 0: wishes[0, 0, 0, 1], wishes[0, 0, 0, 2] = 7, MARKET_ORDER
        return 0
    slow = settings(refresh_interval=.01, entry_latency_ms=50., response_latency_ms=50.)
    for compiled in (True, False):
        engine = play(buys, asks={110: 3, 112: 9}, config=slow, compiled=compiled)
        assert engine.fills[['tick', 'lots', 'reason']].values.tolist() == [[110, 3, 'take'], [112, 4, 'take']]
        assert engine.orders[['tick', 'lots', 'status']].values.tolist() == [[0, 7, 'filled']] and (engine.samples.quote_bid_tick == -1).all()
    poor = play(buys, asks={110: 3, 112: 9}, config=replace(slow, total_capital=111., max_inventory_exposure=1.))   # one is paid for, at 110
    assert poor.fills[['tick', 'lots']].values.tolist()[0] == [110, 1]
    assert not len(play(bids((0, 10))).orders)   # a limit order without a price is refused, as ever


def large_parts() -> list[str]:
    "A bid of 300 lots gets 190 of a print of 200 behind a queue of ten, then 90 more; and tables of random markets with large lots"
    parts = play(bids((100, 300)), happens(500, TRADE | SELL, 100, 200), happens(700, TRADE | SELL, 100, 90), config=settings(total_capital=1e6))
    assert parts.fills.lots.tolist() == [190, 90] and parts.desk is not None and int(parts.desk.state[0].position_lots) == 280
    return [digest(parts), *(digest(play_engine(scenario(seed, 60))) for seed in LARGE)]


def test_the_engine_is_exact_without_numba() -> None:
    "Lots beyond the eight bits of a side: what the mutants run is the engine, and not another one that overflows"
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(oracle.__file__).parent), *sys.path]), 'NUMBA_DISABLE_JIT': '1'}
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', 'import test_engine; print(*test_engine.large_parts())'], env=environment,
                          capture_output=True, text=True, check=False)
    assert done.stdout.split() == large_parts(), done.stderr
