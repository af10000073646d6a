"""How fast messages become events and a book, beside cryptofeed and ccxt.pro: same recordings, one process, in turns, CPU time.

    python benchmarks/feeds.py [WORKLOAD ...] [--rounds 5]     (needs the recordings; cryptofeed and ccxt: pip install cryptoexp[bench])

Theirs: the messages through their own handlers, parsing included, with callbacks that count. Ours: bytes to rows and a book of totals, in
pushes of 1024 messages; and, for a live connection, one message a push. Checksums are on. Before a
ratio is printed all must end with the same book. Kraken's recording is of v1: cryptofeed is given that, we the same TRANSCODED to v2.
cryptofeed takes Coinbase's word `offer` for no side when it reads a snapshot, so there the bids are compared and the asks are not."""
from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import gzip
import importlib.util
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from cryptoexp.config import data_folder, why_no_data
from cryptoexp.market import binance, coinbase, kraken, okx, wire
from cryptoexp.market.book import OrderBook
from cryptoexp.market.instrument import Instrument

Book = tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]
Line = tuple[int, bytes]
Result = tuple[float, dict[str, Book], dict[str, int]]  # CPU seconds, books, counts
MARKS = {'binance': 3, 'binance depth': 3, 'advanced': 3, 'kraken': 5, 'okx': 5}  # times cryptofeed
FOLDER = data_folder() or Path()


@dataclass
class Work:
    "One recording: what comes before the clock runs, and what is timed"
    exchange: str                          # cryptofeed's name
    instruments: dict[str, Instrument]
    names: dict[str, str]                  # symbol → as cryptofeed spells it
    before: list[Line]
    lines: list[Line]
    levels: int
    listings: list[Any] = field(default_factory=list)
    theirs_before: list[str] | None = None  # where they are given other texts
    theirs: list[str] | None = None
    snapshot: str | None = None            # what cryptofeed fetches
    bids_only: bool = False


# ---- recordings

def packed(name: str) -> list[dict[str, Any]]:
    with zstandard.open(FOLDER/f'exchanges/{name}.jsonl.zst', 'rt') as lines: return [json.loads(line) for line in lines]


def stamped(name: str) -> list[Line]:
    with gzip.open(FOLDER/'exchanges'/name, 'rt') as lines:
        pairs = [line.rstrip('\n').split(': ', 1) for line in lines if line[0].isdigit()]
    return [(int(float(stamp) * 1e9), text.encode()) for stamp, text in pairs]


def listings(name: str) -> list[Any]:
    with gzip.open(FOLDER/f'exchanges/{name}.0.gz', 'rt') as lines:
        return [json.loads(one.split(': ', 1)[1]) for one in lines if one[:4] == 'http']


def binance_work(depth_only: bool = False) -> Work:
    lines = list[Line]()
    for day in ('20240808', '20240809'):
        with gzip.open(FOLDER/f'binance_spot/btcusdt_{day}.gz') as file: lines += [(int(line[:19]), line[20:].rstrip()) for line in file]
    number = next(number for number, (_, text) in enumerate(lines) if text.startswith(b'{"lastUpdateId"'))
    timed = [(stamp, text) for stamp, text in lines[number + 1:] if not depth_only or b'"depthUpdate"' in text]
    def renamed(text: bytes) -> str:  # cryptofeed knows no @trade
        if b'@trade"' not in text[:40]: return text.decode()
        return text.decode().replace('@trade"', '@aggTrade"').replace('"e":"trade"', '"e":"aggTrade"').replace('"t":', '"a":')
    listing = listings('BINANCE')
    waiting = [(stamp, text) for stamp, text in lines[:number] if b'"depthUpdate"' in text]
    levels = sum(text.count(b'["') for _, text in timed)
    return Work('BINANCE', {'BTCUSDT': binance.instruments(listing[0])['BTCUSDT']}, {'BTCUSDT': 'BTC-USDT'}, [*waiting, lines[number]],
                timed, levels, listing, [renamed(text) for _, text in waiting], [renamed(text) for _, text in timed],
                lines[number][1].decode())


def advanced_work() -> Work:
    recorded = packed('COINBASE')
    frames = [(int(one['ts'] * 1e9), one['data']) for one in recorded if one['t'] == 'recv' and '"l2_data"' in one['data'][:30]]
    snapshots = [text for _, text in frames if '"snapshot"' in text[:200]]
    updates = [(stamp, text) for stamp, text in frames if '"snapshot"' not in text[:200]]
    texts = []
    for number, text in enumerate([*snapshots, *(text for _, text in updates)]):  # numbered anew, since the other channels are left out
        head, _, rest = text.partition('"sequence_num":')
        texts.append((f'{head}"sequence_num":{number},' + rest.partition(',')[2]).encode())
    names = ('BTC-USD', 'ETH-USD')
    grid = {name: Instrument('coinbase', name, name[:3], 'USD', Decimal('0.01'), Decimal('0.00000001')) for name in names}
    levels = sum(text.count('"side"') for _, text in updates)
    return Work('COINBASE', grid, dict(zip(names, names)), [(1, text) for text in texts[:2]],
                [(stamp, text) for (stamp, _), text in zip(updates, texts[2:])], levels,
                [json.loads(one['data']) for one in recorded if one['t'] == 'http'], bids_only=True)


def kraken_work(times: int = 5) -> Work:
    recorded = [(stamp, text) for stamp, text in stamped('KRAKEN.ws.50.0.gz') if text[:1] == b'[']
    lines, levels = list[Line](), 0
    for stamp, text in recorded:
        message = json.loads(text)
        parts = {key: value for part in message[1:-2] for key, value in part.items()}
        sides = {name: parts.get(short, parts.get(f'{short}s', [])) for name, short in (('bids', 'b'), ('asks', 'a'))}
        levels += sum(map(len, sides.values()))
        told = ','.join(f'"{name}":[' + ','.join(f'{{"price":{level[0]},"qty":{level[1]}}}' for level in side) + ']'
                        for name, side in sides.items())
        checksum = f'"checksum":{parts["c"]},' if 'c' in parts else ''
        kind = 'snapshot' if 'as' in parts else 'update'
        lines.append((stamp, (f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{message[-1]}",{told},'
                              f'{checksum}"timestamp":"2021-04-17T16:48:53.000001Z"}}]}}').encode()))
    listing = listings('KRAKEN')
    known, names = kraken.instruments(listing[0]), sorted({json.loads(text)[-1] for _, text in recorded})
    return Work('KRAKEN', {name: known[kraken.symbol_of(name)] for name in names},
                {name: kraken.symbol_of(name).replace('/', '-') for name in names}, [], lines * times, levels * times, listing,
                theirs=[text.decode() for _, text in recorded] * times)


def okx_work(times: int = 20) -> Work:
    lines = [(stamp, text) for stamp, text in stamped('OKX.ws.1.0.gz') if b'"channel":"books"' in text and b'"data"' in text]
    parts = listings('OKX')
    known = {name: one for part in parts for name, one in okx.instruments(part).items()}
    names = {'BTC-USDT': 'BTC-USDT', 'BTC-USD-220527': 'BTC-USD-22K27', 'UNI-USD-SWAP': 'UNI-USD-PERP'}
    levels = sum(text.count(b'["') for _, text in lines) * times
    return Work('OKX', {name: known[name] for name in names}, names, [], lines * times, levels, parts)


WORK: dict[str, Callable[[], Work]] = {
    'binance': binance_work, 'binance depth': lambda: binance_work(True), 'advanced': advanced_work, 'kraken': kraken_work, 'okx': okx_work}
STREAMS: dict[str, Callable[[dict[str, Instrument]], wire.BookStream]] = {
    'COINBASE': coinbase.AdvancedTradeStream, 'KRAKEN': functools.partial(kraken.KrakenStream, depth=1000), 'OKX': okx.OkxStream}


# ---- ours

class Binance:
    "The Binance room's decoder and synchroniser, and a book that its rows drive, in the shape of a stream"
    def __init__(self, instruments: dict[str, Instrument]):
        (symbol, instrument), = instruments.items()
        self.decoder, self.sync = binance.Decoder(symbol), binance.DepthSync(instrument)
        self.held = OrderBook(instrument, capacity=10_000_000)

    def push(self, lines: Sequence[Line]) -> None: self.held.apply(self.sync.push(self.decoder.decode(lines)))

    def book(self, symbol: str) -> list[np.ndarray]:
        table = self.held.levels(1 << 20)
        return [table.loc[table.side == side, ['tick', 'lots']].to_numpy() for side in ('bid', 'ask')]


def ours(work: Work, size: int = 1024) -> Result:
    "(CPU seconds, books, counts)"
    stream: Any = Binance(work.instruments) if work.exchange == 'BINANCE' else STREAMS[work.exchange](work.instruments)
    stream.push(work.before)
    gc.collect()
    started = time.process_time()
    for place in range(0, len(work.lines), size): stream.push(work.lines[place:place + size])
    seconds = time.process_time() - started
    counts = dict(stream.sync.counts) if work.exchange == 'BINANCE' else {
        key: sum(one[key] for one in stream.counts.values()) for key in ('checksums', 'gaps', 'crossed', 'levels off the grid')}
    return seconds, {name: tuple({one.price(tick): one.amount(lots) for tick, lots in side.tolist()} for side in stream.book(name))
                     for name, one in work.instruments.items()}, counts  # type: ignore[misc]


# ---- theirs

async def cryptofeed(work: Work) -> Result:
    from cryptofeed.connection import HTTPAsyncConn, HTTPSync
    from cryptofeed.exchanges import EXCHANGE_MAP
    from cryptofeed.symbols import Symbols
    logging.getLogger('feedhandler').setLevel(logging.CRITICAL)
    Symbols.clear()
    answers = list(work.listings)
    subscription = {channel: list(work.names.values()) for channel in (
        ('l2_book', 'ticker', 'trades') if work.exchange == 'BINANCE' else ('l2_book',))}

    class Connection:
        conn_type, uuid = 'wss', '1'
        async def write(self, *arguments: Any, **named: Any) -> None: pass
        async def read(self, url: str, **named: Any) -> str | None: return work.snapshot

    connection: Any = Connection()
    counts: dict[str, int] = {}
    async def seen(*arguments: Any, channel: str) -> None: counts[channel] = counts.get(channel, 0) + 1
    HTTPAsyncConn.read, HTTPSync.read = connection.read, lambda *arguments, **named: answers.pop(0)
    feed = EXCHANGE_MAP[work.exchange](checksum_validation=work.exchange in ('KRAKEN', 'OKX'), candle_closed_only=False, config='',
        subscription=subscription, callbacks={channel: functools.partial(seen, channel=channel) for channel in subscription})
    connection.subscription = {feed.std_channel_to_exchange(channel): [feed.std_symbol_to_exchange_symbol(one) for one in symbols]
                               for channel, symbols in subscription.items()}
    subscribe, handler = next((subscribe, handler) for _, subscribe, handler, _ in feed.connect())
    if work.exchange == 'COINBASE': feed._l2_book = {}  # its subscribe wants a key
    else: await subscribe(connection)
    given = [text.decode() for _, text in work.before]
    for text in given if work.theirs_before is None else work.theirs_before: await handler(text, connection, 1.0)
    texts = work.theirs or [text.decode() for _, text in work.lines]
    gc.collect()
    started = time.process_time()
    for text in texts: await handler(text, connection, 1.0)
    seconds = time.process_time() - started
    found = {symbol: feed._l2_book[name].book.to_dict() for symbol, name in work.names.items()}
    feed.stop()
    await feed.shutdown()
    return seconds, {symbol: (dict(book['bid']), dict(book['ask'])) for symbol, book in found.items()}, counts


async def ccxt_pro(work: Work) -> Result:
    import ccxt.pro
    exchange = getattr(ccxt.pro, work.exchange.lower())({'options': {'defaultType': 'spot'}})
    if work.exchange == 'BINANCE':
        exchange.options |= dict(crossMarginPairsData=[], isolatedMarginPairsData=[])
        listing = next(one for one in work.listings[0]['symbols'] if one['symbol'] == 'BTCUSDT')
        exchange.set_markets([exchange.parse_market(listing)])
        client, snapshot = exchange.client(exchange.urls['api']['ws']['spot'] + '/0'), json.loads(work.snapshot or '')
        books = {'BTCUSDT': exchange.order_book({}, 1 << 20)}
        exchange.orderbooks['BTC/USDT'] = books['BTCUSDT']
        books['BTCUSDT'].reset(exchange.parse_order_book(snapshot, 'BTC/USDT'))
        books['BTCUSDT']['nonce'] = snapshot['lastUpdateId']
    else:
        exchange.set_markets([dict(
            exchange.safe_market_structure(), id=name, symbol=name.replace('-', '/'), base=name[:3], quote=name[4:], spot=True, type='spot',
            precision=dict(price=0.01, amount=1e-8)) for name in work.names])
        client, books = exchange.client(exchange.urls['api']['ws']), {}
        for name in work.names: exchange.orderbooks[name.replace('-', '/')] = books[name] = exchange.order_book({}, 1 << 20)
    client.subscriptions = {}
    last = books['BTCUSDT']['nonce'] if work.exchange == 'BINANCE' else 0
    for message in (orjson.loads(text) for _, text in work.before):
        if not last or message.get('data', {}).get('u', 0) > last: exchange.handle_message(client, message)
    texts = [text for _, text in work.lines]
    gc.collect()
    started = time.process_time()
    for text in texts: exchange.handle_message(client, orjson.loads(text))
    seconds = time.process_time() - started
    for name in work.names: books[name] = exchange.orderbooks.get(name.replace('-', '/'), books[name])
    found = {name: tuple({Decimal(str(price)): Decimal(str(amount)) for price, amount in book[side]} for side in ('bids', 'asks'))
             for name, book in books.items()}
    await exchange.close()
    return seconds, found, {}  # type: ignore[return-value]


# ---- the comparison

def differences(work: Work, mine: dict[str, Book], other: dict[str, Book], digits: bool) -> list[str]:
    "How the best 25 levels of each side differ; ccxt's are floats"
    wrong = []
    for name in work.instruments:
        for side in range(1 if work.bids_only and digits else 2):
            both = [sorted(books[name][side].items(), reverse=not side)[:25] for books in (mine, other)]
            rounded = [[tuple(map(float, level)) for level in one] for one in both]
            same = both[0] == both[1] if digits else rounded[0] == rounded[1]
            if not same or not both[0]: wrong.append(f'{name} {("bids", "asks")[side]}: ours {both[0][:2]}, theirs {both[1][:2]}')
    return wrong


def compare(name: str, rounds: int, present: set[str]) -> bool:
    "Time one workload and print what came of it; whether the mark was reached"
    work = WORK[name]()
    ways: dict[str, Callable[[], Result]] = dict(ours=lambda: ours(work), single=lambda: ours(work, 1))
    if 'cryptofeed' in present: ways['cryptofeed'] = lambda: asyncio.run(cryptofeed(work))
    if 'ccxt' in present and work.exchange in ('BINANCE', 'COINBASE'): ways['ccxt'] = lambda: asyncio.run(ccxt_pro(work))
    ours(work)  # what is compiled is compiled, or read from its cache, outside the measurement
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Any] = {}
    for number in range(rounds):
        for way, run in ways.items():
            if number and way == 'single': continue
            spent, *found[way] = run()
            seconds[way].append(spent)
    told = ('checksums', 'gaps', 'crossed', 'diffs', 'trades')
    counts = ', '.join(f'{value:,} {key}' for key, value in found['ours'][1].items() if key in told)
    size = sum(len(text) for _, text in work.lines) / 1e6
    print(f'{name}: {len(work.lines):,} messages, {work.levels:,} levels, {size:.1f} MB; ours: {counts}')
    good, middle = True, {way: statistics.median(one) for way, one in seconds.items()}
    for way in ways:
        wrong = differences(work, found['ours'][0], found[way][0], way != 'ccxt') if way != 'ours' else []
        if wrong: print(f'  {way}: ANOTHER BOOK, no ratio:', *wrong[:4], sep='\n    ')
        ratio = '' if wrong or way in ('ours', 'single') else (
            f'   ours: {middle[way] / middle["ours"]:.1f} × as fast, one by one {middle[way] / middle["single"]:.2f} ×')
        print(f'  {way:10} {len(work.lines) / middle[way]:12,.0f} messages/s {work.levels / middle[way]:12,.0f} levels/s{ratio}')
        good &= not wrong and (way != 'cryptofeed' or middle[way] / middle['ours'] >= MARKS[name])
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('work', nargs='*', metavar='WORKLOAD', help=f'of {", ".join(WORK)}; default: all')
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    if unknown := set(options.work) - WORK.keys(): parser.error(f'unknown: {", ".join(sorted(unknown))}; there are {", ".join(WORK)}')
    if data_folder() is None:
        print(f'skipped: {why_no_data()}')
        return 0
    present = {name for name in ('cryptofeed', 'ccxt') if importlib.util.find_spec(name)}
    for name in {'cryptofeed', 'ccxt'} - present: print(f'{name} is not installed here: it is left out')
    print(f'CPU time, median of {options.rounds} rounds in turns')
    reached = {name: compare(name, options.rounds, present) for name in options.work or WORK}
    if not all(reached.values()): print('below the mark:', ', '.join(name for name, good in reached.items() if not good), file=sys.stderr)
    return 0 if all(reached.values()) else 2


if __name__ == '__main__': sys.exit(main())
