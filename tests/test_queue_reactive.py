"""The market whose queues react: what an engine relies on, what our removals do, order by order, and that the fit finds what went in."""
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.config import data_folder
from cryptoexp.market.book import touch_path
from cryptoexp.market.events import BEST_QUOTE, BUY, CLEAR, CONTROL, DEPTH, LAST, RESUME, SELL, SNAPSHOT, TRADE, Digest, Events, concat
from cryptoexp.market.feed import MADE_UP, synthetic_feed
from cryptoexp.market.queue_calibration import (
    compared,
    every_touch,
    fit_queue_reactive,
    ks_distance,
    net_changes,
    queue_rates,
    taker_orders,
)
from cryptoexp.market.queue_reactive import (
    REGIMES,
    QueueReactiveMarket,
    QueueReactiveParameters,
    Removal,
    orders_told,
    regime,
    stepped,
)
from cryptoexp.market.statistics import SECOND
from cryptoexp.market.synthetic import START_NS, SyntheticMarket
from cryptoexp.market.tape import ADD_ORDER, CANCEL_ORDER, FILL_ORDER, read_recording, tape_by_order

ROOT = Path(__file__).resolve().parent.parent
ODD = [
    *(regime(name) for name in REGIMES),
    replace(QueueReactiveParameters(), crash_after=2.0, crash_seconds=20.0, crash_takers=100.0, crash_depth=.01),   # all sell
    replace(QueueReactiveParameters(), takers=100.0, taker_lots=(1e6,) * 11, reach=10_000),     # takers who eat the whole book
    replace(QueueReactiveParameters(), news=10.0, news_levels=50.0, requote=1.0),               # news without end
    replace(QueueReactiveParameters(), takers=0.0, news=0.0, vanish=((0.0,) * 12,) * 4, flee=(0.0,) * 12),   # nobody ever moves the price
    replace(QueueReactiveParameters(), arrive=(.01,) * 8, fade=(20.0,) * 8, join=((0.0,) * 12,) * 4),        # hardly a book
    replace(QueueReactiveParameters(), start_price=10_000.0, lean=-1.0, pace=10.0),
    replace(QueueReactiveParameters(), depth=5.0, fade=tuple(5 * one for one in QueueReactiveParameters().fade), lean=1.0)]


def digest(*batches: Events) -> str:
    state = Digest()
    for batch in batches: state.update(batch)
    return state.hexdigest()


def replay(events: Events) -> dict[int, dict[int, int]]:
    "An independent, slow book of dictionaries; fails where the rows contradict each other"
    sides: dict[int, dict[int, int]] = {BUY: {}, SELL: {}}
    printed: dict[tuple[int, int], int] = {}
    for flags, tick, lots in zip(events.flags.tolist(), events.tick.tolist(), events.lots.tolist()):
        kind, side = flags & 0x07, flags & (BUY | SELL)
        if kind == TRADE:
            key = BUY + SELL - side, tick
            printed[key] = printed.get(key, 0) + lots
            assert 0 < printed[key] <= sides[key[0]].get(tick, 0), 'more was printed than displayed'
        elif kind in (DEPTH, SNAPSHOT):
            if (side, tick) in printed: assert sides[side][tick] - lots == printed.pop((side, tick)), 'not what was printed'
            assert lots >= 0 and tick > 0
            if lots: sides[side][tick] = lots
            else: del sides[side][tick]  # KeyError: a level deleted that was not there
        elif kind == CLEAR: sides = {BUY: {}, SELL: {}}
        if flags & LAST:
            assert sides[BUY] and sides[SELL], 'a side ran dry'
            assert max(sides[BUY]) < min(sides[SELL]), 'the book is crossed'
            assert kind == TRADE or not printed, 'a print that no level follows'
    assert not printed
    return sides


def check_rows(events: Events) -> None:
    first = int(np.argmax(events.flags >= LAST))
    assert (events.kind[0], events.kind[first], events.tick[first]) == (CLEAR, CONTROL, RESUME)
    assert set(events.kind[1:first]) == {SNAPSHOT} and set(events.kind[first + 1:]) <= {DEPTH, TRADE}
    assert events.flags[-1] & LAST and events.exchange_ns[0] == START_NS
    assert (np.diff(events.exchange_ns) >= 0).all() and (np.diff(events.local_ns) >= 0).all()
    assert (events.local_ns > events.exchange_ns).all()
    trades, others = events[events.kind == TRADE], events[events.kind != TRADE]
    assert (np.diff(trades.id) == 1).all() and (np.diff(others.id) >= 0).all()
    inside = events.flags[:-1] < LAST  # rows of one message share its times
    for column in (events.exchange_ns, events.local_ns): assert (column[1:][inside] == column[:-1][inside]).all()


@pytest.mark.parametrize('number', range(len(ODD)))
def test_odd_parameters_never_break_the_book(number: int) -> None:
    events = QueueReactiveMarket(3, ODD[number]).events(30 * SECOND)
    check_rows(events)
    replay(events)


@pytest.mark.parametrize('seed', range(3))
def test_rows_are_what_an_engine_relies_on(seed: int) -> None:
    events = QueueReactiveMarket(seed).events(120 * SECOND)
    check_rows(events)
    replay(events)


# ---- the same bytes

@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3 * SECOND), max_size=8), st.integers(SECOND // 50, 5 * SECOND))
def test_cutting_does_not_matter(cuts: list[int], batch_ns: int) -> None:
    market, parts, end = QueueReactiveMarket(11), [], START_NS + 20 * SECOND
    for length in cuts: parts.append(market.step(min(end, market.time_ns + length)))
    parts.extend(market.batches(end - market.time_ns, batch_ns))
    assert concat(parts).equals(QueueReactiveMarket(11).events(20 * SECOND))


def test_seeds() -> None:
    digests = [digest(QueueReactiveMarket(seed).events(5 * SECOND)) for seed in (0, 1, 2, 3, 2 ** 64 - 1)]
    assert len(set(digests)) == len(digests)
    assert digest(QueueReactiveMarket(3).events(5 * SECOND)) == digests[3]


def test_another_process_makes_the_same_bytes() -> None:
    script = ('from cryptoexp.market.queue_reactive import QueueReactiveMarket, Removal\nfrom cryptoexp.market.events import Digest\n'
              'market = QueueReactiveMarket(7)\nstate = Digest().update(market.events(20 * 10 ** 9))\n'
              'print(state.update(market.step(market.time_ns + 10 ** 10, [Removal(1, 6_000_000, 10 ** 6)])).hexdigest())')
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '5'}
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True, env=environment)
    market = QueueReactiveMarket(7)
    parts = [market.events(20 * SECOND), market.step(market.time_ns + 10 * SECOND, [Removal(1, 6_000_000, 10 ** 6)])]
    assert result.stdout.strip() == digest(*parts)


def test_the_embedded_market_is_what_it_was() -> None:
    "Its functions are shared; its stream for a seed is in runs, tests and pages (on one machine: logarithms may differ elsewhere)"
    one, other = SyntheticMarket(7), SyntheticMarket(7)
    QueueReactiveMarket(7).events(SECOND)
    assert one.events(60 * SECOND).equals(other.events(60 * SECOND))
    assert one._state.orders.shape[1] == 5      # a column more would be another state, though the same rows


# ---- what we remove

def touch(events: Events) -> tuple[int, int, int, int]:
    last = touch_path(events).iloc[-1]
    return int(last.bid_tick), int(last.bid_lots), int(last.ask_tick), int(last.ask_lots)


def test_without_removals_it_is_the_plain_stream() -> None:
    plain, market, parts = QueueReactiveMarket(4), QueueReactiveMarket(4), []
    for _ in range(40):
        market, rows = stepped(market, market.time_ns + SECOND // 4, [])
        parts.append(rows)
    assert concat(parts).equals(plain.events(10 * SECOND))
    nothing = Removal(1, 1, 5)     # nobody bids a cent: nothing is there, nothing changes, no dice are thrown
    other = QueueReactiveMarket(4)
    assert concat([other.step(other.time_ns + SECOND, [nothing] if second else []) for second in range(10)]).equals(concat(parts))
    assert other.removed == 0


def test_a_step_leaves_its_market_as_it_was() -> None:
    market = QueueReactiveMarket(5)
    rows = market.events(5 * SECOND)
    _, _, tick, lots = touch(rows)
    first = stepped(market, market.time_ns + SECOND, [Removal(-1, tick, lots)])
    second = stepped(market, market.time_ns + SECOND, [Removal(-1, tick, lots)])
    assert first[1].equals(second[1]) and market.removed == 0 and first[0].removed == lots
    assert market.step(market.time_ns + SECOND).equals(stepped(QueueReactiveMarket(5), START_NS + 6 * SECOND)[1][len(rows):])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.lists(st.tuples(st.sampled_from([1, -1]), st.integers(-5, 400), st.integers(1, 2_000_000)), min_size=1,
                                   max_size=8))
def test_what_is_taken_is_gone(seed: int, wishes: list[tuple[int, int, int]]) -> None:
    market = QueueReactiveMarket(seed, by_order=True)
    parts = [market.events(2 * SECOND)]
    for side, away, lots in wishes:
        book, taken = replay(concat(parts)), market.removed
        best = max(book[BUY]) if side > 0 else min(book[SELL])
        tick = best - side * away
        there = book[BUY if side > 0 else SELL].get(tick, 0)
        rows = market.step(market.time_ns, [Removal(side, tick, lots)])
        taken = market.removed - taken
        assert taken == min(there, lots)
        if taken:
            assert (rows.kind[0], rows.tick[0], rows.lots[0]) == (TRADE, tick, taken)
            assert (rows.kind[1], rows.tick[1], rows.lots[1]) == (DEPTH, tick, there - taken)
            assert (rows.exchange_ns == market.time_ns).all()
        else: assert len(rows) == 0
        parts += [rows, market.step(market.time_ns + SECOND // 10)]
    events = concat(parts)
    check_rows(events)
    replay(events)
    assert standing(orders_told(market)) == {key: level for key, level in totals(events).items() if level}


def test_a_removal_is_a_print_that_others_see() -> None:
    "Takers are excited by it: more of them come in the next tenth of a second than without"
    more = 0
    for seed in range(40):
        market = QueueReactiveMarket(seed)
        _, _, tick, lots = touch(market.events(SECOND))
        end = market.time_ns + SECOND // 10
        calls = [Removal(-1, tick, max(1, lots // 50))] * 10
        more += sum((stepped(market, end, calls)[1].flags & (0x07 | BUY)) == TRADE | BUY) - 10
        more -= sum((stepped(market, end)[1].flags & (0x07 | BUY)) == TRADE | BUY)
    assert more > 40


# ---- order by order

def totals(events: Events) -> dict[tuple[int, int], int]:
    book = replay(events)
    return {(1, tick): lots for tick, lots in book[BUY].items()} | {(-1, tick): lots for tick, lots in book[SELL].items()}


def standing(orders: np.ndarray) -> dict[tuple[int, int], int]:
    "Levels from the orders told: an independent book of names, in which only the front of a queue is ever hit"
    queues: dict[tuple[int, int], dict[int, int]] = {}
    where: dict[int, tuple[int, int]] = {}
    for row in orders:
        kind, number, lots = int(row['ev']) & 0xff, int(row['order_id']), round(row['qty'] * 1e5)
        if kind == ADD_ORDER:
            where[number] = 1 if int(row['ev']) >> 29 & 1 else -1, round(row['px'] * 100)
            queues.setdefault(where[number], {})[number] = lots
        elif kind == CANCEL_ORDER: assert queues[where[number]].pop(number) == lots
        elif kind == FILL_ORDER:
            queue = queues[where[number]]
            assert next(iter(queue)) == number, 'an order was hit that is not the oldest'
            queue[number] -= lots
            if queue[number] == 0: del queue[number]
            else: assert queue[number] > 0
    return {key: sum(queue.values()) for key, queue in queues.items() if queue}


@pytest.mark.parametrize('name', REGIMES)
def test_orders_and_levels_are_one_book(name: str) -> None:
    market, parts, notes = QueueReactiveMarket(6, regime(name), by_order=True), [], []
    for _ in range(4):
        parts.append(market.events(20 * SECOND))
        notes.append(orders_told(market))
    assert concat(parts).equals(QueueReactiveMarket(6, regime(name)).events(80 * SECOND))   # taking notes changes nothing
    assert standing(np.concatenate(notes)) == totals(concat(parts))


def test_the_engine_reads_the_orders() -> None:
    market = QueueReactiveMarket(6, by_order=True)
    levels = market.events(10 * SECOND)
    named = tape_by_order(orders_told(market), market.instrument, synthetic=True)
    assert touch(levels) == touch(named.events)


# ---- the crash

def crash_of(seed: int, **changes: float) -> tuple[float, float]:
    "The fall in the half minute of the crash (bps), and the share of the volume that takers bought"
    market = QueueReactiveMarket(seed, replace(regime('crash'), crash_after=20.0, **changes))   # type: ignore[arg-type]
    parts = [market.events(20 * SECOND), market.events(30 * SECOND)]
    (bid, _, ask, _), (last_bid, _, last_ask, _) = touch(parts[0]), touch(concat(parts))
    trades = parts[1][parts[1].kind == TRADE]
    return 1e4 * ((last_bid + last_ask) / (bid + ask) - 1), float(trades.lots[(trades.flags & BUY) != 0].sum() / trades.lots.sum())


def test_in_a_crash_the_price_falls_and_takers_sell() -> None:
    crashes = [crash_of(seed) for seed in (1, 7, 11)]
    for fall, bought in crashes: assert fall < -100 and bought < .4
    less = [crash_of(seed, crash_news=1.0)[0] for seed in (1, 7, 11)]
    assert np.mean(less) > .8 * np.mean([fall for fall, _ in crashes])     # a good part of it is news


def test_the_crash_touches_no_other_stream() -> None:
    turned = replace(QueueReactiveParameters(), crash_news=3.0, crash_buyers=.5, crash_takers=1.0, crash_depth=.5)   # but crash_after is 0
    assert QueueReactiveMarket(7, turned).events(20 * SECOND).equals(QueueReactiveMarket(7).events(20 * SECOND))


# ---- is it the market that it says it is

def test_the_fit_finds_what_went_in() -> None:
    truth, made = QueueReactiveParameters(), QueueReactiveMarket(3).events(600 * SECOND)
    found = fit_queue_reactive(made, lag_ns=1)
    seconds = queue_rates(every_touch(made), taker_orders(made), 1)[0]['seconds']
    visited = seconds > 20
    assert visited.sum() >= 10
    assert np.abs((np.array(found.join) / np.array(truth.join))[visited] - 1).max() < .3
    for name in ('arrive', 'fade'): assert np.abs(np.array(getattr(found, name))[4:] / np.array(getattr(truth, name))[4:] - 1).max() < .3
    assert abs(found.takers / truth.takers - 1) < .35 and abs(sum(found.excite_own) - sum(truth.excite_own)) < .15
    assert np.abs(np.array(found.follow)[2:5] - np.array(truth.follow)[2:5]).max() < .1


@pytest.fixture(scope='module')
def recording() -> tuple[Events, object]:
    try: folder = data_folder()
    except FileNotFoundError as error: pytest.skip(str(error))
    paths = [folder / f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')]
    if not all(path.exists() for path in paths): pytest.skip(f'no recording at {paths[0]}')
    tape = read_recording(paths, streams='diff-only')
    return tape.events, tape.instrument


def test_the_defaults_are_the_fit(recording: tuple[Events, object]) -> None:
    fitted, defaults = fit_queue_reactive(recording[0]), QueueReactiveParameters()
    for name in ('join', 'leave', 'vanish', 'improve', 'follow', 'arrive', 'fade', 'excite_own', 'taker_lots', 'hit', 'requote'):
        assert np.allclose(getattr(fitted, name), getattr(defaults, name), rtol=.02, atol=1e-3), name


def test_distances_to_the_recording(recording: tuple[Events, object]) -> None:
    "Within the errors that the notebook states, and nearer than the embedded market where that is claimed"
    reactive, embedded = QueueReactiveMarket(7), SyntheticMarket(7)
    made = {'new': (net_changes(reactive.events(900 * SECOND)), reactive.instrument),
            'old': (net_changes(embedded.events(2 * 3600 * SECOND)), embedded.instrument)}
    events, instrument = recording
    distances, numbers = compared((events[events.kind != BEST_QUOTE], instrument), made)   # type: ignore[arg-type]
    far, error = distances['distance'], numbers['relative error'].abs()
    for row, limit in LIMITS.items(): assert far.new[row] < limit, row
    for row, limit in ERRORS.items(): assert error.new[row] < limit, row
    for row in NEARER: assert far.new[row] < far.old[row], row


LIMITS = {'spread (ticks)': .05, 'best level (BTC)': .2, 'taker order (BTC)': .08, 'time between taker orders (ms)': .2,
          '1 s move (bps)': .2}
ERRORS = {'depth within 5 bps (BTC)': .2, 'depth within 20 bps (BTC)': .2, 'volatility, 1 s (% per hour)': .4,
          '100 ms without a move (%)': .05,
          'taker orders per second': .35}
NEARER = ['spread (ticks)', 'best level (BTC)', 'taker order (BTC)']


@pytest.mark.parametrize('seed', range(3))
def test_the_market_is_as_stated(seed: int) -> None:
    path = touch_path(QueueReactiveMarket(seed).events(300 * SECOND))
    lasted = np.diff(path.exchange_ns)
    assert np.average((path.ask_tick - path.bid_tick == 1)[:-1], weights=lasted) > .97
    assert .5 < path.bid_lots.median() * 1e-5 < 5


def test_regimes_differ_as_they_say() -> None:
    def seen(name: str) -> tuple[float, float, float]:
        events = QueueReactiveMarket(2, regime(name)).events(200 * SECOND)
        path, trades = touch_path(events), events[events.kind == TRADE]
        mid = ((path.bid_tick + path.ask_tick) / 2).to_numpy()
        bought = trades.lots[(trades.flags & BUY) != 0].sum() / trades.lots.sum()
        return float(np.abs(np.diff(np.log(mid))).sum()), float(bought), float(mid[-1] / mid.max() - 1)
    calm, recorded, volatile, trending, crash = (seen(name) for name in ('calm', 'recorded', 'volatile', 'trending', 'crash'))
    assert calm[0] < recorded[0] < volatile[0] and trending[1] > .55 and crash[2] < min(-3e-3, recorded[2])


def test_distances_of_distributions() -> None:
    random = np.random.default_rng(1)
    assert ks_distance(random.normal(size=4000), random.normal(size=4000)) < .05
    assert abs(ks_distance(random.random(4000), random.random(4000) + .5) - .5) < .05


# ---- where users meet it

def test_sources_are_named_alike() -> None:
    from cryptoexp import cli
    assert cli.MADE_UP == MADE_UP and {name.partition(':')[2] or 'recorded' for name in MADE_UP if name != 'embedded'} == set(REGIMES)


def test_a_misspelt_regime_is_offered_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    from cryptoexp.cli import main
    assert main(['trade', '--source', 'queue-reactive:crsh']) == 2
    assert "no regime 'crsh'; did you mean crash" in capsys.readouterr().err


def test_recorded_is_the_plain_market() -> None:
    assert 'queue-reactive:recorded' in MADE_UP
    plain, named = (list(synthetic_feed(name, 5 * SECOND, 3)._batches) for name in ('queue-reactive', 'queue-reactive:recorded'))
    assert concat(plain).equals(concat(named))


def test_trading_on_it_is_labelled_synthetic(tmp_path: Path) -> None:
    from cryptoexp.cli import main
    assert main(['trade', '--source', 'queue-reactive:volatile', '--duration', '20s', '--preset', 'zero-fee-tier', '--seed', '5', '--json',
                 '--out', str(tmp_path)]) == 0
    folder, = tmp_path.iterdir()
    assert folder.name.startswith('queue-reactive-volatile-btcusdt')
    assert '"synthetic": true' in (folder / 'summary.json').read_text()


def test_wrong_parameters_are_all_named() -> None:
    with pytest.raises(ValueError) as raised: replace(QueueReactiveParameters(), lean=2.0, news=-1.0, hit=(1.0,) * 3, pace=float('nan'))
    for name in ('lean', 'news', 'hit', 'pace'): assert name in str(raised.value)
    with pytest.raises(ValueError, match='must not fall'): replace(QueueReactiveParameters(), join_lots=(2.0,) * 10 + (1.0,))
    with pytest.raises(ValueError, match='side 1'): Removal(2, 5, 5)
