"""A prepared tape takes a shorter way; it has to lead to the same place, row for row (promise 1)."""
from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle import scenario, wild
from pandas.testing import assert_frame_equal

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.events import BUY, CLEAR, CONTROL, DEPTH, LAST, RESUME, SELL, SNAPSHOT, STALE, TRADE, Events, concat, from_rows
from cryptoexp.market.instrument import MONEY_SCALE, decimal
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.trading.backtest import home_of, largest_latency_ns, prepare, run_configurations, short_of
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.matching import Engine
from cryptoexp.trading.models import model_of
from cryptoexp.trading.venue import QueueModel, Venue


def with_far_levels(rows: Events) -> Events:
    "The same rows; each message about levels ends with one so far away that no book has a place for it"
    ends = np.flatnonzero((rows.kind == DEPTH) & (rows.flags >= LAST))
    far = rows[ends]
    far = Events(far.flags, far.exchange_ns, far.local_ns, np.full(len(far), 2_000_000_000), far.lots, far.id)
    flags = rows.flags.copy()
    flags[ends] &= LAST - 1
    joined = concat([Events(flags, *rows.columns[1:]), far])
    return joined[np.argsort(np.concatenate([np.arange(len(rows)), ends + 0.5]), kind='stable')]


def played(seed: int, pictures: bool, queue: QueueModel | None = None, far: bool = False) -> tuple[Any, Any, Any]:
    "A random market through the engine, row after row, and through the one pass over its prepared tape"
    case = replace(scenario(seed), manual={}, cuts=[])
    rows = case.rows
    if not pictures:   # nothing but levels and prints after the opening, so that the shortest way is taken
        later = np.arange(len(rows)) > int(np.argmax(rows.kind == DEPTH))
        rows = rows[~(later & (np.isin(rows.kind, (CLEAR, SNAPSHOT)) | ((rows.kind == CONTROL) & (rows.tick == STALE))))]
    if far: rows = with_far_levels(rows)
    venue = Venue.from_config(case.config, **({} if queue is None else dict(queue=queue)))
    engine = Engine(case.instrument, case.config, wild, case.levels, np.array(case.parameters), largest_latency_ns(rows),
                    case.use_best_quotes, venue=venue)
    engine.feed(rows)
    engine.finish()
    prepared = prepare([(rows, case.instrument)], case.use_best_quotes)
    runs = run_configurations(
        prepared, make_rules(engine.config, case.instrument, venue), np.array([case.parameters], float), wild, case.levels,
        round(decimal(case.config.total_capital) * MONEY_SCALE), case.instrument.lots(case.config.initial_base), venue.latency.table)
    return engine, runs, prepared


@pytest.mark.parametrize('pictures', [True, False])
@pytest.mark.parametrize('block', range(4))
def test_the_short_way_leads_to_the_same_place(block: int, pictures: bool) -> None:
    "Fills, orders, samples, sums and refusals, for random markets and quoters, with and without snapshots in between"
    shortened = 0
    for seed in range(block * 12, block * 12 + 12):
        engine, runs, prepared = played(seed, pictures, QueueModel('power', 2.) if seed % 4 == 3 else None, far=seed % 3 == 1)
        shortened += short_of(prepared, False) is not None
        for table in ('fills', 'orders', 'samples', 'refused'):
            assert_frame_equal(getattr(engine, table), getattr(runs, table).drop(columns=['config', 'asset']), obj=f'seed {seed}, {table}')
        mine, theirs = engine.desk.state[0], runs.desk.state[0]
        for name in ('cash_e8', 'known_cash_e8', 'orders_sent', 'cancels_sent', 'late_cancels', 'halted', 'peak_e8', 'max_drawdown',
                     'max_exposure'):
            assert mine[name] == theirs[name], (seed, name)
        assert engine.desk.refusals.tolist() == runs.desk.refusals.tolist() and engine.desk.bound.tolist() == runs.desk.bound.tolist()
    assert shortened == 0 if pictures and block else True
    if not pictures: assert shortened >= 4


def by_lots(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "One lot more or less at the touch, as what is displayed there would have it"
    now = view.market[0]
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - now.ask_lots % 2, 1 + now.bid_lots % 3
    wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + now.bid_lots % 2, 1 + now.ask_lots % 3
    return 0


def test_the_lots_at_the_touch_are_those_of_the_book() -> None:
    "Written down where few messages change them, searched for elsewhere: the orders of a model that goes by them are the same"
    draw, rows, case = np.random.default_rng(5), [], scenario(0)
    for number in range(4000):
        at = 1_000_000 * (number + 1)
        buys, near = bool(draw.integers(2)), number < 8 or number % 25 == 0
        away = int(draw.integers(3)) if near else 20 + int(draw.integers(9))
        tick, lots = 100 - away if buys else 102 + away, int(draw.integers(1, 30))
        printed = near and number > 100 and number % 75 == 0
        if printed: rows.append((TRADE | LAST | (SELL if buys else BUY), at, at + 500_000, tick, lots, 0))
        else: rows.append((DEPTH | LAST | (BUY if buys else SELL), at, at + 500_000, tick, lots, 0))
    events, venue = from_rows(rows), Venue.from_config(case.config)
    engine = Engine(case.instrument, case.config, by_lots, 1, np.zeros(1), largest_latency_ns(events), venue=venue)
    engine.feed(concat([from_rows([(CONTROL | LAST, int(events.local_ns[0]), int(events.local_ns[0]), RESUME, 0, 0)]), events]))
    engine.finish()
    prepared, rules = prepare([(events, case.instrument)]), make_rules(engine.config, case.instrument, venue)
    course = home_of(prepared, False)
    assert course is not None and 0 < len(course.best) * 8 <= len(prepared)
    for known in (course, course._replace(best=course.best[:0])):
        prepared.homes[False] = known
        runs = run_configurations(prepared, rules, np.zeros((1, 1)), by_lots, 1, round(decimal(case.config.total_capital) * MONEY_SCALE),
                                  case.instrument.lots(case.config.initial_base), venue.latency.table)
        assert len(runs.orders) > 10
        for table in ('fills', 'orders', 'samples', 'refused'):
            assert_frame_equal(getattr(engine, table), getattr(runs, table).drop(columns=['config', 'asset']), obj=table)


LEAN = """
import sys
import numpy as np
from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.trading.backtest import prepare, run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.models import model_of
from cryptoexp.trading.venue import Venue
market = SyntheticMarket(7)
prepared = prepare([(market.step(2_000), market.instrument)])
model, parameters = model_of(MarketMakingConfig())
rules = make_rules(MarketMakingConfig(), market.instrument, Venue.from_config(MarketMakingConfig()))
runs = run_configurations(prepared, rules, parameters[None], model.quoter, model.levels, cash_e8=10**12)
heavy = {'pandas', 'pyarrow', 'rich', 'loguru', 'matplotlib', 'joblib'}
print(int(runs.desk.state.orders_sent[0]), sorted(heavy & set(sys.modules)))
print(int(runs.totals().orders_sent.iloc[0]), sorted(heavy & set(sys.modules) - {'pyarrow'}))
"""


def test_a_run_does_not_wait_for_what_shows_tables() -> None:
    "A fresh process prepares a tape and runs a model without importing pandas, until it is asked for a table"
    done = subprocess.run([sys.executable, '-W', 'error::ImportWarning', '-c', LEAN], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    (sent, before), (told, after) = (line.split(' ', 1) for line in done.stdout.splitlines())
    assert int(sent) > 0 and (told, before, after) == (sent, '[]', "['pandas']")


READ_ONLY = """
import pickle, sys
import numpy as np
from cryptoexp.trading.backtest import run_configurations
from cryptoexp.trading.models import model_of
from cryptoexp.trading.quoting import compile_quoter
from numba import njit
prepared, config, rules = pickle.loads(sys.stdin.buffer.read())
model, parameters = model_of(config)
def worth():
    runs = run_configurations(prepared, rules, parameters[None], model.quoter, model.levels, cash_e8=10**12)
    return int(runs.desk.state.orders_sent[0]), int(runs.desk.state.cash_e8[0])
print(*worth(), 'numba.np.arrayobj' in sys.modules)
compiled = compile_quoter(model.quoter)
@njit
def twice(*given): return compiled(*given) + compiled(*given)
print(*worth(), 'numba.np.arrayobj' in sys.modules)
from cryptoexp.trading.quoting import SCRATCH, new_view
view, wishes = new_view(), np.zeros((1, 2, 1, 3), np.int64)
view.market.bid_tick, view.market.ask_tick, view.market.order_lots = 1000, 1001, 5
plain = model.quoter(view, parameters, np.zeros(SCRATCH), wishes.copy())
both = twice(view, parameters, np.zeros(SCRATCH), wishes)
print(plain > 0, both == 2*plain, wishes[0, :, 0, 1].tolist(), 'numba.np.arrayobj' in sys.modules)
"""


def test_what_is_kept_on_disk_is_read_without_what_compiling_needs() -> None:
    "A fresh process runs a built-in model without Numba's declarations, and can compile all the same, also what calls that model"
    market, config = SyntheticMarket(7), MarketMakingConfig()
    prepared = prepare([(market.step(2_000), market.instrument)])
    rules = make_rules(config, market.instrument, Venue.from_config(config))
    model, parameters = model_of(config)
    runs = run_configurations(prepared, rules, parameters[None], model.quoter, model.levels, cash_e8=10**12)   # compiled, and kept
    given = pickle.dumps((prepared, config, rules))
    done = subprocess.run([sys.executable, '-c', READ_ONLY], input=given, capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()
    first, again, called = done.stdout.decode().splitlines()
    answer = f'{int(runs.desk.state.orders_sent[0])} {int(runs.desk.state.cash_e8[0])}'
    assert int(runs.desk.state.orders_sent[0]) > 0 and (first, again) == (f'{answer} False',) * 2
    assert called == 'True True [5, 5] True'
