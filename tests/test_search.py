"What may be concluded from many runs: refusals, intervals that hold, no peeking, a search that survives being killed"
from __future__ import annotations

import builtins
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_sweep import NAMES, at_the_touch, day

from cryptoexp.config import ConfigError, MarketMakingConfig, load_config
from cryptoexp.market.tape import Tape
from cryptoexp.trading import search as room
from cryptoexp.trading.search import (
    TooLittleEvidence,
    best_of_noise,
    block_bootstrap,
    chance_of,
    choose,
    optimise,
    rank,
    score,
    scores,
    splits_of,
    walk_forward,
    walk_forward_table,
)
from cryptoexp.trading.sweep import sweep

SPACE = {'lots': (100, 400, 'int'), 'shift': (0, 3, 'int')}
needs_optuna = pytest.mark.skipif(not __import__('importlib').util.find_spec('optuna'),
                                  reason='Optuna is not installed: pip install "cryptoexp[scale]"')


def drawn(days: int = 12, configurations: int = 4, fills: int = 50, drift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    "A table as of a sweep, drawn: configuration 0 earns `drift` a fill more than nothing"
    generator = np.random.default_rng(seed)
    pnl = generator.normal(0, fills * .1, (days, configurations))
    pnl[:, 0] += drift * fills
    table = pd.DataFrame(dict(
        tape=np.repeat([f'day {number}' for number in range(days)], configurations), symbol='TOY',
        start=np.repeat(pd.date_range('2024-03-01', periods=days, tz='UTC'), configurations), minutes=600.0, synthetic=True,
        configuration=np.tile(np.arange(configurations), days), width=np.tile(np.arange(configurations) / 10, days),
        fills=fills, maker_volume=fills * 100.0, taker_volume=0.0, pnl=pnl.ravel(), error=None))
    table.attrs = {'grid': ['width'], 'configurations': configurations}
    return table


# ---- intervals

@pytest.mark.parametrize('blocks', [6, 15, 40])
def test_coverage_is_near_nominal(blocks: int) -> None:
    "Drawn data with a known mean, correlated within blocks of unequal size; and an interval at 80 % is not one at 95 %"
    held = {.95: 0, .8: 0}
    generator, tries = np.random.default_rng(blocks), 400
    for number in range(tries):
        sizes = generator.integers(5, 30, blocks)
        which = np.repeat(np.arange(blocks), sizes)
        values = 1.5 + np.repeat(generator.normal(0, 1, blocks), sizes) + generator.normal(0, 1, len(which))
        for level in held:
            low, high = block_bootstrap(values, which, 400, number, level)
            held[level] += low <= 1.5 <= high
    assert .89 <= held[.95] / tries <= .99 and .72 <= held[.8] / tries <= .88


def test_bootstrap_does_not_care_how_a_block_is_told() -> None:
    "The order of values, the names of blocks, and sums with counts in the place of single values"
    generator = np.random.default_rng(1)
    values, which = generator.normal(0, 1, 60), np.repeat(np.arange(6), 10)
    interval = block_bootstrap(values, which, seed=3)
    order = np.argsort(np.tile(np.arange(10), 6), kind='stable')
    assert block_bootstrap(values[order], which[order], seed=3) == pytest.approx(interval)
    assert block_bootstrap(values, np.array(list('abcdef'))[which], seed=3) == pytest.approx(interval)
    sums = values.reshape(6, 10).sum(1)
    assert block_bootstrap(sums, np.arange(6), seed=3, counts=np.full(6, 10)) == pytest.approx(interval)
    assert block_bootstrap(values * 5 + 1, which, seed=3) == pytest.approx(tuple(5 * end + 1 for end in interval))
    assert block_bootstrap(values, which, seed=4) != interval
    with pytest.raises(ValueError, match='level'): block_bootstrap(values, which, level=95)


def test_days_without_fills_count() -> None:
    "A day without fills whose coins lost value is a part of the result"
    sums, counts = np.array([1., 1.2, .8, -5]), np.array([10, 10, 10, 0])
    low, high = block_bootstrap(sums, np.arange(4), counts=counts)
    assert low < sums.sum() / counts.sum() < high and low < 0


def test_best_of_noise_is_calibrated() -> None:
    "Where nothing is worth anything, a chance below one tenth comes about once in ten"
    generator, hits, tries = np.random.default_rng(8), 0, 200
    for number in range(tries):
        profits, fills = generator.normal(0, 1, (12, 8)), generator.integers(20, 60, (12, 8)).astype(float)
        centre, error = (one[0] for one in room._ratios(np.ones((1, 12)), profits, fills))
        hits += chance_of((centre / error).max(keepdims=True), best_of_noise(profits, fills, 400, number))[0] < .1
    assert 6 <= hits <= 36


# ---- ranking

def test_refusal_says_how_much_there_is() -> None:
    with pytest.raises(TooLittleEvidence, match=r'3 independent days \(asked: 5\) and at most 150 fills a configuration \(asked: 200\)'):
        rank(drawn(3))
    with pytest.raises(TooLittleEvidence) as caught: rank(drawn(12, fills=3))
    assert (caught.value.days, caught.value.fills, caught.value.least_days, caught.value.least_fills) == (12, 36, 5, 200)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert 'at most 36 fills a configuration (asked: 200)' in str(caught.value) and 'day' not in str(caught.value)   # only what is short
    with pytest.raises(TooLittleEvidence, match=r'3 independent days \(asked: 5\)') as caught: rank(drawn(3, fills=100))
    assert 'fills' not in str(caught.value)
    with pytest.raises(TooLittleEvidence) as caught: rank(drawn(8).assign(pnl=np.nan, error='no', start=pd.NaT))
    assert '4 configurations lack results' in str(caught.value)
    assert len(rank(drawn(3), least_days=3, least_fills=100)) == 4
    with pytest.raises(TooLittleEvidence, match=r'asked: 2'): rank(drawn(1), least_days=0)    # one day can't be resampled


def test_symbols_of_one_day_are_one_day() -> None:
    table = drawn(3)
    other = table.assign(tape=table.tape + ' other', symbol='OTHER', pnl=table.pnl + .1)
    both = pd.concat([table, other], ignore_index=True)
    with pytest.raises(TooLittleEvidence, match='3 independent days'): rank(both, by=['width'])
    found = rank(both, by=['width'], least_days=3)
    assert (found.blocks == 3).all() and (found.fills == 300).all()


def test_minutes_around_midnight_are_one_day() -> None:
    table = drawn(1, 2).assign(minutes=1.0)
    pieces = [table.assign(start=table.start + pd.Timedelta(hours=23, minutes=55 + number)) for number in range(10)]
    with pytest.raises(TooLittleEvidence, match='1 independent day '): rank(pd.concat(pieces, ignore_index=True), by=['width'])
    assert rank(pd.concat(pieces, ignore_index=True), by=['width'], block_minutes=2).blocks.tolist() == [6, 6]    # by the clock: 23:54, …
    with pytest.raises(ValueError, match='every_minutes=2'): rank(drawn(12), block_minutes=2)
    long = [table.assign(tape='ten days', minutes=1440., start=table.start + pd.Timedelta(days=number)) for number in range(10)]
    assert rank(pd.concat(long, ignore_index=True), by=['width']).blocks.tolist() == [10, 10]


def test_what_a_ranking_says() -> None:
    table = drawn(20, 6, drift=.2, seed=3)
    found = rank(table)
    assert found['rank'].tolist() == [1, 2, 3, 4, 5, 6] and found.width[0] == 0 and found.pnl_per_fill.is_monotonic_decreasing
    first = table[table.width == 0]
    assert found.pnl_per_fill[0] == pytest.approx(first.pnl.sum() / first.fills.sum())
    assert (found.low[0], found.high[0]) == block_bootstrap(first.pnl.to_numpy(), np.arange(20), counts=first.fills.to_numpy())
    assert found.low[0] > 0 and found.chance[0] < .05 < found.chance[1] and 0 < found.noise_best[0] < found.pnl_per_fill[0]
    assert found.attrs['tried'] == 6 and found.attrs['synthetic']
    more = rank(table, tried=5000)
    assert more.chance[0] > found.chance[0] and more.noise_best[0] > found.noise_best[0] and more.attrs['tried'] == 5000
    pd.testing.assert_frame_equal(rank(table), found)                                            # seeded
    pd.testing.assert_frame_equal(rank(table.sample(frac=1, random_state=1)).drop(columns=['chance', 'noise_best']),
                                  found.drop(columns=['chance', 'noise_best']))                # rows in any order


def test_profit_of_the_volume() -> None:
    "A configuration of orders ten times as large loses or earns ten times as much a fill, and the same in basis points"
    table = drawn(10, 2)
    table.loc[table.configuration == 1, 'pnl'] = table.pnl[table.configuration == 0].to_numpy() * 10
    table.loc[table.configuration == 1, 'maker_volume'] *= 10
    found, by_fill = rank(table, per='volume'), rank(table).set_index('width')
    assert found.pnl_bps_of_volume[0] == pytest.approx(found.pnl_bps_of_volume[1]) and found.low[0] == pytest.approx(found.low[1])
    assert by_fill.pnl_per_fill[.1] == pytest.approx(10 * by_fill.pnl_per_fill[0])


def test_a_configuration_without_all_results_is_not_ranked() -> None:
    table = drawn(8)
    table.loc[1, ['pnl', 'error']] = [np.nan, 'RuntimeError: no']
    table.loc[table.configuration == 2, 'fills'] = 1
    found = rank(table).set_index('width')
    assert found.why[.1] == 'no result in 1 of the runs' and found.why[.2] == '8 fills, fewer than 200'
    assert found['rank'].isna().tolist() == [False, False, True, True] and found.pnl_per_fill.isna().sum() == 2
    assert rank(table).attrs['tried'] == 4    # what was not ranked was tried


# ---- choosing

def test_scores_are_quotients_of_sums() -> None:
    table = drawn(2, 1)
    table.loc[0, ['pnl', 'fills', 'maker_volume']] = [-1.0, 1, 10.0]
    table.loc[1, ['pnl', 'fills', 'maker_volume']] = [99.0, 99, 990.0]
    assert score(table) == pytest.approx(98 / 1000 * 1e4) and score(table, 'pnl_per_fill') == pytest.approx(.98)
    assert score(table, 'minutes') == 600 and score(table, 'pnl') == 98


def test_splits_never_look_ahead() -> None:
    days = list(range(23))
    for train_days, test_days in ((5, 1), (3, 4), (1, 1), (10, 5)):
        splits = splits_of(days, train_days, test_days)
        tested = [one for _, test in splits for one in test]
        assert len(tested) == len(set(tested)) and all(max(train) + 1 == min(test) for train, test in splits)
        assert all((len(train), len(test)) == (train_days, test_days) for train, test in splits)
    with pytest.raises(ValueError, match='too few'): splits_of(days, 20, 4)
    with pytest.raises(ValueError, match='at least 1'): splits_of(days, 0, 1)


def test_what_is_chosen_does_not_depend_on_the_test_days() -> None:
    "Change everything after the training days: the choice and the score in sample stay, the score out of sample changes"
    table = drawn(9)
    before = walk_forward_table(table, 4, 2, 'pnl_per_fill')
    changed = table.copy()
    later = changed.start >= pd.Timestamp('2024-03-05', tz='UTC')
    changed.loc[later, 'pnl'] = np.random.default_rng(9).normal(5, 5, int(later.sum()))
    after = walk_forward_table(changed, 4, 2, 'pnl_per_fill')
    same = ['width', 'in_sample', 'train_from', 'train_to']
    assert before.loc[0, same].equals(after.loc[0, same]) and before.out_of_sample[0] != after.out_of_sample[0]
    train, test = table[table.start.dt.day <= 4], table[table.start.dt.day.isin([5, 6])]
    best = choose(train, 'pnl_per_fill')
    assert best == {'width': before.width[0]} and before.in_sample[0] == scores(train, 'pnl_per_fill').score.max()
    assert before.out_of_sample[0] == score(test[test.width == best['width']], 'pnl_per_fill')
    with pytest.raises(ValueError, match='cut the tapes by day'): walk_forward_table(table.assign(minutes=1500.0), 4, 2, 'pnl_per_fill')


def test_nothing_to_choose_is_no_choice() -> None:
    table = drawn(6).assign(fills=0)
    found = walk_forward_table(table, 3, 1, 'pnl_per_fill')
    assert len(found) == 3 and found.in_sample.isna().all() and 'width' not in found


# ---- searching

@pytest.fixture(scope='module')
def days() -> list[Tape]: return [day(number) for number in (1, 2, 3)]


@pytest.fixture(scope='module')
def free() -> MarketMakingConfig: return load_config(preset='zero-fee-tier', environment={})


@needs_optuna
def test_a_search_is_what_its_sweep_would_say(days: list[Tape], free: MarketMakingConfig, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(space=SPACE, config=free, names=NAMES, batch=4, seed=5, least_days=1, least_fills=1)
    found = optimise(days[:2], at_the_touch, trials=12, **options)
    assert found.tried == 12 and found.value == found.trials.score.max() and found.best is not None
    assert found.trials.lots.between(100, 400).all() and {*found.trials['shift']} <= {0, 1, 2, 3}
    table = sweep(days[:2], at_the_touch, found.trials[['lots', 'shift']], free, names=NAMES)
    mine = [score(table[table.configuration == number]) for number in range(12)]
    assert mine == pytest.approx(found.trials.score.tolist())
    optimise(days[:2], at_the_touch, trials=5, folder=tmp_path, **options)    # the batches are cut elsewhere; then it goes on
    longer = optimise(days[:2], at_the_touch, trials=12, folder=tmp_path, **options)
    assert longer.tried == 12 and longer.trials[:4].equals(found.trials[:4])
    assert optimise(days[:2], at_the_touch, trials=12, folder=tmp_path, **options).trials.equals(longer.trials)
    assert optimise(days[:2], at_the_touch, trials=4, folder=tmp_path, **{**options, 'seed': 6}).tried == 4    # another search


@needs_optuna
def test_a_proposal_without_a_score_is_told(days: list[Tape], free: MarketMakingConfig) -> None:
    space = {'inventory_target': [.05, .9], 'spread_percentage': [1e-7, 1e-2]}    # a target above the cap; quotes nobody meets
    found = optimise(days[0], None, space, trials=16, config=free, seed=1, least_days=1, least_fills=1)
    bad = found.trials.inventory_target == .9
    assert bad.any() and found.trials.why[bad].str.contains('lies above max_inventory_exposure').all()
    assert found.trials.score[bad].isna().all()
    assert found.best == {'inventory_target': .05, 'spread_percentage': 1e-7}
    none = optimise(days[0], None, {'spread_percentage': [1e-2]}, trials=2, config=free, least_days=1, least_fills=1)
    assert none.best is None and np.isnan(none.value) and none.trials.why.str.contains('0 fills, fewer than 1').all()
    assert none.refused == 'too little evidence to rank: at most 0 fills a configuration (asked: 1)'
    never = optimise(days[0], None, {'inventory_target': [.9]}, trials=2, config=free)
    assert never.best is None and never.refused.startswith('no trial has a result') and 'max_inventory_exposure' in never.refused


@needs_optuna
def test_a_search_refuses_as_a_ranking_does(days: list[Tape], free: MarketMakingConfig, tmp_path: Path) -> None:
    "The same words as `rank`, and where it is let through the same numbers; the trials are there either way"
    options: dict[str, Any] = dict(space=SPACE, config=free, names=NAMES, trials=6, seed=5, batch=3, folder=tmp_path)
    found = optimise(days, at_the_touch, least_fills=1, **options)
    table = sweep(days, at_the_touch, found.trials[['lots', 'shift']], free, names=NAMES)
    with pytest.raises(TooLittleEvidence) as caught: rank(table, by=['configuration'], least_fills=1)
    assert found.best is None and np.isnan(found.value) and np.isnan(found.low) and found.refused == str(caught.value)
    assert '3 independent days (asked: 5)' in found.refused and 'fills' not in found.refused
    assert found.refused in repr(found) and '<table' in found._repr_html_() and found.trials.score.notna().all()
    let = optimise(days, at_the_touch, least_days=3, least_fills=1, **options)    # the journal is the same
    pd.testing.assert_frame_equal(let.trials, found.trials)
    number = int(let.trials.score.idxmax())
    mine = rank(table, by=['configuration'], least_days=3, least_fills=1, seed=5).set_index('configuration').loc[number]
    assert let.refused == '' and let.best == let.trials.loc[number, ['lots', 'shift']].to_dict() and let.days == 3
    assert (let.pnl_per_fill, let.low, let.high, let.fills) == pytest.approx((mine.pnl_per_fill, mine.low, mine.high, mine.fills))
    assert let.chance == pytest.approx(mine.chance) and 'PnL a fill' in repr(let)
    few = optimise(days, at_the_touch, least_days=3, least_fills=10 ** 6, **options)
    assert few.best is None and 'independent day' not in few.refused and '(asked: 1,000,000)' in few.refused
    assert few.trials.why.str.endswith('fewer than 1,000,000').all()
    one = optimise(days[0], at_the_touch, least_days=1, least_fills=1, **options)
    assert one.best is not None and (one.days, one.low, one.high, one.chance) == (1, -np.inf, np.inf, 1)
    assert '1 independent day bound' in repr(one)


@needs_optuna
def test_a_killed_search_goes_on(days: list[Tape], tmp_path: Path) -> None:
    "Killed from outside in the middle of a batch, the search ends as one that was never disturbed, and nothing is run twice"
    tape, log, brake = days[0].save(tmp_path/'day.parquet'), tmp_path/'log', tmp_path/'brake'
    script = textwrap.dedent(f'''
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(room.__file__).parents[2])]!r}
        from test_sweep import NAMES, traced
        from cryptoexp.trading.search import optimise
        found = optimise({str(tape)!r}, traced({str(log)!r}, brake={str(brake)!r}), {SPACE!r}, trials=12, preset='zero-fee-tier',
                         names=NAMES, folder=sys.argv[1], seed=3, batch=4, chunk=1)
        found.trials.to_pickle(sys.argv[2])''')
    def start(name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, '-c', script, str(tmp_path/name), str(tmp_path/f'{name}.pickle')]
        return subprocess.Popen(words, stderr=subprocess.DEVNULL)
    assert start('calm').wait() == 0
    runs = len(log.read_text().split())
    log.unlink()
    brake.touch()
    first, deadline = start('cut'), time.monotonic() + 300
    def cells() -> int: return len(list((tmp_path/'cut').glob('*.json')))
    while cells() < 6 and first.poll() is None and time.monotonic() < deadline: time.sleep(.05)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    kept = cells()
    assert 6 <= kept < runs
    with open(tmp_path/'cut'/'search.journal', 'ab') as file: file.write(b'{"op_code": 5, "trial')    # the half line of a killed writer
    log.unlink()
    brake.unlink()
    assert start('cut').wait() == 0
    assert len(log.read_text().split()) == runs - kept
    calm, cut = (pd.read_pickle(tmp_path/f'{name}.pickle') for name in ('calm', 'cut'))
    pd.testing.assert_frame_equal(cut, calm)


def test_a_space_is_looked_at_first(days: list[Tape], free: MarketMakingConfig) -> None:
    space: dict[str, Any] = {'spread_percentge': (1, 2), 'order_size_percentage': (.5, .1), 'seed': [1.5], 'refresh_interval': 3,
                             'spread_percentage': (0, 1e-3, 'log')}
    with pytest.raises(ConfigError) as caught: optimise(days[0], None, space, config=free)
    fields = [problem.field for problem in caught.value.problems]
    assert set(fields) == set(space) and 'did you mean spread_percentage' in str(caught.value) and 'above zero' in str(caught.value)
    with pytest.raises(ConfigError, match='lots'): optimise(days[0], at_the_touch, {'shift': (0, 1)}, config=free, names=NAMES)


def test_without_optuna_the_extra_is_named(days: list[Tape], free: MarketMakingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split('.')[0] == 'optuna': raise ModuleNotFoundError(name)
        return real(name, *rest, **more)
    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match=r'pip install "cryptoexp\[scale\]"'):
        optimise(days[0], None, {'spread_percentage': (1e-7, 1e-4)}, config=free)


@needs_optuna
def test_walking_forward_by_grid_and_by_search(days: list[Tape], free: MarketMakingConfig) -> None:
    grid = {'spread_percentage': [1e-7, 2e-5]}
    by_grid = walk_forward(days, grid=grid, config=free, train_days=1, test_days=1)
    table = sweep(days, grid=grid, config=free)
    pd.testing.assert_frame_equal(by_grid, walk_forward_table(table, 1, 1))
    by_search = walk_forward(days, space={'spread_percentage': [1e-7, 2e-5]}, config=free, train_days=1, test_days=1, trials=10)
    shared = ['spread_percentage', 'in_sample', 'out_of_sample', 'train_fills', 'test_fills']
    pd.testing.assert_frame_equal(by_search[shared], by_grid[shared])    # ten tries of two values find the better one
    with pytest.raises(ValueError, match='not both'): walk_forward(days, grid=grid, space={'seed': [1]}, config=free)


def test_what_is_not_imported() -> None:
    script = 'import sys, cryptoexp.trading.search; print(sorted({"dask", "distributed", "optuna"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True,
                          env=dict(os.environ)).stdout.strip() == '[]'
