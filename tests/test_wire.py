"The live path against a stand-in for the venue on this machine: the same rows as from a file, and a book that is right or says so"
from __future__ import annotations

import asyncio
import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from loguru import logger
from replay_server import Book, Line, Recording, ReplayServer, made_lines, read_lines

from cryptoexp.market.book import OrderBook
from cryptoexp.market.events import (
    BUY,
    CLEAR,
    CLOCK,
    CONTROL,
    DEPTH,
    LAST,
    RESUME,
    SELL,
    SNAPSHOT,
    STALE,
    TRADE,
    Events,
    concat,
)
from cryptoexp.market.live import BinanceFeed, FeedError
from cryptoexp.market.tape import read_recording

pytestmark = [pytest.mark.filterwarnings(f'error::{name}') for name in ('ResourceWarning', 'pytest.PytestUnraisableExceptionWarning')]
MADE = made_lines(20.0)   # made up, in Binance's format
SPEED = 12.0


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    logger.remove()
    yield
    gc.collect()  # an unclosed session or socket warns here


def feed_of(server: ReplayServer, **options: Any) -> BinanceFeed:
    async def hurried(seconds: float) -> None: await asyncio.sleep(seconds / 10)
    return BinanceFeed('BTC/USDT', server.rest_url, server.websocket_url, **{
        **dict(speed=server.speed, warm_up_ns=500_000_000, sleep=hurried, generator=random.Random(7)), **options})


def at_end(feed: BinanceFeed, server: ReplayServer) -> bool:
    sync = feed.link.stream.syncs['BTCUSDT']
    return not sync.needs_snapshot and sync.book_id >= server.recording.diffs[-1][1]['u']


async def watch(server: ReplayServer, until: Callable[..., bool] = at_end, pause: float = 0.0,
                **options: Any) -> tuple[BinanceFeed, Events]:
    "Everything a feed yields until a condition holds, with the checks that hold for any feed"
    feed, got = feed_of(server, **options), []
    async with asyncio.timeout(20), feed:
        async for rows in feed:
            got.append(rows)
            if until(feed, server): break
            if pause and len(got) == 40: await asyncio.sleep(pause)
        feed.health.state += ', then closed'
        state = feed.health.state
    feed.health.state = state
    events = concat(got)
    assert (np.diff(events.local_ns) >= 0).all()
    market = events.kind != CONTROL
    latency = (events.local_ns - events.exchange_ns)[market]
    assert latency.min() >= 1_000_000 and latency.max() <= feed.hold_ns
    return feed, events


def controls(events: Events) -> list[int]: return [code for code in events.tick[events.kind == CONTROL].tolist() if code != CLOCK]


def book_is_right_or_says_so(events: Events, recording: Recording) -> int:
    "Walk the rows with plain dictionaries; compare with the venue's book after each message while not stale; answers how often"
    oracle, mine, stale, restarting, compared = Book(recording), {BUY: dict[int, int](), SELL: dict[int, int]()}, True, False, 0
    last_id, changed = 0, False
    for flags, tick, lots, number in zip(*(column.tolist() for column in (events.flags, events.tick, events.lots, events.id))):
        kind, side = flags & 0x0f, flags & (BUY | SELL)
        if kind == CONTROL:
            if tick == STALE: stale, restarting = True, False
            if tick == RESUME: stale, restarting, changed = False, False, True
        elif kind == CLEAR:
            restarting = True
            for name in (BUY, SELL): mine[name].clear()
        elif kind in (DEPTH, SNAPSHOT):
            assert not stale or restarting, 'a depth row on a stale book, outside of a restart'
            mine[side][tick], last_id, changed = lots, number, True
            if not lots: del mine[side][tick]
        if flags & LAST and changed and not stale:
            oracle.until(update_id=last_id)
            assert oracle.last == last_id
            for name, levels in (('b', mine[BUY]), ('a', mine[SELL])):  # what stands in the book is rounded up to whole lots
                theirs = {int(price.replace('.', '')) // 10 ** 6: -(-int(amount.replace('.', '')) // 1000)
                          for price, amount in oracle.sides[name].items()}
                assert levels == theirs
            compared, changed = compared + 1, False
    return compared


def levels(book: OrderBook) -> list[Any]: return book.levels(10_000)[['side', 'tick', 'lots']].values.tolist()


def same_as_from_file(lines: list[Line], folder: Path, speed: float) -> None:
    "Frames arrive as recorded, the rows are those of the file path, and so is the book"
    captured: list[Line] = []
    async def session() -> tuple[BinanceFeed, Events, ReplayServer]:
        async with ReplayServer(lines, speed) as server:
            return *await watch(server, on_line=lambda at, text: captured.append((at, text))), server
    feed, events, server = asyncio.run(session())
    assert feed.health.state == 'live, then closed' and not feed.health.problems
    recorded = [text for _, text, _, _ in server.recording.frames]
    frames = [text for _, text in captured if b'"stream"' in text]
    assert frames == recorded[:len(frames)] and len(frames) > 0.95 * len(recorded)
    assert [text for _, text in captured if b'"stream"' not in text] == [server.recording.snapshot[1]]

    kept = events[(events.kind != CONTROL) | (events.tick != CLOCK)]
    (folder/'session').write_bytes(b''.join(b'%d %s\n' % line for line in captured))
    tape = read_recording(folder/'session', instrument=feed.instrument, streams='diff-only')  # a live feed is diff-only, too
    from_file = tape.events[:len(kept)]  # the last lines may have come without being fetched
    for name in ('flags', 'tick', 'lots', 'id'): assert np.array_equal(getattr(kept, name), getattr(from_file, name)), name
    assert np.array_equal(kept.local_ns - feed.link.clocks['BTCUSDT'].offset_ns, from_file.local_ns)
    timed = (kept.kind == DEPTH) | (kept.kind == TRADE)
    assert (kept.exchange_ns != from_file.exchange_ns)[timed].sum() == feed.health.clamped_rows

    (folder/'recording').write_bytes(b''.join(b'%d %s\n' % line for line in lines))
    original = read_recording(folder/'recording', instrument=feed.instrument, streams='diff-only').events
    assert levels(OrderBook(feed.instrument).apply(original)) == levels(OrderBook(feed.instrument).apply(events))
    assert controls(events) == [RESUME]
    assert book_is_right_or_says_so(events, server.recording) > 0.25 * len(server.recording.diffs)


def test_rows_are_those_of_the_file(tmp_path: Path) -> None: same_as_from_file(MADE, tmp_path, SPEED)


def test_rows_of_the_recording_are_those_of_the_file(data_folder: Path, tmp_path: Path) -> None:
    same_as_from_file(read_lines([data_folder/'binance_spot/btcusdt_20240808.gz'], limit=8_000), tmp_path, SPEED)


REASONS = {'drop': None, 'cut': 'cut', 'garbage': 'not JSON', 'shutdown': None, 'silent': 'silent for'}

@pytest.mark.parametrize('fault', REASONS)
def test_fault(fault: str) -> None: survives(MADE, {250: fault})


def test_many_faults_on_the_recording(data_folder: Path) -> None:
    lines = read_lines([data_folder/'binance_spot/btcusdt_20240808.gz'], limit=8_000)
    survives(lines, {2000: 'drop', 3000: 'cut', 4000: 'garbage', 5000: 'shutdown', 6500: 'drop'})


def survives(lines: list[Line], faults: dict[int, str]) -> None:
    async def session() -> tuple[BinanceFeed, Events, ReplayServer]:
        async with ReplayServer(lines, SPEED, faults=faults) as server: return *await watch(server, silence=silence), server
    silence = 0.4 if 'silent' in faults.values() else 10.0
    feed, events, server = asyncio.run(session())
    health, kinds = feed.health, list(faults.values())
    harmful = len(kinds) - kinds.count('garbage') - kinds.count('shutdown')   # the next connection opens before the old one ends
    assert controls(events) == [RESUME] + [STALE, RESUME] * harmful
    assert health.handovers == kinds.count('shutdown')
    assert (health.resyncs, health.gaps, health.reconnects) == (harmful, kinds.count('drop'), harmful - kinds.count('drop'))
    for kind in kinds: assert REASONS[kind] is None or any(REASONS[kind] in reason for reason in health.problems), health.problems
    assert health.state == 'live, then closed'
    assert book_is_right_or_says_so(events, server.recording) > len(server.recording.diffs) / 6


def test_stale_comes_with_the_very_next_message() -> None:
    async def session() -> None:
        async with ReplayServer(MADE, SPEED, faults={250: 'cut'}) as server:
            feed = feed_of(server)
            async with asyncio.timeout(10), feed:
                async for rows in feed:
                    if STALE in controls(rows):
                        assert server.sent == 250 and feed.health.state == 'stale'
                        return
    asyncio.run(session())


def test_refused_snapshots_are_asked_for_again() -> None:
    async def session() -> tuple[BinanceFeed, Events, ReplayServer]:
        async with ReplayServer(MADE, 10, refusals=[503] * 5 + [429]) as server: return *await watch(server), server
    feed, events, server = asyncio.run(session())
    assert server.depth_requests == 7 and any('no snapshot: HTTP 503' in reason for reason in feed.health.problems)
    assert controls(events) == [RESUME] and book_is_right_or_says_so(events, server.recording) > 10


async def refused(server: ReplayServer, **options: Any) -> str:
    with pytest.raises((FeedError, LookupError)) as caught: await watch(server, **options)
    return str(caught.value)


def test_a_country_that_is_not_served() -> None:
    async def session() -> str:
        async with ReplayServer(MADE, SPEED, blocked=451) as server: return await refused(server)
    told = asyncio.run(session())
    for part in ('/api/v3/exchangeInfo', '/stream?streams=', 'HTTP 451', 'data-api.binance.vision', '--source FILE'): assert part in told


def test_a_snapshot_refused_for_good() -> None:
    async def session() -> str:
        async with ReplayServer(MADE, SPEED, refusals=[451]) as server: return await refused(server)
    assert '/api/v3/depth' in asyncio.run(session())


def test_nobody_listens() -> None:
    async def session() -> str:
        async with ReplayServer(MADE, SPEED) as server: pass
        return await refused(server)
    told = asyncio.run(session())
    assert told.count('no connection: Connection refused') == 2 and '--source embedded' in told


def test_unknown_symbol() -> None:
    async def session() -> None:
        async with ReplayServer(MADE, SPEED) as server:
            with pytest.raises(LookupError, match='did you mean BTCUSDT'):
                async with BinanceFeed('BTC/UDST', server.rest_url, server.websocket_url): pass
    asyncio.run(session())


def test_a_slow_reader_loses_messages_and_is_told() -> None:
    async def session() -> tuple[BinanceFeed, Events, ReplayServer]:
        async with ReplayServer(MADE, SPEED) as server: return *await watch(server, pause=0.5, max_lines=60), server
    feed, events, server = asyncio.run(session())
    assert feed.health.dropped >= 60 and feed.health.problems['the reader was too slow, messages were dropped'] >= 1
    assert controls(events)[:3] == [RESUME, STALE, RESUME]
    book_is_right_or_says_so(events, server.recording)


def test_time_goes_on_when_nothing_is_said() -> None:
    async def session() -> tuple[BinanceFeed, Events]:
        async with ReplayServer(MADE, 5, faults={100: 'silent'}) as server:
            until_ns = server.recording.times[100] + 4_000_000_000
            def long_enough(feed: BinanceFeed, server: ReplayServer) -> bool:
                return feed.health.messages > 99 and server.now_ns() > until_ns
            return await watch(server, until=long_enough, silence=30.0)
    _, events = asyncio.run(session())
    ticks = events.local_ns[(events.kind == CONTROL) & (events.tick == CLOCK)]
    assert len(ticks) >= 5 and np.median(np.diff(ticks)) < 900_000_000 and controls(events) == [RESUME]


def test_a_failing_recorder_ends_the_session() -> None:
    def full(at: int, text: bytes) -> None: raise OSError(28, 'No space left on device')
    async def session() -> None:
        async with ReplayServer(MADE, SPEED) as server:
            with pytest.raises(OSError, match='No space left'): await watch(server, on_line=full)
    asyncio.run(session())


def test_the_server_speaks_like_the_venue() -> None:
    async def session() -> None:
        async with ReplayServer(MADE, SPEED) as server, aiohttp.ClientSession() as client:
            async def asked(path: str) -> Any:
                async with client.get(server.rest_url + path) as answer: return await answer.json()
            assert (await asked('/api/v3/exchangeInfo?symbol=BTCUSDT'))['symbols'][0]['filters'][0]['tickSize'] == '0.01'
            assert float((await asked('/api/v3/ticker/24hr?symbol=BTCUSDT'))['bidPrice']) > 0
            assert (await asked('/api/v3/time'))['serverTime'] == server.recording.diffs[0][1]['E']
            async with client.ws_connect(server.websocket_url + '/ws/btcusdt@trade') as socket:
                first = json.loads((await socket.receive()).data)
                assert first == server.recording.trades[0][1]
            async with client.ws_connect(server.websocket_url + '/ws') as socket:
                await socket.send_json(dict(method='SUBSCRIBE', params=['btcusdt@bookTicker'], id=3))
                assert (await socket.receive()).json() == dict(result=None, id=3)
                assert 'B' in (await socket.receive()).json()
            with pytest.raises(OSError, match=f'port {server.port} of 127.0.0.1 is taken'):
                async with ReplayServer(MADE, port=server.port): pass
            script = [sys.executable, str(Path(__file__).with_name('replay_server.py')), '--port', str(server.port)]
            done = await asyncio.to_thread(subprocess.run, script, capture_output=True, text=True, timeout=30)
            assert done.returncode == 1 and 'is taken' in done.stderr and 'Traceback' not in done.stderr
    asyncio.run(session())


def test_a_connection_that_grows_old_is_replaced_without_a_hole() -> None:
    "Every second of wall time a new connection takes over: nothing is lost, nothing comes twice, the book never goes stale"
    async def session() -> tuple[BinanceFeed, Events, ReplayServer]:
        async with ReplayServer(MADE, 6) as server: return *await watch(server, life=4.0, overlap=3.0), server
    feed, events, server = asyncio.run(session())
    assert feed.health.handovers >= 2 and feed.health.reconnects == 0
    assert controls(events) == [RESUME] and feed.health.gaps == 0
    trades = events.id[events.kind == TRADE]
    assert (np.diff(trades) == 1).all()
    assert book_is_right_or_says_so(events, server.recording) > len(server.recording.diffs) / 2


def test_one_silent_stream_among_living_ones() -> None:
    "The diffs stop, trades and best quotes go on: within seconds the book says so, only its stream is asked for anew, and it heals"
    async def session() -> tuple[BinanceFeed, Events, ReplayServer]:
        async with ReplayServer(MADE, 4) as server:
            server.mute = ('btcusdt@depth@100ms', 100)
            return *await watch(server), server
    _, events, server = asyncio.run(session())
    assert controls(events) == [RESUME, STALE, RESUME] and server.connections == 1 and server.unsubscribed == ['btcusdt@depth@100ms']
    stale_at = int(events.local_ns[(events.kind == CONTROL) & (events.tick == STALE)][0])
    depth = events.local_ns[(events.kind == DEPTH) & (events.local_ns < stale_at)]
    assert stale_at - int(depth[-1]) < 4_000_000_000   # of market time
    assert book_is_right_or_says_so(events, server.recording) > 50
