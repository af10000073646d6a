"A session is killed at any moment, its journal damaged in any way: it goes on with nothing lost and nothing twice, or says why not"
from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from replay_server import ReplayServer, made_lines

from cryptoexp.cli import main
from cryptoexp.config import load_config
from cryptoexp.durable import DamagedJournal, Journal, StorageError, parse_journal
from cryptoexp.market.events import CONTROL, KILL, RESUME, STALE, Events, concat
from cryptoexp.market.tape import load_tape
from cryptoexp.market_making import MarketMaker, replayed, resumed, status_of
from cryptoexp.trading.journal import NAME, ROWS, SessionJournal, read_history, rebuild, replay, standing
from cryptoexp.trading.matching import compile_engine

ROOT = Path(__file__).resolve().parents[1]
FILES = ('trades.csv', 'orders.csv', 'refusals.csv', 'summary.json')
ROUNDS, SHORT = 25, ('--source', 'embedded', '--preset', 'zero-fee-tier', '--duration', '8m', '--journal', '--speed', '120', '--json')


def program(*words: str) -> list[str]:
    return [sys.executable, '-c', 'from cryptoexp.cli import main; raise SystemExit(main())', *words]


def run_to_end(*words: str) -> None:
    done = subprocess.run(program(*words), capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr


def same_files(first: Path, second: Path, but: tuple[str, ...] = ()) -> None:
    for name in FILES:
        one, other = ((folder/name).read_bytes() for folder in (first, second))
        if name == 'summary.json' and but:
            told = [json.loads(text) for text in (one, other)]
            for part in told:
                for key in but: part.pop(key)
            assert told[0] == told[1]
        else: assert one == other, f'{name} differs'


def test_killed_at_random_moments(tmp_path: Path) -> None:
    "kill −9 again and again: each time the session goes on, and in the end the files are those of one that was never killed"
    run_to_end('trade', *SHORT[:-3], '--json', '--out', str(tmp_path/'whole'))
    out, draw, killed = tmp_path/'killed', random.Random(7), 0
    run, words = out/'embedded-btcusdt', ('trade', *SHORT, '--out', str(out))
    for _ in range(ROUNDS):
        with open(tmp_path/'log', 'w') as log:
            process = subprocess.Popen(program(*words), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            size, until = (run/NAME).stat().st_size if (run/NAME).exists() else 0, time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:   # from the first new record on, at any moment
                if (run/NAME).exists() and (run/NAME).stat().st_size > size + 200: break
                time.sleep(0.002)
            time.sleep(draw.expovariate(20))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
        if (run/'summary.json').exists(): break
        before = (run/NAME).read_bytes()
        records, _ = parse_journal(before)
        assert records, (tmp_path/'log').read_text()
        words = ('trade', '--resume', str(run), '--json')
    else: run_to_end(*words)
    assert killed >= 3 and (run/'summary.json').exists(), (tmp_path/'log').read_text()
    same_files(tmp_path/'whole'/'embedded-btcusdt', run, but=('notes',))
    run_to_end('trade', '--replay', str(run), '--out', str(tmp_path/'again'), '--json')
    same_files(run, tmp_path/'again'/'replay-of-embedded-btcusdt')


@pytest.fixture(scope='module')
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A short session of the embedded market with its journal, not sealed"
    folder = tmp_path_factory.mktemp('ended')
    maker = MarketMaker(load_config(preset='zero-fee-tier'), source='embedded', duration=240, speed=100, out=folder, journal=True)
    halted: list[int] = []
    async def broken() -> None:
        maker._on_turn = lambda one: halted.append(1) or (one.stop() if len(halted) == 12 else None)
        await maker.run()
    import cryptoexp.market_making as face
    kept, face.seal = face.seal, lambda journal: None
    try: asyncio.run(broken())
    finally: face.seal = kept
    assert maker.folder is not None
    return maker.folder


def test_torn_anywhere_in_the_last_three_records(ended: Path, tmp_path: Path) -> None:
    "Every byte: what was whole before the cut is there, nothing else"
    data = (ended/NAME).read_bytes()
    records, size = parse_journal(data)
    assert size == len(data) and len(records) > 8
    ends, place = [0], 0
    for record in records:
        place += 25 - 4 + len(record.payload)
        ends.append(place)
    assert ends[-1] == len(data)
    for cut in range(ends[-4], len(data), 1):
        kept, size = parse_journal(data[:cut])
        assert size == max(end for end in ends if end <= cut) and kept == records[:len(kept)]


def test_any_bit_of_the_last_three_records(ended: Path) -> None:
    data = (ended/NAME).read_bytes()
    records, _ = parse_journal(data)
    begin = len(data) - sum(21 + len(record.payload) for record in records[-3:])
    for place in range(begin, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        try: kept, _ = parse_journal(bytes(flipped))
        except DamagedJournal: continue
        assert kept == records[:len(records) - 1], 'only the very last record may go without a word'


def test_random_damage_never_passes_for_another_state(ended: Path, tmp_path: Path) -> None:
    data, draw, said = (ended/NAME).read_bytes(), random.Random(7), 0
    whole = standing(rebuild(read_history(ended)))
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 30))): damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.3: del damaged[draw.randrange(len(damaged)):]
        try: kept, _ = parse_journal(bytes(damaged))
        except DamagedJournal:
            said += 1
            continue
        assert kept == parse_journal(data)[0][:len(kept)]
    assert said > 300 and whole['rows'] > 0


def test_a_full_disk_stops_the_session_and_leaves_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appended, real = [0], Journal.append
    def full(self: Journal, *records: tuple[int, bytes]) -> None:
        appended[0] += 1
        if appended[0] > 6:
            raise StorageError(errno.ENOSPC, f'cannot write {self.path}: the disk is full')
        real(self, *records)
    monkeypatch.setattr(Journal, 'append', full)
    maker = MarketMaker(load_config(preset='zero-fee-tier'), source='embedded', duration=240, speed=100, out=tmp_path, journal=True)
    with pytest.raises(StorageError, match='disk is full'): asyncio.run(maker.run())
    monkeypatch.undo()
    assert maker.folder is not None
    history = read_history(maker.folder)
    assert history.count > 0 and history.ended is None
    again = resumed(maker.folder)
    asyncio.run(again.run())
    assert again.result is not None and len(again.result.fills)


# ---- a live session against a local server

def live(server: ReplayServer, out: Path, duration: float) -> MarketMaker:
    config = load_config(preset='zero-fee-tier', overrides={'venue_urls': {'binance_rest': server.rest_url,
        'binance_websocket': server.websocket_url}})
    return MarketMaker(config, source='binance', preset='zero-fee-tier', duration=duration, speed=server.speed, out=out)


def until(fills: int) -> Callable[[MarketMaker], None]:
    def look(maker: MarketMaker) -> None:
        if maker.engine is not None and maker.engine.fill_count > fills: maker.stop()
    return look


def test_a_live_session_replays_to_the_byte(tmp_path: Path) -> None:
    "Recorded with its control rows; replayed in another process, in other batches; and from its sealed tape"
    async def session() -> MarketMaker:
        async with ReplayServer(made_lines(120), speed=10) as server:
            maker = live(server, tmp_path, 110)
            maker._on_turn = until(25)   # a busy machine has fewer fills in a minute
            await asyncio.wait_for(maker.run(), 120)
            return maker
    maker = asyncio.run(session())
    assert maker.folder is not None and maker.result is not None and len(maker.result.fills) > 20
    for size in (17, 100_000):
        again, _ = replayed(maker.folder, tmp_path/str(size), batch_rows=size)
        assert again.folder is not None
        same_files(maker.folder, again.folder)
    run_to_end('trade', '--replay', str(maker.folder), '--out', str(tmp_path/'other'), '--json')
    same_files(maker.folder, tmp_path/'other'/f'replay-of-{maker.folder.name}')
    tape = load_tape(maker.folder/'tape-0001.parquet')
    assert len(tape) == maker.result.session.counters['rows'] - 1   # the engine adds the STOP


def test_a_cancelled_session_is_the_one_in_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit, or Ctrl-C in a notebook, in the very moment in which rows are written: they are on the disk, so the engine has them
    too, and the replay is the session to the byte; nothing goes on waiting for rows"""
    real, writing = SessionJournal.rows, list[int]()
    def slow(self: SessionJournal, events: Events, acts: bool = False) -> None:
        writing.append(len(events))
        if len(writing) > 1: time.sleep(0.3)
        real(self, events, acts)
    monkeypatch.setattr(SessionJournal, 'rows', slow)

    async def session() -> tuple[MarketMaker, list[str]]:
        async with ReplayServer(made_lines(120), speed=10) as server:
            maker = live(server, tmp_path, 110)
            work = asyncio.create_task(maker.run())
            while len(writing) < 3 and not work.done(): await asyncio.sleep(0.01)  # noqa: ASYNC110
            work.cancel()
            with pytest.raises(asyncio.CancelledError): await work
            await asyncio.sleep(0)
            return maker, [str(task) for task in asyncio.all_tasks() if 'take_turn' in str(task) or 'anext' in str(task)]
    compile_engine()   # which on a busy machine takes longer than the time limit
    maker, left = asyncio.run(asyncio.wait_for(session(), 120))
    monkeypatch.undo()
    assert not left and maker.folder is not None and maker.result is not None
    assert 'CancelledError' in maker.result.session.notes[-1]
    assert read_history(maker.folder).count == sum(writing) == maker.result.session.counters['rows'] - 1   # the engine adds the STOP
    again, _ = replayed(maker.folder, tmp_path/'again', batch_rows=100)
    assert again.folder is not None
    same_files(maker.folder, again.folder)


def test_a_bad_connection_replays_to_the_byte_and_no_order_is_sent_on_a_stale_book(tmp_path: Path) -> None:
    "Lost diffs, a cut, a word that is no message, a shutdown: all are on the tape, and while the book is stale nothing goes out"
    async def session() -> MarketMaker:
        faults = {400: 'drop', 900: 'garbage', 1400: 'cut', 2000: 'drop', 2600: 'shutdown', 3200: 'cut'}
        async with ReplayServer(made_lines(200), speed=10, faults=faults) as server:
            maker = live(server, tmp_path, 190)
            def look(one: MarketMaker) -> None:
                if not server.faults and one.engine is not None and one.engine.fill_count > 25 and not status_of(one)['stale']: one.stop()
            maker._on_turn = look
            await asyncio.wait_for(maker.run(), 150)
            return maker
    compile_engine()
    maker = asyncio.run(session())
    assert maker.folder is not None and maker.result is not None
    rows = concat(list(read_history(maker.folder).batches()))
    control = rows[rows.kind == CONTROL]
    times = [(int(at), int(code)) for at, code in zip(control.local_ns, control.tick) if code in (STALE, RESUME)]
    spans = [(at, next((later for later, what in times[place:] if what == RESUME), 1 << 62))
             for place, (at, code) in enumerate(times) if code == STALE]
    assert len(spans) >= 3
    placed = maker.result.orders.placed_ns.to_numpy()
    assert len(placed) > 50
    for begin, end in spans: assert not ((placed > begin) & (placed < end)).any(), 'an order on a stale book'
    again, _ = replayed(maker.folder, tmp_path/'again', batch_rows=333)
    assert again.folder is not None
    same_files(maker.folder, again.folder)


def test_stopped_live_and_gone_on(tmp_path: Path) -> None:
    "Between the two nobody looked: the book is stale, what rested is cancelled, position and cash are what they were"
    async def both() -> tuple[MarketMaker, MarketMaker]:
        async with ReplayServer(made_lines(400), speed=8) as server:
            first = live(server, tmp_path, 390)
            first._on_turn = until(5)
            await asyncio.wait_for(first.run(), 120)
            assert first.folder is not None and first.engine is not None
            again = resumed(first.folder, on_turn=until(first.engine.fill_count + 3))
            await asyncio.wait_for(again.run(), 120)
            return first, again
    first, again = asyncio.run(both())
    assert first.result is not None and again.result is not None and again.folder is not None
    before, after = first.result.trades(), again.result.trades()
    assert len(after) > len(before) and after[:len(before)].to_csv() == before.to_csv(), 'what had happened has happened'
    history = read_history(again.folder)
    codes = [code for batch in history.batches() for code in batch.tick[batch.kind == CONTROL].tolist()]
    assert STALE in codes and history.acts == 1
    same, _ = replayed(again.folder, tmp_path/'again', batch_rows=333)
    assert same.folder is not None
    same_files(again.folder, same.folder)


@pytest.mark.skipif(not hasattr(signal, 'SIGUSR1'), reason='this system has no SIGUSR1')
def test_the_kill_switch_of_a_live_session(tmp_path: Path) -> None:
    "Pulled by a signal: every cancel is acknowledged within two seconds, the session is halted and stays so"
    async def session() -> MarketMaker:
        async with ReplayServer(made_lines(60), speed=5) as server:
            maker = live(server, tmp_path, 55)
            pulled: list[int] = []
            def look(one: MarketMaker) -> None:
                if not pulled and one.engine is not None and one.engine.fill_count > 2:
                    pulled.append(1)
                    os.kill(os.getpid(), signal.SIGUSR1)
            maker._on_turn = look
            await asyncio.wait_for(maker.run(), 120)
            return maker
    maker = asyncio.run(session())
    assert maker.result is not None and maker.folder is not None
    said = re.search(r'SIGUSR1; no order was alive (\d+\.\d+) s later', maker.result.session.notes[-1])
    assert maker.result.session.counters['halted'] and said is not None and float(said[1]) <= 2.5   # 2 s, and a turn
    history = read_history(maker.folder)
    rows = list(history.batches())
    killed = max(int(batch.local_ns[(batch.kind == CONTROL) & (batch.tick == KILL)][0]) for batch in rows
                 if ((batch.kind == CONTROL) & (batch.tick == KILL)).any())
    assert (maker.result.orders.placed_ns <= killed).all() and set(maker.result.orders.status) <= {'filled', 'cancelled', 'expired'}
    with pytest.raises(RuntimeError, match='halted'): asyncio.run(resumed(maker.folder).run())
    assert replay(maker.folder).orders.to_csv() == maker.result.orders.to_csv()


def test_what_was_refused_by_hand_is_replayed(tmp_path: Path) -> None:
    "Off the grid, no number at all, far from the market, without coins, in a halted session: each a row, in the replay too"
    said: list[str] = []
    def look(maker: MarketMaker) -> None:
        if maker.engine is None or maker.engine.desk is None or (now := status_of(maker))['mid'] is None: return
        mid = now['mid']
        tries = [('buy', mid + 0.0015, 0.01), ('sell', float('nan'), 0.01), ('buy', 1e300, 1e-300), ('buy', round(mid*5, 2), 0.01),
                 ('sell', round(mid, 2), 90.0), ('buy', round(mid, 2), 90.0)]
        if len(said) < len(tries): said.append(maker.simulate_order(*tries[len(said)])['reason'])
        elif not now['halted']: maker.kill('a test')
        elif len(said) == len(tries): said.append(maker.simulate_order('buy', round(mid, 2), 0.01)['reason'])
    maker = MarketMaker(load_config(preset='zero-fee-tier'), source='embedded', duration=600, out=tmp_path, journal=True, on_turn=look)
    maker.speed = 60
    killed = maker.market_making_strategy
    async def on_and_on() -> bool:   # the session ends when nothing is alive after a kill: one more order, before it does
        more = await killed()
        if maker._killed and len(said) == 6 and status_of(maker)['halted']: look(maker)
        return more
    maker.market_making_strategy = on_and_on   # type: ignore[method-assign]
    asyncio.run(maker.run())
    assert [text.split(':')[0] for text in said] == ['not as the venue asks']*3 + ['price out of range', 'no coins', 'no funds or no room',
                                                                                  'the session is halted']
    assert maker.result is not None and maker.folder is not None
    by_hand = maker.result.session.refused[maker.result.session.refused.purpose == 'manual']
    assert by_hand['count'].tolist() == [1]*7 and by_hand.reason.tolist() == [text.split(':')[0] for text in said]
    again, _ = replayed(maker.folder, tmp_path/'again', batch_rows=50)
    assert again.folder is not None
    same_files(maker.folder, again.folder)


def test_two_writers(tmp_path: Path) -> None:
    with Journal(tmp_path/NAME) as journal:
        journal.append((ROWS, b'1'))
        with pytest.raises(StorageError, match='another process'): Journal(tmp_path/NAME)


def test_a_session_that_is_running_is_left_alone(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    "Whoever wants to go on with it while somebody else does is refused, and writes nothing into its folder"
    run = tmp_path/'run'
    shutil.copytree(ended, run)
    (run/'trades.csv').write_text('what the other one writes')
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with Journal(run/NAME), pytest.raises(StorageError, match='another process'): asyncio.run(resumed(run).run())
    with Journal(run/NAME): assert main(['trade', '--resume', str(run)]) == 2
    said = capsys.readouterr().err
    assert 'another process' in said and 'goes on from there' not in said
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    asyncio.run(resumed(run).run())
    assert (run/'trades.csv').read_bytes() != before['trades.csv']


def test_a_session_that_breaks_off_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    appended, real = [0], Journal.append
    def full(self: Journal, *records: tuple[int, bytes]) -> None:
        appended[0] += 1
        if appended[0] > 6: raise StorageError(errno.ENOSPC, f'cannot write {self.path}: the disk is full')
        real(self, *records)
    monkeypatch.setattr(Journal, 'append', full)
    assert main(['trade', *SHORT[2:], '--out', str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f'--resume {tmp_path}/embedded-btcusdt' in said and 'the disk is full' in said and 'Traceback' not in said
    monkeypatch.undo()
    assert main(['trade', '--resume', f'{tmp_path}/embedded-btcusdt', '--json']) == 0
    assert (tmp_path/'embedded-btcusdt'/'summary.json').exists()


@pytest.mark.skipif(os.name == 'nt', reason='POSIX limits')
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    "The limit of the operating system: the reason and what to do, and the records before it are whole"
    program_text = ("import resource, sys; from cryptoexp.durable import Journal, StorageError\n"
                    "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); journal = Journal(sys.argv[1])\n"
                    "try:\n    while True: journal.append((1, b'x'*100))\n"
                    "except StorageError as error: print(journal.count, error)\n")
    done = subprocess.run([sys.executable, '-c', program_text, str(tmp_path/'j')], capture_output=True, text=True, timeout=120, check=True)
    records, size = parse_journal((tmp_path/'j').read_bytes())
    assert len(records) == int(done.stdout.split()[0]) == 8 and size == (tmp_path/'j').stat().st_size and 'ulimit -f' in done.stdout
