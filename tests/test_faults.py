"Every venue under seeded plans of faults: the book of the rows is the venue's at every point at which it is called whole"
from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_venues import PAIRS, MadeMarket, MadeServer, Talk, listing
from replay_server import ReplayServer, made_lines

from cryptoexp.market.events import BUY, CLEAR, CONTROL, DEPTH, KIND_MASK, LAST, RESUME, SNAPSHOT, STALE, TRADE, Events, concat
from cryptoexp.market.feed import Health
from cryptoexp.market.live import NEXT_CONNECTION, VENUES, FeedError, LiveFeed, feed, raw_rows

FAULTS = ('drop', 'repeat', 'swap', 'garbage', 'cut short', 'wrong digit', 'cut', 'next connection', 'silence', 'stale snapshot')
UNSHOWN = {   # faults that nothing in a venue's messages could show, or that it does not know
    'binance_usdm': {'wrong digit'}, 'coinbase': {'wrong digit', 'stale snapshot'}, 'bybit': {'wrong digit', 'stale snapshot'},
    'coinbase_exchange': {'wrong digit', 'drop', 'swap', 'stale snapshot'}, 'kraken': {'stale snapshot'}, 'okx': {'stale snapshot'}}
SCHEDULES = 200


class Reader:
    "The book of a row stream, in plain dictionaries"
    def __init__(self) -> None:
        self.sides: dict[int, dict[int, int]] = {BUY: {}, 0: {}}
        self.whole, self.trades = False, list[int]()

    def read(self, events: Events) -> None:
        for flags, tick, lots, number in zip(*(column.tolist() for column in (events.flags, events.tick, events.lots, events.id))):
            kind, side = flags & KIND_MASK, flags & BUY
            if kind == CONTROL: self.whole = True if tick == RESUME else False if tick == STALE else self.whole
            elif kind == CLEAR:
                for one in self.sides.values(): one.clear()
            elif kind in (DEPTH, SNAPSHOT):
                self.sides[side][tick] = lots
                if not lots: del self.sides[side][tick]
            elif kind == TRADE: self.trades.append(number)


def instruments_of(venue: str) -> dict[str, Any]: return VENUES[venue].instruments(listing(venue))


def spoil(text: bytes, draw: random.Random) -> bytes:
    "Another digit somewhere in the levels"
    places = [place for place in range(len(text)//3, len(text)) if text[place:place + 1].isdigit()]
    place = draw.choice(places)
    return text[:place] + str((int(text[place:place + 1]) + draw.randint(1, 9)) % 10).encode() + text[place + 1:]


def plan_of(venue: str, seed: int) -> list[tuple[int, str]]:
    draw = random.Random(f'{venue} {seed}')
    allowed = [fault for fault in FAULTS if fault not in UNSHOWN[venue]]
    return sorted((draw.randint(40, 260), draw.choice(allowed)) for _ in range(draw.randint(1, 5)))


def run_plan(venue: str, seed: int) -> Counter[str]:
    "Drive a stream by hand through a plan; AssertionError where a book that is called whole is not the venue's"
    draw, market, seen = random.Random(seed), MadeMarket(venue, seed=seed), Counter[str]()
    stream = VENUES[venue].stream(instruments_of(venue))
    readers, plan = {symbol: Reader() for symbol in PAIRS[venue]}, plan_of(venue, seed)
    talk, stamp, old_pictures = market.connect(), 1_700_000_000_000_000_000, 0

    def push(*lines: bytes | None) -> None:
        nonlocal stamp
        stamped = []
        for text in lines:
            stamp += 1_000_000
            stamped.append((stamp, text))
        for symbol, parts in raw_rows(stream, stamped).items():
            rows = concat(parts)
            assert (np.diff(rows.local_ns) >= 0).all()
            readers[symbol].read(rows)

    def answer(talk: Talk) -> None:
        nonlocal old_pictures
        for asked in stream.requests():
            seen['requests'] += 1
            push(*talk.receive(asked))
        for symbol in stream.wanted():   # over REST
            whole, old = talk.picture(symbol), market.earlier[symbol]
            push(stream.snapshot_line(symbol, old if old_pictures else whole))
            old_pictures = max(0, old_pictures - 1)

    def greet(talk: Talk) -> list[bytes]:
        talk.open(stream.path())
        return [text for asked in stream.subscriptions() for text in talk.receive(asked)]

    def compare() -> None:
        for symbol, reader in readers.items():
            assert reader.whole == stream.whole(symbol), (venue, seed, symbol)
            if not reader.whole or symbol in lost: continue
            book, deep = market.books[symbol], CHECKED.get(venue)
            theirs = [top(book.bids, True, deep), top(book.asks, False, deep)]
            assert [top(reader.sides[side], side == BUY, deep) for side in (BUY, 0)] == theirs, (
                f"{venue}, seed {seed}, {symbol}: a book that is called whole is not the venue's\n  plan: {plan_of(venue, seed)}\n"
                f'  replay: pytest tests/test_faults.py -k "schedules and {venue}" --seed {seed}')
            seen['compared'] += 1

    push(*greet(talk))
    lost: set[str] = set()   # symbols of which a message was lost: it can show with their next one
    compare()
    silent_until = -1
    for step in range(300):
        due = [fault for at, fault in plan if at == step]
        frames: list[tuple[str, bytes]] = talk.step()
        for fault in due:
            seen[fault] += 1
            if fault in ('cut', 'stale snapshot'):
                old_pictures = 2*(fault == 'stale snapshot')
                push(None)
                assert not any(reader.whole for reader in readers.values())
                talk, lost = market.connect(), set()
                frames = [('', text) for text in greet(talk)]
            elif fault == 'next connection':
                talk, lost = market.connect(), set()
                frames = [*frames, ('', NEXT_CONNECTION), *(('', text) for text in greet(talk))]
            elif fault == 'silence': market.silent, silent_until = {PAIRS[venue][0]}, step + 20
            elif frames and frames[-1][1]:
                if fault == 'drop': lost, frames = lost | {symbol for symbol, _ in frames}, []
                elif fault == 'repeat': frames = frames + frames
                elif fault == 'swap': frames = [*talk.step(), *frames]
                elif fault == 'garbage': frames.insert(0, ('', b'<html>502 Bad Gateway</html>'))
                elif fault == 'cut short': frames[-1] = (frames[-1][0], frames[-1][1][:draw.randint(1, len(frames[-1][1]) - 1)])
                elif fault == 'wrong digit': frames[-1] = (frames[-1][0], spoil(frames[-1][1], draw))
                if fault not in ('drop', 'garbage'): lost |= {symbol for symbol, _ in frames}
        push(*(text for _, text in frames))
        if silent_until == step:   # the live feed has noticed: the book is doubted, and asked for anew
            market.silent, symbol = set(), PAIRS[venue][0]
            stamp += 1
            readers[symbol].read(stream.doubt(symbol, stamp))
            assert not stream.whole(symbol)
        answer(talk)
        if not due: lost -= {symbol for symbol, text in frames if is_book(text)}
        if not due and not market.silent: compare()
    market.silent = set()
    for _ in range(60):
        frames = talk.step()
        push(*(text for _, text in frames))
        lost -= {symbol for symbol, text in frames if is_book(text)}
        answer(talk)
    compare()
    assert not lost and all(reader.whole for reader in readers.values()), (venue, seed, 'no way back to a whole book')
    for reader in readers.values(): assert reader.trades == sorted(set(reader.trades)) or venue == 'bybit', 'a trade came twice'
    return seen


CHECKED = {'kraken': 10, 'okx': 25}   # levels a side that the venue's checksum covers: what was lost below them can't be noticed

def top(side: dict[int, int], bids: bool, count: int | None) -> list[tuple[int, int]]: return sorted(side.items(), reverse=bids)[:count]
BOOKS = (b'l2_data', b'"channel":"book', b'orderbook', b'l2update', b'@depth')   # what messages about books begin with

def is_book(text: bytes) -> bool: return any(word in text[:80] for word in BOOKS)


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    one = request.config.getoption('--seed')
    return range(one, one + 1) if one is not None else range(-(-SCHEDULES//len(PAIRS)))


@pytest.mark.parametrize('venue', PAIRS)
def test_schedules(venue: str, seeds: range, record_property: Callable[[str, object], None]) -> None:
    "Seeded plans of faults; a failing seed prints its plan and the line that replays it"
    total = Counter[str]()
    for seed in seeds: total += run_plan(venue, seed)
    told = ', '.join(f'{total[name]} {name}' for name in FAULTS if total[name])
    record_property('plans of faults', f'{venue:17} {len(seeds):3} plans: {total["compared"]:,} books compared, 0 differ; faults: {told}')
    assert total['compared'] > 100*len(seeds)


# ---- over the wire

async def hurried(seconds: float) -> None: await asyncio.sleep(seconds/10)


async def watch(server: MadeServer, until: Callable[[LiveFeed, Events], bool], **options: Any) -> tuple[Health, Events]:
    got, venue = list[Events](), server.market.venue
    market = LiveFeed(venue, PAIRS[venue][0], server.rest_url, server.websocket_url, warm_up_ns=200_000_000, sleep=hurried,
                      generator=random.Random(7), **options)
    async with asyncio.timeout(60), market:
        async for rows in market:
            got.append(rows)
            if until(market, rows): break
    return market.health, concat(got)


def controls(events: Events) -> list[int]: return [code for code in events.tick[events.kind == CONTROL].tolist() if code in (STALE, RESUME)]


@pytest.mark.parametrize('venue', PAIRS)
def test_over_the_wire(venue: str) -> None:
    "The code that would talk to the venue: listing, subscription, book, a cut, a new book"
    async def session() -> tuple[Health, Events, int]:
        async with MadeServer(venue) as server:
            cut = list[int]()
            def until(market: LiveFeed, rows: Events) -> bool:
                if market.health.rows > 300 and not cut:
                    cut.append(1)
                    for socket in list(server.sockets): socket._req.transport.abort()   # type: ignore[union-attr]
                return market.health.resyncs == 1 and market.health.rows > 600
            health, events = await watch(server, until)
            return health, events, server.opened
    health, events, opened = asyncio.run(session())
    assert controls(events) == [RESUME, STALE, RESUME] and opened == 2 and health.reconnects == 1
    assert (events.kind == TRADE).sum() > 10 and ((events.flags & LAST) != 0).sum() > 100


@pytest.mark.parametrize('venue', PAIRS)
def test_the_next_connection(venue: str) -> None:
    "Connections that grow old every second: the book never goes stale"
    async def session() -> tuple[Health, Events]:
        async with MadeServer(venue) as server:
            def until(market: LiveFeed, rows: Events) -> bool: return market.health.handovers >= 2 and market.health.rows > 300
            return await watch(server, until, life=6.0, overlap=4.0)
    health, events = asyncio.run(session())
    assert STALE not in controls(events) and health.reconnects == 0
    reader = Reader()
    reader.read(events)
    assert reader.whole and (reader.trades == sorted(set(reader.trades)) or venue == 'bybit')


BY_REST = {'binance_usdm': 2}   # where the diffs fall silent and nothing else does, best quotes tell after so many seconds


@pytest.mark.parametrize('venue', PAIRS)
def test_a_book_that_stands_still_while_its_market_trades(venue: str) -> None:
    """Updates of one book stop, its trades go on: within seconds of market time the book says so, is asked for anew over the same
    connection, and heals; the other book never notices"""
    one, other = PAIRS[venue]
    async def session() -> tuple[dict[tuple[str, str], Health], dict[str, list[Events]], int, int]:
        async with MadeServer(venue) as server:
            got, stopped = dict[str, list[Events]](), False
            urls = {f'{venue}_rest': server.rest_url, f'{venue}_websocket': server.websocket_url}
            async with asyncio.timeout(60), feed({venue: [one, other]}, urls, warm_up_ns=200_000_000, sleep=hurried) as markets:
                async for batch in markets:
                    got.setdefault(batch.instrument.symbol, []).append(batch.events)
                    if not stopped and all(markets.health[venue, symbol].rows > 200 for symbol in (one, other)):
                        stopped, server.market.silent = True, {one}
                    if markets.health[venue, one].resyncs: break
            return markets.health, got, server.opened, len(server.market.silent)
    health, got, opened, silent = asyncio.run(session())
    assert controls(concat(got[one])) == [RESUME, STALE, RESUME] and STALE not in controls(concat(got[other]))
    assert opened == 1 and not silent and any('fell silent while its market went on' in reason for reason in health[venue, one].problems)
    events = concat(got[one])
    stale_at = int(events.local_ns[(events.kind == CONTROL) & (events.tick == STALE)][0])
    before = events[events.local_ns < stale_at]
    quiet = (stale_at - int(before.local_ns[before.kind == DEPTH][-1]))/1e9
    assert quiet > BY_REST.get(venue, 5) - 0.5 and (before.kind == TRADE).any()


BY_WIRE = [venue for venue in PAIRS if venue != 'binance_usdm']   # Binance's diffs can't be asked for a whole book

@pytest.mark.parametrize('venue', BY_WIRE)
def test_a_quiet_book_is_asked_for_anew(venue: str) -> None:
    "Nothing happens on one market for half a minute of market time: a whole book comes, and the book was never called stale"
    one, other = PAIRS[venue]
    async def session() -> tuple[list[Events], list[bytes]]:
        async with MadeServer(venue) as server:
            server.market.asleep, got = {other}, list[Events]()
            urls = {f'{venue}_rest': server.rest_url, f'{venue}_websocket': server.websocket_url}
            markets = feed({venue: [one, other]}, urls, speed=40.0, warm_up_ns=200_000_000, sleep=hurried)
            async with asyncio.timeout(60), markets:
                async for batch in markets:
                    if batch.instrument.symbol == other: got.append(batch.events)
                    if sum(int((events.kind == CLEAR).sum()) for events in got) >= 2: break
            return got, server.heard
    got, heard = asyncio.run(session())
    events = concat(got)
    assert STALE not in controls(events) and (events.kind == SNAPSHOT).sum() >= 100
    again = [text for text in heard if b'nsubscribe' in text and other.encode() in text]
    assert again and not any(one.encode() in text for text in again)


@pytest.mark.parametrize('venue', PAIRS)
def test_a_connection_on_which_nothing_is_said(venue: str) -> None:
    "The server stands still: the connection counts as dead, another one is made, and the book is whole again"
    async def session() -> tuple[Health, Events, int]:
        async with MadeServer(venue) as server:
            stopped = list[int]()
            def until(market: LiveFeed, rows: Events) -> bool:
                if market.health.rows > 300 and not stopped:
                    stopped.append(1)
                    for talk in server.sockets.values(): talk.dumb = True
                return market.health.resyncs >= 1 and market.health.rows > 400
            health, events = await watch(server, until, silence=2.0)
            return health, events, server.opened
    health, events, opened = asyncio.run(session())
    assert controls(events)[:3] == [RESUME, STALE, RESUME] and opened >= 2 and health.reconnects >= 1
    assert any('silent for' in reason for reason in health.problems), health.problems


PINGED = ['kraken', 'okx', 'bybit']   # venues that answer a ping with a message


@pytest.mark.parametrize('venue', PINGED)
def test_a_quiet_connection_is_not_taken_for_dead(venue: str) -> None:
    "On no market anything happens for four times the silence allowed: the venue answers our pings, and nobody reconnects"
    async def session() -> tuple[Health, Events, int, int]:
        async with MadeServer(venue) as server:
            asleep_at = 0.0
            def until(market: LiveFeed, rows: Events) -> bool:
                nonlocal asleep_at
                now = asyncio.get_running_loop().time()
                if market.health.rows > 200 and not asleep_at: server.market.asleep, asleep_at = set(PAIRS[venue]), now
                return bool(asleep_at) and now - asleep_at > 6.0
            health, events = await watch(server, until, silence=1.5)
            return health, events, server.opened, sum(b'ping' in text for text in server.heard)
    health, events, opened, pings = asyncio.run(session())
    assert opened == 1 and STALE not in controls(events) and health.reconnects == 0 and pings >= 4


@pytest.mark.parametrize('venue', PINGED)
def test_a_venue_that_answers_pings_and_tells_nothing(venue: str) -> None:
    "It lives, and its market does not come: the quiet book is asked for, no answer comes, the book is stale and the connection made anew"
    async def session() -> tuple[Health, Events, int]:
        async with MadeServer(venue) as server:
            deaf = list[int]()
            def until(market: LiveFeed, rows: Events) -> bool:
                if market.health.rows > 400 and not deaf:
                    deaf.append(1)
                    for talk in server.sockets.values(): talk.deaf = True
                return market.health.resyncs >= 1
            health, events = await watch(server, until, silence=3.0, speed=20.0)
            return health, events, server.opened
    health, events, opened = asyncio.run(session())
    assert controls(events)[:3] == [RESUME, STALE, RESUME] and opened == 2
    assert any('was asked for and did not come' in reason for reason in health.problems), health.problems


@pytest.mark.parametrize('venue', ['kraken', 'okx'])
def test_a_checksum_that_never_fits_is_not_a_storm(venue: str) -> None:
    "Every snapshot is refused: the venue is asked again ever more slowly, the other book stays whole, and no order is ever possible"
    one, other = PAIRS[venue]
    async def session() -> tuple[list[str], list[Events], list[float]]:
        async with MadeServer(venue) as server:
            urls, rows = {f'{venue}_rest': server.rest_url, f'{venue}_websocket': server.websocket_url}, list[Events]()
            times, heard, begin, now = list[float](), 0, 0.0, asyncio.get_running_loop().time
            async with asyncio.timeout(60), feed({venue: [one, other]}, urls, warm_up_ns=200_000_000) as markets:
                async for batch in markets:
                    if batch.instrument.symbol == other: rows.append(batch.events)
                    if not begin and all(health.rows > 200 for health in markets.health.values()):
                        begin, heard, server.market.wrong_sums = now(), len(server.heard), {one}
                    if begin:
                        times += [round(now() - begin, 2) for text in server.heard[heard:] if b'unsubscribe' in text]
                        heard = len(server.heard)
                    if begin and now() - begin > 6.0: break
                states = [markets.health[venue, symbol].state for symbol in (one, other)]
            return states, rows, times
    states, rows, times = asyncio.run(session())
    assert states == ['stale', 'live'] and STALE not in controls(concat(rows))
    assert 3 <= len(times) <= 7, times   # waits of up to 0.5, 1, 2, 4 s; without them it would be two a second


@pytest.mark.parametrize('venue', ['coinbase', 'binance_usdm'])
def test_a_finer_grid_is_told(venue: str) -> None:
    "The venue quotes between our ticks: no checksum would notice, so the health says it, with what to do"
    async def session() -> Health:
        async with MadeServer(venue) as server:
            one, = (instruments_of(venue)[PAIRS[venue][0]],)
            market = LiveFeed(venue, PAIRS[venue][0], server.rest_url, server.websocket_url, warm_up_ns=200_000_000, sleep=hurried,
                              instrument=replace(one, tick_size=one.tick_size*10))
            async with asyncio.timeout(60), market:
                async for _ in market:
                    if market.health.rows > 300: return replace(market.health)
            raise AssertionError('the feed has ended')
    problems = asyncio.run(session()).problems
    assert any('off the grid of 0.1' in reason and 'opened anew' in reason and count > 20 for reason, count in problems.items()), problems


async def opened(server: MadeServer) -> str:
    venue = server.market.venue
    async with asyncio.timeout(60), LiveFeed(venue, PAIRS[venue][0], server.rest_url, server.websocket_url, sleep=hurried): return 'open'


REFUSED = {418: 'banned for a while', 429: 'ask too often', 451: 'does not serve this location'}

@pytest.mark.parametrize('status', REFUSED)
@pytest.mark.parametrize('venue', PAIRS)
def test_a_venue_that_refuses(venue: str, status: int) -> None:
    "Banned, too often, or not served: said with the address, the reason and what to do; a question that came too often is asked again"
    async def session(**refusing: Any) -> MadeServer:
        async with MadeServer(venue, **refusing) as server: assert await opened(server) == 'open'
        return server
    for refusing in (dict(refusals=[status]*50), dict(closed=status)):
        with pytest.raises(FeedError) as caught: asyncio.run(session(**refusing))
        told = str(caught.value)
        for part in (f'HTTP {status}', REFUSED[status], f'{venue} can not be reached', '127.0.0.1', '--source embedded'):
            assert part in told, told
        assert ('name another' in told or 'name another one' in told) == (status != 429), told
    if status == 429: assert len(asyncio.run(session(refusals=[429, 429], retry_after='1')).asked) >= 3
    else:
        with pytest.raises(FeedError): asyncio.run(session(refusals=[status]))   # asked once, and not again


def test_an_answer_that_is_no_listing() -> None:
    "Another service at this address, or a venue that has changed: said, with what came"
    async def session(venue: str) -> None:
        async with MadeServer('okx' if venue != 'okx' else 'bybit') as server:
            async with LiveFeed(venue, PAIRS[venue][0], server.rest_url, server.websocket_url, sleep=hurried): pass
    for venue in PAIRS:
        with pytest.raises(ValueError, match=r'no listing|has no usable grid'): asyncio.run(session(venue))


def test_two_venues_three_markets() -> None:
    "One loop; the book of one is lost and made whole, the others never notice"
    async def session() -> tuple[dict[tuple[str, str], Health], dict[str, list[Events]]]:
        async with MadeServer('kraken') as one, ReplayServer(made_lines(60), 8) as other:
            urls = {'kraken_rest': one.rest_url, 'kraken_websocket': one.websocket_url, 'binance_rest': other.rest_url,
                    'binance_websocket': other.websocket_url}
            got: dict[str, list[Events]] = {}
            hurt = False
            wanted = {'kraken': ['BTC/USD', 'ETH/USD'], 'binance': ['BTC/USDT']}
            markets = feed(wanted, urls, speed=8.0, warm_up_ns=500_000_000, sleep=hurried)
            async with asyncio.timeout(60), markets:
                async for batch in markets:
                    got.setdefault(f'{batch.venue} {batch.instrument.symbol}', []).append(batch.events)
                    if not hurt and len(got) == 3 and sum(map(len, got['kraken BTC/USD'])) > 200:
                        hurt, bids = True, one.market.books['BTC/USD'].bids
                        bids[max(bids)] += 1   # what nobody is told: the next checksum is another
                    if markets.health['kraken', 'BTC/USD'].resyncs and sum(map(len, got.get('binance BTCUSDT', []))) > 200: break
            return markets.health, got
    health, got = asyncio.run(session())
    assert set(got) == {'kraken BTC/USD', 'kraken ETH/USD', 'binance BTCUSDT'}
    for name in ('kraken ETH/USD', 'binance BTCUSDT'): assert STALE not in controls(concat(got[name])), name
    assert STALE in controls(concat(got['kraken BTC/USD'])) and health['kraken', 'BTC/USD'].gaps >= 1


def test_a_slow_loop_is_told_and_memory_does_not_grow() -> None:
    async def session() -> tuple[Health, Events]:
        async with MadeServer('kraken', pace=4000) as server:
            urls, got = {'kraken_rest': server.rest_url, 'kraken_websocket': server.websocket_url}, list[Events]()
            markets = feed({'kraken': ['BTC/USD']}, urls, waiting=2, max_lines=50, warm_up_ns=100_000_000)
            async with asyncio.timeout(60), markets:
                async for batch in markets:
                    got.append(batch.events)
                    health = markets.health['kraken', 'BTC/USD']
                    assert len(markets.links[0].wire.lines) <= 52 and markets.queue.qsize() <= 2
                    if not health.dropped: await asyncio.sleep(0.3)
                    if health.dropped and health.resyncs: break
            return health, concat(got)
    health, events = asyncio.run(session())
    assert health.dropped > 30 and STALE in controls(events) and any('too slow' in reason for reason in health.problems)


def test_an_unknown_pair_and_an_unknown_venue() -> None:
    async def opened(venue: str, pair: str) -> None:
        async with MadeServer('kraken') as server, LiveFeed(venue, pair, server.rest_url, server.websocket_url): pass
    with pytest.raises(LookupError, match='BTC/USD'): asyncio.run(opened('kraken', 'BTC/USX'))
    with pytest.raises(LookupError, match='no venue'): asyncio.run(opened('krakken', 'BTC/USD'))
    with pytest.raises(LookupError, match='no venue'): feed({'krakken': ['BTC/USD']})
    with pytest.raises(ValueError, match='at least one pair'): feed({})
