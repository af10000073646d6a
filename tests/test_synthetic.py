"""The embedded market: what an engine relies on, for many seeds, many ways of cutting and odd parameters."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.market.book import OrderBook, touch_path
from cryptoexp.market.events import BUY, CLEAR, CONTROL, DEPTH, LAST, RESUME, SELL, SNAPSHOT, TRADE, Digest, Events, concat
from cryptoexp.market.statistics import describe, hourly_volatility
from cryptoexp.market.synthetic import START_NS, SyntheticMarket, SyntheticParameters

SECOND = 1_000_000_000
ROOT = Path(__file__).resolve().parent.parent
ODD = [
    SyntheticParameters(),
    SyntheticParameters(shocks_per_hour=360, shock_min_bps=50, shock_max_bps=100, shock_lasting=1, sweep_share=1),  # news without end
    SyntheticParameters(orders_per_second=1, order_seconds=100, takers_per_second=50, taker_children=0.9, taker_median_lots=1e6),
    SyntheticParameters(orders_per_second=200, order_seconds=50, order_median_lots=1, order_size_spread=0),  # ten thousand orders of a lot
    SyntheticParameters(start_price=1_000, diffusion_bps=500, activity_spread=1),
    SyntheticParameters(start_price=150_000, diffusion_bps=500, shocks_per_hour=360, reactions_per_second=0),  # nobody notices anything
    SyntheticParameters(diffusion_bps=0, activity_spread=0, shocks_per_hour=0, takers_per_second=0, jitter_ms=0),  # nothing ever happens
]


def digest(*batches: Events) -> str:
    state = Digest()
    for batch in batches: state.update(batch)
    return state.hexdigest()


def replay(events: Events) -> None:
    "An independent, slow book of dictionaries; fails where the rows contradict each other"
    sides: dict[int, dict[int, int]] = {BUY: {}, SELL: {}}
    prints: list[tuple[int, int, int]] = []
    for flags, tick, lots in zip(events.flags.tolist(), events.tick.tolist(), events.lots.tolist()):
        kind, side = flags & 0x0f, flags & (BUY | SELL)
        if kind == TRADE:
            other = BUY + SELL - side
            assert 0 < lots <= sides[other].get(tick, 0), 'more was printed than displayed'
            prints.append((other, tick, sides[other][tick] - lots))
        elif kind in (DEPTH, SNAPSHOT):
            if prints:  # the levels follow the prints, in their order
                assert (side, tick, lots) == prints.pop(0)
            assert lots >= 0 and tick > 0
            if lots: sides[side][tick] = lots
            else: del sides[side][tick]  # KeyError: a level deleted that was not there
        elif kind == CLEAR: sides = {BUY: {}, SELL: {}}
        if flags & LAST:
            assert sides[BUY] and sides[SELL], 'a side ran dry'
            assert max(sides[BUY]) < min(sides[SELL]), 'the book is crossed'
    assert not prints


def check_rows(events: Events) -> None:
    first = int(np.argmax(events.flags >= LAST))
    assert (events.kind[0], events.kind[first], events.tick[first]) == (CLEAR, CONTROL, RESUME)
    assert set(events.kind[1:first]) == {SNAPSHOT} and set(events.kind[first + 1:]) <= {DEPTH, TRADE}
    assert events.flags[-1] & LAST
    assert events.exchange_ns[0] == START_NS
    assert (np.diff(events.exchange_ns) >= 0).all() and (np.diff(events.local_ns) >= 0).all()
    assert (events.local_ns > events.exchange_ns).all()
    trades, others = events[events.kind == TRADE], events[events.kind != TRADE]
    assert (np.diff(trades.id) == 1).all() and (np.diff(others.id) >= 0).all()
    inside = events.flags[:-1] < LAST  # rows of one message share its times and its kind
    for column in (events.exchange_ns, events.local_ns): assert (column[1:][inside] == column[:-1][inside]).all()
    assert (events.kind[1:] == events.kind[:-1])[first + 1:][inside[first + 1:]].all()


@pytest.mark.parametrize('seed', range(4))
def test_rows_are_what_an_engine_relies_on(seed: int) -> None:
    events = SyntheticMarket(seed).events(600 * SECOND)
    check_rows(events)
    replay(events)
    assert (events.local_ns - events.exchange_ns >= 2_000_000).all()


@pytest.mark.parametrize('parameters', ODD)
def test_odd_parameters_never_break_the_book(parameters: SyntheticParameters) -> None:
    events = SyntheticMarket(3, parameters).step(60_000 if parameters.takers_per_second else 5_000)
    check_rows(events)
    replay(events)


def test_books_agree_after_hours() -> None:
    market = SyntheticMarket(5)
    events = market.events(2 * 3600 * SECOND)
    book = OrderBook(market.instrument).apply(events)
    assert book.crossed == 0 and not book.stale
    path = touch_path(events)
    assert (path.bid_tick < path.ask_tick).all() and (path.bid_lots > 0).all() and (path.ask_lots > 0).all()
    mid = (path.bid_tick + path.ask_tick).iloc[-1] / 2
    levels = book.levels(100_000)
    for side in ('bid', 'ask'):  # an order 20 bps away has others in front of it, and behind
        distance = abs(levels.tick[levels.side == side] - mid) / mid * 1e4
        assert (distance < 20).sum() > 50 and (distance > 20).sum() > 50


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.just('rows'), st.integers(1, 3000)) | st.tuples(st.just('time'), st.integers(1, 60 * SECOND)), max_size=8),
       st.integers(SECOND // 20, 30 * SECOND))
def test_cutting_does_not_matter(cuts: list[tuple[str, int]], batch_ns: int) -> None:
    duration, market, parts = 300 * SECOND, SyntheticMarket(11), []
    for how, amount in cuts:
        if how == 'rows': parts.append(market.step(amount))
        else: parts.extend(market.batches(amount, batch_ns))
    duration = max(duration, market.time_ns - START_NS)
    parts.extend(market.batches(START_NS + duration - market.time_ns, batch_ns))
    # a step ends with a row at time_ns: the same nanosecond is not yet over
    stepped_last = any(len(part) and part.exchange_ns[-1] == START_NS + duration for part in parts)
    assert concat(parts).equals(SyntheticMarket(11).events(duration + stepped_last))


def test_cuts_are_where_they_were_asked_for() -> None:
    market = SyntheticMarket(2)
    for number, batch in enumerate(market.batches(30 * SECOND, SECOND)):
        start = START_NS + number * SECOND
        assert market.time_ns == start + SECOND
        assert len(batch) == 0 or start <= batch.exchange_ns[0] <= batch.exchange_ns[-1] < start + SECOND
    for rows in (1, 7, 1000):
        batch = market.step(rows)
        assert len(batch) >= rows and batch.flags[-1] & LAST
        ends = np.flatnonzero(batch.flags >= LAST)
        assert len(ends) == 1 or ends[-2] + 1 < rows + 500  # no more than what completes the last event


def test_seeds() -> None:
    digests = [digest(SyntheticMarket(seed).events(60 * SECOND)) for seed in (0, 1, 2, 3, 2 ** 64 - 1)]
    assert len(set(digests)) == len(digests)
    assert digest(SyntheticMarket(3).events(60 * SECOND)) == digests[3]


def test_global_generators_are_left_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    one = digest(SyntheticMarket(3).events(60 * SECOND))
    assert (np.random.random(3) == expected).all()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert digest(SyntheticMarket(3).events(60 * SECOND)) == one


def test_another_process_makes_the_same_bytes() -> None:
    script = ('from cryptoexp.market.synthetic import SyntheticMarket\nfrom cryptoexp.market.events import Digest\n'
              'print(Digest().update(SyntheticMarket(7).events(600 * 10 ** 9)).hexdigest())')
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '5'}
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == digest(SyntheticMarket(7).events(600 * SECOND))


@pytest.mark.parametrize('seed', range(10))
def test_the_market_is_as_stated(seed: int) -> None:
    market = SyntheticMarket(seed)
    events = market.events(4 * 3600 * SECOND)
    path = touch_path(events)
    volatility = hourly_volatility(path.exchange_ns.to_numpy(), ((path.bid_tick + path.ask_tick) / 2).to_numpy())
    assert 0.003 < volatility < 0.008
    facts = describe(events, market.instrument)
    assert 0.2 < facts['spread, mean (bps)'] < 1
    assert 20 < facts['messages per second'] < 45
    assert 0.05 < facts['trades, share of rows'] < 0.15
    assert 0.6 < facts['cancels, share of losses at the best'] < 0.9


def test_wrong_parameters_are_all_named() -> None:
    with pytest.raises(ValueError) as raised:
        SyntheticParameters(start_price=-1, taker_children=1.0, sweep_share=True, jitter_ms=float('inf'))
    for name in ('start_price', 'taker_children', 'sweep_share', 'jitter_ms'): assert name in str(raised.value)
