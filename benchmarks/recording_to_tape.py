"""Raw recording → synced book: ours, orjson with plain dictionaries by hand, and cryptofeed, in one run.

    python benchmarks/recording_to_tape.py [FILE ...] [--rounds 7] [--cryptofeed PYTHON]

CPU time (process_time) of work that starts with the lines in memory; the rounds take turns, the median of each counts.

- ours: lines with their stamps → a whole tape (digits exact, sync rule, grid, clock, times of best quotes), nothing left out;
- plain: the messages, already without stamps → two dictionaries of floats and the best bid and ask; no check, no rows;
- cryptofeed: the messages as text, given to its own handlers with callbacks for book, ticker and trades. It has no handler for the
  stream `trade`, so that is renamed to `aggTrade` first. It runs in this Python if installed, or in another one named by --cryptofeed.

The exit code is 1 when the three do not end at the same best bid and ask or saw different numbers of messages, and 2 when ours is
slower than the promise: not slower than plain, at least twice as fast as cryptofeed."""
from __future__ import annotations

import argparse
import asyncio
import functools
import gzip
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SNAPSHOT_MARK = b'{"lastUpdateId"'


def read(files: list[Path]) -> list[bytes]:
    "All lines of the files in the order of their first stamp"
    texts = sorted((gzip.open(path).read() for path in files), key=lambda text: int(text[:19]))
    return [line for text in texts for line in text.splitlines()]


def without_stamps(lines: list[bytes]) -> list[bytes]: return [line.split(b' ', 1)[1] for line in lines]


def ours(lines: list[bytes]) -> tuple[float, Any]:
    from cryptoexp.market import binance, tape
    started = time.process_time()
    decoder = binance.Decoder()
    messages = decoder.decode_lines(lines)
    made = tape.make_tape(messages, decoder.symbol)
    return time.process_time() - started, made


def ours_found(made: Any) -> dict[str, Any]:
    "What the tape says at its end"
    from cryptoexp.market.book import OrderBook
    book = OrderBook(made.instrument).apply(made.events)
    notes = made.notes
    return dict(bid=float(made.instrument.price(book.best_bid)), ask=float(made.instrument.price(book.best_ask)),
                diffs=notes['diffs'], quotes=notes['best quotes'], trades=notes['trades'], crossed=book.crossed)


def plain(messages: list[bytes]) -> tuple[float, dict[str, Any]]:
    "What one writes by hand in an hour: floats, no checks but the stale diffs"
    import orjson
    loads = orjson.loads
    started = time.process_time()
    bids: dict[float, float] = {}
    asks: dict[float, float] = {}
    waiting: list[dict[str, Any]] = []
    last, best_bid, best_ask, diffs, quotes, trades = -1, 0.0, 0.0, 0, 0, 0

    def apply(event: dict[str, Any]) -> None:
        nonlocal last, best_bid, best_ask, diffs
        if event['u'] <= last: return
        for price_text, amount_text in event['b']:
            price, amount = float(price_text), float(amount_text)
            if amount:
                bids[price] = amount
                if price > best_bid: best_bid = price
            else:
                bids.pop(price, None)
                if price == best_bid: best_bid = max(bids)
        for price_text, amount_text in event['a']:
            price, amount = float(price_text), float(amount_text)
            if amount:
                asks[price] = amount
                if price < best_ask: best_ask = price
            else:
                asks.pop(price, None)
                if price == best_ask: best_ask = min(asks)
        last = event['u']
        diffs += 1

    for text in messages:
        message = loads(text)
        data = message.get('data')
        if data is None:
            last = message['lastUpdateId']
            bids.update((float(price), float(amount)) for price, amount in message['bids'])
            asks.update((float(price), float(amount)) for price, amount in message['asks'])
            best_bid, best_ask = max(bids), min(asks)
            for event in waiting: apply(event)
            continue
        name = data.get('e')
        if name == 'depthUpdate':
            if last < 0: waiting.append(data)
            else: apply(data)
        elif name == 'trade':
            float(data['p']), float(data['q'])
            trades += 1
        else:
            float(data['b']), float(data['B']), float(data['a']), float(data['A'])
            quotes += 1
    return time.process_time() - started, dict(bid=best_bid, ask=best_ask, diffs=diffs, quotes=quotes, trades=trades)


async def cryptofeed(lines: list[bytes], listing: str) -> tuple[float, dict[str, Any]]:
    "One replay through cryptofeed's handlers"
    from cryptofeed.connection import HTTPAsyncConn, HTTPSync
    from cryptofeed.exchanges import EXCHANGE_MAP
    from cryptofeed.symbols import Symbols

    snapshot = next(line for line in without_stamps(lines) if line.startswith(SNAPSHOT_MARK)).decode()
    messages = [(int(line.split(b' ', 1)[0]) / 1e9, text.decode().replace('@trade"', '@aggTrade"').replace('"e":"trade"', '"e":"aggTrade"')
                 .replace('"t":', '"a":') if b'@trade"' in text[:40] else text.decode())
                for line, text in zip(lines, without_stamps(lines)) if not text.startswith(SNAPSHOT_MARK)]
    Symbols.clear()
    subscription = {channel: ['BTC-USDT'] for channel in ('l2_book', 'ticker', 'trades')}

    class Connection:
        conn_type, uuid = 'wss', '1'
        async def write(self, *arguments: Any, **named: Any) -> None: pass
        async def read(self, url: str, **named: Any) -> str: return snapshot

    connection: Any = Connection()
    counts: dict[str, int] = {}

    async def seen(*arguments: Any, channel: str) -> None: counts[channel] = counts.get(channel, 0) + 1

    HTTPAsyncConn.read, HTTPSync.read = connection.read, lambda *arguments, **named: json.loads(listing)
    callbacks = {channel: functools.partial(seen, channel=channel) for channel in subscription}
    feed = EXCHANGE_MAP['BINANCE'](candle_closed_only=False, config='', subscription=subscription, callbacks=callbacks)
    connection.subscription = {feed.std_channel_to_exchange(channel): [feed.std_symbol_to_exchange_symbol(one) for one in symbols]
                               for channel, symbols in subscription.items()}
    subscribe, handler = next((subscribe, handler) for _, subscribe, handler, _ in feed.connect())
    await subscribe(connection)
    started = time.process_time()
    for stamp, text in messages: await handler(text, connection, stamp)
    seconds = time.process_time() - started
    book = feed._l2_book['BTC-USDT'].book
    found = dict(bid=float(book.bids.index(0)[0]), ask=float(book.asks.index(0)[0]), quotes=counts['ticker'], trades=counts['trades'],
                 messages=len(messages))
    feed.stop()
    await feed.shutdown()
    return seconds, found


def listing_text() -> str:
    from cryptoexp.config import data_folder
    with gzip.open(Path(data_folder() or '')/'exchanges/BINANCE.0.gz', 'rt') as lines:
        return next(line for line in lines if line.startswith('http')).split(': ', 1)[1]


class Cryptofeed:
    "Rounds of cryptofeed, here or in another Python; `reason` says why there are none"
    def __init__(self, python: str | None, files: list[Path], lines: list[bytes]):
        self.python, self.files, self.lines, self.reason, self.listing = python, files, lines, '', ''
        if not python and not importlib.util.find_spec('cryptofeed'):
            self.reason = 'not installed here (name a Python that has it: --cryptofeed)'
        else:
            try: self.listing = listing_text()
            except OSError as error: self.reason = f'needs the listing exchanges/BINANCE.0.gz of the recordings: {error}'

    def __call__(self) -> tuple[float, dict[str, Any]]:
        if not self.python: return asyncio.run(cryptofeed(self.lines, self.listing))
        command = [self.python, __file__, '--worker', *map(str, self.files)]
        done = subprocess.run(command, input=self.listing, capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f'cryptofeed failed in {self.python}:\n{done.stderr[-2000:]}')
        seconds, found = json.loads(done.stdout.splitlines()[-1])
        return seconds, found


def disagreements(found: dict[str, dict[str, Any]], messages: int) -> list[str]:
    "What the ways do not agree about"
    lines = []
    for name in ('bid', 'ask', 'diffs', 'quotes', 'trades'):
        values = {way: one[name] for way, one in found.items() if name in one}
        if len(set(values.values())) > 1: lines.append(f'{name}: {values}')
    if found['ours']['crossed']: lines.append(f'our book is crossed after {found["ours"]["crossed"]} messages')
    if 'cryptofeed' in found and found['cryptofeed']['messages'] != messages:
        lines.append(f'cryptofeed was given {found["cryptofeed"]["messages"]} messages, not {messages}')
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('files', nargs='*', type=Path, metavar='FILE',
                        help='raw recordings (default: the two spot files of the data folder)')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--cryptofeed', metavar='PYTHON', help='a Python in which cryptofeed is installed')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(asyncio.run(cryptofeed(read(options.files), sys.stdin.read()))))
        return 0
    from cryptoexp.config import data_folder, why_no_data
    files = options.files
    if not files:
        folder = data_folder()
        if folder is None:
            print(f'skipped: {why_no_data()}')
            return 0
        files = [folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')]
    lines = read(files)
    messages = without_stamps(lines)
    count = sum(not text.startswith(SNAPSHOT_MARK) for text in messages)
    theirs = Cryptofeed(options.cryptofeed, files, lines)
    ways: dict[str, Any] = dict(ours=lambda: ours(lines), plain=lambda: plain(messages))
    if not theirs.reason: ways['cryptofeed'] = theirs
    print(f'{len(lines):,} lines: {count:,} messages and {len(lines) - count} snapshot; CPU time, median of {options.rounds} rounds')
    ours(lines)  # compiled functions are compiled, or read from their cache, outside the measurement
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for way, run in ways.items():
            spent, result = run()
            seconds[way].append(spent)
            found[way] = ours_found(result) if way == 'ours' else result
    speed = {way: count / statistics.median(spent) for way, spent in seconds.items()}
    for way, rate in speed.items():
        print(f'{way:12} {statistics.median(seconds[way]):8.3f} s {rate:12,.0f} messages/s   ours: {speed["ours"] / rate:4.2f} × as fast  '
              + ', '.join(f'{name} {value:,}' for name, value in found[way].items()))
    if theirs.reason: print(f'cryptofeed   skipped: {theirs.reason}')
    if wrong := disagreements(found, count):
        print('DISAGREEMENT:', *wrong, sep='\n  ', file=sys.stderr)
        return 1
    if speed['ours'] < speed['plain'] or speed['ours'] < 2 * speed.get('cryptofeed', 0):
        print('slower than promised', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__': sys.exit(main())
