"Profits that are not there: every planted cheat is found, honest controls are not accused, and false alarms are as rare as is said"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cryptoexp.config import MarketMakingConfig, load_config
from cryptoexp.market.events import (
    BEST_QUOTE,
    BUY,
    CLEAR,
    DEPTH,
    EXCHANGE_ONLY,
    LAST,
    LOCAL_ONLY,
    SELL,
    SNAPSHOT,
    TRADE,
    Events,
    concat,
    from_rows,
)
from cryptoexp.market.synthetic import SyntheticMarket, embedded_instrument
from cryptoexp.market.tape import Clock, Tape, fuse, read_recording
from cryptoexp.trading import doubts as room
from cryptoexp.trading.backtest import Result, backtest
from cryptoexp.trading.doubts import (
    Doubt,
    Prints,
    TooLittle,
    Touch,
    beyond_width,
    contradictions,
    dated,
    dated_venue,
    early_view,
    examine,
    foresight,
    heavy_orders,
    low_fees,
    mirrored,
    orders_in_common,
    stale_quotes,
    support,
    touch_of,
    unsupported_fills,
    weigh_lags,
)
from cryptoexp.trading.quoting import ASK, BID, FORCE, IMMEDIATE, LOTS, TICK
from cryptoexp.trading.venue import VENUES, Latency, QueueModel

MS, SECOND = 10 ** 6, 10 ** 9
OFFSET_NS = 1272 * MS
SEEDS = range(100, 124)
BOOKS = (DEPTH, SNAPSHOT, CLEAR, BEST_QUOTE)


def drawn(seed: int, seconds: int) -> Tape:
    "A stretch of the embedded market (synthetic)"
    market = SyntheticMarket(seed=seed)
    return Tape(market.events(seconds * SECOND), market.instrument, Clock(), (f'seed {seed}',), synthetic=True)


@pytest.fixture(scope='module')
def free() -> MarketMakingConfig: return load_config(preset='zero-fee-tier', environment={})


@pytest.fixture(scope='module')
def market() -> Tape: return drawn(11, 1200)


@pytest.fixture(scope='module')
def short() -> list[Tape]: return [drawn(seed, 240) for seed in SEEDS]


@pytest.fixture(scope='module')
def spot(data_folder: Path) -> Tape:
    return read_recording([data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')], streams='diff-only')


@pytest.fixture(scope='module')
def usdm(data_folder: Path) -> Tape: return read_recording(data_folder/'binance_usdm/btcusdt_20240808.gz', streams='diff-only')


# ---- cheats

def two_clocks(tape: Tape, kinds: Sequence[int] = (), venue_ns: int = 0, ours: Sequence[int] = (), ours_ns: int = 0) -> Tape:
    "Rows split in two, one for each clock: rows of some kinds moved on the venue's clock, of others on ours"
    rows = tape.timeline()
    happened = rows.exchange_ns + np.where(np.isin(rows.kind, kinds), venue_ns, 0)
    seen = rows.local_ns + np.where(np.isin(rows.kind, ours), ours_ns, 0)
    there = Events(rows.flags | np.uint8(EXCHANGE_ONLY), happened, happened, *rows.columns[3:])
    here = Events(rows.flags | np.uint8(LOCAL_ONLY), np.minimum(rows.exchange_ns, seen - 1), seen, *rows.columns[3:])
    both = concat([there, here])
    return replace(tape, events=both[np.argsort(both.local_ns, kind='stable')], clock=Clock())


def shifted(tape: Tape, by_ns: int, kinds: Sequence[int], local: bool = True) -> Tape:
    "Some streams moved on both clocks, or on the venue's alone"
    rows = tape.timeline()
    by = np.where(np.isin(rows.kind, kinds), by_ns, 0)
    moved = Events(rows.flags, rows.exchange_ns + by, rows.local_ns + by * local, *rows.columns[3:])
    return replace(tape, events=moved[np.argsort(moved.local_ns, kind='stable')], clock=Clock())


def uncorrected(tape: Tape) -> Tape: return two_clocks(tape, ours=(*BOOKS, TRADE), ours_ns=-OFFSET_NS)


def touch_filled(tape: Tape, result: Result) -> Result:
    "The orders of a session, each filled whole by the first print at or through its price"
    rows = tape.timeline()
    events, touch = rows.exchange_rows(), touch_of(rows, False, tape.fused)
    trades, filled = events[events.kind == TRADE], []
    for order in result.orders[result.orders.arrived_ns > 0].itertuples():
        begin, end = np.searchsorted(trades.exchange_ns, [order.arrived_ns, order.ended_ns], 'right')
        hit = (trades.tick[begin:end] - order.tick) * order.side <= 0
        if hit.any(): filled.append((trades.exchange_ns[begin + hit.argmax()], order.order_id, order.side, order.tick, order.lots))
    table = pd.DataFrame(filled, columns=['time_ns', 'order_id', 'side', 'tick', 'lots'])
    before = np.searchsorted(touch.time_ns, table.time_ns, 'left') - 1
    table = table.assign(config=0, asset=0, maker=True, fee_e8=0, bid_tick=touch.bid_tick[before], ask_tick=touch.ask_tick[before],
                         reason='queue')
    return Result(replace(result.session, fills=table.sort_values('time_ns', ignore_index=True)))


def sniper(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "Take in the direction in which the mid has moved over the last 15 decisions"
    now = view.market[0]
    place, mid = int(scratch[0]), now.bid_tick + now.ask_tick
    then = scratch[1 + place]
    scratch[1 + place], scratch[0] = mid, (place + 1) % 15
    side = BID if mid > then else ASK
    if then > 0 and mid != then:
        wishes[0, side, 0, TICK] = now.bid_tick if side == BID else now.ask_tick
        wishes[0, side, 0, LOTS], wishes[0, side, 0, FORCE] = now.order_lots, IMMEDIATE
    return 0


def taking(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "Buy from the ask and sell to the bid in turn"
    now = view.market[0]
    scratch[0] = 1 - scratch[0]
    side = BID if scratch[0] > 0 else ASK
    wishes[0, side, 0, TICK] = now.ask_tick if side == BID else now.bid_tick
    wishes[0, side, 0, LOTS], wishes[0, side, 0, FORCE] = now.order_lots, IMMEDIATE
    return 0


def leaning(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "An honest signal: quote at the touch, on the side where more is waiting"
    now = view.market[0]
    if now.bid_lots > now.ask_lots: wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = now.bid_tick, now.order_lots
    if now.ask_lots > now.bid_lots: wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = now.ask_tick, now.order_lots
    return 0


def by_date(tape: Tape, ahead_ns: int = 5 * SECOND) -> Any:
    "A quoter that looks up by the time what the mid will be"
    path = touch_of(tape.timeline(), True, tape.fused)
    times, mids = path.time_ns, path.bid_tick + path.ask_tick
    def quoter(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        now = view.market[0]
        later, mid = mids[min(np.searchsorted(times, now.time_ns + ahead_ns), len(mids) - 1)], now.bid_tick + now.ask_tick
        if later > mid: wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = now.bid_tick, now.order_lots
        if later < mid: wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = now.ask_tick, now.order_lots
        return 0
    return quoter


def by_count(tape: Tape, ahead_ns: int = 5 * SECOND) -> Any:
    "The same by the number of the call"
    path, rows = touch_of(tape.timeline(), True, tape.fused), tape.timeline()
    when = rows.local_ns[0] + np.arange(1, int((rows.local_ns[-1] - rows.local_ns[0]) / 1e8) + 2) * SECOND // 10 + ahead_ns
    mids = (path.bid_tick + path.ask_tick)[np.maximum(np.searchsorted(path.time_ns, when, 'right') - 1, 0)]
    def quoter(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        now, call = view.market[0], int(scratch[0])
        scratch[0] = call + 1
        later, mid = mids[min(call, len(mids) - 1)], now.bid_tick + now.ask_tick
        if later > mid: wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = now.bid_tick, now.order_lots
        if later < mid: wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = now.ask_tick, now.order_lots
        return 0
    return quoter


def profit(result: Result) -> float: return float(result.performance()['pnl'])
def verdict(doubt: Doubt | None) -> str: return 'nothing' if doubt is None else doubt.verdict


# ---- 1. the clock

def test_uncorrected_clock_is_found_on_the_recording(spot: Tape, free: MarketMakingConfig) -> None:
    "The engine takes the tape, the loss becomes a profit, and the tape alone gives it away"
    config, cheat = replace(free, spread_percentage=2e-4), uncorrected(spot)
    assert profit(backtest(spot, config=config)) < -3 < 0 < profit(backtest(cheat, config=config))
    assert early_view(spot) is None
    doubt = early_view(cheat)
    assert doubt is not None and doubt.verdict == 'found'
    assert abs(doubt.evidence['our book, prints of the venue: best lag, ms'] + 1272) < 100   # type: ignore[operator]
    assert stale_quotes(cheat) is None, 'the streams of the venue fit each other'


def test_streams_on_different_clocks_are_found(usdm: Tape, free: MarketMakingConfig) -> None:
    "Books by the raw stamps, trades by the fitted clock: each row arrives after it happens, and the profit is fake"
    config, venue, cheat = replace(free, spread_percentage=1e-4), VENUES['binance-usdm'](maker_fee=0.0), shifted(usdm, -OFFSET_NS, BOOKS)
    assert profit(backtest(usdm, None, venue, config=config)) < 0 < 3 < profit(backtest(cheat, None, venue, config=config))
    assert (verdict(early_view(usdm)), verdict(early_view(cheat))) == ('nothing', 'found')


@pytest.mark.parametrize(('kinds', 'ahead_ms'), [((*BOOKS, TRADE), 1272), (BOOKS, 1272), ((TRADE,), 1272), ((*BOOKS, TRADE), 150)])
def test_a_view_that_is_ahead_is_found(market: Tape, kinds: Sequence[int], ahead_ms: int) -> None:
    "All we see, the books alone, the prints alone; by seconds or by a tenth of one (half a second for prints, which come in bundles)"
    assert verdict(early_view(two_clocks(market, ours=kinds, ours_ns=-ahead_ms * MS))) == 'found'
    assert early_view(two_clocks(market)) is None, 'rows split in two are no cheat'
    assert early_view(two_clocks(market, ours=kinds, ours_ns=ahead_ms * MS)) is None, 'a view that is late fakes nothing'


def test_late_clock_is_suspicious_only(market: Tape) -> None:
    doubt = early_view(shifted(market, -OFFSET_NS, (*BOOKS, TRADE), local=False))
    assert doubt is not None and doubt.verdict == 'suspicious' and '1.27 s' in doubt.sentence


def test_false_alarms_of_clocks_and_quotes(short: list[Tape]) -> None:
    "No honest seed is accused, every one with its clock uncorrected is found"
    for tape in short:
        assert early_view(tape) is None and stale_quotes(tape) is None, tape
        assert verdict(early_view(uncorrected(tape))) == 'found', tape


def test_false_alarms_where_all_lags_are_equally_good() -> None:
    "The worst honest tape: shares that tell nothing. Below one in a hundred tapes of five comparisons, also with the least gain left out"
    generator, alarms, tries = np.random.default_rng(1), 0, 1500
    for _ in range(tries):
        shares = generator.normal(0.5, 0.2, (len(room.LAGS_NS), room.BLOCKS))
        alarms += weigh_lags(shares, low_ms=0).t > room.LEAST_T
    assert alarms * 5 / tries < 0.01


def test_too_few_prints_are_not_called_fine(market: Tape) -> None:
    few = replace(market, events=market.events[market.events.exchange_ns < market.events.exchange_ns[0] + 60 * SECOND])
    with pytest.raises(TooLittle, match='400 are needed'): early_view(few)
    assert {'the clock', 'stale quotes'} <= examine(few, preset='zero-fee-tier').unchecked.keys()


# ---- 2. touch fills

def test_touch_fills_are_found_on_the_recordings(spot: Tape, usdm: Tape, free: MarketMakingConfig) -> None:
    for tape, venue in ((spot, VENUES['zero-fee-tier']()), (usdm, VENUES['binance-usdm'](maker_fee=0.0))):
        honest = backtest(tape, None, venue, config=free)
        cheat = touch_filled(tape, honest)
        assert profit(cheat) > profit(honest) + 2
        assert unsupported_fills(tape, honest.fills, honest.orders) is None
        doubt = unsupported_fills(tape, cheat.fills, cheat.orders)
        assert doubt is not None and doubt.verdict == 'found' and doubt.evidence['lots without support, %'] > 50  # type: ignore[operator]


@pytest.mark.parametrize('queue', [QueueModel(), QueueModel('ahead'), QueueModel('power', 2), QueueModel('log2')], ids=str)
def test_no_queue_model_of_ours_is_accused(short: list[Tape], free: MarketMakingConfig, queue: QueueModel) -> None:
    fills = 0
    for tape in short[:8]:
        result = backtest(tape, None, VENUES['zero-fee-tier'](queue=queue), config=free)
        assert not support(tape, result.fills, result.orders).missing_lots.any()
        fills += len(result.fills)
        assert verdict(unsupported_fills(tape, *(getattr(touch_filled(tape, result), name) for name in ('fills', 'orders')))) == 'found'
    assert fills > 1000


def test_takers_are_checked_too(market: Tape, free: MarketMakingConfig) -> None:
    "What was taken was displayed; a spread better, or more than stood there, was not"
    result = backtest(market, taking, config=free)
    assert len(result.fills) > 500 and not result.fills.maker.any()
    assert not support(market, result.fills, result.orders).missing_lots.any()
    better = result.fills.assign(tick=np.where(result.fills.side > 0, result.fills.bid_tick, result.fills.ask_tick))
    assert (support(market, better, result.orders).missing_lots == better.lots).all()
    assert support(market, result.fills.assign(lots=10 ** 9), result.orders).missing_lots.all()


def by_hand(*rows: tuple[int, int, int, int]) -> Tape:
    "(time, flags, tick, lots), each a message on both clocks, after a book of 10 lots at 99,990 and at 100,010"
    opening = [(CLEAR | BUY | SELL, 1, 2, 0, 0, 1), (SNAPSHOT | BUY, 1, 2, 99_990, 10, 1), (SNAPSHOT | SELL | LAST, 1, 2, 100_010, 10, 1)]
    return Tape(from_rows([*opening, *((flags | LAST, time, time + 1, tick, lots, time) for time, flags, tick, lots in rows)]),
                embedded_instrument(), Clock(), ('by hand',), synthetic=True)


def one_fill(time_ns: int, lots: int, side: int = 1, tick: int = 99_990) -> tuple[pd.DataFrame, pd.DataFrame]:
    fills = pd.DataFrame(dict(time_ns=[time_ns], order_id=[7], side=[side], tick=[tick], lots=[lots], maker=[True]))
    return fills, pd.DataFrame(dict(order_id=[7], side=[side], tick=[tick], arrived_ns=[50]))


@pytest.mark.parametrize(('rows', 'supported'), [
    ([(100, TRADE | SELL, 99_990, 4), (200, TRADE | SELL, 99_990, 7)], 1),                                # 10 before us: 4, 6, then 1
    ([(100, TRADE | SELL, 99_990, 10)], 0),                                                               # the queue alone
    ([(100, DEPTH | BUY, 99_990, 3), (200, TRADE | SELL, 99_990, 5)], 2),                                 # 7 cancelled, all before us
    ([(100, TRADE | SELL, 99_990, 4), (110, DEPTH | BUY, 99_990, 6), (200, TRADE | SELL, 99_990, 7)], 1),  # a print's diff is no cancel
    ([(100, DEPTH | BUY, 99_990, 30), (200, TRADE | SELL, 99_990, 12)], 2),                               # what joins stands behind
    ([(100, TRADE | SELL, 99_980, 3)], 3),                                                                # through our price
    ([(100, TRADE | SELL, 99_995, 30)], 0),                                                               # above our bid
    ([(100, TRADE | BUY, 99_990, 30)], 0),                                                                # the other way
    ([(100, DEPTH | SELL, 99_990, 5)], 5),                                                                # the ask comes to us
    ([(40, TRADE | SELL, 99_980, 30)], 0),                                                                # before the order came
    ([(301, TRADE | SELL, 99_980, 30)], 0),                                                               # after the fill
])
@pytest.mark.parametrize('side', [1, -1], ids=['bid', 'ask'])
def test_support_by_hand(rows: list[tuple[int, int, int, int]], supported: int, side: int) -> None:
    "Worked by hand, and its mirror image for an ask"
    if side < 0:
        rows = [(time, (flags & 0x0f) | (SELL if flags & BUY else BUY), 200_000 - tick, lots) for time, flags, tick, lots in rows]
    tape, tick = by_hand(*rows), 99_990 if side > 0 else 100_010
    found = support(tape, *one_fill(300, 100, side, tick))
    assert found.missing_lots.tolist() == [100 - supported] and found.displayed_lots.tolist() == [10]
    assert support(tape, *one_fill(300, supported, side, tick)).missing_lots.tolist() == [0]


def test_a_fill_of_no_known_order_has_no_support() -> None:
    fills, orders = one_fill(300, 5)
    found = support(by_hand((100, TRADE | SELL, 99_980, 9)), fills, orders.assign(order_id=8))
    assert (found.missing_lots.tolist(), found.displayed_lots.tolist()) == ([5], [-1])


# ---- 3. size

def test_orders_larger_than_what_trades_are_found(spot: Tape, market: Tape, free: MarketMakingConfig) -> None:
    "Whole fills scale to any size: the same result a unit of volume, from a market that is all ours"
    for tape in (spot, market):
        small = backtest(tape, config=replace(free, total_capital=2_000.0))
        huge = backtest(tape, None, VENUES['zero-fee-tier'](fills='whole'), config=replace(free, total_capital=3e6))
        assert heavy_orders(tape, small.fills, small.orders) is None
        doubt = heavy_orders(tape, huge.fills, huge.orders)
        assert doubt is not None and doubt.verdict == 'found' and doubt.evidence['part of all volume, %'] > 50  # type: ignore[operator]
        assert heavy_orders(tape, small.fills, small.orders, most=1e-6) is not None


# ---- 4. stale quotes

def test_stale_quotes_are_found_on_the_recordings(spot: Tape, usdm: Tape, free: MarketMakingConfig) -> None:
    assert stale_quotes(spot) is None and stale_quotes(usdm) is None
    late = two_clocks(spot, (DEPTH, BEST_QUOTE), 2 * SECOND)
    honest, cheat = (backtest(tape, sniper, config=free) for tape in (spot, late))
    assert profit(honest) < 0 < 10 < profit(cheat)
    doubt = stale_quotes(late, cheat.fills)
    assert doubt is not None and doubt.verdict == 'found' and doubt.evidence['book: fills in such a stretch'] > 100  # type: ignore[operator]
    assert early_view(late) is None, 'our view is in time'


def test_best_quotes_that_stand_still_are_found(usdm: Tape) -> None:
    "Ten seconds without a best quote, while the diffs go on; and best quotes that are late as a whole"
    rows = usdm.timeline()
    begin = rows.local_ns[0] + 100 * SECOND
    still = (rows.kind == BEST_QUOTE) & (rows.local_ns > begin) & (rows.local_ns < begin + 10 * SECOND)
    for cheat in (replace(usdm, events=rows[~still], clock=Clock()), shifted(usdm, 3 * SECOND, (BEST_QUOTE,))):
        doubt = stale_quotes(cheat)
        assert doubt is not None and doubt.verdict == 'found'
        assert 'best quotes' in doubt.sentence and 'the book did not' not in doubt.sentence


def test_contradictions_by_hand() -> None:
    touch = Touch(np.array([0, 10, 60]), np.array([100, 101, 102]), np.array([101, 102, 103]))
    prints = Prints(np.array([5, 11, 20, 40, 50, 70, 90]), np.array([100, 101, 99, 98, 102, 105, 104]), np.zeros(7, bool))
    assert contradictions(touch, prints).tolist() == [[20, 40], [70, 90]]
    assert contradictions(touch, Prints(np.array([-5]), np.array([100]), np.zeros(1, bool))).tolist() == []


# ---- 5. fees

def test_fees_that_nobody_pays(spot: Tape, free: MarketMakingConfig) -> None:
    generous, usual = (backtest(spot, None, venue, config=free)
                       for venue in (VENUES['rebate-tier'](maker_fee=-0.0003), VENUES['binance-spot']()))
    nothing = backtest(spot, config=free)
    assert profit(nothing) < 0 < profit(generous)
    assert [verdict(low_fees(one)) for one in (generous, nothing, usual)] == ['found', 'suspicious', 'nothing']
    doubt = low_fees(generous, again=usual)
    assert doubt is not None and doubt.evidence['profit of the same fills at the usual fees, quote'] < 0  # type: ignore[operator]
    assert doubt.evidence['break-even maker fee, bps'] == pytest.approx(generous.performance()['break_even_maker_fee_bps'], abs=1e-4)
    examined = examine(spot, None, VENUES['rebate-tier'](maker_fee=-0.0003), config=free)
    assert [(one.name, one.verdict) for one in examined.doubts] == [('fees', 'found')]
    assert 'fills when run at the usual fees' in examined.doubts[0].evidence


def test_a_tier_is_doubted_only_where_the_profit_hangs_on_it(spot: Tape, free: MarketMakingConfig) -> None:
    "A listed tier that loses anyway is no doubt; a profit that the usual fee takes away is found"
    losing = backtest(spot, None, VENUES['binance-spot-vip3'](), config=free)
    assert profit(losing) < 0 and low_fees(losing) is None
    cheat = backtest(spot, by_date(spot, 20 * SECOND), VENUES['zero-fee-tier'](), config=free)
    assert profit(cheat) > 0 and verdict(low_fees(cheat)) == 'found'


# ---- 6. foresight

@pytest.mark.parametrize('make', [by_date, by_count])
def test_a_quoter_that_looks_ahead_is_found(spot: Tape, free: MarketMakingConfig, make: Any) -> None:
    cheat = make(spot)
    honest, earned = backtest(spot, leaning, config=free), backtest(spot, cheat, config=free)
    assert profit(honest) < 0 < profit(earned)
    assert (verdict(beyond_width(spot, honest.fills)), verdict(beyond_width(spot, earned.fills))) == ('nothing', 'suspicious')
    doubt = foresight(spot, cheat, config=free)
    assert doubt is not None and doubt.verdict == 'found' and 'turned around' in doubt.sentence
    assert (doubt.evidence['orders that another date changes, %'] > 5) == (make is by_date)   # type: ignore[operator]


def test_a_quoter_that_looks_ahead_is_found_without_recordings(free: MarketMakingConfig) -> None:
    "A hundred fills of the embedded market are enough to find the one, and to suspect the other"
    tape = drawn(3, 600)
    assert [verdict(foresight(tape, make(tape), config=free)) for make in (by_date, by_count)] == ['found', 'suspicious']


def test_honest_quoters_do_not_look_ahead(free: MarketMakingConfig) -> None:
    "Many seeds, with and without a signal, and with a volatility in scratch"
    checked = 0
    for seed in range(200, 210):
        tape = drawn(seed, 400)
        for quoter, config in ((None, free), (leaning, free), (None, replace(free, volatility_widening=0.5, volatility_half_life=10.0))):
            for check in (lambda: foresight(tape, quoter, config=config),   # noqa: B023
                          lambda: beyond_width(tape, backtest(tape, quoter, config=config).fills)):   # noqa: B023
                try: assert check() is None, (seed, quoter)
                except TooLittle: continue
                checked += 1
    assert checked >= 24


def test_what_outlives_a_run_is_suspicious(market: Tape, free: MarketMakingConfig) -> None:
    generator = np.random.default_rng(1)
    def random(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        now, far = view.market[0], int(generator.integers(0, 5))
        wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = now.bid_tick - far, now.order_lots
        wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = now.ask_tick + far, now.order_lots
        return 0
    tape = replace(market, events=market.events[:12_000])
    doubt = foresight(tape, random, config=free, compiled=False)
    assert doubt is not None and doubt.verdict == 'suspicious' and 'in another run' in doubt.sentence
    assert doubt.evidence['orders that a second run changes, %'] > 50   # type: ignore[operator]


def test_the_mirror_is_a_mirror(market: Tape, spot: Tape) -> None:
    "Unchanged until the moment, mirrored after it, on both clocks; turned around twice it is what it was"
    for tape in (market, spot):
        rows = tape.timeline()
        turned, moment = mirrored(tape, int(rows.local_ns[0]) + (int(rows.local_ns[-1]) - int(rows.local_ns[0])) // 2)
        assert turned.synthetic and not turned.clock.points
        for ours in (True, False):
            one, two = touch_of(rows, ours), touch_of(turned.timeline(), ours)
            left, right = ({time: pair for time, *pair in zip(*(column.tolist() for column in path))} for path in (one, two))
            bid, ask = left[max(time for time in left if time <= moment)] if ours else (None, None)
            common = [time for time in left if time in right and time > moment + SECOND]
            early = [time for time in left if time < moment - SECOND]
            assert len(common) > 1000 and len(early) > 1000 and all(left[time] == right[time] for time in early)
            centres = {left[time][0] + right[time][1] for time in common} | {left[time][1] + right[time][0] for time in common}
            assert len(centres) == 1 and (not ours or centres == {bid + ask})
        assert turned.events[-1:].lots == rows[-1:].lots
        assert len(turned.timeline()) > len(rows)


def test_another_date_changes_nothing_for_the_honest(market: Tape, free: MarketMakingConfig) -> None:
    table = np.array([[market.events.local_ns[0] + at * SECOND, 0, 0] for at in range(0, 1200, 10)])
    table[:, 1] = table[:, 0] + 3 * MS + np.arange(len(table)) * MS // 20
    table[:, 2] = table[:, 1] + 4 * MS
    venue = VENUES['zero-fee-tier'](latency=Latency(table))
    one, two = backtest(market, None, venue, config=free), backtest(dated(market), None, dated_venue(venue), config=free)
    assert orders_in_common(one.orders, two.orders, room.WEEKS_NS) == 1 and len(one.orders) > 1000
    assert orders_in_common(one.orders, two.orders) == 0
    assert one.fills[['side', 'tick', 'lots']].equals(two.fills[['side', 'tick', 'lots']])


# ---- all of them

def test_honest_controls_are_not_accused(spot: Tape, usdm: Tape, market: Tape, free: MarketMakingConfig) -> None:
    "With fees nothing is said; without them the fees alone"
    usual = VENUES['binance-spot']()
    fused = fuse(spot)
    for controlled in (examine(spot), examine(spot, leaning, usual, config=free), examine(market, leaning, usual, config=free),
                       examine(fused, leaning, usual, config=free), examine(usdm, leaning, VENUES['binance-usdm'](), config=free)):
        assert controlled.doubts == () and str(controlled).startswith('0 doubts') and 'No doubts' in controlled._repr_html_()
    for tape in (spot, fused, market): assert [one.name for one in examine(tape, config=free).doubts] == ['fees']


def test_an_examination_changes_nothing_and_shows_itself(market: Tape, free: MarketMakingConfig) -> None:
    "A result from elsewhere is examined as it is; without a quoter nothing is run"
    honest = backtest(market, config=free)
    cheat = touch_filled(market, honest)
    before = [column.copy() for column in market.events.columns], cheat.fills.copy(), cheat.orders.copy()
    found = examine(market, result=cheat)
    assert all(np.array_equal(one, two) for one, two in zip(before[0], market.events.columns))
    pd.testing.assert_frame_equal(before[1], cheat.fills)
    pd.testing.assert_frame_equal(before[2], cheat.orders)
    assert {one.name: one.verdict for one in found.doubts} == {'fills': 'found', 'fees': 'suspicious'}
    assert found.runs == 0 and 'no quoter' in found.unchecked['foresight']
    assert found.table().verdict.tolist() == ['nothing found', 'nothing found', 'found', 'nothing found', 'suspicious', 'nothing found',
                                              'not checked']
    assert all(text in page for text in ('fills without support', 'no quoter was given') for page in (found._repr_html_(),))
    assert 'what to do' in str(found) and 'synthetic' in found._repr_html_()


def test_a_doubt_has_one_of_two_verdicts() -> None:
    with pytest.raises(ValueError, match='guilty'): Doubt('x', 'guilty', '', '', {})
    assert str(Doubt('x', 'found', 'Seen.', 'Do.', {'bps': 1.5})) == 'found: x. Seen. Do. [bps: 1.5]'
