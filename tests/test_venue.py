"Latency and queue models against plain Python and against hftbacktest itself; presets; the money of contracts against exact fractions"
from __future__ import annotations

import math
import pickle
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.config import ConfigError, MarketMakingConfig
from cryptoexp.market.instrument import MONEY_SCALE, Instrument
from cryptoexp.trading.venue import (
    FEES,
    QUEUE_AHEAD,
    QUEUE_BEHIND,
    QUEUE_POWER2,
    QUEUES,
    VENUES,
    Latency,
    QueueModel,
    Venue,
    entry_latency,
    funding_e8,
    inverse_value_e8,
    linear_value_e8,
    money_numbers,
    named_venue,
    profit_e8,
    queue_after,
    response_latency,
)

SECOND, MS = 10 ** 9, 10 ** 6
MIDNIGHT = 1_723_161_600 * SECOND
FAMILY = QUEUES[:-1]  # all that queue_after answers for


# ---- latency against plain Python: no cursor, no bisection, the table read from its start for every question

def between(time: int, x1: int, y1: int, x2: int, y2: int) -> int:
    return int(float(y2 - y1) / float(x2 - x1) * float(time - x1)) + y1


def plain_entry(table: list[list[int]], time: int) -> int:
    if len(table) == 1 or time < table[0][0]: return table[0][1] - table[0][0]
    for (sent, reached, heard), (sent2, reached2, heard2) in pairwise(table):
        if not sent <= time < sent2: continue
        if reached and reached2: return between(time, sent, reached - sent, sent2, reached2 - sent2)
        return -max(1, between(time, sent, heard - sent, sent2, heard2 - sent2))
    return table[-1][1] - table[-1][0]


def plain_response(table: list[list[int]], time: int) -> int:
    if len(table) == 1 or time < table[0][1]: return table[0][2] - table[0][1]
    for (_, reached, heard), (_, reached2, heard2) in pairwise(table):
        if reached <= time < reached2: return max(0, between(time, reached, heard - reached, reached2, heard2 - reached2))
    return table[-1][2] - table[-1][1]


@st.composite
def latency_tables(draw: Any) -> list[list[int]]:
    "Sorted requests (some at the same time), some refused, never the first or the last"
    start, count = draw(st.sampled_from([0, 1, 1_000, MIDNIGHT])), draw(st.integers(1, 10))
    delays, rows, time, reached = st.integers(0, 50) | st.integers(0, 30 * MS), [], start, 0
    for row in range(count):
        time += draw(st.integers(0, 40) | st.integers(0, 20 * MS))
        if draw(st.integers(0, 3)) == 0 and 0 < row < count - 1: rows.append([time, 0, time + 1 + draw(delays)])
        else:
            reached = max(reached, time + draw(delays), 1)
            rows.append([time, reached, reached + draw(delays)])
    return rows


@settings(deadline=None, max_examples=300)
@given(latency_tables(), st.data())
def test_latency_is_as_plain_python_says(table: list[list[int]], data: st.DataObject) -> None:
    "With one cursor for all questions, asked in any order, and right on the rows, one nanosecond before and after"
    latency, cursor = Latency.samples(np.array(table)), np.zeros(2, np.int64)
    edges = [time + shift for row in table for time in row if time for shift in (-1, 0, 1)]
    low, high = min(edges), max(edges) + 10
    times = data.draw(st.lists(st.sampled_from(edges) | st.integers(max(0, low), high), min_size=1, max_size=30))
    if data.draw(st.booleans()): times.sort()
    for time in times:
        assert entry_latency(latency.table, time, cursor) == plain_entry(table, time)
        assert response_latency(latency.table, time, cursor) == plain_response(table, time)
    assert latency.entry_ns(times).tolist() == [plain_entry(table, time) for time in times]
    assert latency.response_ns(times).tolist() == [plain_response(table, time) for time in times]


def test_a_cursor_of_a_longer_table_does_no_harm() -> None:
    table = np.array([[0, 5, 9], [10, 17, 20]])
    assert entry_latency(table, 5, np.array([99, 99])) == 6
    assert response_latency(table, 11, np.array([99, 99])) == 4 + int(-1 / 12 * 6)


def test_time_between_refusals_is_refused() -> None:
    latency = Latency.drawn(1, MIDNIGHT, MIDNIGHT + 100 * SECOND, 5, .5, 100, .3)
    request, exchange, _ = latency.table.T
    times = np.arange(MIDNIGHT, MIDNIGHT + 100 * SECOND, 7 * MS)
    row = np.searchsorted(request, times, 'right') - 1
    refused = (exchange[row] == 0) | (exchange[row + 1] == 0)
    assert refused.sum() > 1000
    assert ((latency.entry_ns(times) < 0) == refused).all()
    assert (latency.response_ns(times) >= 0).all()


def test_drawn_latency_is_reproducible_and_as_told() -> None:
    one = Latency.drawn(7, MIDNIGHT, MIDNIGHT + 3600 * SECOND, 5, .4, 100, .02)
    assert one == Latency.drawn(7, MIDNIGHT, MIDNIGHT + 3600 * SECOND, 5, .4, 100, .02)
    assert one != Latency.drawn(8, MIDNIGHT, MIDNIGHT + 3600 * SECOND, 5, .4, 100, .02)
    assert pickle.loads(pickle.dumps(one)) == one
    request, exchange, response = one.table[one.table[:, 1] > 0].T
    for delay in (exchange - request, response - exchange):   # a median of 36,000 draws: standard error 0.26 %
        assert abs(np.median(delay) / 5e6 - 1) < .015
        assert abs(np.log(delay).std() - .4) < .02
    assert abs((one.table[:, 1] == 0).mean() - .02) < .004
    assert request[0] == MIDNIGHT and request[-1] >= MIDNIGHT + 3600 * SECOND
    assert (np.diff(exchange) >= 0).all()


def test_latency_from_feed() -> None:
    exchange = MIDNIGHT + np.arange(0, 10 * SECOND, 300 * MS)
    local = exchange + 2 * MS + np.arange(exchange.size) * 1000
    latency = Latency.from_feed(exchange, local, 4, 3)
    request, reached, heard = latency.table.T
    assert len(latency.table) == 10 and (request // SECOND == np.unique(local // SECOND)).all()
    kept = np.isin(local, request)
    assert (reached - request == 4 * (local - exchange)[kept]).all() and (heard - reached == 3 * (local - exchange)[kept]).all()


@pytest.mark.parametrize(('change', 'said'), [
    ((1, 0, -5), 'row 1 was sent before 1970'), ((2, 0, 1), 'row 2 was sent before the row above'),
    ((1, 1, 3), 'row 1 reached the venue before it was sent'), ((3, 2, 5), 'row 3 was answered before'),
    ((0, 1, 0), 'row 0 was refused, and stands for all time'), ((3, 1, 0), 'row 3 was refused, and stands'),
    ((1, 1, 31), 'row 2 reached the venue before a request that was sent earlier')])
def test_a_flaw_of_samples_is_told_by_its_row(change: tuple[int, int, int], said: str) -> None:
    table = np.array([[10, 15, 16], [15, 22, 40], [20, 30, 50], [30, 40, 50]])
    Latency.samples(table)
    row, column, value = change
    table[row, column] = value
    with pytest.raises(ConfigError, match=said): Latency.samples(table)


def test_flaws_of_samples_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught: Latency.samples(np.array([[10, 0, 16], [5, 6, 3], [20, 19, 30], [30, 0, 30]]))
    told = ' '.join(problem.text for problem in caught.value.problems)
    assert all(part in told for part in ('sent before the row above', 'reached the venue before it was sent', 'answered before it reached',
                                         'refusal arrived before', 'row 0 was refused', '(and 1 more rows)'))


@pytest.mark.parametrize('table', [np.zeros((0, 3), int), np.zeros((2, 2), int), np.zeros(3, int), np.array([[1., 2., 3.]])])
def test_what_is_no_table(table: np.ndarray) -> None:
    with pytest.raises(ConfigError, match='latency'): Latency.samples(table)


@pytest.mark.parametrize(('call', 'fields'), [
    (lambda: Latency.constant(-1, 1e9), ['entry_latency_ms', 'response_latency_ms']),
    (lambda: Latency.drawn(-1, 5, 5, 0, -1, 0, 2), ['end_ns', 'median_ms', 'spread', 'every_ms', 'reject', 'seed']),
    (lambda: Latency.drawn(1, 0, 1 << 60, 5, .5), ['every_ms']),
    (lambda: Latency.from_feed(np.array([5]), np.array([5]), 0, math.nan), ['entry_factor', 'response_factor', 'local_ns']),
    (lambda: Latency.from_feed(np.array([1, 2]), np.array([9, 5]), 1, 1), ['local_ns']),
    (lambda: Latency.from_feed(np.array([], int), np.array([], int), 1, 1), ['local_ns'])])
def test_what_no_latency_can_be_made_of(call: Any, fields: list[str]) -> None:
    with pytest.raises(ConfigError) as caught: call()
    assert [problem.field for problem in caught.value.problems] == fields


# ---- the queue against plain Python

def quotient(one: float, other: float) -> float:
    "Division as floats do it: 0/0 is NaN, anything else by zero is infinite"
    if other: return one / other
    return math.nan if one == 0 or one != one else math.copysign(math.inf, one) * math.copysign(1, other)


def power(base: float, exponent: float) -> float:
    try: return math.pow(base, exponent)
    except ValueError: return math.nan
    except OverflowError: return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf


def logarithm(value: float) -> float: return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def smaller(one: float, other: float) -> float:
    "Rust's f64::min: a NaN loses"
    return other if math.isnan(one) else one if math.isnan(other) else min(one, other)


def plain_queue(name: str, n: float, front: float, trades: float, previous: float, new: float) -> float:
    if name == 'behind': return smaller(front, new)
    change = previous - new - trades
    if change < 0: return smaller(front, new)
    if name == 'ahead': return smaller(front - change if change < front else min(front, 0.0), new)
    back = previous - front
    share = {'power': lambda: quotient(power(back, n), power(back, n) + power(front, n)),
             'power2': lambda: quotient(power(back, n), power(back + front, n)),
             'power3': lambda: 1.0 - power(quotient(front, front + back), n),
             'log': lambda: quotient(logarithm(1.0 + back), logarithm(1.0 + back) + logarithm(1.0 + front)),
             'log2': lambda: quotient(logarithm(1.0 + back), logarithm(1.0 + (back + front)))}[name]()
    if math.isinf(share): share = 1.0
    return smaller(front - (1.0 - share) * change + smaller(back - share * change, 0.0), new)


def same(one: float, other: float) -> bool: return one == other or (math.isnan(one) and math.isnan(other))


QUANTITIES = st.sampled_from([0.0, 1.0, -1.0, 0.5]) | st.integers(0, 1000).map(float) | st.floats(-10, 1e6)
POSITIVE = st.sampled_from([1.0, 2.0, 3.0, .5]) | st.floats(.1, 8)


@settings(deadline=None, max_examples=1000)
@given(st.sampled_from(FAMILY), POSITIVE, QUANTITIES, QUANTITIES, QUANTITIES, QUANTITIES)
def test_queue_is_as_plain_python_says(name: str, n: float, front: float, trades: float, previous: float, new: float) -> None:
    expected = plain_queue(name, n, front, trades, previous, new)
    assert same(queue_after(QUEUES.index(name), n, front, trades, previous, new), expected)


@pytest.mark.parametrize(('name', 'state', 'expected'), [
    ('power', (0.0, 0.0, 0.0, 0.0), 0.0),      # 0/0: the estimate is no number, the new quantity stands
    ('power2', (0.0, 0.0, 0.0, 0.0), 0.0), ('power3', (0.0, 0.0, 0.0, 0.0), 0.0), ('log', (0.0, 0.0, 0.0, 0.0), 0.0),
    ('log2', (0.0, 0.0, 0.0, 0.0), 0.0),
    ('power2', (-3.0, -5.0, 0.0, 2.0), -3.0),  # 9/0: infinite, taken as 1: all of it stood behind
    ('power', (-2.0, 0.0, 5.0, 1.0), 1.0),     # a root of a negative front is no number
    ('log', (-2.0, 0.0, 5.0, 1.0), 1.0), ('behind', (6.0, 0.0, 10.0, math.nan), 6.0)])
def test_queue_where_there_is_no_number(name: str, state: tuple[float, ...], expected: float) -> None:
    exponent = 2.0 if name == 'power2' else .5
    assert queue_after(QUEUES.index(name), exponent, *state) == expected == plain_queue(name, exponent, *state)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(FAMILY), POSITIVE, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40))
def test_every_model_lies_between_the_optimist_and_the_pessimist(name: str, n: float, changes: list[tuple[int, int]]) -> None:
    low = middle = high = displayed = 40.0
    for trades, new in changes:
        low, middle, high = low - trades, middle - trades, high - trades
        low = queue_after(QUEUE_AHEAD, 1.0, low, trades, displayed, new)
        middle = queue_after(QUEUES.index(name), n, middle, trades, displayed, new)
        high = queue_after(QUEUE_BEHIND, 1.0, high, trades, displayed, new)
        displayed = float(new)
        if min(low, middle, high) <= 0: break  # a trade has reached one of them
        assert low <= middle + 1e-9 and middle <= high + 1e-9


def test_queue_without_a_rule() -> None:
    for code in (QUEUES.index('l3'), 99, -1):
        with pytest.raises(ValueError, match='share_behind'): queue_after(code, 1.0, 6.0, 0.0, 10.0, 5.0)
    assert QUEUE_POWER2 == QUEUES.index('power2')


@pytest.mark.parametrize(('arguments', 'said'), [
    (('risk_adverse',), 'did you mean risk_averse'), (('pwoer', 2), 'did you mean power'), ((None,), 'no queue model'),
    (('power',), 'above 0'), (('power2', 0), 'above 0'), (('power3', math.inf), 'above 0'), (('power', '2'), 'above 0'),
    (('power', True), 'above 0'), (('log', 1), 'has none'), (('behind', 1.0), 'has none')])
def test_what_is_no_queue_model(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said): QueueModel(*arguments)


def test_queue_model() -> None:
    assert QueueModel('risk_averse') == QueueModel() and {QueueModel('power', 2): 1}[QueueModel('power', 2.0)] == 1
    assert [QueueModel(name, 2 if name.startswith('power') else None).code for name in QUEUES] == list(range(len(QUEUES)))
    assert QueueModel('power2', 3).after(6, 0, 10, 5) == plain_queue('power2', 3, 6, 0, 10, 5)


# ---- hftbacktest itself

def oracle() -> Any: return pytest.importorskip('hftbacktest', reason='hftbacktest is not installed')


def market_of(events: list[tuple[str, int, float, float]]) -> np.ndarray:
    "Rows of hftbacktest: kind, ns since midnight, price, quantity"
    hft = oracle()
    both = hft.EXCH_EVENT | hft.LOCAL_EVENT
    kinds = {'bid': hft.DEPTH_EVENT | hft.BUY_EVENT, 'ask': hft.DEPTH_EVENT | hft.SELL_EVENT, 'sale': hft.TRADE_EVENT | hft.SELL_EVENT}
    rows = np.zeros(len(events), hft.types.event_dtype)
    for row, (kind, time, price, quantity) in enumerate(events):
        rows[row] = (kinds[kind] | both, MIDNIGHT + time, MIDNIGHT + time + 1, price, quantity, 0, 0, 0)
    return rows


def asset_of(market: np.ndarray, queue: str, exponent: float | None) -> Any:
    "It keeps the address of the rows only: the caller must hold them"
    asset = oracle().BacktestAsset().data(market).linear_asset(1.0).no_partial_fill_exchange().trading_value_fee_model(0.0, 0.0)
    names = {'behind': 'risk_adverse_queue_model', 'log': 'log_prob_queue_model', 'log2': 'log_prob_queue_model2',
             'power': 'power_prob_queue_model', 'power2': 'power_prob_queue_model2', 'power3': 'power_prob_queue_model3'}
    return getattr(asset.tick_size(.1).lot_size(1.0), names[queue])(*(() if exponent is None else (exponent,)))


def send_and_listen(backtest: Any, book: np.ndarray, heard: np.ndarray, gap_ns: int) -> tuple[int, int]:
    "Buys, one each `gap_ns`, near and far in turn; when anything was heard. Compiled by Numba"
    sent_count = heard_count = 0
    backtest.elapse(10_000_000)
    while sent_count < len(book):
        backtest.clear_inactive_orders(0)
        backtest.submit_buy_order(0, sent_count + 1, 96.0 if sent_count % 2 == 0 else 80.0, 1.0, 0, 0, False)  # GTC, limit
        sent = book[sent_count] = backtest.current_timestamp
        sent_count += 1
        while backtest.current_timestamp < sent + gap_ns and heard_count < len(heard):
            result = backtest.wait_next_feed(True, sent + gap_ns - backtest.current_timestamp)
            if result == 1: return sent_count, heard_count
            if result == 3:
                heard[heard_count] = backtest.current_timestamp
                heard_count += 1
    return sent_count, heard_count


@pytest.mark.parametrize(('seed', 'reject'), [(3, .15), (4, .5), (5, 0.0)])
def test_latency_is_as_hftbacktest_has_it(seed: int, reject: float) -> None:
    "To the nanosecond: responses, refusals, and fills that happen while the venue refuses"
    import numba
    latency = Latency.drawn(seed, MIDNIGHT, MIDNIGHT + 60 * SECOND, 20, .8, 100, reject)
    step, count = 20 * MS, 3000
    events = [('sale', row * step, 95.0, 1.0) if row % 5 == 4 else
              (('bid', 'ask')[row % 2], row * step, (90.0, 110.0)[row % 2], 1.0 + row % 3) for row in range(count)]
    market, table = market_of(events), np.zeros(len(latency.table), [(name, 'i8') for name in ('req_ts', 'exch_ts', 'resp_ts', '_padding')])
    table['req_ts'], table['exch_ts'], table['resp_ts'] = latency.table.T
    backtest = oracle().HashMapMarketDepthBacktest([asset_of(market, 'behind', None).intp_order_latency(table)])
    sent, heard = np.zeros(430, np.int64), np.zeros(4000, np.int64)
    sent_count, heard_count = numba.njit(send_and_listen)(backtest, sent, heard, 137 * MS)
    backtest.close()
    assert sent_count == len(sent) and heard_count > 400

    entry = latency.entry_ns(sent)
    accepted = entry > 0
    arrived = np.maximum.accumulate((sent + entry)[accepted])                # first in, first out
    trades = MIDNIGHT + np.arange(4, count, 5) * step
    near = arrived[np.flatnonzero(accepted) % 2 == 0]
    fills = trades[np.searchsorted(trades, near, 'right')]                   # the next sale goes through the near ones
    said = [(sent[~accepted], (sent - entry)[~accepted])] + [(times, times + latency.response_ns(times)) for times in (arrived, fills)]
    acted, due = (np.concatenate(column) for column in zip(*said))
    expected = np.unique(np.maximum.accumulate(due[np.argsort(acted, kind='stable')]))
    assert np.array_equal(np.unique(heard[:heard_count]), expected[expected <= heard[:heard_count].max()])

    whole = np.flatnonzero(latency.table[:, 1] > 0)
    place = np.searchsorted(latency.table[whole, 1], fills, 'right')
    held = sum(0 < at < len(whole) and whole[at] - whole[at - 1] > 1 for at in place)
    assert (accepted.all() and held == 0) if reject == 0 else ((~accepted).sum() > 100 and held >= 10)


def fill_time(backtest: Any) -> int:
    "One buy at 100; when the venue filled it, ns since midnight, or 0. Compiled by Numba"
    backtest.elapse(1_000_000)
    backtest.submit_buy_order(0, 1, 100.0, 1.0, 0, 0, True)
    while backtest.position(0) == 0.0:
        result = backtest.wait_next_feed(True, 10_000_000_000)
        if result == 1: break
    return 0 if backtest.position(0) == 0.0 else backtest.orders(0).get(1).exch_timestamp


@pytest.mark.parametrize(('name', 'exponent'), [('behind', None), ('power', 1.0), ('power', 3.0), ('power2', 2.0), ('power3', 3.0),
                                                ('log', None), ('log2', None)])
def test_queue_is_as_hftbacktest_has_it(name: str, exponent: float | None) -> None:
    "One order on a level that changes and trades at random: filled by the same print"
    import numba
    compiled, model, random, times = numba.njit(fill_time), QueueModel(name, exponent), np.random.default_rng(11), []
    for _ in range(60):
        displayed = float(random.integers(5, 60))
        events, changes = [('bid', 0, 100.0, displayed), ('ask', 0, 110.0, 9.0)], []
        for row in range(80):
            if random.random() < .35: change = ('sale', float(random.integers(1, 6)))
            else: change = ('bid', float(max(0, (displayed + random.integers(-9, 9)))))
            if change[0] == 'bid': displayed = change[1]
            changes.append(change)
            events.append((change[0], (10 + row) * MS, 100.0, change[1]))
        front = shown = events[0][3]
        traded, expected = 0.0, 0
        for row, (kind, quantity) in enumerate(changes):
            if kind == 'bid': front, shown, traded = model.after(front, traded, shown, quantity), quantity, 0.0
            else:
                front, traded = front - quantity, traded + quantity
                if front <= -.5:
                    expected = MIDNIGHT + (10 + row) * MS
                    break
        market = market_of(events)
        asset = asset_of(market, name, exponent).constant_order_latency(1000, 1000)
        backtest = oracle().HashMapMarketDepthBacktest([asset])
        times.append(expected)
        assert compiled(backtest) == expected, f'{model}: {changes}'
        backtest.close()
    assert len(set(times)) > 20 and 0 < sum(time > 0 for time in times)


# ---- the venue

@pytest.mark.parametrize('name', FEES)
def test_presets(name: str) -> None:
    venue = VENUES[name]()
    assert venue == named_venue(name) and venue.name == name and venue.source and pickle.loads(pickle.dumps(venue)) == venue
    assert venue.maker_fee_e8 == round(venue.maker_fee * 1e8) and venue.taker_fee_e8 == round(venue.taker_fee * 1e8)
    assert venue.maker_fee <= venue.taker_fee
    changed = VENUES[name](fills='whole', queue=QueueModel('log'))
    assert (changed.fills, changed.queue.name, changed.source) == ('whole', 'log', venue.source)
    assert venue.with_(maker_fee=.0003, taker_fee=.001).source == ''   # no longer what the source says


def test_every_problem_of_a_venue_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        Venue(name=1, maker_fee=.5, taker_fee=-.1, latency=5, queue='log', fills='some', kind='option', contract_size=-1,  # type: ignore[arg-type]
              funding=np.array([[2, 10_000], [1, 90 * 10 ** 6]]), fee_asset=None, source=0)                                # type: ignore[arg-type]
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ['maker_fee', 'taker_fee', 'name', 'latency', 'queue', 'fee_asset', 'source', 'fills', 'kind', 'contract_size',
                      'funding', 'funding']


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(maker_fee=-.002), 'check the signs'), (dict(kind='inverse'), 'needs one'), (dict(kind='spot', contract_size=10), 'has none'),
    (dict(contract_size='many'), 'not a finite number'), (dict(kind='spot', funding=np.array([[1, 1]])), 'pays none'),
    (dict(funding=np.array([[1., 1.]])), 'write integers'), (dict(funding=np.array([1, 1])), 'two columns'),
    (dict(makerfee=0), 'did you mean maker_fee'), (dict(maker_fee=math.nan), 'not a finite number')])
def test_what_a_venue_can_not_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said): Venue().with_(**changes)


def test_venue_from_config() -> None:
    config = MarketMakingConfig(maker_fee=-.0001, taker_fee=.0004, entry_latency_ms=3, response_latency_ms=7.5)
    venue = Venue.from_config(config, fills='whole')
    assert (venue.maker_fee, venue.taker_fee, venue.fills, venue.queue) == (-.0001, .0004, 'whole', QueueModel('behind'))
    assert venue.latency == Latency.constant(3, 7.5)
    assert (venue.latency.entry_ns([0]), venue.latency.response_ns([0])) == ([3 * MS], [7_500_000])
    with pytest.raises(ConfigError, match='did you mean binance-usdm'): named_venue('binance-usd')
    funded = Venue(funding=np.array([[1, 10_000]]))
    assert funded == Venue(funding=np.array([[1, 10_000]])) != Venue() and funded != Venue(funding=np.array([[1, 10_001]]))


# ---- the money of contracts

def nearest_whole(value: Fraction) -> int: return int(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)


@settings(deadline=None)
@given(st.integers(1, 10 ** 7), st.integers(-10 ** 6, 10 ** 6), st.integers(1, 1000), st.sampled_from([1, 2, 10, 999, 10 ** 6]))
def test_linear_value(ticks: int, lots: int, multiplier: int, divisor: int) -> None:
    value = linear_value_e8(ticks, lots, multiplier, divisor)
    assert value == nearest_whole(Fraction(ticks * lots * multiplier, divisor))


@settings(deadline=None)
@given(st.integers(1, 10 ** 7), st.integers(-10 ** 6, 10 ** 6), st.sampled_from([1, 7, 10 ** 8, 10 ** 11, 10 ** 12 + 1]),
       st.sampled_from([1, 2, 3, 1000]))
def test_inverse_value(ticks: int, lots: int, multiplier: int, divisor: int) -> None:
    assert inverse_value_e8(ticks, lots, multiplier, divisor) == nearest_whole(Fraction(lots * multiplier, ticks * divisor))


@settings(deadline=None)
@given(st.integers(-10 ** 16, 10 ** 16), st.integers(-10 ** 7, 10 ** 7))
def test_funding(value: int, rate: int) -> None:
    assert funding_e8(value, rate) == nearest_whole(Fraction(value * rate, MONEY_SCALE))
    assert funding_e8(-value, rate) == -funding_e8(value, rate)


@pytest.mark.parametrize('inverse', [True, False])
def test_a_closed_position_earns_the_same_however_it_is_cut(inverse: bool) -> None:
    "Sums of fills: within half a unit a fill of exact arithmetic, and a long and a short sum to nothing"
    random = np.random.default_rng(5)
    value_of: Any = inverse_value_e8 if inverse else linear_value_e8
    multiplier, divisor = (10 ** 11, 1) if inverse else (7, 3)
    cost, exact, held = 0, Fraction(0), 0
    for ticks, lots in zip(random.integers(400_000, 600_000, 200).tolist(), random.integers(-50, 50, 200).tolist()):
        cost += value_of(ticks, lots, multiplier, divisor)
        exact += Fraction(lots * multiplier, ticks * divisor) if inverse else Fraction(ticks * lots * multiplier, divisor)
        held += lots
    value = value_of(500_000, held, multiplier, divisor)
    sign = 1 if inverse else -1
    marked = Fraction(held * multiplier, 500_000 * divisor) if inverse else Fraction(500_000 * held * multiplier, divisor)
    assert abs(profit_e8(inverse, cost, value) - sign * (exact - marked)) <= Fraction(201, 2)
    assert profit_e8(inverse, -cost, -value) == -profit_e8(inverse, cost, value)


def test_money_numbers() -> None:
    perpetual = Instrument('binance', 'BTCUSD_PERP', 'BTC', 'USD', '0.1', 1, kind='inverse')
    assert money_numbers(Venue(contract_size=100), perpetual) == ('inverse', 10 ** 11, 1)
    assert money_numbers(Venue(kind='inverse', contract_size=10), Instrument('x', 'X', 'A', 'B', '0.03', 1)) == ('inverse', 10 ** 11, 3)
    spot = Instrument('binance', 'BTCUSDT', 'BTC', 'USDT', '0.01', '0.00001')
    assert money_numbers(Venue(), spot) == ('spot', 10, 1) and money_numbers(Venue(kind='linear'), spot) == ('linear', 10, 1)
    with pytest.raises(ConfigError, match='what is one worth'): money_numbers(Venue(), perpetual)
    with pytest.raises(ConfigError, match='name one of'): money_numbers(Venue(), Instrument('x', 'X', 'A', 'B', 1, 1, kind='option'))
