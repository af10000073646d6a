"""Queues by order id: the reader of order files, the engine against an oracle of named orders and against hftbacktest's. All synthetic."""
from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import by_order
import numpy as np
import pytest
from by_order import ENTRY_MS, MS, TOY, by_batches, compare, one_pass, rows_of_fills, stream, tape_of
from mutants import Mutant, missed, run_check

from cryptoexp.market.events import BUY, CLEAR, DEPTH, EXCHANGE_ONLY, LAST, LOCAL_ONLY, SELL, TRADE, Events, from_rows
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
    from_hftbacktest,
    instrument_of,
    load_hftbacktest,
    save_hftbacktest,
    tape_by_order,
)
from cryptoexp.trading.backtest import backtest
from cryptoexp.trading.matching import NEVER, Joined
from cryptoexp.trading.venue import QueueModel

SEEDS, BLOCKS = 30, 8
BOTH = EXCHANGE_BIT | LOCAL_BIT
Row = tuple[Any, ...]   # kind, side +1 −1 0, ms at the exchange, tick, lots, order


def file_of(*rows: Row) -> np.ndarray:
    "Rows by hand; each reaches us 1 ms after it happened"
    bits = {1: BUY_BIT, -1: SELL_BIT, 0: 0}
    return np.array([(kind | BOTH | bits[side], at * MS, (at + 1) * MS, tick * .5, lots / 10, order, 0, 0)
                     for kind, side, at, tick, lots, order in rows], EVENT_DTYPE)


def levels(data: np.ndarray) -> list[tuple[int, ...]]:
    "kind, side, tick, lots, id of each row"
    rows = tape_of(data).events
    return [(int(kind), 1 if flags & BUY else -1, tick, lots, order) for kind, flags, tick, lots, order in zip(
        rows.kind.tolist(), rows.flags.tolist(), rows.tick.tolist(), rows.lots.tolist(), rows.id.tolist())]


# ---- the engine against the oracle

@pytest.mark.parametrize('block', range(BLOCKS))
def test_engine_and_oracle_fill_the_same(block: int) -> None:
    "Time, price, lots and reason of every fill; all rows at once, and a few at a time"
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        found, expected = compare(seed)
        assert not found, f'replay: PYTHONPATH=. python tests/by_order.py {seed}\n' + '\n'.join(found)
        engine = by_batches(tape_of(stream(seed)), (seed, 0, seed % 3), [4, 17, 60, 10_000][seed % 4])
        assert rows_of_fills(engine.fills) == expected, f'seed {seed}: in batches'


def test_the_random_streams_reach_every_rule() -> None:
    "A comparison proves nothing about what never happens in it"
    seen, moved = Counter[str](), Counter[str]()
    queues = (QueueModel('behind'), QueueModel('l3'), QueueModel('ahead'))
    for seed in range(0, 240, 2):
        data, parameters = stream(seed), (seed, 0, seed % 3)
        tape = tape_of(data)
        runs = one_pass(tape, parameters, queues)
        parts = [runs.fills[runs.fills.config == number] for number in range(3)]
        seen.update(parts[1].reason)
        seen.update(runs.orders[runs.orders.config == 1].status)
        kinds = (data['ev'] & 0xff).tolist()
        seen.update({f'rows {kind}': kinds.count(kind) for kind in set(kinds)})
        arrivals = set(runs.orders[runs.orders.config == 1].arrived_ns)
        seen['rows at the moment of an arrival'] += int(np.isin(data['exch_ts'], list(arrivals)).sum())
        moved.update({f'unlike {queues[number]}': rows_of_fills(parts[number]) != rows_of_fills(parts[1]) for number in (0, 2)})
        assert tape.notes['fills out of turn'] == 0
    least = {'queue': 1000, 'through': 1000, 'cross': 200, 'cancelled': 1000, 'filled': 500, 'expired': 10,
             'rows at the moment of an arrival': 1000,
             **{f'rows {kind}': 300 for kind in (TRADE, ADD_ORDER, CANCEL_ORDER, MODIFY_ORDER, FILL_ORDER)}}
    assert not {name: seen[name] for name, number in least.items() if seen[name] < number}, dict(seen)
    assert min(moved.values()) > 60, moved


def test_the_bracket_holds_what_is_true() -> None:
    "Orders too large to be filled at an end: only the place in the queue differs, and in every stream behind ≤ l3 ≤ ahead, in lots"
    queues, lots = (QueueModel('behind'), QueueModel('l3'), QueueModel('ahead')), []
    for seed in range(200):
        fills = one_pass(tape_of(stream(seed)), (seed, 100_000, seed % 3), queues).fills
        lots.append([int(fills.lots[fills.config == number].sum()) for number in range(3)])
    behind, true, ahead = np.array(lots).T
    assert (behind <= true).all() and (true <= ahead).all(), np.flatnonzero((behind > true) | (true > ahead))
    assert (behind < true).sum() > 80 and (true < ahead).sum() > 80 and behind.min() > 0


def test_cuts_and_compilation_leave_no_trace() -> None:
    "Promise 1, on a tape by order"
    for seed in (3, 8):
        tape = tape_of(stream(seed, 200))
        whole = by_batches(tape, (seed, 0, 1), 10_000)
        for size, compiled in ((1, True), (13, False)):
            other = by_batches(tape, (seed, 0, 1), size, compiled=compiled)
            assert other.fills.equals(whole.fills) and other.orders.equals(whole.orders)


# ---- one rule, one case

def bid_of(lots: int) -> Any:
    def always(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 0, 0, :2] = 998, lots
        return 0
    return always


OPENING = [(CLEAR, 0, 1, 0, 0, 0), (ADD_ORDER, 1, 1, 998, 4, 1), (ADD_ORDER, 1, 1, 998, 6, 2), (ADD_ORDER, -1, 1, 1002, 9, 3)]
BEHIND = [*OPENING, (ADD_ORDER, 1, 100, 998, 20, 4)]                 # our bid arrives at 57 ms, behind 4 and 6; then 20 join


def lots_of(*rows: Row, bid: int = 5) -> list[int]:
    "What our bid gets; the same from the engine fed row by row"
    tape = tape_of(file_of(*rows, (ADD_ORDER, -1, 900, 1010, 1, 999)))
    fills = one_pass(tape, (0,), quoter=bid_of(bid), levels=1).fills
    engine = by_batches(tape, (0,), 1, bid_of(bid), compiled=False)
    assert rows_of_fills(engine.fills) == rows_of_fills(fills)
    assert not len(fills) or len(fills) == 1 or fills.order_id.nunique() == 1
    return [int(lots) for lots in fills.lots]


def by_hand() -> None:
    "Each of these would be noticed if its rule were broken"
    assert lots_of(*BEHIND, (CANCEL_ORDER, 1, 110, 998, 0, 1), (FILL_ORDER, 1, 120, 998, 6, 2), (FILL_ORDER, 1, 121, 998, 3, 4)) == [3]
    # the 20 behind us go: that is no help
    assert lots_of(*BEHIND, (CANCEL_ORDER, 1, 110, 998, 0, 4), (FILL_ORDER, 1, 120, 998, 4, 1), (FILL_ORDER, 1, 121, 998, 3, 2)) == []
    # who joins at the moment of our arrival stands before us
    tie = [*OPENING, (ADD_ORDER, 1, 57, 998, 7, 5), (ADD_ORDER, 1, 100, 998, 20, 4), (CANCEL_ORDER, 1, 110, 998, 0, 5)]
    assert lots_of(*tie, (FILL_ORDER, 1, 120, 998, 4, 1), (FILL_ORDER, 1, 121, 998, 6, 2), (FILL_ORDER, 1, 123, 998, 2, 4)) == [2]
    # what a print took is not taken twice: 4 printed, 4 fewer displayed, and still 6 before us
    assert lots_of(*BEHIND, (FILL_ORDER, 1, 110, 998, 4, 1), (FILL_ORDER, 1, 120, 998, 6, 2)) == []
    # … and is used up by its row: the cancel of another order counts in full
    assert lots_of(*BEHIND, (FILL_ORDER, 1, 110, 998, 4, 1), (CANCEL_ORDER, 1, 111, 998, 0, 2), (FILL_ORDER, 1, 120, 998, 2, 4)) == [2]
    # an order that grows goes to the end, one that shrinks stays
    assert lots_of(*BEHIND, (MODIFY_ORDER, 1, 110, 998, 5, 1), (FILL_ORDER, 1, 120, 998, 6, 2), (FILL_ORDER, 1, 121, 998, 3, 4)) == [3]
    assert lots_of(*BEHIND, (MODIFY_ORDER, 1, 110, 998, 3, 1), (FILL_ORDER, 1, 120, 998, 3, 1), (FILL_ORDER, 1, 121, 998, 6, 2),
                   (FILL_ORDER, 1, 122, 998, 1, 4)) == [1]
    # … and where it goes again, it does so behind us
    assert lots_of(*BEHIND, (MODIFY_ORDER, 1, 110, 998, 5, 1), (CANCEL_ORDER, 1, 111, 998, 0, 1), (FILL_ORDER, 1, 120, 998, 5, 2)) == []
    # a move away and back
    assert lots_of(*BEHIND, (MODIFY_ORDER, 1, 110, 997, 4, 1), (MODIFY_ORDER, 1, 111, 998, 4, 1), (FILL_ORDER, 1, 120, 998, 6, 2),
                   (FILL_ORDER, 1, 121, 998, 9, 4)) == [5]
    # never more than the print leaves
    assert lots_of(*BEHIND, (CANCEL_ORDER, 1, 110, 998, 0, 1), (CANCEL_ORDER, 1, 111, 998, 0, 2), (FILL_ORDER, 1, 120, 998, 3, 4),
                   (FILL_ORDER, 1, 121, 998, 9, 4), bid=5) == [3, 2]


def test_by_hand() -> None: by_hand()


def test_nobody_knows_this_order() -> None:
    "An id that nobody saw joining is taken to stand behind us; but not more stands before us than is displayed"
    rows = [(CLEAR | BUY | SELL, 1, 0, 0, 0), (DEPTH | BUY, 1, 998, 10, 1), (DEPTH | SELL, 1, 1002, 9, 3), (DEPTH | BUY, 110, 998, 4, 77),
            (TRADE | SELL, 120, 998, 6, 1), (DEPTH | SELL, 900, 1010, 1, 9)]
    events = from_rows([(flags | LAST, at * MS, (at + 1) * MS, tick, lots, order) for flags, at, tick, lots, order in rows])
    tape = Tape(events, TOY, synthetic=True, notes={'by_order': True})
    assert one_pass(tape, (0,), quoter=bid_of(5), levels=1).fills.lots.tolist() == [2]


def test_one_own_order_spares_what_the_other_would_have_met() -> None:
    "A print of 5 meets 3 of ours at a better price: 2 are left for the queue of 10 behind it, whatever the feed says of that queue"
    def two(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 0, 0, :2], wishes[0, 0, 1, :2] = (999, 3), (998, 5)
        return 0
    rows = [*OPENING, (FILL_ORDER, 1, 60, 998, 4, 1), (FILL_ORDER, 1, 60, 998, 6, 2), (ADD_ORDER, 1, 61, 998, 9, 4),
            (FILL_ORDER, 1, 62, 998, 9, 4), (ADD_ORDER, 1, 63, 997, 9, 5)]
    fills = one_pass(tape_of(file_of(*rows)), (0,), quoter=two).fills
    assert fills[['tick', 'lots', 'reason']].values.tolist()[:2] == [[999, 3, 'through'], [998, 5, 'queue']]


def test_a_clear_forgets_one_side_only() -> None:
    "Bids are cleared; who stands before our ask is known as before, and a row for our clock alone changes nothing"
    rows = [(DEPTH | SELL, 10, 50, 7, 1), (DEPTH | SELL, 11, 50, 9, 2), (DEPTH | BUY, 12, 40, 5, 3), (CLEAR | BUY, 20, 0, 0, 0),
            (CLEAR | BUY | SELL | LOCAL_ONLY, 21, 0, 0, 0), (DEPTH | SELL, 22, 50, 2, 1), (DEPTH | BUY, 23, 40, 4, 3),
            (DEPTH | BUY, 24, 40, 1, 3)]
    events = from_rows([(flags | LAST, at, at + 1, tick, lots, order) for flags, at, tick, lots, order in rows])
    assert Joined().follow(events).tolist() == [NEVER] * 5 + [10, NEVER, 23]


MUTANTS = [Mutant(*words) for words in (  # the first is whole and must not be noticed
    ('nothing', 'matching', 'order.remaining -= lots', 'order.remaining -= lots'),
    ('who joined after us stands before us', 'matching', 'if since_ns <= order.arrived_ns: order.front', 'if True: order.front'),
    ('who joined before us stands behind us', 'matching', 'if since_ns <= order.arrived_ns: order.front', 'if False: order.front'),
    ('who joined at our arrival stands behind us', 'matching', 'since_ns <= order.arrived_ns', 'since_ns < order.arrived_ns'),
    ('what a print took is taken again', 'matching', 'printed = min(gone, order.traded)', 'printed = 0.0'),
    ('a print is repeated for ever', 'matching', 'order.traded -= printed', 'pass'),
    ('orders by id as in the cautious model', 'matching',
     'elif rule.queue == QUEUE_BEHIND:', 'elif rule.queue in (QUEUE_BEHIND, QUEUE_L3):'),
    ('who grows keeps its moment', 'matching', 'joined[ids[row]] = exchange_ns[row]', 'joined.setdefault(ids[row], exchange_ns[row])'),
)]
CHECK = """
import test_by_order
from by_order import compare
for check in sys.argv[2:]:
    try: found = compare(int(check), 150)[0] if check.isdigit() else getattr(test_by_order, check)() or []
    except (AssertionError, IndexError) as error: found = [repr(error)]
    if found: print('noticed by', check, found[0]); break
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_broken_rule_is_noticed(tmp_path: Path) -> None:
    "Each line that carries a rule, broken in a copy of the engine, makes a case by hand or the comparison with the oracle fail"
    wrong, rows = missed(tmp_path, MUTANTS, lambda folder, mutant: run_check(folder, mutant, CHECK, ['by_hand', '1', '2', '3', '5', '8']))
    assert not wrong, '\n'.join(wrong)
    print(*rows, sep='\n')


# ---- hftbacktest's own queues

def theirs(data: np.ndarray, orders: Sequence[Any]) -> list[tuple[int, ...]]:
    "Fills at hftbacktest's L3 exchange of orders sent when we sent ours: (sent ns, number, side, tick, lots, cancel sent ns or 0)"
    import hft
    latency = np.array([[0, ENTRY_MS * MS, (ENTRY_MS + 5) * MS]])
    case = hft.Case(data, queue='l3', tick_size=.5, lot_size=.1, latency=latency, maker_fee=0., taker_fee=0.)
    last = data['local_ts'][-1]   # then all that rests is cancelled: nothing to compare
    requests = sorted([(sent, 1, number, side, tick, lots) for sent, number, side, tick, lots, _ in orders]
                      + [(gone, 0, number, 0, 0, 0) for _, number, _, _, _, gone in orders if 0 < gone < last - ENTRY_MS * MS])
    with hft.ByHand.of(case) as exchange:
        exchange.elapse(1)
        for at, new, number, side, tick, lots in requests:
            code = exchange.elapse(at - exchange.now_ns()) if at > exchange.now_ns() else 0
            if code == 1: break                     # no more rows
            assert code == 0 and (exchange.send(number, side, tick, lots) if new else exchange.cancel(number)) == 0
        while exchange.elapse(1000 * MS) == 0: pass
        ends = {number: exchange.order(number) for _, number, *_ in orders}
    return sorted((number, int(end['exch_timestamp']), int(end['exec_price_tick']), round(end['exec_qty'] / .1))
                  for number, end in ends.items() if end is not None and end['status'] == 3)


def sent(orders: Any) -> list[tuple[int, ...]]:
    return [(int(one.placed_ns), int(one.order_id), int(one.side), int(one.tick), int(one.lots),
             int(one.ended_ns) - ENTRY_MS * MS if one.status == 'cancelled' else 0) for one in orders.itertuples()]


needs_hftbacktest = pytest.mark.skipif(importlib.util.find_spec('hftbacktest') is None, reason='hftbacktest is not installed')


@needs_hftbacktest
def test_fills_equal_those_of_hftbacktest() -> None:
    """Orders of one lot, best prices that stay: then its rules and ours mean the same, and every fill is the same.

    It fills the whole order, where ours gets what the print leaves (one lot: the same); it knows nothing of prints through a price (best
    prices stay: there are none). Its files must tell a fill twice, by a fill row and by the cancel or modify of the order."""
    fills = 0
    for seed in range(100):
        data = stream(seed, quiet=True)
        runs = one_pass(tape_of(data), (seed, 1, 0))
        ours = sorted(row[:4] for row in rows_of_fills(runs.fills))
        assert ours == theirs(data, sent(runs.orders)), f'seed {seed}'
        assert set(runs.fills.reason) <= {'queue'}
        fills += len(ours)
    assert fills > 300, fills


@needs_hftbacktest
def test_where_hftbacktest_differs() -> None:
    "One bid of ours at 998, sent at 52 ms: what each makes of it"
    after = (ADD_ORDER, -1, 900, 1010, 1, 999)
    ahead_gone = [*BEHIND, (CANCEL_ORDER, 1, 110, 998, 0, 1), (CANCEL_ORDER, 1, 111, 998, 0, 2)]
    def both(*rows: Row, bid: int = 5) -> tuple[list[int], list[int]]:
        data = file_of(*rows, after)
        return lots_of(*rows, bid=bid), [row[3] for row in theirs(data, [(52 * MS, 1, 1, 998, bid, 0)])]
    # a print of 3 fills its order of 5
    assert both(*ahead_gone, (FILL_ORDER, 1, 120, 998, 3, 4), (MODIFY_ORDER, 1, 120, 998, 17, 4)) == ([3], [5])
    # a print through our price fills nothing there
    through = [*OPENING, (ADD_ORDER, 1, 60, 997, 9, 4), (CANCEL_ORDER, 1, 110, 998, 0, 1), (CANCEL_ORDER, 1, 111, 998, 0, 2),
               (FILL_ORDER, 1, 120, 997, 6, 4), (MODIFY_ORDER, 1, 120, 997, 3, 4)]
    assert both(*through) == ([5], [])
    # an order that moves joins the end of its new queue, there as here
    moved = [*OPENING, (ADD_ORDER, 1, 100, 997, 8, 4), (MODIFY_ORDER, 1, 110, 998, 8, 4), (CANCEL_ORDER, 1, 111, 998, 0, 1),
             (CANCEL_ORDER, 1, 112, 998, 0, 2), (FILL_ORDER, 1, 120, 998, 1, 4), (MODIFY_ORDER, 1, 120, 998, 7, 4)]
    assert both(*moved, bid=1) == ([1], [1])
    # a clear ends our order there; ours goes on, and knows only that no more stands before it than is displayed
    cleared = [*BEHIND, (CLEAR, 0, 110, 0, 0, 0), (ADD_ORDER, 1, 111, 998, 9, 10), (ADD_ORDER, -1, 111, 1002, 9, 11),
               (CANCEL_ORDER, 1, 112, 998, 0, 10), (ADD_ORDER, 1, 113, 998, 9, 12), (FILL_ORDER, 1, 120, 998, 9, 12),
               (CANCEL_ORDER, 1, 120, 998, 9, 12)]
    assert both(*cleared) == ([5], [])


# ---- the reader

def test_both_ways_of_telling_a_fill() -> None:
    "Confirmed by a cancel or a modify, or not: the same tape; trade rows besides say nothing new"
    plain = [*OPENING, (FILL_ORDER, 1, 10, 998, 3, 1), (FILL_ORDER, 1, 11, 998, 1, 1), (FILL_ORDER, 1, 11, 998, 2, 2)]
    confirmed = [*OPENING, (TRADE, -1, 10, 998, 3, 0), (FILL_ORDER, 1, 10, 998, 3, 1), (MODIFY_ORDER, 1, 10, 998, 1, 1),
                 (TRADE, -1, 11, 998, 3, 0), (FILL_ORDER, 1, 11, 998, 1, 1), (CANCEL_ORDER, 1, 11, 998, 1, 1),
                 (FILL_ORDER, 1, 11, 998, 2, 2), (MODIFY_ORDER, 0, 11, 998, 4, 2)]
    assert levels(file_of(*plain)) == levels(file_of(*confirmed))
    assert levels(file_of(*plain))[4:] == [(TRADE, -1, 998, 3, 1), (DEPTH, 1, 998, 7, 1), (TRADE, -1, 998, 1, 1), (DEPTH, 1, 998, 6, 1),
                                          (TRADE, -1, 998, 2, 2), (DEPTH, 1, 998, 4, 2)]
    assert tape_of(file_of(*confirmed)).notes['trade rows left out'] == 2


def test_trades_without_fills_are_prints() -> None:
    rows = [*OPENING, (TRADE, -1, 10, 998, 4, 0), (CANCEL_ORDER, 1, 10, 998, 4, 1)]
    assert levels(file_of(*rows))[4:] == [(TRADE, -1, 998, 4, 0), (DEPTH, 1, 998, 6, 1)]


def test_fills_out_of_turn_are_counted() -> None:
    "Order 2 is filled before order 1, which came first: such a venue does not serve first come, first served"
    tape = tape_of(file_of(*OPENING, (FILL_ORDER, 1, 10, 998, 1, 2), (FILL_ORDER, 1, 11, 998, 4, 1), (FILL_ORDER, 1, 12, 998, 1, 2)))
    assert tape.notes['fills out of turn'] == 1 and tape.by_order and tape.synthetic


def test_an_order_number_may_come_again() -> None:
    "After its end, or after a clear of its side; an order filled to the end may come back as a change (an iceberg shows its next part)"
    again = [*OPENING, (CANCEL_ORDER, 0, 10, 0, 0, 1), (ADD_ORDER, -1, 11, 1002, 5, 1), (CLEAR, 1, 12, 0, 0, 0),
             (ADD_ORDER, 1, 13, 998, 2, 2), (FILL_ORDER, -1, 14, 1002, 9, 3), (MODIFY_ORDER, 0, 15, 1002, 7, 3)]
    assert levels(file_of(*again))[4:] == [(DEPTH, 1, 998, 6, 1), (DEPTH, -1, 1002, 14, 1), (CLEAR, 1, 0, 0, 0), (DEPTH, 1, 998, 2, 2),
                                          (TRADE, 1, 1002, 9, 3), (DEPTH, -1, 1002, 5, 3), (DEPTH, -1, 1002, 12, 3)]


@pytest.mark.parametrize(('row', 'text'), [
    ((CANCEL_ORDER, 1, 10, 998, 0, 9), 'order 9 is not in the book'),
    ((MODIFY_ORDER, 1, 10, 998, 4, 9), 'order 9 is not in the book'),
    ((FILL_ORDER, 1, 10, 998, 4, 9), 'order 9 is not in the book'),
    ((ADD_ORDER, 1, 10, 998, 4, 1), 'order 1 is in the book already, with 0.4 left'),
    ((FILL_ORDER, 1, 10, 998, 5, 1), 'a fill of 0.5 of order 1, which has 0.4 left'),
    ((FILL_ORDER, 1, 10, 997, 4, 1), 'a fill of order 1 at 498.5, where it does not rest'),
    ((CANCEL_ORDER, 1, 10, 998, 3, 1), 'a cancel of 0.3 of order 1, which has 0.4 left'),
    ((CANCEL_ORDER, -1, 10, 998, 0, 1), 'order 1 is on the other side'),
    ((MODIFY_ORDER, -1, 10, 998, 3, 1), 'order 1 is on the other side'),
    ((ADD_ORDER, 1, 10, 998, 4, 0), 'order number 0'),
    ((ADD_ORDER, 1, 10, 998, 0, 9), 'quantity 0.0 makes no sense'),
    ((FILL_ORDER, 1, 10, 998, 0, 1), 'quantity 0.0 makes no sense'),
    ((ADD_ORDER, 0, 10, 998, 4, 9), 'on no side'),
    ((ADD_ORDER, 1, 10, 0, 4, 9), 'price 0.0 is not above zero'),
    ((MODIFY_ORDER, 1, 10, 0, 4, 1), 'price 0.0 is not above zero'),
    ((ADD_ORDER, 1, 10, 998.5, 4, 9), 'is not on the grid of 0.5'),
    ((ADD_ORDER, 1, 10, 998, 4.5, 9), 'is not on the grid of 0.1'),
    ((DEPTH, 1, 10, 998, 4, 9), 'event kind 1 is not trade'),
    ((14, 1, 10, 998, 4, 9), 'event kind 14 is not trade')])
def test_what_cannot_have_happened(row: Row, text: str) -> None:
    "Row and time are named"
    with pytest.raises(ValueError, match=r'^row 4, local time 11000000: .*') as error: tape_by_order(file_of(*OPENING, row), TOY)
    assert text in str(error.value)


def test_gone_is_gone() -> None:
    for last in ((CANCEL_ORDER, 1, 12, 998, 0, 1), (FILL_ORDER, 1, 12, 998, 1, 1)):
        with pytest.raises(ValueError, match=r'row 5.*order 1 is not in the book'):
            tape_by_order(file_of(*OPENING, (CANCEL_ORDER, 1, 10, 998, 0, 1), last), TOY)
    with pytest.raises(ValueError, match=r'row 6.*order 1 is not in the book'):   # its fill may be confirmed once
        tape_by_order(file_of(*OPENING, (FILL_ORDER, 1, 10, 998, 4, 1), *[(CANCEL_ORDER, 1, 11, 998, 4, 1)] * 2), TOY)
    with pytest.raises(ValueError, match=r'row 5.*order 1 is not in the book'):
        tape_by_order(file_of(*OPENING, (CLEAR, 1, 10, 0, 0, 0), (CANCEL_ORDER, 1, 11, 998, 0, 1)), TOY)


def test_levels_and_orders_are_told_apart(tmp_path: Path) -> None:
    data = file_of(*OPENING)
    with pytest.raises(ValueError, match=r'row 1.*read by tape_by_order'): from_hftbacktest(data, TOY)
    with pytest.raises(ValueError, match='read by from_hftbacktest'): tape_by_order(file_of((DEPTH, 1, 1, 998, 4, 0)), TOY)
    assert np.array_equal(load_hftbacktest(save_hftbacktest(data, tmp_path/'orders.npz')), data)
    shown = instrument_of(stream(1), 'TOY/USD', 'usdm')
    assert (shown.tick_size, shown.lot_size) == (TOY.tick_size, TOY.lot_size)
    assert len(tape_by_order(data[:0], TOY)) == 0
    saved = tape_of(stream(1)).save(tmp_path/'orders.parquet')
    assert Tape.load(saved).by_order and Tape.load(saved).events.equals(tape_of(stream(1)).events)


def test_two_clocks() -> None:
    "A row that overtakes is written twice, once for each clock: the exchange's levels follow its order, ours follow ours"
    early, late = file_of((ADD_ORDER, 1, 10, 998, 2, 7)), file_of((ADD_ORDER, 1, 12, 998, 5, 8))
    early['local_ts'], late['local_ts'] = 15 * MS, 14 * MS        # 7 happened first and reached us last
    apart = [(one, bit) for one, bit in ((early, EXCHANGE_BIT), (late, BOTH), (early, LOCAL_BIT))]
    rows = []
    for one, bit in apart:
        rows.append(one.copy())
        rows[-1]['ev'] = one['ev'] & ~np.uint64(BOTH) | np.uint64(bit)
    events = tape_of(np.concatenate([file_of(*OPENING), *rows])).events
    def seen(part: Events) -> list[tuple[int, int]]: return list(zip(part.lots.tolist(), part.id.tolist()))[4:]
    assert seen(events.exchange_rows()) == [(12, 7), (17, 8)] and seen(events.local_rows()) == [(15, 8), (17, 7)]
    assert {EXCHANGE_ONLY, LOCAL_ONLY} <= set((events.flags & (EXCHANGE_ONLY | LOCAL_ONLY)).tolist())
    assert (events.flags[:4] & (EXCHANGE_ONLY | LOCAL_ONLY) == 0).all()


def test_backtest_takes_a_tape_by_order() -> None:
    tape = tape_of(stream(5))
    result = backtest(tape, by_order.restless, by_order.venue(), config=by_order.settings(), levels=2, parameters=np.array([5., 0, 1]))
    assert len(result.session.fills) and 'synthetic' in repr(tape)
    with pytest.raises(ValueError, match='by_order'):
        backtest(Tape(tape.events, TOY, synthetic=True), by_order.restless, by_order.venue(), config=by_order.settings(), levels=2,
                 parameters=np.array([5., 0, 1]))
