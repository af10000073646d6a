"""A stand-in for Binance spot on this machine: it serves a raw recording, frames byte for byte, at real or accelerated pace.

    python tests/replay_server.py FILE ... [--port 8080] [--speed 10]

A recording is lines `<local receive ns> <JSON>`, plain or gzip, with one REST snapshot among them. Without a file, a small made-up
market is served. What is not in a recording is made from it, and says so: the listing (its grid is that of the recorded numbers),
the ticker (its volume is that of the recording so far), and every snapshot after the first (the server's own book, kept by the
recorded diffs)."""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import math
import random
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from aiohttp import WSCloseCode, web

HOST = '127.0.0.1'
QUOTES = ('USDT', 'USDC', 'FDUSD', 'BTC', 'ETH', 'EUR')
Line = tuple[int, bytes]


def read_lines(paths: Iterable[str | Path], limit: int | None = None) -> list[Line]:
    "Stamped messages of recordings, in order"
    lines: list[Line] = []
    for path in paths:
        with (gzip.open(path, 'rb') if str(path).endswith('.gz') else open(path, 'rb')) as file:
            for line in file:
                stamp, _, text = line.rstrip(b'\n').partition(b' ')
                lines.append((int(stamp), text))
                if limit and len(lines) >= limit: return lines
    return lines


def made_lines(seconds: float = 20.0, seed: int = 7, symbol: str = 'BTCUSDT') -> list[Line]:
    "MADE UP, not recorded: a small random market in Binance's message format, by a clock that runs 1.27 s behind the venue's"
    draw, lines, start_ms = random.Random(seed), list[Line](), 1_700_000_000_000
    sides: dict[str, dict[int, int]] = {'b': {100_000 - k: 5 + k for k in range(40)}, 'a': {100_001 + k: 5 + k for k in range(40)}}
    last, number, kept = 5_000, 900, None

    def text(levels: Iterable[tuple[int, int]]) -> list[list[str]]:
        return [[f'{tick / 100:.8f}', f'{lots / 100_000:.8f}'] for tick, lots in levels]
    def picture() -> bytes:
        return dumps(dict(lastUpdateId=last, bids=text(sorted(sides['b'].items(), reverse=True)), asks=text(sorted(sides['a'].items()))))
    def dumps(message: dict[str, Any]) -> bytes: return json.dumps(message, separators=(',', ':')).encode()
    def say(at_ms: float, stream: str, data: dict[str, Any]) -> None:
        stamp = max(int((at_ms - 1270 + 1 + draw.expovariate(1)) * 1_000_000), lines[-1][0] + 1 if lines else 0)
        lines.append((stamp, dumps(dict(stream=f'{symbol.lower()}@{stream}', data=data))))

    for step in range(int(seconds * 10)):
        now, changes = start_ms + 100 * step, dict[tuple[str, int], int]()
        drift = draw.choice((-1, 0, 0, 0, 1))
        bid, ask = max(sides['b']) + drift, min(sides['a']) + drift
        for side, better in (('b', lambda tick, best=bid: tick > best), ('a', lambda tick, best=ask: tick < best)):
            for tick in [tick for tick in sides[side] if better(tick)]: changes[side, tick] = 0
        changes['b', bid], changes['a', ask] = draw.randint(1, 90), draw.randint(1, 90)
        for _ in range(draw.randint(0, 6)): changes['b', bid - draw.randint(1, 40)] = draw.choice((0, draw.randint(1, 90)))
        for _ in range(draw.randint(0, 6)): changes['a', ask + draw.randint(1, 40)] = draw.choice((0, draw.randint(1, 90)))
        first, last = last + 1, last + len(changes)
        for (side, tick), lots in changes.items():
            if lots: sides[side][tick] = lots
            else: sides[side].pop(tick, None)
        say(now, 'depth@100ms', dict(e='depthUpdate', E=now, s=symbol, U=first, u=last, **{
            side: text((tick, lots) for (where, tick), lots in changes.items() if where == side) for side in 'ba'}))
        quote = text([(max(sides['b']), sides['b'][max(sides['b'])]), (min(sides['a']), sides['a'][min(sides['a'])])])
        say(now + 1, 'bookTicker', dict(u=last, s=symbol, b=quote[0][0], B=quote[0][1], a=quote[1][0], A=quote[1][1]))
        if draw.random() < .6:
            number, buys = number + 1, draw.random() < .5
            price = quote[1 if buys else 0][0]
            say(now + 40, 'trade', dict(e='trade', E=now + 40, s=symbol, t=number, p=price, q=f'{draw.randint(1, 20) / 100_000:.8f}',
                                        T=now + 40, m=not buys))
        if step == 1: kept = picture()
        if step == 3 and kept: lines.append((lines[-1][0] + 1000, kept))
    return lines


class Recording:
    "The lines of a recording, taken apart as the server needs them"
    def __init__(self, lines: Sequence[Line]):
        self.frames: list[tuple[int, bytes, str, dict[str, Any]]] = []  # time, as recorded, stream, data
        self.snapshot: tuple[int, bytes] | None = None
        for stamp, text in lines:
            message = orjson.loads(text)
            if 'stream' in message: self.frames.append((stamp, text, message['stream'], message['data']))
            elif self.snapshot is None and 'lastUpdateId' in message: self.snapshot = stamp, text
        if not self.frames or self.snapshot is None:
            raise ValueError('a recording with frames of a combined stream and a REST snapshot is needed')
        self.times = [frame[0] for frame in self.frames]
        self.symbol = self.frames[0][3]['s']
        self.trades = [(at, data) for at, _, _, data in self.frames if data.get('e') == 'trade']
        self.quotes = [(at, data) for at, _, _, data in self.frames if 'B' in data]
        self.diffs = [(at, data) for at, _, _, data in self.frames if data.get('e') == 'depthUpdate']

    def listing(self) -> dict[str, Any]:
        "A listing with the grid of the recorded numbers"
        def step(numbers: Iterable[str]) -> str:
            return str(Decimal(math.gcd(*(int(Decimal(number) * 10 ** 8) for number in numbers))).scaleb(-8).normalize())
        levels = [[data['p'], data['q']] for _, data in self.trades]
        levels += [[data[name], data[name.upper()]] for _, data in self.quotes for name in 'ba']
        levels = levels or [level for _, data in self.diffs for level in data['b'] + data['a']]  # orders older than the grid may be finer
        tick, lot = (step(level[place] for level in levels) for place in (0, 1))
        quote = next((one for one in QUOTES if self.symbol.endswith(one)), self.symbol[-3:])
        return dict(symbol=self.symbol, status='TRADING', baseAsset=self.symbol.removesuffix(quote), quoteAsset=quote,
                    note='made from the recorded numbers by the replay server', filters=[
            dict(filterType='PRICE_FILTER', minPrice='0', maxPrice='0', tickSize=tick),
            dict(filterType='LOT_SIZE', minQty=lot, maxQty='9000.00000000', stepSize=lot),
            dict(filterType='NOTIONAL', minNotional='5.00000000')])


class Book:
    "The venue's book: the recorded snapshot and the recorded diffs in plain dictionaries of text"
    def __init__(self, recording: Recording):
        assert recording.snapshot is not None
        self.diffs, self.place = recording.diffs, 0
        picture = orjson.loads(recording.snapshot[1])
        self.last, self.sides = picture['lastUpdateId'], {'b': dict(picture['bids']), 'a': dict(picture['asks'])}

    def until(self, time_ns: int | None = None, update_id: int | None = None) -> Book:
        "Apply the diffs up to a time, or up to a final update id"
        while self.place < len(self.diffs):
            at, data = self.diffs[self.place]
            if (time_ns is not None and at > time_ns) or (update_id is not None and data['u'] > update_id): break
            self.place += 1
            if data['u'] <= self.last: continue
            if data['U'] > self.last + 1: raise ValueError(f'the recording itself has a gap before update {data["U"]}')
            for name, side in self.sides.items():
                for price, amount in data[name]:
                    if float(amount): side[price] = amount
                    else: side.pop(price, None)
            self.last = data['u']
        return self

    def picture(self, limit: int) -> bytes:
        "The book as the depth endpoint tells it"
        bids, asks = (sorted(self.sides[name].items(), key=lambda level: float(level[0]), reverse=name == 'b')[:limit] for name in 'ba')
        return json.dumps(dict(lastUpdateId=self.last, bids=[list(one) for one in bids], asks=[list(one) for one in asks]),
                          separators=(',', ':')).encode()


class ReplayServer:
    """`async with ReplayServer(lines, speed=20) as server`: then `server.rest_url` and `server.websocket_url` are those of a venue.

    Faults, for tests: `faults` maps a count of frames sent so far to 'cut', 'drop' (the next diff), 'silent', 'shutdown' or 'garbage'
    (a little later where two connections are open just then);
    `refusals` are statuses that answer the next depth requests; `blocked` is a status that answers everything."""
    def __init__(self, lines: Sequence[Line], speed: float = 1.0, port: int = 0, faults: dict[int, str] | None = None,
                 refusals: Sequence[int] = (), blocked: int | None = None):
        if not speed > 0: raise ValueError(f'speed must be positive, not {speed}')
        self.recording, self.speed, self.port = Recording(lines), speed, port
        self.faults, self.refusals, self.blocked = dict(faults or {}), list(refusals), blocked
        self.sent, self.connections, self.depth_requests, self.dropping = 0, 0, 0, False
        self.mute: tuple[str, int] | None = None   # a stream that falls silent after so many frames, until it is subscribed to anew
        self.unsubscribed = list[str]()
        self.grace = 1.0   # s of wall time between the announcement of a shutdown and the end of the connection
        self.first_update: int | None = None  # U of the first diff sent on the latest connection
        self.book, self.listing = Book(self.recording), self.recording.listing()
        self.started: float | None = None
        self.sockets: set[web.WebSocketResponse] = set()
        self.ended = asyncio.Event()

    async def __aenter__(self) -> ReplayServer:
        application = web.Application(middlewares=[self.guard])
        application.add_routes([
            web.get('/api/v3/depth', self.depth), web.get('/api/v3/exchangeInfo', self.exchange_info), web.get('/api/v3/time', self.time),
            web.get('/api/v3/ticker/24hr', self.ticker), web.get('/stream', self.stream), web.get('/ws/{name}', self.stream),
            web.get('/ws', self.stream)])
        self.runner = web.AppRunner(application, shutdown_timeout=0.2, access_log=None)
        await self.runner.setup()
        try: await web.TCPSite(self.runner, HOST, self.port).start()
        except OSError as error:
            await self.runner.cleanup()
            reason = f'port {self.port} of {HOST} is taken or not allowed ({error.strerror}): name another one, or 0 for any free one'
            raise OSError(error.errno, reason) from None
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for socket in list(self.sockets): await socket.close(code=WSCloseCode.GOING_AWAY)
        await self.runner.cleanup()

    @property
    def rest_url(self) -> str: return f'http://{HOST}:{self.port}'
    @property
    def websocket_url(self) -> str: return f'ws://{HOST}:{self.port}'

    def now_ns(self) -> int:
        "Time of the recorded market; it stands still until somebody listens"
        begin = self.recording.times[0]
        return begin if self.started is None else begin + int((asyncio.get_running_loop().time() - self.started) * self.speed * 1e9)

    async def wait_until(self, time_ns: int) -> None:
        left = (time_ns - self.now_ns()) / 1e9 / self.speed
        if left > 0.0005: await asyncio.sleep(left)

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.blocked: return web.json_response(dict(code=0, msg='Service unavailable from a restricted location'), status=self.blocked)
        return await handler(request)

    async def depth(self, request: web.Request) -> web.Response:
        self.depth_requests += 1
        if self.refusals: return web.json_response(dict(code=-1000, msg='refused by the replay server'), status=self.refusals.pop(0))
        assert self.recording.snapshot is not None
        at, recorded = self.recording.snapshot
        if self.started is not None: await self.wait_until(at)
        known = orjson.loads(recorded)['lastUpdateId']
        if self.depth_requests == 1 and (self.first_update is None or self.first_update <= known + 1): body = recorded
        else: body = self.book.until(time_ns=self.now_ns()).picture(int(request.query.get('limit', '100')))
        return web.Response(body=body, content_type='application/json')

    async def exchange_info(self, request: web.Request) -> web.Response:
        if request.query.get('symbol', self.recording.symbol) != self.recording.symbol:
            return web.json_response(dict(code=-1121, msg='Invalid symbol.'), status=400)
        return web.json_response(dict(timezone='UTC', symbols=[self.listing]))

    async def time(self, request: web.Request) -> web.Response:
        diffs = self.recording.diffs
        return web.json_response(dict(serverTime=diffs[max(0, bisect_right(diffs, self.now_ns(), key=lambda one: one[0]) - 1)][1]['E']))

    async def ticker(self, request: web.Request) -> web.Response:
        now = self.now_ns()
        def latest(rows: list[tuple[int, dict[str, Any]]]) -> int: return bisect_right(rows, now, key=lambda one: one[0])
        quotes, trades = self.recording.quotes, self.recording.trades
        if not quotes or not trades: return web.json_response(dict(code=-1, msg='a recording without best quotes or trades'), status=503)
        quote, count = quotes[max(0, latest(quotes) - 1)][1], latest(trades)
        trade, volume = trades[max(0, count - 1)][1], sum(Decimal(one['q']) for _, one in trades[:count])
        return web.json_response(dict(
            symbol=self.recording.symbol, bidPrice=quote['b'], bidQty=quote['B'], askPrice=quote['a'], askQty=quote['A'],
            lastPrice=trade['p'], volume=f'{volume:f}', closeTime=trade['T'], note='volume of the recording so far'))

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        names = request.query.get('streams', request.match_info.get('name', '')).split('/')
        wanted = set(names) - {''}
        raw = request.path.startswith('/ws')
        self.connections, self.first_update = self.connections + 1, None
        self.sockets.add(socket)
        sending = asyncio.ensure_future(self.send(socket, request, wanted, raw))
        try:
            async for message in socket:
                asked = json.loads(message.data)
                if asked.get('method') == 'UNSUBSCRIBE': self.unsubscribed += asked['params']
                if asked.get('method') == 'SUBSCRIBE':
                    if self.mute and self.mute[0] in asked['params']: self.mute = None
                    wanted |= set(asked['params'])
                    await socket.send_json(dict(result=None, id=asked['id']))
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError): await sending
            self.sockets.discard(socket)
        return socket

    def due(self) -> str | None:
        "The fault whose turn has come; while two connections carry the stream it waits, since the other one would make it harmless"
        turn = min(self.faults, default=self.sent + 1)
        return self.faults.pop(turn) if turn <= self.sent and len(self.sockets) == 1 else None

    async def send(self, socket: web.WebSocketResponse, request: web.Request, wanted: set[str], raw: bool) -> None:
        "Frames in their time, from the present on; somebody who comes back has missed what was sent meanwhile"
        recording, begin, leaving = self.recording, 0, 0.0
        if self.started is None: self.started = asyncio.get_running_loop().time()
        else: begin = bisect_right(recording.times, self.now_ns())
        for at, text, stream, data in recording.frames[begin:]:
            await self.wait_until(at)
            if stream not in wanted: continue
            if self.mute and stream == self.mute[0] and self.sent >= self.mute[1]: continue
            fault = self.due()
            if fault == 'cut' and request.transport is not None: return request.transport.abort()
            if fault == 'silent': return
            if fault == 'drop': self.dropping = True
            if fault == 'garbage': await socket.send_str('<html>502 Bad Gateway</html>')
            if fault == 'shutdown':
                await socket.send_str('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":0}}')
                leaving = asyncio.get_running_loop().time() + self.grace
            if leaving and asyncio.get_running_loop().time() > leaving:
                await socket.close(code=WSCloseCode.GOING_AWAY)
                return
            self.sent += 1
            if data.get('e') == 'depthUpdate':
                if self.dropping:
                    self.dropping = False
                    continue
                if self.first_update is None: self.first_update = data['U']
            await socket.send_str((text[text.index(b'"data":') + 7:-1] if raw else text).decode())
        self.ended.set()


async def serve(arguments: argparse.Namespace) -> None:
    lines = read_lines(arguments.files) if arguments.files else made_lines(600.0)
    async with ReplayServer(lines, arguments.speed, arguments.port) as server:
        recording = server.recording
        seconds = (recording.times[-1] - recording.times[0]) / 1e9
        print(f'{recording.symbol}: {len(recording.frames):,} frames, {seconds:,.0f} s of market in {seconds / server.speed:,.0f} s'
              + ('' if arguments.files else ' (MADE UP, no file was named)'))
        print('The market starts when somebody listens. For the configuration:\n')
        print(f'[venue_urls]\nbinance_rest = "{server.rest_url}"\nbinance_websocket = "{server.websocket_url}"\n')
        print(f'and --source binance --speed {server.speed:g}; Ctrl-C ends the server', flush=True)
        await server.ended.wait()
        print('the recording is over; the stream stays open and silent', flush=True)
        await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('files', nargs='*', help='recordings that continue each other; none: a made-up market')
    parser.add_argument('--port', type=int, default=8080, help='0: any free one (default %(default)s)')
    parser.add_argument('--speed', type=float, default=1.0, help='market time against wall time (default %(default)s)')
    try: asyncio.run(serve(parser.parse_args()))
    except KeyboardInterrupt: return 0
    except (OSError, ValueError) as error:
        print(f'replay server: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__': sys.exit(main())
