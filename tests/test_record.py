"The recorder and the command line against servers on this machine: tapes that are whole, kills that lose a batch, disks that are full"
from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from made_venues import PAIRS, MadeServer

from cryptoexp.cli import LIVE_VENUES, build_parser, configuration, main, recorded
from cryptoexp.cli import record as command_line
from cryptoexp.config import ConfigError, load_config
from cryptoexp.durable import Journal, StorageError
from cryptoexp.market.book import OrderBook
from cryptoexp.market.events import CONTROL, RESUME, STALE, Events, concat
from cryptoexp.market.layouts import open_tape
from cryptoexp.market.live import VENUES
from cryptoexp.market.record import CLOCK, DAY_NS, MarketRecorder, close_all, record
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Tape, load_tape
from cryptoexp.market_making import MarketMaker, replayed


def program(*words: str) -> list[str]:
    return [sys.executable, '-c', 'from cryptoexp.cli import main; raise SystemExit(main())', *words]


def addresses(server: MadeServer) -> dict[str, str]:
    venue = server.market.venue
    return {f'{venue}_rest': server.rest_url, f'{venue}_websocket': server.websocket_url}


def test_the_command_line_knows_the_venues() -> None: assert tuple(VENUES) == LIVE_VENUES


@pytest.mark.parametrize('venue', PAIRS)
def test_a_recording_holds_the_market(venue: str, tmp_path: Path) -> None:
    "Two markets, two tapes, both uncrossed and whole at the end"
    async def session() -> None:
        async with MadeServer(venue) as server:
            await asyncio.wait_for(record({venue: PAIRS[venue]}, tmp_path, 8.0, addresses(server), warm_up_ns=100_000_000), 60)
    asyncio.run(session())
    tapes = sorted(tmp_path.rglob('*.parquet'))
    assert len(tapes) == 2 and not list(tmp_path.rglob('.*.part'))
    for path in tapes:
        tape = load_tape(path)
        book = OrderBook(tape.instrument).apply(tape.timeline())
        assert len(tape) > 200 and book.crossed == 0 and not book.stale
        assert re.search(r'by [+-]\d+\.\d{6} ms$', tape.clock.remark), tape.clock.remark   # the raw times can be had again


async def with_program(server: MadeServer, words: list[str], rounds: int, seconds: float) -> None:
    "Start the program, kill it; and again"
    for _ in range(rounds):
        process = await asyncio.create_subprocess_exec(*program(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin, until = server.opened, time.monotonic() + 60
        while server.opened == begin and process.returncode is None and time.monotonic() < until: await asyncio.sleep(0.05)  # noqa: ASYNC110
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        await process.wait()


def around_midnight(folder: Path) -> tuple[list[Events], MarketRecorder]:
    "MADE UP: nine minutes around a midnight, of which nothing is missing, kept as three tapes"
    market, midnight = SyntheticMarket(7), 20_000*DAY_NS
    batches = list(market.batches(540_000_000_000))
    shift = midnight - int(batches[0].local_ns[0]) - 250_000_000_000
    moved = [Events(one.flags, one.exchange_ns + shift, one.local_ns + shift, *one.columns[3:]) for one in batches]
    recorder = MarketRecorder(folder, market.instrument, 'made up', True)
    for number, batch in enumerate(moved):
        recorder.add(batch)
        if number == 3*len(moved)//4: recorder.seal()   # as it does after so many rows
    recorder.close()
    assert len(recorder.tapes) == 3 and len({path.name[:10] for path in recorder.tapes}) == 2
    return moved, recorder


def test_days_that_are_joined_are_the_recording(tmp_path: Path) -> None:
    "A tape a day; opened by their folder they are the rows that were recorded, and a session on them is a session on those"
    batches, recorder = around_midnight(tmp_path/'rec')
    joined, whole, instrument = open_tape(recorder.folder), concat(batches), recorder.instrument
    assert joined.events.equals(whole) and joined.notes['tapes'] == len(recorder.tapes) and not joined.problems
    assert open_tape(list(reversed(recorder.tapes))).events.equals(whole)
    words = ['trade', '--preset', 'zero-fee-tier', '--json', '--out', str(tmp_path/'runs'), '--source']
    done = subprocess.run(program(*words, str(recorder.folder)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    Tape(whole, instrument, CLOCK, ('made up',), True).save(tmp_path/'one.parquet')
    alone = subprocess.run(program(*words, str(tmp_path/'one.parquet')), capture_output=True, text=True, timeout=300, check=False)
    assert alone.stdout == done.stdout and json.loads(done.stdout)['fills'] > 20
    wrong = subprocess.run(program(*words, str(tmp_path/'rec')), capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2 and str(recorder.folder) in wrong.stderr and 'Traceback' not in wrong.stderr


def test_days_with_a_hole_are_joined_with_a_hole(tmp_path: Path) -> None:
    "The tape in the middle is missing: the book is stale from the one to the other"
    _, recorder = around_midnight(tmp_path)
    first, _, last = recorder.tapes
    joined = open_tape([last, first])
    codes = joined.events.tick[joined.events.kind == CONTROL].tolist()
    assert codes.count(STALE) == 1 and RESUME in codes[codes.index(STALE):] and '1 of 2 tapes' in joined.problems[0]
    assert OrderBook(recorder.instrument).apply(joined.events).crossed == 0
    with pytest.raises(ValueError, match='two recordings of one time'): open_tape([first, last, first])
    other = replace(load_tape(last), instrument=replace(recorder.instrument, symbol='ETHUSDT'))
    with pytest.raises(ValueError, match='not the same market'): open_tape([first, other.save(tmp_path/'other.parquet')])


def test_killed_and_started_again(tmp_path: Path) -> None:
    "kill −9 of `cryptoexp record`: what was on the disk is sealed by the next one, with the hole marked"
    async def session() -> int:
        async with MadeServer('kraken', pace=200) as server:
            words = ['record', '--source', 'kraken', '--symbol', 'BTC/USD', '--out', str(tmp_path)]
            words += [word for name, url in addresses(server).items() for word in ('--url', f'{name}={url}')]
            await with_program(server, words, 3, 4.0)
            done = await asyncio.create_subprocess_exec(*program(*words, '--duration', '4s'))
            return await asyncio.wait_for(done.wait(), 90)
    assert asyncio.run(session()) == 0
    tapes = [load_tape(path) for path in sorted(tmp_path.rglob('*.parquet'))]
    assert len(tapes) >= 3
    for tape in tapes[:-1]: assert (int(tape.events.kind[-1]), int(tape.events.tick[-1])) == (CONTROL, STALE)
    for tape in tapes:
        assert OrderBook(tape.instrument).apply(tape.timeline()).crossed == 0
        assert int(tape.events.tick[tape.events.kind == CONTROL].tolist().count(RESUME)) >= 1


def test_killed_between_the_tape_and_the_new_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The tape is written, the journal still holds its rows: the next start does not keep them twice"
    market = SyntheticMarket(7)
    rows = concat(list(market.batches(60_000_000_000)))
    recorder = MarketRecorder(tmp_path, market.instrument, 'made up', True)
    recorder.add(rows)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        def killed(*_: object) -> None: raise SystemExit
        patch.setattr(Journal, 'restart', killed)
        recorder.seal()
    recorder.journal.close()
    assert len(list(recorder.folder.glob('*.parquet'))) == 1
    MarketRecorder(tmp_path, market.instrument, 'made up', True).close()
    (path,) = recorder.folder.glob('*.parquet')
    kept = load_tape(path).events
    assert kept[:-1].equals(rows) and (int(kept.kind[-1]), int(kept.tick[-1])) == (CONTROL, STALE)


def test_cancelled_while_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A time limit around `record`: the write ends before the file is closed, and what was written becomes a tape"
    real, begun, inside = Journal.append, list[int](), list[str]()
    def slow(self: Journal, *records: tuple[int, bytes]) -> None:
        inside.append('in')
        if begun: time.sleep(0.3)
        real(self, *records)
        inside.append('out')
    monkeypatch.setattr(Journal, 'append', slow)
    closed, really = list[list[str]](), MarketRecorder.close
    def close(self: MarketRecorder) -> None:
        closed.append(inside[-1:])
        really(self)
    monkeypatch.setattr(MarketRecorder, 'close', close)

    async def session() -> None:
        async with MadeServer('kraken') as server:
            work = asyncio.create_task(record({'kraken': PAIRS['kraken']}, tmp_path, None, addresses(server), warm_up_ns=100_000_000,
                                              on_turn=lambda *_: begun.append(1)))
            while len(begun) < 3 or inside[-1] != 'in': await asyncio.sleep(0.01)  # noqa: ASYNC110
            work.cancel()
            with pytest.raises(asyncio.CancelledError): await work
    asyncio.run(asyncio.wait_for(session(), 60))
    assert closed and all(one == ['out'] for one in closed)
    tapes = [load_tape(path) for path in tmp_path.rglob('*.parquet')]
    assert tapes and all(len(tape) for tape in tapes)


def test_mistakes_ask_nobody(tmp_path: Path) -> None:
    "A misspelt address would leave the venue's own in its place: it is refused before anybody is asked"
    words = ['record', '--source', 'kraken', '--symbol', 'BTC/USD', '--out', str(tmp_path), '--duration', '1s']
    wrong = {'krakn_rest=http://127.0.0.1:9': 'kraken_rest', 'kraken_rest': 'NAME=ADDRESS', 'kraken_rest=127.0.0.1:9': 'https://',
             'kraken_websocket=ws://example.org': 'not encrypted', 'coinbase_rest=http://127.0.0.1:9': 'kraken has no address'}
    for word, expected in wrong.items():
        with pytest.raises(ConfigError, match=expected): command_line(build_parser().parse_args([*words, '--url', word]))
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The recording ends with the reason; what was written is there for the next start"
    appended, real = [0], Journal.append
    def full(self: Journal, *records: tuple[int, bytes]) -> None:
        appended[0] += 1
        if appended[0] > 8: raise StorageError(errno.ENOSPC, f'cannot write {self.path}: the disk is full')
        real(self, *records)
    monkeypatch.setattr(Journal, 'append', full)
    async def session(seconds: float) -> None:
        async with MadeServer('kraken') as server:
            await asyncio.wait_for(record({'kraken': ['BTC/USD']}, tmp_path, seconds, addresses(server), warm_up_ns=100_000_000), 60)
    with pytest.raises(StorageError, match='disk is full'): asyncio.run(session(30.0))
    monkeypatch.undo()
    assert sum(len(load_tape(path)) for path in tmp_path.rglob('*.parquet')) > 0


def test_one_full_disk_keeps_no_other_from_closing(tmp_path: Path) -> None:
    "Of three recorders the first and the last can't be closed: the one in between is, and the first failure is told"
    closed = list[str]()
    class Closing:
        def __init__(self, name: str, fails: bool): self.name, self.fails = name, fails
        def close(self) -> None:
            closed.append(self.name)
            if self.fails: raise StorageError(errno.ENOSPC, f'{self.name}: the disk is full')
    with pytest.raises(StorageError, match='a: the disk'): close_all([Closing('a', True), Closing('b', False), Closing('c', True)])  # type: ignore[list-item]
    assert closed == ['a', 'b', 'c']
    close_all([Closing('d', False)])  # type: ignore[list-item]


def test_addresses_of_a_session() -> None:
    "`trade --url` replaces one address, and leaves those of a file beside it; where nobody is asked it is an error"
    def made(*words: str) -> dict[str, str]: return dict(configuration(build_parser().parse_args(['trade', *words])).venue_urls)
    assert made('--source', 'kraken', '--url', 'kraken_rest=http://127.0.0.1:9') == {'kraken_rest': 'http://127.0.0.1:9'}
    both = made('--source', 'kraken', '--set', 'venue_urls=kraken_rest=http://127.0.0.1:8', '--url', 'kraken_websocket=ws://127.0.0.1:9')
    assert both == {'kraken_rest': 'http://127.0.0.1:8', 'kraken_websocket': 'ws://127.0.0.1:9'}
    for words in (['--url', 'kraken_rest=http://127.0.0.1:9'], ['--source', 'kraken', '--url', 'kraken_rst=http://127.0.0.1:9'],
                  ['--source', 'kraken', '--url', 'kraken_rest=http://example.org'], ['--source', 'kraken', '--url', 'okx_rest=http://127.0.0.1:9']):
        with pytest.raises(ConfigError, match='--url'): made(*words)


def test_gone_on_at_another_address(tmp_path: Path) -> None:
    "Killed, and the server is elsewhere by then: --resume takes --url, and the replay of all of it is the same bytes"
    async def run(server: MadeServer, words: list[str], kill_after: bool = False) -> int:
        words = words + [word for name, url in addresses(server).items() for word in ('--url', f'{name}={url}')]
        process = await asyncio.create_subprocess_exec(*program(*words), stdout=subprocess.DEVNULL)
        journal, until = tmp_path/'kraken-btc-usd'/'session.journal', time.monotonic() + 400
        while kill_after and time.monotonic() < until:
            if journal.exists() and journal.stat().st_size > 20_000: break
            await asyncio.sleep(0.1)
        if kill_after: process.kill()
        return await asyncio.wait_for(process.wait(), 400)
    async def session() -> None:
        begin = ['trade', '--source', 'kraken', '--pair', 'BTC/USD', '--preset', 'zero-fee-tier', '--duration', '40s']
        begin, on = [*begin, '--out', str(tmp_path)], ['trade', '--resume', str(tmp_path/'kraken-btc-usd')]
        async with MadeServer('kraken') as server: assert await run(server, begin, True) == -signal.SIGKILL
        async with MadeServer('kraken', seed=8) as server: assert await run(server, on) == 0
    asyncio.run(session())
    run_folder = tmp_path/'kraken-btc-usd'
    maker, _ = replayed(run_folder, tmp_path/'again', batch_rows=100)
    for name in ('trades.csv', 'orders.csv', 'refusals.csv', 'summary.json'):
        assert (run_folder/name).read_bytes() == maker.paths[name].read_bytes(), name


def test_interrupted_before_anything_began(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    "Ctrl-C while the program is loading is a word and status 130, also where Python has wrapped it"
    def interrupted(arguments: object) -> int: raise KeyboardInterrupt
    def wrapped(arguments: object) -> int: raise RuntimeError('Error calling __set_name__') from KeyboardInterrupt()
    for what in (interrupted, wrapped):
        monkeypatch.setattr('cryptoexp.cli.trade', what)
        assert main(['trade']) == 130 and capsys.readouterr().err == 'cryptoexp: interrupted\n'


def test_a_reader_that_has_read_enough() -> None:
    "`cryptoexp … | head -1` is no error"
    with subprocess.Popen(program('trade', '--presets'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == '' and process.wait(120) == 0


@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
@pytest.mark.parametrize('command', ['trade', 'record'])
def test_interrupted_while_a_host_does_not_answer(command: str, tmp_path: Path) -> None:
    "A host that takes the connection and says nothing is given up at the first Ctrl-C"
    async def session() -> None:
        asked = asyncio.Event()
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()
            writer.close()
        async with await asyncio.start_server(silent, '127.0.0.1', 0) as server:
            port = server.sockets[0].getsockname()[1]
            urls = {'kraken_rest': f'http://127.0.0.1:{port}', 'kraken_websocket': f'ws://127.0.0.1:{port}'}
            words = ['record', '--source', 'kraken', '--symbol', 'BTC/USD', '--out', str(tmp_path)]
            maker = MarketMaker(load_config(overrides={'trading_pair': 'BTC/USD', 'venue_urls': urls}), source='kraken', out=tmp_path)
            working = asyncio.ensure_future(maker.run() if command == 'trade' else recorded(build_parser().parse_args(words), urls))
            await asyncio.wait_for(asked.wait(), 400)
            os.kill(os.getpid(), signal.SIGINT)
            done, _ = await asyncio.wait([working], timeout=5)   # alone the deadline of the host is longer
            assert done and working.cancelled()
    asyncio.run(session())
    assert not list(tmp_path.iterdir())


PAPER = {'coinbase': 'BTC/USD', 'kraken': 'BTC/USD', 'coinbase_exchange': 'BTC/USD', 'binance_usdm': 'BTC/USDT'}

@pytest.mark.parametrize('venue', PAPER)
def test_paper_trading_of_a_venue(venue: str, tmp_path: Path) -> None:
    "`cryptoexp trade --source VENUE` against a server that speaks its protocol, and the replay of its journal"
    async def session() -> None:
        async with MadeServer(venue) as server:
            words = ['trade', '--source', venue, '--pair', PAPER[venue], '--preset', 'zero-fee-tier', '--duration', '20s', '--json']
            words += ['--out', str(tmp_path)]
            urls = ', '.join(f'{name} = "{url}"' for name, url in addresses(server).items())
            (tmp_path/'here.toml').write_text(f'venue_urls = {{ {urls} }}\n')
            process = await asyncio.create_subprocess_exec(*program(*words, '--config', str(tmp_path/'here.toml')), stdout=subprocess.PIPE)
            said, _ = await asyncio.wait_for(process.communicate(), 400)   # the first session on a machine compiles the engine
            assert process.returncode == 0 and b'"synthetic": false' in said
    asyncio.run(session())
    run = next(path.parent for path in tmp_path.rglob('session.journal'))
    done = subprocess.run(program('trade', '--replay', str(run), '--out', str(tmp_path/'again'), '--json'), capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    again = next((tmp_path/'again').iterdir())
    for name in ('trades.csv', 'orders.csv', 'refusals.csv', 'summary.json'):
        assert (run/name).read_bytes() == (again/name).read_bytes(), name
