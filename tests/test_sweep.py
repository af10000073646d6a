"Many runs: the same table however they are run, nothing run twice, and what happens when a process is killed"
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from loguru import logger

from cryptoexp.config import ConfigError, MarketMakingConfig, load_config
from cryptoexp.durable import StorageError
from cryptoexp.market.events import BEST_QUOTE, BUY, DEPTH, LAST, TRADE, Events, concat, from_rows
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Clock, Tape, fuse, read_recording
from cryptoexp.trading import sweep as room
from cryptoexp.trading.backtest import backtest, make_ready
from cryptoexp.trading.ledger import totals
from cryptoexp.trading.quoting import ASK, BID, LOTS, TICK, fingerprint
from cryptoexp.trading.report import markout_table
from cryptoexp.trading.search import optimise
from cryptoexp.trading.sweep import SUMS, Setting, grid_rows, heatmap, one_pass, read_cells, settings_of, sources_of, sweep
from cryptoexp.trading.venue import VENUES, Latency, QueueModel

DAY_NS = 86_400 * 10 ** 9
GRID = {'spread_percentage': [1e-7, 1e-5], 'order_size_percentage': [.005, .02]}
NAMES = ('lots', 'shift')


def day(number: int, seconds: int = 60) -> Tape:
    "A stretch of the embedded market (synthetic) on a date of its own"
    market = SyntheticMarket(seed=number)
    rows = market.events(seconds * 10 ** 9)
    moved = Events(rows.flags, rows.exchange_ns + number * DAY_NS, rows.local_ns + number * DAY_NS, *rows.columns[3:])
    return Tape(moved, market.instrument, Clock(), (f'day {number}',), synthetic=True)


@pytest.fixture(scope='module')
def days() -> list[Tape]: return [day(number) for number in (1, 2)]


@pytest.fixture(scope='module')
def free() -> MarketMakingConfig: return load_config(preset='zero-fee-tier', environment={})


@pytest.fixture(scope='module')
def table(days: list[Tape], free: MarketMakingConfig) -> pd.DataFrame: return sweep(days, grid=GRID, config=free)


@pytest.fixture
def warned() -> Any:
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(message.record['message']), level='WARNING')
    yield heard
    logger.remove(sink)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    "How many settings each pass ran"
    runs: list[int] = []
    real = room.one_pass
    def one_pass(tape: Tape, settings: Any, *asked: Any, **options: Any) -> list[dict[str, Any]]:
        runs.append(len(settings))
        return real(tape, settings, *asked, **options)
    monkeypatch.setattr(room, 'one_pass', one_pass)
    return runs


def at_the_touch(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = view.market[0].bid_tick - int(parameters[1]), int(parameters[0])
    wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = view.market[0].ask_tick + int(parameters[1]), int(parameters[0])
    return 0


def write_down(log: str, number: int) -> None:
    with open(log, 'a') as file: file.write(f'{number}\n')


def traced(log: str, trap: str = '', brake: str = '') -> Callable[..., int]:
    "A model that writes down each run, is slow while there is a brake, and kills its process at 300 lots while there is a trap"
    def model(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        if not scratch[0]:
            scratch[0] = 1
            if trap and parameters[0] == 300 and os.path.exists(trap): os.kill(os.getpid(), signal.SIGKILL)
            if brake and os.path.exists(brake): time.sleep(1.0)
            write_down(log, int(parameters[0]))
        return at_the_touch(view, parameters, scratch, wishes)
    return model


# ---- the table

def test_what_is_in_the_table(table: pd.DataFrame) -> None:
    assert table.columns[:8].tolist() == [*room.TOLD, *GRID] and table.columns[-1] == 'error'
    assert table.configuration.tolist() == [0, 1, 2, 3] * 2 and table.tape.tolist() == ['day 1'] * 4 + ['day 2'] * 4
    assert (table.fills > 0).all() and table.synthetic.all() and table.error.isna().all()
    assert table.start.dt.date.nunique() == 2 and (table.minutes <= 1).all()
    assert {'max_drawdown', 'orders_sent', 'cancels_sent', 'final_equity', 'markout_5s_bps'} <= set(table)
    assert all(table[name].dtype == float for name in ('pnl', 'fees', 'maker_volume', 'max_exposure'))


@pytest.mark.parametrize('options', [{'threads': 3}, {'chunk': 1}, {'jobs': 2}, {'jobs': 2, 'threads': 2, 'chunk': 3}], ids=str)
def test_the_way_does_not_matter(days: list[Tape], free: MarketMakingConfig, table: pd.DataFrame, options: dict[str, int]) -> None:
    pd.testing.assert_frame_equal(sweep(days, grid=GRID, config=free, **options), table)


def test_minutes_add_up(free: MarketMakingConfig) -> None:
    "Also with coins at the start and fees, where the profit has three parts"
    config = replace(free, initial_base=.02, maker_fee=.0001, taker_fee=.0003)
    tape = day(3, 200)
    whole, fine = sweep(tape, config=config), sweep(tape, config=config, every_minutes=1)
    assert len(fine) == 4 and whole.fees[0] > 0
    for name in SUMS: assert fine[name].sum() == pytest.approx(whole[name][0], abs=1e-7)
    assert (fine.start.diff().dropna() > pd.Timedelta(0)).all() and fine.minutes.sum() == pytest.approx(whole.minutes[0])


def test_a_name_that_is_a_limit_and_a_result(days: list[Tape], free: MarketMakingConfig) -> None:
    found = sweep(days[0], grid={'max_drawdown': [.1, 1e-9]}, config=free)
    assert found.max_drawdown_set.tolist() == [.1, 1e-9] and found.attrs['grid'] == ['max_drawdown_set']
    assert found.halted.tolist() == [False, True] and found.max_drawdown[1] > 0


def test_the_same_configuration_twice_runs_once(days: list[Tape], free: MarketMakingConfig, counted: list[int]) -> None:
    found = sweep(days[0], grid=[{'seed': 7}, {'seed': 7}, {}], config=free)
    assert counted == [1] and found.seed.tolist() == [7] * 3 and found.pnl.nunique() == 1


def test_heatmap_says_what_it_averages(table: pd.DataFrame) -> None:
    title = heatmap(table, *GRID).axes[0].get_title()
    if not title: title = heatmap(table, *GRID).axes[0].get_title(loc='left')
    assert 'mean over tape' in title and 'SYNTHETIC' in title


# ---- together or alone

def alone(tape: Tape, setting: Setting, quoter: Any = None, levels: int = 1) -> dict[str, Any]:
    "One backtest, its exact ledger, its report"
    session = backtest(tape, quoter, setting.venue, config=setting.config, levels=levels, parameters=setting.parameters).session
    sums, marks = totals(session), markout_table(session)
    money = {name: float(getattr(sums, name)) for name in ('maker_volume', 'taker_volume', 'fees', 'pnl', 'final_equity')}
    return dict(fills=len(session.fills), final_position=float(sums.position), **money,
                **{name: session.counters[name] for name in ('max_drawdown', 'max_exposure', 'orders_sent', 'cancels_sent', 'halted')},
                **{f'markout_{row.seconds:g}s_bps': float(row.mean_bps) for row in marks[marks.side == 'both'].itertuples()})


def varied(tape: Tape, free: MarketMakingConfig) -> list[Setting]:
    "Settings that have little in common"
    begin, end = int(tape.events.local_ns[0]), int(tape.events.local_ns[-1])
    drawn = [Latency.drawn(seed, begin - 10 ** 9, end + 10 ** 10, 8., .9, reject=.02) for seed in (1, 2)]
    return [
        Setting(free), Setting(replace(free, refresh_interval=1.7)), Setting(replace(free, entry_latency_ms=700., response_latency_ms=90.)),
        Setting(replace(free, max_drawdown=1e-5)), Setting(replace(free, max_drawdown=1e-5, flatten_on_halt=True, taker_fee=.0003)),
        Setting(replace(free, initial_base=.05, maker_fee=.00001, taker_fee=.0005)), Setting(replace(free, refresh_tolerance=2e-5)),
        Setting(replace(free, total_capital=777.77, volatility_widening=.5)), Setting(free, venue=VENUES['rebate-tier'](latency=drawn[0])),
        Setting(free, venue=VENUES['rebate-tier'](latency=drawn[1], queue=QueueModel('log'))),
        Setting(replace(free, refresh_interval=7.3), venue=VENUES['zero-fee-tier'](queue=QueueModel('ahead'))),
        Setting(free, venue=VENUES['binance-usdm-vip9'](queue=QueueModel('power', 3)))]


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items(): assert found[name] == value or (found[name] != found[name] and value != value), name


@pytest.mark.parametrize('most', [64, 5])
def test_together_or_alone_to_the_last_digit(free: MarketMakingConfig, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    tape = day(4, 120)
    monkeypatch.setattr(room, 'MOST_SETTINGS', most)
    settings = varied(tape, free)
    found = one_pass(tape, settings)
    for setting, numbers in zip(settings, found): same(numbers, alone(tape, setting))
    assert sum(numbers['fills'] > 20 for numbers in found) >= 8 and sum(numbers['halted'] for numbers in found) >= 2
    assert any(numbers['taker_volume'] > 0 for numbers in found)
    for less, more in zip(one_pass(tape, settings, markouts=False), found):
        assert all(less[name] == more[name] for name in less if name not in ('final_equity', 'pnl', 'pnl_bps_of_volume', 'pnl_per_fill'))


def test_together_or_alone_on_recordings(data_folder: Path, free: MarketMakingConfig) -> None:
    spot = [data_folder/f'binance_spot/btcusdt_{when}.gz' for when in ('20240808', '20240809')]
    slow = read_recording(spot, streams='diff-only')
    for tape in (slow, fuse(slow), read_recording([data_folder/'binance_usdm/btcusdt_20240808.gz'])):
        settings = varied(tape, free)[-4:] if tape.instrument.kind != 'spot' else varied(tape, free)
        if tape.instrument.kind != 'spot': settings = [replace(one, venue=VENUES['binance-usdm-vip9'](
            queue=one.venue.queue, latency=one.venue.latency)) for one in settings if one.venue]
        found = one_pass(tape, settings)
        for setting, numbers in zip(settings, found): same(numbers, alone(tape, setting))
        assert sum(numbers['fills'] > 100 for numbers in found) >= 3


def test_parameters_of_any_length(days: list[Tape], free: MarketMakingConfig) -> None:
    def longest(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = view.market[0].bid_tick, 10 * len(parameters)
        wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = view.market[0].ask_tick, 10 * len(parameters)
        return 0
    settings = [Setting(free, np.zeros(length)) for length in (1, 30, 2, 30)] + [Setting(free)]
    found = one_pass(days[0], settings, longest)
    for setting, numbers in zip(settings, found): same(numbers, alone(days[0], setting, longest))
    assert found[0]['maker_volume'] == found[4]['maker_volume'] < found[1]['maker_volume'] == found[3]['maker_volume']


def test_who_needs_more_room_gets_it(days: list[Tape], free: MarketMakingConfig) -> None:
    "So slow a line that more orders are under way than a place in a block has room for"
    def restless(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        scratch[0] = (scratch[0] + 1) % 50
        wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = view.market[0].bid_tick - int(scratch[0]), 10
        return 0
    settings = [Setting(replace(free, entry_latency_ms=delay)) for delay in (5., 9_000.)]
    found = one_pass(days[0], settings, restless, threads=1)
    for setting, numbers in zip(settings, found): same(numbers, alone(days[0], setting, restless))
    assert found[1]['orders_sent'] > 64


def test_a_tape_is_made_ready_once() -> None:
    tape = day(5, 20)
    assert make_ready(tape) is make_ready(tape) is not make_ready(day(5, 20))
    free = load_config(preset='zero-fee-tier', environment={})
    diff_only = Tape(concat([from_rows([(BEST_QUOTE | BUY | LAST, int(tape.events.exchange_ns[0]), int(tape.events.local_ns[0]), 1, 1, 0)]),
                             tape.events]), tape.instrument, Clock(), ('with a best quote first',), synthetic=True)
    same(one_pass(diff_only, [Setting(free)])[0], alone(diff_only, Setting(free)))


def test_a_venue_is_swept_like_anything_else(data_folder: Path, free: MarketMakingConfig, tmp_path: Path, counted: list[int]) -> None:
    "On a recording: hardly anybody cancels before our orders in the embedded market, so the queue model does not matter there"
    grid = {'venue': ['zero-fee-tier', 'rebate-tier'], 'queue': ['behind', 'power(2)', 'ahead'], 'entry_latency_ms': [2., 50.]}
    tape = [[data_folder/'binance_spot'/f'btcusdt_{when}.gz' for when in ('20240808', '20240809')]]
    options: dict[str, Any] = dict(config=free, folder=tmp_path)
    found = sweep(tape, grid=grid, **options)
    assert found.error.isna().all() and found.fees[found.venue == 'rebate-tier'].lt(0).all() and (found.fees[:6] == 0).all()
    assert found[found.venue == 'zero-fee-tier'].maker_volume.nunique() == 6
    row = sweep(tape, grid={'entry_latency_ms': 50.}, venue=VENUES['rebate-tier'](queue=QueueModel('ahead')), **options)
    assert row.pnl[0] == found.pnl[11] and counted == [12]   # the same run, so it is not run again
    told = sweep(tape, grid=[{'queue': 'log'}, {}], **options)
    assert told.queue.tolist() == ['log', 'behind']


# ---- what is wrong is told before anything runs

def test_all_problems_at_once(days: list[Tape], free: MarketMakingConfig, counted: list[int]) -> None:
    with pytest.raises(ConfigError) as caught: sweep(days, grid={'spread': [1], 'ordr_size_percentage': [1]}, config=free)
    assert len(caught.value.problems) == 2 and 'did you mean' in str(caught.value) and 'order_size_percentage' in str(caught.value)
    with pytest.raises(ConfigError) as caught: sweep(days, grid={'spread_percentage': [-1, 1e-4, 5], 'seed': [1, 2.5]}, config=free)
    assert [problem.field for problem in caught.value.problems] == ['spread_percentage', 'seed', 'spread_percentage']
    with pytest.raises(FileNotFoundError, match=r'a\.parquet, b\.parquet'): sweep(['a.parquet', 'b.parquet'], config=free)
    with pytest.raises(ConfigError, match='gamma'): sweep(days, grid={'gamma': [1]}, config=free)
    with pytest.raises(ValueError, match='at least 1'): sweep(days, config=free, threads=0)
    assert not counted


def test_parameters_of_the_model_are_names_too(free: MarketMakingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptoexp.trading.models import MODELS, Model
    model = Model('wide', 'for this test', at_the_touch, 1, lambda config, own: [own['lots'], own['shift']], {'lots': 100, 'shift': 0})
    monkeypatch.setitem(MODELS, 'wide', model)
    found = settings_of(grid_rows({'model': ['wide'], 'shift': [0, 3]}), free)
    assert [one.config.model_parameters for one in found] == [{'shift': 0}, {'shift': 3}]
    with pytest.raises(ConfigError, match='did you mean shift'): settings_of(grid_rows({'model': ['wide'], 'shft': [0]}), free)


# ---- nothing is run twice

def test_finished_cells_are_kept(days: list[Tape], free: MarketMakingConfig, table: pd.DataFrame, tmp_path: Path,
                                 counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = dict(config=free, folder=tmp_path/'cells')
    pd.testing.assert_frame_equal(sweep(days, grid=GRID, **options), table)
    assert counted == [4, 4]
    pd.testing.assert_frame_equal(sweep(days, grid=GRID, **options), table)
    assert counted == [4, 4]
    sweep([*days, day(3)], grid={**GRID, 'spread_percentage': [1e-7, 1e-5, 2e-5]}, **options)    # a larger grid, a further day
    assert counted == [4, 4, 2, 2, 6]
    sweep(days[:1], grid=GRID, config=replace(free, refresh_interval=.2), folder=options['folder'])
    sweep(days[:1], grid=GRID, every_minutes=1, **options)
    assert counted == [4, 4, 2, 2, 6, 4, 4]
    monkeypatch.setattr(room, 'code_digest', lambda: 'another version')
    sweep(days[:1], grid=GRID, **options)
    assert counted[-1] == 4


def test_another_model_is_another_run(days: list[Tape], free: MarketMakingConfig, tmp_path: Path, counted: list[int]) -> None:
    def wider(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        return at_the_touch(view, parameters + 1, scratch, wishes)
    grid = {'lots': [100], 'shift': [0, 1]}
    for model in (at_the_touch, wider, at_the_touch): sweep(days[0], model, grid, free, names=NAMES, folder=tmp_path)
    assert counted == [2, 2]
    sweep(days[0], at_the_touch, grid, free, names=('shift', 'lots'), folder=tmp_path)    # the same names, another order of the array
    assert counted == [2, 2, 2]


@pytest.mark.parametrize('damage', [lambda data: data[:-20], lambda data: b'', lambda data: data.replace(b'"fills": ', b'"fills": 1'),
                                    lambda data: b'\xff\xfe' + data], ids=['cut', 'empty', 'changed', 'no text'])
def test_a_damaged_cell_is_run_again_and_said(days: list[Tape], free: MarketMakingConfig, tmp_path: Path, counted: list[int],
                                              warned: list[str], damage: Callable[[bytes], bytes]) -> None:
    options: dict[str, Any] = dict(grid=GRID, config=free, folder=tmp_path, chunk=2)
    before = sweep(days[0], **options)
    path = sorted(tmp_path.glob('*.json'))[0]
    path.write_bytes(damage(path.read_bytes()))
    pd.testing.assert_frame_equal(sweep(days[0], **options), before)
    assert counted == [2, 2, 2] and len(warned) == 1 and path.name in warned[0] and 'damaged' in warned[0]
    pd.testing.assert_frame_equal(sweep(days[0], **options), before)
    assert counted == [2, 2, 2] and len(warned) == 1


def test_fingerprints() -> None:
    source = 'def model(view, parameters, scratch, wishes): return {} + helper(3)\ndef helper(number): return number * {}'
    def made(*values: int) -> Any:
        space: dict[str, Any] = {}
        exec(source.format(*values), space)
        return space['model']
    assert fingerprint(made(1, 2)) == fingerprint(made(1, 2))
    assert len({fingerprint(made(*values)) for values in ((1, 2), (2, 2), (1, 3))}) == 3
    script = 'from cryptoexp.trading.quoting import fingerprint\nprint(fingerprint(lambda name: name in {"a", "b", "c", "d"}))'
    told = {subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True,
                           env={**os.environ, 'PYTHONHASHSEED': seed}).stdout for seed in ('1', '2')}
    assert len(told) == 1    # in another process the same
    assert fingerprint(np.arange(3)) != fingerprint(np.arange(3.0)) and fingerprint((1, 2)) != fingerprint((12,))


# ---- killed

def test_a_killed_worker_costs_only_its_cell(days: list[Tape], free: MarketMakingConfig, tmp_path: Path) -> None:
    log, trap, cells = tmp_path/'log', tmp_path/'trap', tmp_path/'cells'
    options: dict[str, Any] = dict(quoter=traced(str(log), str(trap)), grid={'lots': [100, 200, 300, 400, 500], 'shift': [0]}, config=free,
                                   names=NAMES, chunk=1)
    undisturbed = sweep(days, **options)
    trap.touch()
    log.unlink()
    with pytest.raises(RuntimeError, match='call again for the rest'): sweep(days, jobs=2, folder=cells, **options)
    kept = sum(len(read_cells(cells, source.digest)) for source in sources_of(days))
    assert 1 <= kept < 10
    trap.unlink()
    log.unlink()
    pd.testing.assert_frame_equal(sweep(days, jobs=2, folder=cells, **options), undisturbed)
    assert len(log.read_text().split()) == 10 - kept    # only the rest
    assert (undisturbed.fills > 0).all()


def test_a_killed_process_goes_on(days: list[Tape], free: MarketMakingConfig, tmp_path: Path) -> None:
    "The whole program is killed from outside, in the middle"
    tape, log, cells, brake = days[0].save(tmp_path/'day.parquet'), tmp_path/'log', tmp_path/'cells', tmp_path/'brake'
    script = textwrap.dedent(f'''
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(room.__file__).parents[2])]!r}
        from test_sweep import NAMES, traced
        from cryptoexp.trading.sweep import sweep
        table = sweep({str(tape)!r}, traced({str(log)!r}, brake={str(brake)!r}), {{'lots': [100, 200, 300, 400], 'shift': [0]}},
                      preset='zero-fee-tier', names=NAMES, chunk=1, folder={str(cells)!r})
        table.to_json({str(tmp_path/'table.json')!r}, double_precision=15)''')
    def start() -> subprocess.Popen[bytes]: return subprocess.Popen([sys.executable, '-c', script], stderr=subprocess.DEVNULL)
    brake.touch()
    first = start()
    deadline = time.monotonic() + 300
    while len(list(cells.glob('*.json'))) < 2 and first.poll() is None and time.monotonic() < deadline: time.sleep(.05)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    kept = len(list(cells.glob('*.json')))
    assert 2 <= kept < 4
    log.unlink()
    brake.unlink()
    assert start().wait() == 0
    assert len(log.read_text().split()) == 4 - kept
    mine = sweep(tape, at_the_touch, {'lots': [100, 200, 300, 400], 'shift': [0]}, config=free, names=NAMES)
    assert list(json.loads((tmp_path/'table.json').read_text())['pnl'].values()) == pytest.approx(mine.pnl.tolist(), abs=1e-12)


def stuck(log: str, brake: str) -> Callable[..., int]:
    "A model that writes down each run, and does not get on at 300 lots while there is a brake"
    def model(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
        if not scratch[0]:
            scratch[0] = 1
            while parameters[0] == 300 and os.path.exists(brake): time.sleep(.05)
            write_down(log, int(parameters[0]))
        return at_the_touch(view, parameters, scratch, wishes)
    return model


def test_ctrl_c_keeps_what_is_finished(free: MarketMakingConfig, tmp_path: Path) -> None:
    "The whole process group is interrupted, as a terminal does it, while two workers are in the middle of a cell each"
    log, cells, brake, grid = tmp_path/'log', tmp_path/'cells', tmp_path/'brake', {'lots': [100, 200, 300, 400], 'shift': [0]}
    paths = [str(day(number, 5).save(tmp_path/f'{number}.parquet')) for number in (1, 2, 3, 4)]
    script = textwrap.dedent(f'''
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell may have had it ignored
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(room.__file__).parents[2])]!r}
        from test_sweep import NAMES, stuck
        from cryptoexp.trading.sweep import sweep
        sweep({paths!r}, stuck({str(log)!r}, {str(brake)!r}), {grid!r}, preset='zero-fee-tier', names=NAMES, jobs=2, threads=2,
              folder={str(cells)!r})''')
    brake.touch()
    first = subprocess.Popen([sys.executable, '-c', script], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list(cells.glob('*.json'))) < 2 and first.poll() is None and time.monotonic() < deadline: time.sleep(.05)
    os.killpg(first.pid, signal.SIGINT)
    try: assert first.wait(300) != 0
    finally: brake.unlink()
    kept = {name: found for path in paths for source in sources_of(path) for name, found in read_cells(cells, source.digest).items()}
    assert len(kept) == 4 and all(found['fills'] >= 0 for found in kept.values())   # two tapes, of each what stood before 300 lots
    log.unlink()
    found = sweep(paths, stuck(str(log), str(brake)), grid, free, names=NAMES, folder=cells, threads=2)
    assert sorted(log.read_text().split()) == sorted([*['100', '200'] * 2, *['300', '400'] * 4])
    assert found.error.isna().all() and found.pnl.tolist() == sweep(paths, at_the_touch, grid, free, names=NAMES).pnl.tolist()
    files = [path.name for path in cells.glob('*.json')]
    assert len(files) == 6   # two cells whole, in a file each; two in a part from before and one from after


def test_a_part_that_cannot_be_kept_is_told(days: list[Tape], free: MarketMakingConfig, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    "And not taken for an error of the runs"
    def full(*told: Any) -> Path: raise StorageError('the disk is full')
    monkeypatch.setattr(room, 'write_cell', full)
    with pytest.raises(StorageError, match='the disk is full'): sweep(days[0], grid=GRID, config=free, folder=tmp_path, threads=2)


def test_a_book_that_cannot_be_quoted_on_is_said_once_a_tape(days: list[Tape], free: MarketMakingConfig, tmp_path: Path,
                                                             warned: list[str]) -> None:
    rows = days[0].events
    asks = (rows.flags & 0x30 == 0x20) & (rows.kind != TRADE)
    lame, at = replace(days[0], events=rows[~asks], source=('lame',)), int(rows.local_ns[len(rows) // 2])
    over = from_rows([(DEPTH | BUY | LAST, at - 1000, at, int(rows.tick[rows.kind == TRADE].max()) + 10, 100, 0)])
    crossed = replace(days[1], events=concat([rows[:len(rows) // 2], over, rows[len(rows) // 2:]]), source=('crossed',))
    for _ in range(2):   # the second time nothing is run, and it is said all the same
        found = sweep([lame, crossed, days[1]], grid=GRID, config=free, folder=tmp_path)
        assert [text.split(':')[0] for text in warned] == ['lame', 'crossed']
        assert 'never a book with two sides' in warned[0] and 'crossed, its best bid at or above its best ask, for' in warned[1]
        assert found.groupby('tape', sort=False).doubts.nunique().tolist() == [1, 1, 1] and (found.doubts[8:] == '').all()
        warned.clear()
    told = backtest(crossed, config=free).summary()['warnings']
    assert any('crossed' in text for text in told)   # as the run itself says
    assert sweep(crossed, config=free, every_minutes=1).doubts.str.contains('crossed').all()


# ---- what fails

def test_all_runs_of_a_search_may_fail(days: list[Tape], free: MarketMakingConfig) -> None:
    def broken(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int: return int(parameters[5])
    found = optimise(days, broken, {'lots': (1, 5)}, names=['lots'], config=free, trials=3)
    assert found.best is None and found.trials.why.str.startswith('IndexError').all() and 'IndexError' in found.refused

def test_an_error_is_a_row(days: list[Tape], free: MarketMakingConfig, tmp_path: Path, warned: list[str],
                           monkeypatch: pytest.MonkeyPatch) -> None:
    real, broken = room.one_pass, [True]
    def one_pass(tape: Tape, settings: Any, *asked: Any, **options: Any) -> list[dict[str, Any]]:
        if broken[0] and any(one.config.spread_percentage == 1e-5 for one in settings): raise ArithmeticError('a bad width')
        return real(tape, settings, *asked, **options)
    monkeypatch.setattr(room, 'one_pass', one_pass)
    found = sweep(days, grid=GRID, config=free, folder=tmp_path)
    bad = found.spread_percentage == 1e-5
    assert (found.error[bad] == 'ArithmeticError: a bad width').all() and found.error[~bad].isna().all() and bad.sum() == 4
    assert (found.fills[~bad] > 0).all() and found.fills[bad].isna().all() and warned[0].startswith('4 of 8 rows have no result')
    broken[0] = False    # errors are not kept
    assert sweep(days, grid=GRID, config=free, folder=tmp_path).error.isna().all()


def test_a_damaged_tape_is_an_error_of_its_rows(days: list[Tape], free: MarketMakingConfig, table: pd.DataFrame, tmp_path: Path) -> None:
    good, bad = days[0].save(tmp_path/'good.parquet'), tmp_path/'bad.parquet'
    data = bytearray(good.read_bytes())
    data[len(data) // 3] ^= 0xff
    bad.write_bytes(data)
    found = sweep([good, bad], grid=GRID, config=free)
    assert found.error.isna().tolist() == [True] * 4 + [False] * 4 and found.error.iloc[-1].startswith('ValueError')
    assert found.pnl[:4].tolist() == table.pnl[:4].tolist()


# ---- elsewhere

def test_the_same_call_on_a_cluster(days: list[Tape], free: MarketMakingConfig, table: pd.DataFrame, tmp_path: Path) -> None:
    "A scheduler and two workers on this machine, by the loopback interface"
    distributed = pytest.importorskip('distributed', reason='dask is not installed: pip install "cryptoexp[scale]"')
    import joblib
    paths = [tape.save(tmp_path/f'{number}.parquet') for number, tape in enumerate(days)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, host='127.0.0.1', dashboard_address=None) as cluster, \
            distributed.Client(cluster), joblib.parallel_config(backend='dask'):
        from_files = sweep(paths, grid=GRID, config=free, folder=tmp_path/'cells', chunk=2)
        from_memory = sweep(days, grid=GRID, config=free)
    pd.testing.assert_frame_equal(from_files.drop(columns='tape'), table.drop(columns='tape'))
    pd.testing.assert_frame_equal(from_memory, table)
    assert len(list((tmp_path/'cells').glob('*.json'))) == 4    # written by the workers


def test_what_is_not_imported() -> None:
    script = 'import sys, cryptoexp.trading.sweep; print(sorted({"dask", "distributed", "optuna"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True).stdout.strip() == '[]'
