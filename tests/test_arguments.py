"""Every argument of the functions that a person calls, given what can't be meant: one line of words, by a check, before anything runs

An error from deep inside (`'str' object has no attribute …`) comes from a line that was not written for it. So what is looked at is not
only the text but where the error was raised: in a statement that says `raise`.
"""
from __future__ import annotations

import asyncio
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from loguru import logger

import cryptoexp
from cryptoexp.config import MarketMakingConfig, load_config
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Clock, Tape
from cryptoexp.market_making import MarketMaker, replayed, resumed
from cryptoexp.trading.all_models import compare_models, judge, touch_fills, trace_run, watch
from cryptoexp.trading.attribution import attribute
from cryptoexp.trading.backtest import backtest, bracket, prepare, run_configurations
from cryptoexp.trading.compare import compare
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.models import model_of
from cryptoexp.trading.orders import fill_curves, fill_figure, fill_probability, follow, order_life, queue_life, waits
from cryptoexp.trading.report import markout_money, markout_table, one_line, performance, price_figure, report_page, terminal_report
from cryptoexp.trading.search import (
    best_of_noise,
    block_bootstrap,
    choose,
    optimise,
    rank,
    score,
    scores,
    splits_of,
    walk_forward,
    walk_forward_table,
)
from cryptoexp.trading.sweep import heatmap, sweep
from cryptoexp.trading.venue import VENUES, Venue

NAN = float('nan')
HERE = Path(cryptoexp.__file__).parent
COUNT = ['2', 1.5, NAN, True, [], -(10 ** 9)]          # for a whole number
SIZE = [*COUNT, 0]                                     # for one above zero
TAPE: list[Any] = [None, 5, 'no/such', [], pd.DataFrame(), Clock()]
QUOTER: list[Any] = ['glft', 5, lambda: 0, lambda view: 0, print, [], MarketMakingConfig]
VENUE: list[Any] = ['binance-spot', 'binance', 5, {}, [Venue()], Venue, VENUES['binance-spot']]
CONFIG: list[Any] = ['zero-fee-tier', {}, 5, {'maker_fee': 0}, MarketMakingConfig]
PRESET: list[Any] = [5, ['zero-fee-tier']]
PATH: list[Any] = [5, '', []]
SWITCH: list[Any] = ['x', 5, []]
NAMES: list[Any] = ['lots', 5, [5], [None]]
LIST: list[Any] = [5, 'x', ['a'], [NAN], [None], None, {}]
TABLE: list[Any] = [None, 5, 'x', {}, pd.DataFrame()]
SESSION: list[Any] = [None, 5, 'x']


def at_the_touch(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick, 1
    return 0


class World:
    "One short synthetic tape and what comes of it, made once"
    def __init__(self) -> None:
        market = SyntheticMarket(seed=1)
        self.tape = Tape(market.events(20 * 10 ** 9), market.instrument, Clock(), ('made',), synthetic=True)
        self.free = load_config(preset='zero-fee-tier', environment={})
        self.result = backtest(self.tape, config=self.free)
        self.session = self.result.session
        self.table = sweep(self.tape, grid={'spread_percentage': [1e-7, 1e-5]}, config=self.free)
        self.prepared, self.model = prepare(self.tape), model_of(self.free)
        self.rules = make_rules(self.free, self.tape.instrument)
        self.moves, self.trace = follow(self.tape, self.session), trace_run(self.prepared, self.free)

    def engine(self) -> dict[str, Any]:
        return dict(prepared=self.prepared, rules=self.rules, parameters=self.model[1][None], quoter=self.model[0].quoter, cash_e8=10 ** 12)


def of_session(function: Callable[..., Any], **wrong: list[Any]) -> Any:
    return function, lambda world: {'session': world.session}, {'session': SESSION, **wrong}


def a_session(**options: Any) -> None: asyncio.run(MarketMaker(**options).run())


SWEPT = dict(quoter=QUOTER, venue=VENUE, config=CONFIG, preset=PRESET, levels=SIZE, names=NAMES, jobs=['2', 0, 1.5, NAN, True, []],
folder=PATH,
             threads=SIZE, chunk=SIZE, tapes=[None, 5, [], [5], [None], [[]], {'a': 1}, pd.DataFrame()])
CASES: dict[str, tuple[Callable[..., Any], Callable[[World], dict[str, Any]], dict[str, list[Any]]]] = {
    'backtest': (backtest, lambda world: dict(tape=world.tape, config=world.free, quoter=at_the_touch), dict(
        tape=TAPE, quoter=QUOTER, venue=VENUE, config=CONFIG, preset=PRESET, levels=SIZE, depth=COUNT, own_orders=SWITCH, compiled=SWITCH,
        batch_rows=SIZE, parameters=['abc', 5, {'lots': 1}, [[1.0]], ['x']])),
    'bracket': (bracket, lambda world: dict(tape=world.tape, config=world.free, quoter=at_the_touch), dict(
        tape=TAPE, quoter=QUOTER, venue=VENUE, config=CONFIG, preset=PRESET, levels=SIZE, queues=[None, 'behind', ['behind'], [], 5],
        parameters=['abc', {'lots': 1}, ['x']])),
    'prepare': (prepare, lambda world: {}, dict(markets=[*TAPE, [(1, 2)], [5], [()]])),
    'run_configurations': (run_configurations, World.engine, dict(
        prepared=TAPE, rules=[None, 5, [], {}, [1], np.zeros(1)], parameters=[None, 5, [], 'x', [1.0], {}], quoter=[*QUOTER, None],
        levels=SIZE,
        cash_e8=['x', None, [1, 2], NAN, 0.5], position_lots=['x', None, [1, 2], NAN], depth=COUNT, slots=COUNT, ring=[*COUNT, 3],
        latency=['x', 5, [], [[1, 2, 3]], np.zeros((0, 3), np.int64), np.zeros((1, 3)), np.zeros(3, np.int64)], parity=SWITCH,
        record=SWITCH, funding=['x', 5, [], [1], np.zeros((1, 3), np.int64)], every_message=SWITCH, own_orders=SWITCH, compiled=SWITCH)),
    'sweep': (sweep, lambda world: dict(tapes=world.tape, config=world.free, progress=False), dict(
        SWEPT,
        grid=[5, 'x', [], {'spread_percentage': []}, [5], {5: [1]}, {'spread': [1]}, {'queue': ['x']}, {'venue': [Venue()]},
                    {'venue': ['x']},
                     {'model': [5]}, {'spread_percentage': [NAN]}, pd.DataFrame()],
        every_minutes=SIZE, markouts=SWITCH, progress=SWITCH)),
    'heatmap': (heatmap, lambda world: dict(table=world.table, x='spread_percentage', y='configuration'), dict(
        table=TABLE, x=[None, 5, 'x'], y=[None, 5, 'x'], value=[None, 5, 'x', 'tape'], how=[None, 5, 'avg'])),
    'rank': (rank, lambda world: dict(table=world.table), dict(
        table=TABLE, by=['configuration', 5, [5], ['x']], least_days=COUNT, least_fills=COUNT, per=[None, 'x', 5], block_minutes=SIZE,
        tried=SIZE,
        draws=[*SIZE, None], seed=[*COUNT, None], level=['x', None, 0, 1, NAN])),
    'score': (score, lambda world: dict(rows=world.table), dict(rows=TABLE, objective=[None, 5, 'x', 'tape'])),
    'scores': (scores, lambda world: dict(table=world.table), dict(table=TABLE, objective=[None, 5, 'x', 'tape'], by=['x', 5, ['x']])),
    'choose': (choose, lambda world: dict(table=world.table, objective='pnl'), dict(
        table=TABLE, objective=[None, 'x'], least_fills=COUNT, minimise=SWITCH)),
    'splits_of': (splits_of, lambda world: dict(days=[1, 2, 3], train_days=1, test_days=1), dict(
        days=[None, 5, [], 'abc', [3, 1, 2], [1, 1, 2]], train_days=[*SIZE, None], test_days=[*SIZE, None])),
    'walk_forward_table': (walk_forward_table, lambda world: dict(table=world.table, train_days=1, test_days=1), dict(
        table=TABLE, train_days=SIZE, test_days=SIZE, objective=['x', None])),
    'block_bootstrap': (block_bootstrap, lambda world: dict(values=np.arange(4.0), blocks=np.arange(4)), dict(
        values=[None, 5, 'x', [], [NAN] * 4], blocks=[None, 5, []], draws=SIZE, seed=COUNT, level=['x', 0, 1, None],
        counts=['x', [1], [-1] * 4, [0] * 4])),
    'best_of_noise': (best_of_noise, lambda world: dict(sums=np.ones((3, 2)), counts=np.ones((3, 2))), dict(
        sums=[None, 5, 'x', np.ones(3), np.ones((3, 3))], counts=[None, 'x'], draws=SIZE, seed=COUNT)),
    'optimise': (optimise, lambda world: dict(tapes=world.tape, space={'spread_percentage': (1e-7, 1e-5)}, trials=1,
        config=world.free), dict(
        SWEPT, space=[None, 5, {}, [1], {'spread_percentage': 5}, {'spread_percentage': (2, 1)}, {'spread': (1, 2)}, {5: (1, 2)}],
        objective=[None, 5, 'x', 'tape'], trials=COUNT, seed=[*COUNT, None], minimise=SWITCH, least_days=COUNT, least_fills=COUNT,
        batch=SIZE,
        nosuch=[1])),
    'walk_forward': (walk_forward, lambda world: dict(tapes=[world.tape] * 2, grid={'seed': [7]}, config=world.free, train_days=1,
        test_days=1), dict(
        tapes=SWEPT['tapes'], quoter=QUOTER, venue=VENUE, train_days=SIZE, test_days=SIZE, objective=[None, 'x'], least_fills=COUNT,
        trials=COUNT,
        nosuch=[1], grid=[5, 'x'], levels=SIZE)),
    'performance': of_session(performance), 'report_page': of_session(report_page), 'one_line': of_session(one_line),
    'price_figure': of_session(price_figure, most=SIZE), 'terminal_report': of_session(terminal_report), 'waits': of_session(waits),
    'markout_table': of_session(markout_table, seconds=LIST), 'markout_money': of_session(markout_money, seconds=LIST),
    'attribute': of_session(attribute, seconds=[*LIST, [], [0], [2, 1], [float('inf')]]),
    'fill_figure': of_session(fill_figure, by=[5, 'x']), 'fill_curves': of_session(fill_curves, by=[5, 'x', []],
        edges=[5, 'x', [], [NAN], ['a']]),
    'fill_probability': (fill_probability, lambda world: dict(seconds=np.ones(3), filled=np.ones(3, bool)), dict(
        seconds=[*LIST, [-1] * 3], filled=[None, 5, 'x', []])),
    'follow': (follow, lambda world: dict(tape=world.tape, session=world.session), dict(
        tape=TAPE, session=SESSION, order_ids=[5, 'x', ['a'], [1.5], [-1]], hold_ns=SIZE)),
    'order_life': (order_life, lambda world: dict(tape=world.tape, session=world.session, order_id=1), dict(
        tape=TAPE, session=SESSION, order_id=[None, 'x', 0, 1.5, NAN, 10 ** 9])),
    'queue_life': (queue_life, lambda world: dict(session=world.session, moves=world.moves), dict(session=SESSION, moves=TABLE,
        ages=[*LIST, []])),
    'compare': (lambda one, other, **options: compare(one, other, **options), lambda world: dict(one=world.result,
        other=world.result), dict(
        other=[None, 5, [], 'nowhere'], within=['x', None, -1, NAN])),
    'compare_models': (compare_models, lambda world: dict(tape=world.tape, models=['constant_spread'], configs={'a': world.free}), dict(
        tape=TAPE, other=TAPE[1:], models=['glft', 5, [], [5], ['glf']], configs=[5, [], 'x', {'a': 5}], blocks=[*SIZE, None], venue=VENUE,
        parameters=[5, 'x', {'constant_spread': 5}, {'nosuch': {}}, {'constant_spread': {'x': 1.0}}])),
    'trace_run': (trace_run, lambda world: dict(prepared=world.prepared, config=world.free), dict(
        prepared=TAPE, config=[*CONFIG, None], venue=VENUE, quoter=QUOTER, levels=SIZE)),
    'judge': (judge, lambda world: dict(run=world.trace), dict(run=SESSION, target=['x', None, NAN], blocks=[*SIZE, None], seconds=LIST)),
    'watch': (watch, lambda world: dict(tape=world.tape, other=world.tape), dict(tape=TAPE, other=TAPE)),
    'touch_fills': (touch_fills, lambda world: dict(orders=world.session.orders, events=world.tape.events), dict(orders=TABLE,
        events=TAPE)),
    'MarketMaker': (a_session, lambda world: dict(config=world.free, source='embedded', duration=2.0), dict(
        config=[*CONFIG, None], source=[5, '', [], [5], 'embeded', {}, Clock()], preset=PRESET, duration=['4h', 0, -1, NAN, True, []],
        speed=['x', 0, -1, NAN], out=PATH, quoter=QUOTER, levels=SIZE, compiled=SWITCH, streams=['x', 5, 'fused'], journal=SWITCH,
        on_turn=[5, 'x'])),
    'resumed': (resumed, lambda world: {}, dict(folder=[None, 5, [], 'nowhere'])),
    'replayed': (replayed, lambda world: {}, dict(folder=[None, 5, [], 'nowhere'])),
}


@pytest.fixture(scope='module')
def world() -> World: return World()


@pytest.mark.parametrize('name', CASES)
def test_what_cannot_be_meant(world: World, name: str) -> None:
    function, base, wrong = CASES[name]
    flaws = []
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(str(message)))
    for argument, values in wrong.items():
        for value in values:
            try: function(**{**base(world), argument: value})
            except (TypeError, ValueError, LookupError, OSError) as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                said = ''.join(linecache.getline(where.filename, line) for line in range(where.lineno or 0, (where.end_lineno or 0) + 1))
                words = str(error).strip().splitlines()
                if HERE not in Path(where.filename).parents or 'raise ' not in said: flaws.append(f'{argument}={value!r}: raw: {error!r}')
                elif len(words) != 1 and not (words and words[0].startswith('the configuration has')):
                    flaws.append(f'{argument}={value!r}: {words}')
            except Exception as error: flaws.append(f'{argument}={value!r}: raw: {error!r}')
            else: flaws.append(f'{argument}={value!r} is taken')
    logger.remove(sink)
    assert not flaws, '\n'.join(flaws)
    assert not any('rows have no result' in text for text in heard)   # nothing has run
