"""A prepared tape takes a shorter way; it has to lead to the same place, row for row (promise 1)."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle import scenario, wild
from pandas.testing import assert_frame_equal

from cryptoexp.market.events import CLEAR, CONTROL, DEPTH, LAST, SNAPSHOT, STALE, Events, concat
from cryptoexp.market.instrument import MONEY_SCALE, decimal
from cryptoexp.trading.backtest import largest_latency_ns, prepare, run_configurations, short_of
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.matching import Engine
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
        for table in ('fills', 'orders', 'samples'):
            assert_frame_equal(getattr(engine, table), getattr(runs, table).drop(columns=['config', 'asset']), obj=f'seed {seed}, {table}')
        mine, theirs = engine.desk.state[0], runs.desk.state[0]
        for name in ('cash_e8', 'known_cash_e8', 'orders_sent', 'cancels_sent', 'late_cancels', 'halted', 'peak_e8', 'max_drawdown',
                     'max_exposure'):
            assert mine[name] == theirs[name], (seed, name)
        assert engine.desk.refusals.tolist() == runs.desk.refusals.tolist() and engine.desk.bound.tolist() == runs.desk.bound.tolist()
    assert shortened == 0 if pictures and block else True
    if not pictures: assert shortened >= 4
