"The command line of tapes and data: what it says, what it exits with, and downloads from a server that breaks in every way"
from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from aiohttp import web

from cryptoexp import tape_tools
from cryptoexp.cli import main
from cryptoexp.durable import StorageError
from cryptoexp.market.events import BUY, CONTROL, DEPTH, LAST, SELL, SNAPSHOT, TRADE, from_rows
from cryptoexp.market.instrument import Instrument
from cryptoexp.market.layouts import open_tape
from cryptoexp.market.tape import Tape, load
from cryptoexp.net import NetError, Session
from cryptoexp.tape_tools import SOURCES, Item, fetch, fetch_item, item_of

CONTENT = np.random.default_rng(1).integers(0, 256, 700_000).astype(np.uint8).tobytes()
SUM = hashlib.sha256(CONTENT).hexdigest()
TOY = Instrument('toy', 'BTCUSDT', 'BTC', 'USDT', Decimal('0.1'), Decimal('0.001'))


class Server:
    "Serves CONTENT at every path, with ranges; `faults` says what happens to the answers to come, one after the other"
    def __init__(self) -> None:
        self.faults: list[Any] = []
        self.asked: list[tuple[str, str, str]] = []  # path, Range, If-Range
        self.content, self.tag, self.sum = CONTENT, '"one"', f'{SUM}  file\n'
        self.url = ''

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, request.headers.get('Range', ''), request.headers.get('If-Range', '')))
        if request.path.endswith('.CHECKSUM'): return web.Response(text=self.sum, status=200 if self.sum else 404)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, tuple): return web.Response(status=fault[0], headers=fault[1], text='no')
        _, wanted, version = self.asked[-1]
        begin = int(wanted[6:-1]) if wanted and (not version or version == self.tag) else 0
        if begin > len(self.content): return web.Response(status=416, headers={'Content-Range': f'bytes */{len(self.content)}'})
        headers = {'Content-Length': str(len(self.content) - begin)} | ({'ETag': self.tag} if self.tag else {})
        if begin: headers['Content-Range'] = f'bytes {begin + (1 if fault == "shifted" else 0)}-{len(self.content) - 1}/{len(self.content)}'
        response = web.StreamResponse(status=206 if begin else 200, headers=headers)
        await response.prepare(request)
        until = fault if type(fault) is int else len(self.content)
        await response.write(self.content[begin:begin + until] if type(fault) is int else self.content[begin:])
        if begin + until < len(self.content) and request.transport: request.transport.close()
        return response


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_get('/{path:.*}', server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    server.url = f'http://127.0.0.1:{runner.addresses[0][1]}'
    try: yield server
    finally: await runner.cleanup()


def against(check: Callable[[Server, Session, list[float]], Awaitable[None]]) -> None:
    "Run a check with a server, a session that does not really wait, and the waits it was told"
    async def run() -> None:
        waits: list[float] = []
        async def sleep(seconds: float) -> None: waits.append(seconds)
        async with serving() as server, Session(sleep=sleep) as session: await check(server, session, waits)
    asyncio.run(run())


def names(folder: Path) -> list[str]: return sorted(path.name for path in folder.iterdir())


# ---- downloads

def test_cut_in_the_middle_and_gone_on_from(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        server.faults = [200_000, 200_000, 200_000]
        seen = list[tuple[int, int | None]]()
        await fetch(session, f'{server.url}/a', tmp_path/'a', advance=lambda have, total: seen.append((have, total)))
        assert (tmp_path/'a').read_bytes() == CONTENT and names(tmp_path) == ['a']
        assert [(wanted, version) for _, wanted, version in server.asked] == [
            ('', ''), *((f'bytes={200_000 * count}-', '"one"') for count in (1, 2, 3))]
        assert seen[-1] == (len(CONTENT), len(CONTENT)) and {total for _, total in seen} == {len(CONTENT)}
    against(check)


def test_many_breaks_cost_no_patience_while_bytes_come(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        server.faults = [60_000] * 9
        await fetch(session, f'{server.url}/a', tmp_path/'a', SUM)
        assert (tmp_path/'a').read_bytes() == CONTENT and len(server.asked) == 10
        server.faults = [0] * 9
        with pytest.raises(NetError) as failed: await fetch(session, f'{server.url}/b', tmp_path/'b')
        assert failed.value.attempts == session.attempts == 4 and not (tmp_path/'b').exists()
    against(check)


def test_another_run_goes_on_where_the_first_was_stopped(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        server.faults = [300_000, (503, {}), (503, {}), (503, {}), (503, {})]
        with pytest.raises(NetError): await fetch(session, f'{server.url}/a', tmp_path/'a')
        assert names(tmp_path) == ['a.part', 'a.part.version'] and (tmp_path/'a.part').stat().st_size == 300_000
        server.faults = []
        async with Session() as other: await fetch(other, f'{server.url}/a', tmp_path/'a')
        assert server.asked[-1][1:] == ('bytes=300000-', '"one"') and (tmp_path/'a').read_bytes() == CONTENT and names(tmp_path) == ['a']
    against(check)


@pytest.mark.parametrize('tag, digest', [('"two"', None), ('', None), ('W/"one"', None), ('', SUM)])
def test_never_two_halves_of_different_files(tmp_path: Path, tag: str, digest: str | None) -> None:
    "The file changes between two attempts; without any sign of its version only a published sum allows to go on"
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        if tag in ('', 'W/"one"'): server.tag = tag
        server.faults = [300_000, (404, {})]
        with pytest.raises(NetError): await fetch(session, f'{server.url}/a', tmp_path/'a', digest)
        if not digest: server.content = CONTENT[::-1]
        if tag == '"two"': server.tag = tag
        await fetch(session, f'{server.url}/a', tmp_path/'a', digest)
        assert (tmp_path/'a').read_bytes() == server.content
        assert server.asked[-1][1] == ('bytes=300000-' if tag == '"two"' or digest else '')
    against(check)


def test_a_part_longer_than_the_file_is_begun_anew(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        (tmp_path/'a.part').write_bytes(bytes(len(CONTENT) + 5))
        (tmp_path/'a.part.version').write_text('"one"')
        await fetch(session, f'{server.url}/a', tmp_path/'a')
        assert (tmp_path/'a').read_bytes() == CONTENT and [wanted for _, wanted, _ in server.asked] == [f'bytes={len(CONTENT) + 5}-', '']
        server.faults = [1000, 'shifted']
        with pytest.raises(NetError, match='does not go on'): await fetch(session, f'{server.url}/b', tmp_path/'b')
    against(check)


def test_a_wrong_sum_leaves_nothing(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        server.content = b'X' + CONTENT[1:]
        item = Item(f'{server.url}/a.zip', tmp_path/'in'/'a.zip', f'{server.url}/a.zip.CHECKSUM')
        with pytest.raises(ValueError, match='what came is thrown away'): await fetch_item(session, item)
        assert names(tmp_path/'in') == []
        server.content = CONTENT
        assert 'SHA-256 as published' in await fetch_item(session, item)
        assert names(tmp_path/'in') == ['a.zip', 'a.zip.CHECKSUM']
        before = len(server.asked)
        assert 'there already' in await fetch_item(session, item) and len(server.asked) == before
        (tmp_path/'in'/'a.zip').write_bytes(b'changed')
        with pytest.raises(ValueError, match='is not what was published'): await fetch_item(session, item)
        server.sum = '<html>'
        with pytest.raises(ValueError, match='is no SHA-256'):
            await fetch_item(session, Item(f'{server.url}/b', tmp_path/'b', f'{server.url}/b.CHECKSUM'))
        server.sum = ''
        assert 'no sum is published' in await fetch_item(session, Item(f'{server.url}/b', tmp_path/'b', f'{server.url}/b.CHECKSUM'))
    against(check)


def test_asked_to_wait(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        server.faults = [(429, {'Retry-After': '17'})]
        await fetch(session, f'{server.url}/a', tmp_path/'a')
        assert waits == [17.0] and (tmp_path/'a').read_bytes() == CONTENT
        server.faults = [(429, {'Retry-After': '3600'})]
        with pytest.raises(NetError, match='we ask too often'): await fetch(session, f'{server.url}/b', tmp_path/'b')
        assert waits == [17.0]
    against(check)


def test_no_place_to_write_to(tmp_path: Path) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        with pytest.raises(StorageError, match='cannot write'): await fetch(session, f'{server.url}/a', tmp_path/'nowhere'/'a')
        assert len(server.asked) == 1 and waits == []
        with pytest.raises(NetError, match='not encrypted'): await fetch(session, 'http://example.org/a', tmp_path/'a')
    against(check)


@pytest.mark.parametrize('status, words', [
    (404, 'first day of each month'), (403, '--base-url'), (451, '--base-url'), (500, 'try again later')])
def test_refusals_say_what_to_do(tmp_path: Path, status: int, words: str) -> None:
    async def check(server: Server, session: Session, waits: list[float]) -> None:
        server.faults = [(status, {})] * 4
        with pytest.raises(NetError) as failed: await fetch(session, f'{server.url}/a', tmp_path/'a')
        said = tape_tools.told('tardis', failed.value)
        assert words in said and f'HTTP {status}' in said and 'venue_urls' not in said and names(tmp_path) == []
        assert failed.value.attempts == (4 if status == 500 else 1)
    against(check)


# ---- addresses

def test_addresses_are_those_of_the_sources() -> None:
    today, day = date(2026, 1, 1), date(2024, 8, 1)
    urls = [item_of(*words).url for words in (
        ('tardis', 'btc-perpetual', day, today, 'trades', 'deribit'), ('binance', 'btcusdt', day, today),
        ('bybit', 'BTCUSDT', day, today, '', 'spot'), ('binance', 'BTC/USDT', day, today, 'bookTicker', 'um'))]
    assert urls == ['https://datasets.tardis.dev/v1/deribit/trades/2024/08/01/BTC-PERPETUAL.csv.gz',
                    'https://data.binance.vision/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-08-01.zip',
                    'https://quote-saver.bycsi.com/orderbook/spot/BTCUSDT/2024-08-01_BTCUSDT_ob500.data.zip',
                    'https://data.binance.vision/data/futures/um/daily/bookTicker/BTCUSDT/BTCUSDT-bookTicker-2024-08-01.zip']
    places = {item_of(name, 'BTCUSDT', day, today, kind, market).place for name, source in SOURCES.items() for kind in source.kinds
              for market in source.markets or ('binance', 'okex') if (kind, market) != ('bookTicker', 'spot')}
    assert len(places) == 5 * 2 + 4 * 3 - 1 + 2, 'no two files lie in one place'


def get(server_url: str, folder: Path, *words: str) -> int:
    return main(['data', 'get', *words, '--base-url', server_url, '--out', str(folder)])


def test_data_get_from_end_to_end(tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    "Fetched through the command line, from a server with the paths of Bybit, and opened as what it is; a day that is not there is told"
    archive = (data_folder/'layouts'/'bybit_xrpusdt-ob500.data.zip').read_bytes()
    async def answer(request: web.Request) -> web.StreamResponse:
        there = request.path == '/orderbook/linear/XRPUSDT/2024-12-01_XRPUSDT_ob500.data.zip'
        return web.Response(body=archive) if there else web.Response(status=404)

    async def run() -> int:
        application = web.Application()
        application.router.add_get('/{path:.*}', answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, '127.0.0.1', 0).start()
        url = f'http://127.0.0.1:{runner.addresses[0][1]}'
        try: return await asyncio.to_thread(get, url, tmp_path, 'bybit', '--symbol', 'XRPUSDT', '--day', '2024-12-01..2024-12-02')
        finally: await runner.cleanup()

    assert asyncio.run(run()) == 2
    said = capsys.readouterr()
    assert 'a day appears once it is over' in said.err and '2024-12-02' in said.err and '2024-12-01' in said.out
    made = open_tape(tmp_path/'bybit'/'linear'/'2024-12-01_XRPUSDT_ob500.data.zip')
    assert made.instrument.kind == 'linear' and made.notes['changes'] == 49


def test_data_get_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('cryptoexp.net.backoff', lambda *_: 0.0)
    assert get('http://127.0.0.1:9', tmp_path, 'tardis', '--symbol', 'BTCUSDT', '--day', '2024-08-01') == 2
    assert 'no connection' in capsys.readouterr().err and not list(tmp_path.rglob('*.gz'))


@pytest.mark.parametrize('words, said', [
    (['tardis', '--symbol', 'BTCUSDT', '--day', '2024-08-02'], 'ask for 2024-08-01'),
    (['binance', '--symbol', 'X', '--day', '2099-01-01'], 'not over yet'),
    (['bybit', '--symbol', 'X', '--day', '2024-08-02', '--type', 'trades'], 'bybit has no trades'),
    (['binance', '--symbol', 'X', '--day', '2024-08-02', '--market', 'linear'], 'it has spot')])
def test_what_cannot_be_is_refused_before_anybody_is_asked(words: list[str], said: str, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert get('http://127.0.0.1:9', tmp_path, *words) == 2
    assert said in capsys.readouterr().err and names(tmp_path) == []


# ---- info, check, convert

def test_info_and_its_json(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [data_folder/'binance_spot'/'btcusdt_20240808.gz', data_folder/'layouts'/'bitmex_trades_XBTUSD.csv']
    assert main(['tape', 'info', *map(str, paths), '--json']) == 0
    first, second = json.loads(capsys.readouterr().out)
    made = load(paths[0])
    assert first['rows'] == len(made) == sum(first['rows of each kind'].values()) and first['crossed messages'] == first['gaps'] == 0
    assert first['bytes'] == paths[0].stat().st_size and first['from'].startswith('2024-08-08T23:54:14')
    late = made.clock.corrected(made.events.local_ns) - made.events.exchange_ns
    trades = (made.events.kind == TRADE) & ((made.events.flags & 0x08) == 0)
    assert first['latency, ms']['trade'][1] == round(float(np.median(late[trades])) / 1e6, 3)
    assert second['rows of each kind'] == {'trade': 10} and second['problems'] == []
    assert main(['tape', 'info', str(paths[1])]) == 0
    assert 'XBT/USD on bitmex, inverse' in capsys.readouterr().out


def test_check(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = data_folder/'layouts'/'bybit_xrpusdt-ob500.data.zip'
    assert main(['tape', 'check', str(sound)]) == 0
    rows = [(SNAPSHOT | BUY, 1, 9, 100, 1, 0), (SNAPSHOT | SELL | LAST, 1, 9, 99, 1, 0)]
    bad = Tape(from_rows(rows), TOY).save(tmp_path/'crossed.parquet')
    assert main(['tape', 'check', str(sound), str(bad)]) == 1
    said = capsys.readouterr().out
    assert 'sound' in said and 'crossed: 1 (first row 1' in said
    (tmp_path/'letter').write_text('Dear')
    assert main(['tape', 'check', str(tmp_path/'letter'), str(sound)]) == 2
    said = capsys.readouterr()
    assert 'nothing known here' in said.err and 'sound' in said.out


@pytest.mark.parametrize('delay, said', [
    (1, []), (0, ['rows that arrive before they happen']), (-5, ['rows that arrive before they happen'])])
def test_check_of_times(delay: int, said: list[str]) -> None:
    found = tape_tools.problems_of(Tape(from_rows([(TRADE | BUY | LAST, 100, 100 + delay, 7, 1, 1)]), TOY))
    assert [one.split(',')[0] for one in found] == said


def test_the_recordings_are_sound_or_say_why(data_folder: Path) -> None:
    spot = tape_tools.problems_of(open_tape(data_folder/'binance_spot'/'btcusdt_20240808.gz', streams='diff-only'))
    assert spot == []


def test_convert(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data_folder/'layouts'/'bybit_xrpusdt-ob500.data.zip'
    made = open_tape(source)
    for name in ('xrpusdt.parquet', 'xrpusdt.npz', 'xrpusdt.csv.gz'):
        assert main(['tape', 'convert', str(source), '--out', str(tmp_path/name)]) == 0
    assert load(tmp_path/'xrpusdt.parquet').events.equals(made.events)
    rows = made.timeline()
    assert open_tape(tmp_path/'xrpusdt.npz').events.equals(rows[rows.kind != CONTROL])
    table = pd.read_csv(io.BytesIO(gzip.decompress((tmp_path/'xrpusdt.csv.gz').read_bytes())), dtype=str, keep_default_na=False)
    assert len(table) == len(made) and table['exchange_ns'].astype(np.int64).tolist() == made.events.exchange_ns.tolist()
    depth = (made.events.kind == DEPTH) | (made.events.kind == SNAPSHOT)
    assert [Decimal(text) for text in table['price'][depth]] == [made.instrument.price(int(tick)) for tick in made.events.tick[depth]]
    assert [Decimal(text) for text in table['amount'][depth]] == [made.instrument.amount(int(lots)) for lots in made.events.lots[depth]]
    capsys.readouterr()
    for words, said in ((['--out', str(tmp_path/'a.txt')], 'does not say what to write'), (['--out', str(source)], 'does not say what')):
        assert main(['tape', 'convert', str(source), *words]) == 2 and said in capsys.readouterr().err
    saved = tmp_path/'xrpusdt.parquet'
    assert main(['tape', 'convert', str(saved), '--out', str(saved)]) == 2 and 'one of the files to read' in capsys.readouterr().err


def test_convert_two_days_for_hftbacktest(data_folder: Path, tmp_path: Path) -> None:
    days = [str(data_folder/'binance_spot'/f'btcusdt_{day}.gz') for day in ('20240808', '20240809')]
    assert main(['tape', 'convert', *days, '--out', str(tmp_path/'btcusdt.npz')]) == 0
    rows = open_tape(days, streams='diff-only').timeline()
    assert open_tape(tmp_path/'btcusdt.npz').events.equals(rows[np.isin(rows.kind, (1, 2, 3, 4))])


# ---- the command line itself

@pytest.mark.parametrize('words', [['tape', '--help'], ['tape', 'info', '--help'], ['tape', 'convert', '--help'],
                                   ['tape', 'check', '--help'], ['data', '--help'], ['data', 'get', '--help'], ['--help']])
def test_help_has_examples_and_imports_nothing_heavy(words: list[str]) -> None:
    code = ('import sys, contextlib, io\nfrom cryptoexp.cli import main\n'
            f'with contextlib.suppress(SystemExit): main({words!r})\n'
            "print(sorted({'numpy', 'pandas', 'numba', 'aiohttp', 'pyarrow', 'rich'} & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 'examples:' in done.stdout and done.stderr.strip() == '[]'


def test_slips_of_the_hand(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (['tape'], ['data', 'get', 'kraken'], ['data', 'get', 'bybit', '--symbol', 'X', '--day', 'today']):
        with pytest.raises(SystemExit) as stopped: main(words)
        assert stopped.value.code == 2
    assert 'is not a day' in capsys.readouterr().err
    assert main(['tape', 'info', 'no-such-file.gz']) == 2 and 'not there' in capsys.readouterr().err
