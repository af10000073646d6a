"""What hftbacktest 2.4.4 does, worked out by hand on tiny tapes: the rules that the matching engine follows, and the bugs it does not.

Times are nanoseconds after T, prices ticks of 0.1, quantities lots of 1. A request takes 10 ns to the exchange, its answer 10 ns back."""
from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from _stream import stream
from hft import (
    ASKED,
    COUNTS,
    FOK,
    GTC,
    IOC,
    MARKET,
    ORDER,
    POST_ONLY,
    SENT,
    STATUS,
    STRATEGIES,
    ByHand,
    Case,
    fuzzed_tape,
    in_order,
    run,
    tape,
)
from hft_rules import Interpolated
from hft_rules import play as by_the_rules
from hftbacktest.types import EXCH_EVENT, LOCAL_EVENT

T = 1_000_000_000
DEPTH, TRADE, CLEAR = 1, 2, 3
BUY, SELL = 1, -1
NEW, EXPIRED, FILLED, CANCELED, PARTLY = 1, 2, 3, 4, 5
NO_BID, NO_ASK = np.iinfo(np.int64).min, np.iinfo(np.int64).max
BOOK = [(DEPTH, BUY, 0, 999, 5), (DEPTH, BUY, 0, 998, 5), *((DEPTH, SELL, 0, tick, 5) for tick in (1001, 1002, 1003, 1004))]
Row = tuple[int, int, int, int, float]  # kind, side, exchange time after T, tick, lots; heard 1 ns later


def small(*rows: Row, **words: Any) -> Case:
    "Five lots at each of 998, 999 | 1001 … 1004, then these rows; one late row far away keeps time going until T + 100,000"
    told = [*BOOK, *rows, (DEPTH, BUY, 100_000, 900, 1)]
    words.setdefault('data', tape([(kind, side, T + ns, T + ns + 1, tick*0.1, float(lots)) for kind, side, ns, tick, lots in told]))
    usual = dict(lot_size=1.0, latency=np.array([[0, 10, 20]]), interval_ns=100, strategy='script', maker_fee=0.0, taker_fee=0.0)
    return Case(**{**usual, **words})


def play(*actions: tuple[int, ...]) -> tuple[float, ...]:
    "A script for one asset and level 0: (decision, side, tick, lots, time in force); decision k is at T + 100·(k + 1)"
    rows = [(decision, 0, int(side < 0), 0, tick, lots, force) for decision, side, tick, lots, force in actions]
    return tuple(float(word) for row in rows for word in row)


def fills(outcome: Any) -> list[tuple[int, ...]]:
    "Fills as (time after T, side, tick, lots, maker)"
    return [(ns - T, side, tick, lots, maker) for _, ns, side, tick, lots, maker, _ in outcome.fills.tolist()]


@contextmanager
def one_order(side: int, tick: int, lots: float, force: int, *rows: Row, **words: Any) -> Iterator[ByHand]:
    "An order sent at T + 100, so it arrives at T + 110"
    with ByHand.of(small(*rows, **words)) as hand:
        hand.elapse(100)
        assert hand.send(1, side, tick, lots, force) == 0
        yield hand


def state(hand: ByHand, number: int = 1) -> tuple[int, float, float]:
    order = hand.order(number)
    assert order is not None
    return int(order['status']), float(order['leaves_qty']), float(hand.values()['position'])


# ---- when a resting order fills

def test_a_queue_must_be_overrun_not_just_emptied() -> None:
    "Five lots are ahead; a trade of five empties the queue and fills nothing, the next lot traded fills the order, whole, at its price"
    outcome = run(small((TRADE, SELL, 200, 999, 5), (TRADE, SELL, 300, 999, 1), parameters=play((0, BUY, 999, 3, POST_ONLY))))
    assert fills(outcome) == [(300, BUY, 999, 3, 1)]
    assert outcome.position_lots.tolist() == [3] and outcome.balance.tolist() == [pytest.approx(-299.7)]


def test_depth_rows_move_the_queue_but_never_fill() -> None:
    "The level shrinks to nothing: the order is first; only a trade fills it"
    rows, order = [(DEPTH, BUY, 200, 999, 0), (DEPTH, BUY, 300, 999, 9)], play((0, BUY, 999, 3, POST_ONLY))
    assert fills(run(small(*rows, parameters=order))) == []
    assert fills(run(small(*rows, (TRADE, SELL, 400, 999, 1), parameters=order))) == [(400, BUY, 999, 3, 1)]


def test_a_trade_through_fills_whatever_the_queue() -> None:
    "And all of the order, though one lot only was traded"
    outcome = run(small((TRADE, SELL, 200, 998, 1), parameters=play((0, BUY, 999, 30, POST_ONLY))))
    assert fills(outcome) == [(200, BUY, 999, 30, 1)]


def test_two_orders_of_ours_share_nothing() -> None:
    "One lot through two orders of ten fills both: own orders are not ahead of one another, a trade's volume is not used up"
    with one_order(BUY, 999, 10, POST_ONLY, (TRADE, SELL, 300, 998, 1)) as hand:
        hand.send(2, BUY, 999, 10)
        hand.elapse(300)
        assert state(hand)[:2] == state(hand, 2)[:2] == (FILLED, 0.0)


def test_the_best_of_the_other_side_fills_what_it_reaches() -> None:
    "An ask row that betters the best ask fills the bids at its tick and above, as maker, each at its own price; no trade is needed"
    outcome = run(small((DEPTH, SELL, 200, 999, 4), parameters=play((0, BUY, 1000, 2, POST_ONLY), (1, BUY, 0, 0, 0))))
    assert fills(outcome) == [(200, BUY, 1000, 2, 1)]
    with one_order(BUY, 999, 2, POST_ONLY, (DEPTH, SELL, 200, 1000, 4), (DEPTH, SELL, 300, 1000, 7), (DEPTH, SELL, 400, 999, 1)) as hand:
        hand.elapse(250)
        assert state(hand)[0] == NEW
        hand.elapse(100)
        assert state(hand)[0] == FILLED


def test_all_rows_of_a_time_come_before_an_order_that_arrives_then() -> None:
    "A trade through at 110 is over when the order arrives at 110; at 111 it fills. A cancel arrives at 210, after that time's trades"
    for ns, expected in ((110, NEW), (111, FILLED)):
        with one_order(BUY, 999, 1, POST_ONLY, (TRADE, SELL, ns, 998, 1)) as hand:
            hand.elapse(200)
            assert state(hand)[0] == expected
    for ns, expected in ((210, FILLED), (211, CANCELED)):
        with one_order(BUY, 999, 1, POST_ONLY, (TRADE, SELL, ns, 998, 1)) as hand:
            hand.elapse(100)
            assert hand.cancel(1) == 0
            hand.elapse(100)
            assert state(hand)[0] == expected


def test_half_a_lot_past_the_queue_counts_as_a_lot() -> None:
    """power(1): the order comes behind 5, the level grows to q and shrinks by one, of which 5/q are taken from ahead; then 5 are traded.

    Ahead is now −5/q: −0.5 is rounded away from zero, to a whole lot, and fills; −0.4167 is rounded to nothing and waits for a trade."""
    for q, expected in ((10, [(220, BUY, 999, 1, 1)]), (12, [(230, BUY, 999, 1, 1)])):
        rows = [(DEPTH, BUY, 200, 999, q), (DEPTH, BUY, 210, 999, q - 1), (TRADE, SELL, 220, 999, 5), (TRADE, SELL, 230, 999, 1)]
        outcome = run(small(*rows, queue=('power', 1.0), parameters=play((0, BUY, 999, 1, POST_ONLY))))
        assert fills(outcome) == expected, q


# ---- orders that take

@pytest.mark.parametrize('force', [GTC, IOC, FOK, MARKET])
def test_whole_orders_take_everything_at_the_best_price(force: int) -> None:
    "Twelve lots at 1001 where five are shown; the limit does not matter, nor does the depth"
    with one_order(BUY, 1003, 12, force) as hand:
        hand.elapse(50)
        order = hand.order(1)
        assert order is not None and (order['exec_price_tick'], order['exec_qty'], order['maker']) == (1001, 12, False)
    outcome = run(small(parameters=play((0, SELL, 998, 12, force), (1, SELL, 0, 0, 0))))
    assert fills(outcome) == [(110, SELL, 999, 12, 0)]


def test_what_does_not_cross() -> None:
    "At 1000, inside the spread: post-only and GTC rest, IOC and FOK expire, MARKET has no limit"
    for force, expected in ((POST_ONLY, NEW), (GTC, NEW), (IOC, EXPIRED), (FOK, EXPIRED), (MARKET, FILLED)):
        with one_order(BUY, 1000, 3, force) as hand:
            hand.elapse(50)
            assert state(hand)[0] == expected


def test_post_only_is_judged_by_the_exchange_at_arrival() -> None:
    "The ask at 1001 goes at 110, the time of arrival: the bid at 1001 rests. A nanosecond later it is too late: expired, told at 120"
    for ns, expected in ((110, NEW), (111, EXPIRED)):
        with one_order(BUY, 1001, 1, POST_ONLY, (DEPTH, SELL, ns, 1001, 0)) as hand:
            hand.elapse(19)
            assert state(hand)[0] == 0  # on its way, nothing heard
            hand.elapse(1)
            assert state(hand)[0] == expected
    outcome = run(small(parameters=play((0, BUY, 1001, 1, POST_ONLY), (1, BUY, 0, 0, 0))))
    assert (outcome.expired, outcome.unfilled, len(outcome.fills)) == (1, 0, 0)


# ---- requests and answers

def test_a_cancel_that_comes_too_late() -> None:
    "Filled at 205, cancel sent at 200 and arriving at 210: rejected, the fill counts"
    outcome = run(small((TRADE, SELL, 205, 998, 1), parameters=play((0, BUY, 999, 1, POST_ONLY), (1, BUY, 0, 0, 0))))
    assert fills(outcome) == [(205, BUY, 999, 1, 1)]
    assert (outcome.cancels, outcome.late, outcome.submitted) == (1, 1, 1)


def test_an_unconfirmed_order_cannot_be_cancelled() -> None:
    "Sent at 100, confirmed at 300 (100 each way): the unwished order stays at 200, is cancelled at 300; the wish of 200 is sent at once"
    outcome = run(small(latency=np.array([[0, 100, 200]]), parameters=play((0, BUY, 999, 1, POST_ONLY), (1, BUY, 998, 1, POST_ONLY))))
    assert (outcome.not_cancellable, outcome.cancels) == (1, 1)
    assert outcome.orders[:, [2, SENT, STATUS]].tolist() == [[999, T + 100, CANCELED], [998, T + 200, NEW]]


def test_an_order_at_a_wished_tick_stays() -> None:
    "Whatever the lots: the wish of two lots at the same tick sends nothing. An order whose cancel is on its way does not count as there"
    outcome = run(small(parameters=play((0, BUY, 999, 1, POST_ONLY), (1, BUY, 999, 2, POST_ONLY))))
    assert (outcome.submitted, outcome.cancels) == (1, 0)
    there_and_back = play((0, BUY, 999, 1, POST_ONLY), (2, BUY, 998, 1, POST_ONLY), (3, BUY, 999, 1, POST_ONLY))
    again = run(small(latency=np.array([[0, 80, 160]]), parameters=there_and_back))
    assert again.orders[:, [2, SENT, STATUS]].tolist() == [[999, T + 100, CANCELED], [998, T + 300, CANCELED], [999, T + 400, NEW]]


def test_numbers_count_over_all_assets() -> None:
    "Asset by asset, bids before asks, level by level"
    data = small().data
    wishes = [(0, asset, side, level, 990 - level if side == 0 else 1010 + level, 1, POST_ONLY)
              for asset in (0, 1) for side in (0, 1) for level in (0, 1)]
    outcome = run(small(data=[data, data], levels=2, parameters=tuple(float(word) for row in wishes for word in row)))
    assert outcome.orders[:, :3].tolist() == [[asset, side, tick] for _, asset, side, _, tick, _, _ in wishes]


# ---- modify, as 2.4.4 does it

def test_modify_at_the_same_tick_keeps_the_queue_when_it_does_not_grow() -> None:
    "The queue of five is traded away before the change: kept, the next lot fills 2 of them; grown, the order is last again, behind 6"
    rows = [(TRADE, SELL, 150, 998, 5), (DEPTH, BUY, 151, 998, 6), (TRADE, SELL, 400, 998, 1), (TRADE, SELL, 500, 998, 6)]
    for lots, filled_ns, filled in ((2, 400, 2), (3, 400, 3), (4, 500, 3)):  # grown to four, three are filled: a bug, four are right
        with one_order(BUY, 998, 3, POST_ONLY, *rows) as hand:
            hand.elapse(130)
            assert hand.modify(1, 998, lots) == 0
            hand.elapse(300)
            order = hand.order(1)
            assert order is not None and (order['qty'], order['exec_qty'], order['exch_timestamp']) == (lots, filled, T + filled_ns)


@pytest.mark.parametrize('lots', [2, 3, 4])
def test_modify_moves_the_price_and_joins_the_end_of_the_queue(lots: int) -> None:
    "From 998 to 999, there behind 5. The lots change in name only: what fills is the three lots of before (a bug; `lots` is right)"
    with one_order(BUY, 998, 3, POST_ONLY, (TRADE, SELL, 300, 999, 5), (TRADE, SELL, 400, 999, 1)) as hand:
        hand.elapse(100)
        hand.modify(1, 999, lots)
        assert hand.cancel(1) == hand.modify(1, 997, 3) == 11  # one request at a time
        hand.elapse(150)
        order = hand.order(1)
        assert order is not None and (order['price_tick'], order['qty'], order['leaves_qty']) == (999, lots, 3)
        assert order['exch_timestamp'] == T + 210
        hand.elapse(100)
        assert state(hand) == (FILLED, 0, 3)


def test_modify_that_would_cross_is_a_new_order_that_crosses() -> None:
    "Post-only: the order is gone, expired. GTC: it takes at the best ask"
    for force, expected in ((POST_ONLY, (EXPIRED, 3, 0)), (GTC, (FILLED, 0, 3))):
        with one_order(BUY, 998, 3, force) as hand:
            hand.elapse(100)
            hand.modify(1, 1002, 3)
            hand.elapse(50)
            assert state(hand) == expected
            order = hand.order(1)
            assert order is not None and order['exec_price_tick'] == (1001 if force == GTC else 0)


def test_until_a_modify_arrives_the_old_order_stands() -> None:
    "A trade through 998 at 210, the time of arrival, fills the old order; the change comes back rejected"
    with one_order(BUY, 998, 3, POST_ONLY, (TRADE, SELL, 210, 997, 1)) as hand:
        hand.elapse(100)
        hand.modify(1, 990, 5)
        hand.elapse(50)
        order = hand.order(1)
        assert order is not None and (order['status'], order['exec_price_tick'], order['exec_qty']) == (FILLED, 998, 3)
    down = play((0, BUY, 998, 3, POST_ONLY), (1, BUY, 990, 3, POST_ONLY))
    outcome = run(small((TRADE, SELL, 205, 997, 1), replace='modify', parameters=down))
    assert (outcome.modifies, outcome.cancels, outcome.late) == (1, 0, 1)
    assert outcome.orders[0, ASKED] == 2 and len(outcome.orders) == 2, 'the wish is sent anew once the fill is known'


# ---- interpolated latency

def births(rows: list[tuple[int, int, int]], sent: list[int]) -> list[tuple[int, int, int]]:
    """When each order sent is heard of, when the exchange had it, what became of it; two queues, each first in first out, none earlier than
    the last that still waits in it. A refusal joins the queue of answers when its order is sent."""
    latency, heard, out, back = Interpolated(rows), {}, [], []
    def join(queue: list[Any], due: int, what: Any) -> None: queue.append((max(due, queue[-1][0]) if queue else due, what))
    for number, now in [*enumerate(sent), (-1, 1 << 62)]:
        while out or back:
            if not (back and (not out or back[0][0] <= out[0][0])):
                due, what = out[0]
                if due > now: break
                out.pop(0)
                join(back, due + latency.answer(due), (what, due, NEW))
            else:
                due, (what, exchange, status) = back[0]
                if due > now: break
                back.pop(0)
                heard[what] = (due, exchange, status)
        if number < 0: break
        entry = latency.entry(now)
        if entry < 0: join(back, now - entry, (number, 0, EXPIRED))
        else: join(out, now + entry, number)
    return [heard[number] for number in range(len(sent))]


@pytest.mark.parametrize('seed', range(12))
def test_interpolated_latency_with_refusals(seed: int) -> None:
    "Random latency rows, some without an exchange time; orders far from the market; every answer at its nanosecond"
    chance = random.Random(seed)
    start = T if seed % 2 else 1_700_000_000_000_000_000
    rows, now = [], start + chance.randrange(300)
    for k in range(6):
        exchange = now + chance.randrange(80)
        rows.append((now, 0 if 0 < k < 5 and chance.random() < 0.35 else exchange, exchange + chance.randrange(150)))
        now += chance.randrange(1, 400)
    sent = sorted({start + chance.randrange(1, 2500) for _ in range(15)})
    data = small().data.copy()
    for clock in ('exch_ts', 'local_ts'): data[clock] += start - T
    heard: dict[int, tuple[int, int, int]] = {}
    with ByHand.of(small(data=data, latency=np.array(rows))) as hand:
        number = 0
        for ns in range(1, 3500):
            hand.elapse(1)
            for k in range(number):
                order = hand.order(k + 1)
                if k in heard or order is None or not order['status']: continue
                heard[k] = (start + ns, int(order['exch_timestamp']), int(order['status']))
            while number < len(sent) and sent[number] == start + ns:
                number += 1
                hand.send(number, BUY, 900 - number, 1)
    assert [heard.get(k) for k in range(len(sent))] == [one if one[0] < start + 3500 else None for one in births(rows, sent)]


def test_a_change_that_is_refused_on_the_road() -> None:
    "The order stays as it was at the exchange, free to be asked again; the local copy of a refused change keeps the wished price: a bug"
    rows = T + np.array([[0, 10, 20], [150, 160, 170], [180, -T, 210], [260, 270, 280], [900, 910, 920]])  # the third without exchange time
    with one_order(BUY, 998, 1, POST_ONLY, (TRADE, SELL, 500, 997, 1), latency=rows) as hand:
        hand.elapse(100)
        assert hand.modify(1, 995, 2) == 0
        hand.elapse(100)
        order = hand.order(1)
        assert order is not None and (order['status'], order['req'], order['price_tick'], order['qty']) == (NEW, 0, 995, 2)
        hand.elapse(300)
        order = hand.order(1)
        assert order is not None and (order['status'], order['exec_price_tick'], order['exec_qty']) == (FILLED, 998, 1)


def test_a_run_that_would_not_end_is_stopped() -> None:
    "A last row without an exchange time refuses with an answer due decades later; hftbacktest would wait for it"
    rows = np.array([[T, T + 10, T + 20], [T + 50, 0, T + 70]])
    with pytest.raises(RuntimeError, match='does not end'): run(small(latency=rows, parameters=play((0, BUY, 999, 1, POST_ONLY))))


# ---- its bugs, beside what is right

def test_bug_partial_fills_are_credited_for_their_last_part_only() -> None:
    "Two and two of four lots: the position is right with 4, hftbacktest says 2"
    with one_order(BUY, 999, 4, GTC, (TRADE, SELL, 300, 999, 7), (TRADE, SELL, 400, 999, 3), exchange='partial') as hand:
        hand.elapse(250)
        assert state(hand) == (PARTLY, 2, 0)  # right: 2
        hand.elapse(100)
        assert state(hand) == (FILLED, 0, 2)  # right: 4
    parameters = play((0, BUY, 999, 4, GTC), (3, BUY, 0, 0, 0))
    outcome = run(small((TRADE, SELL, 300, 999, 7), (TRADE, SELL, 400, 999, 3), exchange='partial', parameters=parameters))
    assert fills(outcome) == [(400, BUY, 999, 2, 1)] and outcome.orders[0, ORDER.index('filled_lots')] == 4, 'the orders know better'


def test_bug_partial_takers_lose_what_they_took() -> None:
    "Twelve lots through 1001 × 5, 1002 × 5, 1003 × 5; credited is the last price alone, for IOC that runs out of limit nothing at all"
    for tick, force, status, leaves, position in (
            (1003, IOC, FILLED, 0, 2), (1003, FOK, FILLED, 0, 2), (1003, MARKET, FILLED, 0, 2), (1003, GTC, FILLED, 0, 2),
            (1002, IOC, EXPIRED, 2, 0), (1002, FOK, EXPIRED, 12, 0),
            (1002, GTC, FILLED, 0, 7)):  # the rest is filled at the limit, whatever is shown there: 5 and 7
        with one_order(BUY, tick, 12, force, exchange='partial') as hand:
            hand.elapse(50)
            assert state(hand) == (status, leaves, position), (tick, force)


def test_bug_exactly_completed_orders_stay_and_break_the_run() -> None:
    "Two lots past the queue fill the order of two; the next trade meets its ghost: return code 14, for good. Right: nothing happens"
    for exchange, code in (('whole', 1), ('partial', 14)):
        order = play((0, BUY, 999, 2, GTC), (2, BUY, 0, 0, 0))
        outcome = run(small((TRADE, SELL, 205, 999, 7), (TRADE, SELL, 400, 999, 1), exchange=exchange, parameters=order))
        assert fills(outcome) == [(205, BUY, 999, 2, 1)] and outcome.code == code


def test_bug_clear_forgets_the_next_level() -> None:
    "Bids cleared down to 999 and asks up to 1002: right is 998 | 1003. Both books skip a level, the vector leaves the asks it should clear"
    for depth, asks in (('hashmap', [0, 0, 5, 5]), ('roi', [5, 5, 5, 5])):
        with ByHand.of(small((CLEAR, SELL, 200, 1002, 0), (CLEAR, BUY, 200, 999, 0), depth=depth)) as hand:
            hand.elapse(100)
            assert hand.best() == (999, 1001)
            hand.elapse(150)
            assert hand.best() == (NO_BID, 1004)
            assert [hand.quantity(SELL, tick) for tick in (1001, 1002, 1003, 1004)] == asks
            assert [hand.quantity(BUY, tick) for tick in (999, 998)] == [0, 5]


def test_bug_the_quantity_at_the_best_price_is_the_price() -> None:
    "Five lots stand at 999 and at 1001. The vector depth answers the prices; asked for a tick, both are right"
    for depth, told in (('hashmap', (5, 5)), ('roi', (pytest.approx(99.9), pytest.approx(100.1)))):
        with ByHand.of(small(depth=depth)) as hand:
            hand.elapse(100)
            assert hand.best() == (999, 1001) and hand.best_quantities() == told
            assert (hand.quantity(BUY, 999), hand.quantity(SELL, 1001)) == (5, 5)


def test_bug_a_market_order_against_nothing_is_filled_at_no_price() -> None:
    "The only ask goes while the order is on its way. Right: it expires, as the partial exchange does"
    rows = [(DEPTH, SELL, 105, tick, 0) for tick in (1001, 1002, 1003, 1004)]
    outcome = run(small(*rows, parameters=play((0, BUY, 1001, 3, MARKET), (1, BUY, 0, 0, 0))))
    assert fills(outcome) == [(110, BUY, NO_ASK, 3, 0)] and outcome.unpriced == 1
    with one_order(BUY, 1001, 3, MARKET, *rows, exchange='partial') as hand:
        hand.elapse(50)
        assert state(hand) == (EXPIRED, 3, 0)


# ---- random markets: the driver's own sums hold (run asserts them), tapes are what they say

CASES = dict(one_each_side=(1.0, 2.0, 10.0), grid=(1.0, 2.0, 10.0, 2.0), random_actions=(6.0, 6.0, 40.0, 30.0, 4.0),
             taker=(6.0, 2.0, 20.0, 4.0), two_assets=(1.0, 2.0, 10.0, 0.5))


def fuzzed_case(seed: int) -> Case:
    "Strategy, queue, latency, depth, interval and way of replacing go through all their values as the seed grows"
    strategy = sorted(CASES)[seed % 5]
    tapes = [fuzzed_tape(seed), fuzzed_tape(seed + 10_000)] if strategy == 'two_assets' else [fuzzed_tape(seed)]
    there, back = 5_000_000*(seed % 4), 3_000_000*(seed % 3)
    latency = np.array([[0, there, there + back]])
    if seed % 11 == 3:  # interpolated between fifty rows, a tenth of them refusals
        chance, first, last = random.Random(seed), int(tapes[0]['exch_ts'].min()), int(tapes[0]['exch_ts'].max())
        sent = np.array(sorted(chance.sample(range(first, last), 50)))
        arrived = sent + [chance.randrange(30_000_000) for _ in sent]
        answered = arrived + [chance.randrange(20_000_000) for _ in sent]
        arrived[[k for k in range(1, 49) if chance.random() < 0.1]] = 0
        latency = np.column_stack([sent, arrived, answered])
    queues = ('risk-averse', ('power', 2.0), ('power2', 2.0), ('power3', 3.0), 'log', 'log2')
    return Case(
        tapes, strategy, CASES[strategy], levels=3 if strategy in ('grid', 'random_actions') else 1, seed=seed,
        interval_ns=(10_000_000, 70_000_000)[seed % 2], queue=queues[seed % 6], latency=latency, depth=('hashmap', 'roi')[seed % 3 == 0],
        replace=('cancel', 'modify')[seed % 7 == 0])


def test_the_rules_in_plain_python_give_the_same() -> None:
    "Every fill, every order sent, every count, on random markets: nothing is missing from the rules"
    for seed in range(40):
        case = fuzzed_case(seed)
        outcome = run(case)
        fills_there, orders, counts = by_the_rules(case)
        assert np.array_equal(fills_there, outcome.fills) and np.array_equal(orders, outcome.orders[:, :5]), seed
        assert counts == {name: getattr(outcome, name) for name in counts}, seed


def test_random_markets() -> None:
    "Everything the engine must be compared on does happen; a run repeats itself; both books agree"
    seen = dict.fromkeys([*COUNTS, 'fills', 'takes'], 0)
    for seed in range(60):
        case = fuzzed_case(seed)
        outcome = run(case)
        assert outcome.code == 1
        for name in COUNTS: seen[name] += getattr(outcome, name)
        seen['fills'] += len(outcome.fills)
        seen['takes'] += int((outcome.fills[:, 5] == 0).sum())
        other = run(Case(**{**case.__dict__, 'depth': 'roi' if case.depth == 'hashmap' else 'hashmap'}))
        assert np.array_equal(outcome.fills, other.fills) and np.array_equal(outcome.orders, other.orders)
    assert all(seen.values()), seen


def test_fuzzed_tapes_hold_what_breaks_engines() -> None:
    "The same seed gives the same tape; over some seeds there are late rows, equal times, crossed moments, empty sides, trades through"
    assert np.array_equal(fuzzed_tape(3), fuzzed_tape(3)) and not np.array_equal(fuzzed_tape(3)[:100], fuzzed_tape(4)[:100])
    split = equal = empty = crossed = through = gaps = 0
    for seed in range(20):
        data = fuzzed_tape(seed)
        both = np.uint64(EXCH_EVENT | LOCAL_EVENT)
        split += int((data['ev'] & both != both).sum())
        rows = data[(data['ev'] & np.uint64(EXCH_EVENT)) != 0]
        equal += int((np.diff(rows['exch_ts']) == 0).sum())
        gaps += int((np.diff(rows['exch_ts']) >= 1_000_000_000).sum())
        book: dict[int, set[int]] = {BUY: set(), SELL: set()}
        for row in rows:
            kind, side, tick = int(row['ev']) & 0xff, BUY if int(row['ev']) >> 29 & 1 else SELL, round(float(row['px'])/0.1)
            if kind == TRADE:
                others = book[-side]
                through += bool(others) and (tick > min(others) if side == BUY else tick < max(others))
            elif row['qty'] > 0: book[side].add(tick)
            else: book[side].discard(tick)
            if not book[BUY] or not book[SELL]: empty += 1
            elif max(book[BUY]) >= min(book[SELL]): crossed += 1
    assert min(split, equal, empty, crossed, through, gaps) > 20, (split, equal, empty, crossed, through, gaps)


def test_rows_in_order() -> None:
    "A row that was overtaken is told to each clock on its own"
    data = tape([(DEPTH, BUY, 10, 50, 99.9, 1), (DEPTH, BUY, 20, 30, 99.8, 1), (DEPTH, BUY, 30, 60, 99.7, 1)])
    assert [(int(row['exch_ts']), int(row['ev']) >> 30) for row in data] == [(10, 2), (20, 3), (10, 1), (30, 3)]
    assert np.array_equal(in_order(data[:0]), data[:0])


def test_strategies_are_checked() -> None:
    with pytest.raises(ValueError, match='choose from one_each_side'): run(small(strategy='clever'))
    with pytest.raises(ValueError, match='event_dtype'): run(small(data=np.zeros(3)))
    assert len(STRATEGIES) == len(set(STRATEGIES)) == 6


# ---- the long tapes

def test_stream_is_pinned() -> None:
    "The same seed, the same rows, also in a longer stream; prices and quantities are the nearest decimals"
    rows = stream(20_000)
    assert np.array_equal(rows[:15_000], stream(30_000)[:15_000]) and not np.array_equal(rows['px'], stream(20_000, 8)['px'])
    ticks, lots = (np.rint(rows[name]*scale).astype(np.int64) for name, scale in (('px', 10), ('qty', 1000)))
    whole = np.column_stack([rows['ev'].astype(np.int64), rows['exch_ts'], rows['local_ts'], ticks, lots])
    assert (len(rows), zlib.crc32(whole.astype('<i8').tobytes())) == (19_936, 1754472743)
    assert rows['px'].tolist() == [tick/10 for tick in ticks.tolist()] and rows['qty'].tolist() == [k/1000 for k in lots.tolist()]
    with pytest.raises(ValueError, match='do not hold the snapshot'): stream(100)


def test_stream_and_recording_run(usdm_tape: np.ndarray) -> None:
    "One bid and one ask on both, five milliseconds each way"
    for data, expected in ((stream(200_000), (199_936, 3884, 1156)), (usdm_tape, (491_973, 3448, 325))):
        outcome = run(Case(data, parameters=(2.0, 10.0, 100.0)))
        assert (len(data), outcome.steps, len(outcome.fills)) == expected
