"The face and the command line, end to end: the wire, by hand, signals, files, mistakes"
from __future__ import annotations

import asyncio
import csv
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest
from aiohttp import web
from replay_server import ReplayServer, made_lines, read_lines

from cryptoexp.config import load_config
from cryptoexp.market_making import MarketData, MarketMaker, MarketMakingConfig, status_of

ROOT = Path(__file__).resolve().parents[1]


def program(*words: str) -> list[str]:
    return [sys.executable, '-c', 'from cryptoexp.cli import main; raise SystemExit(main())', *words]


def shell(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(program(*words), capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL, **options)


# ---- names that are fixed

def test_the_first_seven_fields_and_the_signatures_are_those_of_the_prototype() -> None:
    assert [(field.name, field.default) for field in fields(MarketMakingConfig)][:7] == [
        ('trading_pair', 'BTC/USDT'), ('total_capital', 10000.0), ('spread_percentage', 0.001), ('order_size_percentage', 0.01),
        ('max_inventory_exposure', 0.2), ('rebalance_threshold', 0.1), ('min_profit_threshold', 0.002)]
    assert [field.name for field in fields(MarketData)] == ['timestamp', 'best_bid', 'best_ask', 'last_price', 'volume']
    assert list(inspect.signature(MarketMaker.simulate_order).parameters)[1:] == ['order_type', 'price', 'amount']
    for name in ('fetch_market_data', 'market_making_strategy', 'run'): assert inspect.iscoroutinefunction(getattr(MarketMaker, name))
    assert MarketMaker(MarketMakingConfig()).calculate_order_size() == 0.0


# ---- the wire

async def traded(server: ReplayServer, speed: float, duration: float, out: Path | None = None,
    preset: str = 'zero-fee-tier') -> MarketMaker:
    config = load_config(preset=preset,
        overrides={'venue_urls': {'binance_rest': server.rest_url, 'binance_websocket': server.websocket_url}})
    maker = MarketMaker(config, source='binance', preset=preset, duration=duration, speed=speed, out=out)
    await asyncio.wait_for(maker.run(), 120)
    return maker


def test_a_session_over_the_wire(tmp_path: Path) -> None:
    "run() against a server that speaks Binance's protocol (a made-up market), through the feed that talks to the venue"
    async def session() -> MarketMaker:
        async with ReplayServer(made_lines(60), speed=8) as server: return await traded(server, 8, 40, tmp_path)
    maker = asyncio.run(session())
    assert maker.result is not None and maker.feed is None
    assert maker.result.session.source.startswith('binance') and len(maker.result.samples) > 100
    assert set(maker.result.orders.status) <= {'filled', 'cancelled', 'expired'}, 'nothing is left working'
    told = json.loads(maker.paths['summary.json'].read_text())
    assert told['synthetic'] is False and told['streams'] == 'diff-only' and any('a replay' in note for note in told['notes'])
    adds_up(maker.paths['trades.csv'])


def test_a_recording_over_the_wire(data_folder: Path) -> None:
    "The recorded frames, byte for byte, at twenty times their pace: quotes are placed, fills happen, the book stays in sync"
    lines = read_lines([data_folder / 'binance_spot' / 'btcusdt_20240808.gz'], 20_000)
    async def session() -> MarketMaker:
        async with ReplayServer(lines, speed=20) as server: return await traded(server, 20, 60)
    maker = asyncio.run(session())
    assert maker.result is not None and len(maker.result.orders) > 50
    bound = maker.result.summary()['spread_constraint_bound']
    assert bound['decisions'] > 300


def test_by_hand(tmp_path: Path) -> None:
    "fetch_market_data, calculate_order_size and simulate_order without a session, and the fall over to the second source"
    async def session() -> None:
        async with ReplayServer(made_lines(30), speed=1) as server:
            urls = {'binance_rest': server.rest_url, 'binance_websocket': server.websocket_url}
            maker = MarketMaker(MarketMakingConfig(venue_urls=urls, initial_base=0.05))
            data = await maker.fetch_market_data()
            assert 0 < data.best_bid < data.best_ask and data.timestamp > 1e9
            size = maker.calculate_order_size()
            assert 0 < size * data.best_ask <= 100.51, "a hundredth of 10,000 USDT and 0.05 BTC"
            bought = maker.simulate_order('buy', data.best_ask, size)
            assert list(bought)[:10] == ['order_id', 'side', 'price', 'amount', 'status', 'filled', 'average_price', 'fee', 'cash',
                'position']
            assert bought['status'] in ('filled', 'partially filled') and bought['filled'] > 0
            assert bought['cash'] == pytest.approx(10_000 - bought['filled'] * bought['average_price'] - bought['fee'], abs=1e-7)
            assert bought['position'] == pytest.approx(0.05 + bought['filled']) and bought['average_price'] <= data.best_ask
            rests = maker.simulate_order('buy', round(data.best_bid * 0.99, 2), size)
            assert (rests['status'], rests['filled'], rests['average_price']) == ('resting', 0.0, None)
            reserved = maker.simulate_order('sell', round(data.best_ask + 100, 2), bought['position'])
            assert reserved['status'] == 'resting', 'also what was bought a line ago can be offered'
            assert maker.simulate_order('sell', round(data.best_ask + 100, 2), 0.01)['reason'] == 'no coins', 'the coins are promised'
            off = maker.simulate_order('buy', data.best_bid + 0.001, size)
            assert off['status'] == 'rejected' and 'grid' in off['reason']
            assert await maker.market_making_strategy() is True
            assert status_of(maker)['bid'] is not None
    asyncio.run(session())


def test_the_second_source_answers_when_the_first_does_not() -> None:
    "Binance is not there, Coinbase's REST answers; the quote currency is asked for exactly"
    asked: list[str] = []
    async def products(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response([dict(id='BTC-USDT', base_currency='BTC', quote_currency='USDT', quote_increment='0.01',
                                       base_increment='0.00000001', min_market_funds='1', status='online')])
    async def ticker(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response(dict(trade_id=1, price='60000.00', size='0.1', time='2024-08-09T00:00:00.000000Z', bid='59999.50',
                                      ask='60000.50', volume='123.4'))
    async def session() -> MarketData:
        application = web.Application()
        application.add_routes([web.get('/products', products), web.get('/products/{product}/ticker', ticker)])
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, '127.0.0.1', 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            maker = MarketMaker(MarketMakingConfig(venue_urls={'binance_rest': 'http://127.0.0.1:9',
                'coinbase_rest': f'http://127.0.0.1:{port}'}))
            return await maker.fetch_market_data()
        finally: await runner.cleanup()
    data = asyncio.run(session())
    assert (data.best_bid, data.best_ask, data.last_price, data.volume) == (59999.5, 60000.5, 60000.0, 123.4)
    assert asked == ['/products', '/products/BTC-USDT/ticker']


# ---- files

def adds_up(path: Path, cash: Decimal = Decimal(10_000)) -> int:
    "Cash moves by price × amount and fee, equity is cash + position × mid: from the CSV alone, to the last digit"
    position, rows = Decimal(0), 0
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            side = 1 if row['side'] == 'buy' else -1
            cash -= side * Decimal(row['price']) * Decimal(row['amount']) + Decimal(row['fee'])
            position += side * Decimal(row['amount'])
            assert (Decimal(row['cash']), Decimal(row['position'])) == (cash, position)
            assert Decimal(row['equity']) == cash + position * Decimal(row['mid'])
            assert 'E' not in row['fee'] + row['equity'] + row['realised_pnl']
            rows += 1
    return rows


def test_the_same_session_in_two_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    words = ['trade', '--duration', '10m', '--preset', 'zero-fee-tier', '--json', '--seed', '5']
    folders = []
    for name in ('one', 'two'):
        done = shell(*words, '--out', str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        folders.append(next((tmp_path / name).iterdir()))
    for name in ('trades.csv', 'orders.csv', 'refusals.csv', 'summary.json', 'report.html'):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert adds_up(folders[0] / 'trades.csv') > 10
    page = (folders[0] / 'report.html').read_text()
    assert 'SYNTHETIC' in page and 'src="http' not in page and 'href="http' not in page
    assert done.stdout == (folders[1] / 'summary.json').read_text()


def test_a_recording_through_the_command_line(data_folder: Path, tmp_path: Path) -> None:
    "Default fees: honestly no fill; the zero-fee preset: fills that add up, and the same as a backtest of the tape"
    from cryptoexp.market.tape import load
    from cryptoexp.trading.backtest import backtest
    files = [data_folder / 'binance_spot' / f'btcusdt_{day}.gz' for day in ('20240808', '20240809')]
    done = shell('trade', '--source', *map(str, files), '--preset', 'zero-fee-tier', '--out', str(tmp_path), '--json')
    assert done.returncode == 0, done.stderr
    folder = next(tmp_path.iterdir())
    assert adds_up(folder / 'trades.csv') == json.loads(done.stdout)['fills'] > 100
    (tmp_path / 'again').mkdir()
    paths = backtest(load(files), preset='zero-fee-tier').write(tmp_path / 'again')
    for name in ('trades.csv', 'orders.csv', 'refusals.csv', 'summary.json'):
        assert paths[name].read_bytes() == (folder / name).read_bytes(), name
    slow = shell('trade', '--source', *map(str, files), '--streams', 'diff-only', '--preset', 'zero-fee-tier', '--json',
                 '--out', str(tmp_path / 'slow'))
    told, alone = json.loads(done.stdout), json.loads(slow.stdout)
    assert (told['streams'], alone['streams']) == ('fused', 'diff-only') and told['fills'] < alone['fills']
    assert 'fused: best quotes drive' in (folder / 'report.html').read_text()
    assert 'diff-only: the book follows' in next((tmp_path / 'slow').glob('*/report.html')).read_text()
    (tmp_path / 'slow' / 'again').mkdir()
    paths = backtest(load(files, streams='diff-only'), preset='zero-fee-tier').write(tmp_path / 'slow' / 'again')
    assert paths['summary.json'].read_text() == slow.stdout
    assert json.loads(shell('trade', '--source', str(files[0]), '--out', str(tmp_path / 'wide'), '--json').stdout)['fills'] == 0


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_session_in_order(tmp_path: Path, number: signal.Signals) -> None:
    "Ctrl-C and SIGTERM: orders cancelled, files whole, status 0"
    words = program('trade', '--speed', '50', '--preset', 'zero-fee-tier', '--out', str(tmp_path))
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline: time.sleep(0.1)
    time.sleep(1.5)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    folder = next(tmp_path.iterdir())
    assert {path.name for path in folder.iterdir()} == {'trades.csv', 'orders.csv', 'refusals.csv', 'summary.json', 'report.html'}
    with open(folder / 'orders.csv', newline='') as file:
        assert {row['status'] for row in csv.DictReader(file)} <= {'filled', 'cancelled', 'expired'}
    assert 'SYNTHETIC' in out and str(folder) in out


# ---- mistakes

def test_help_is_quick_and_says_something() -> None:
    spent = []
    for _ in range(3):
        started = time.process_time(), os.times()
        done = shell('--help')
        spent.append(os.times().children_user + os.times().children_system - started[1].children_user - started[1].children_system)
        assert done.returncode == 0 and 'examples:' in done.stdout
    modules = shell_modules()
    assert not modules & {'numba', 'numpy', 'pandas', 'aiohttp', 'matplotlib', 'rich'}, f'{modules}: help waits for nothing heavy'


def shell_modules() -> set[str]:
    code = 'import sys\nfrom cryptoexp.cli import build_parser\nbuild_parser().format_help()\nprint(*sys.modules)'
    return set(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())


def test_mistakes_are_one_message_with_status_two(tmp_path: Path) -> None:
    not_a_recording, config = tmp_path / 'notes.txt', tmp_path / 'my.toml'
    not_a_recording.write_text('Dear diary,\n')
    config.write_text('maker_fe = 0.1\ntotal_capital = -1\n')
    blocked = tmp_path / 'file'
    blocked.write_text('')
    cases = {
        ('--source', str(not_a_recording)): 'recording', ('--config', str(config)): 'maker_fee', ('--preset', 'zero-fee'): 'zero-fee-tier',
        ('--streams', 'fused'): 'it is for recordings',
        ('--source', 'nowhere.gz'): 'nowhere.gz', ('--out', str(blocked / 'runs')): 'cannot write', ('--set', 'maker_fee'): 'FIELD=VALUE',
        ('--set', 'max_drawdown=7', '--set', 'total_capital=nan'): '2 problems',
        ('--source', 'kraken', '--set', 'venue_urls={"krakn_rest": "http://127.0.0.1:9"}'): 'kraken',
        ('--source', 'binance', '--set',
            'venue_urls={"binance_rest": "http://127.0.0.1:9", "binance_websocket": "ws://127.0.0.1:9"}'): 'embedded'}
    for words, expected in cases.items():
        done = shell('trade', '--json', '--duration', '5s', *(() if '--out' in words else ('--out', str(tmp_path / 'runs'))), *words)
        assert done.returncode == 2 and done.stdout == '', (words, done)
        assert expected in done.stderr and 'Traceback' not in done.stderr, (words, done.stderr)
