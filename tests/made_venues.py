"""MADE UP markets in the formats of the venues, for tests: a plain-dictionary book a symbol, told as Binance USD-M, Coinbase (Advanced
Trade and Exchange), Kraken v2, OKX or Bybit v5 would tell it, with snapshots on subscription or over REST, sequence numbers and
checksums; and a server on this machine that speaks so. (Binance spot has a server of its own, replay_server.py.)

    market = MadeMarket('kraken', ['BTC/USD', 'ETH/USD'], seed=7)
    talk = market.connect()                    # one connection
    replies = talk.receive(b'{"method": …}')   # what the venue answers to a subscription
    frames = talk.step()                       # what it sends next
"""
from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import WSCloseCode, web

HOST, START_MS = '127.0.0.1', 1_700_000_000_000
PAIRS = {'binance_usdm': ['BTCUSDT', 'ETHUSDT'], 'coinbase': ['BTC-USD', 'ETH-USD'], 'coinbase_exchange': ['BTC-USD', 'ETH-USD'],
         'kraken': ['BTC/USD', 'ETH/USD'], 'okx': ['BTC-USDT', 'ETH-USDT'], 'bybit': ['BTCUSDT', 'ETHUSDT']}


@dataclass
class MadeBook:
    "One symbol: ticks of 0.01, lots of 0.0001"
    bids: dict[int, int] = field(default_factory=lambda: {10_000 - k: 5_000 + k for k in range(30)})
    asks: dict[int, int] = field(default_factory=lambda: {10_001 + k: 5_000 + k for k in range(30)})
    number: int = 100   # of the last update
    before: int = 100   # of the one before it
    trades: int = 500   # number of the last trade

    def side(self, bids: bool) -> dict[int, int]: return self.bids if bids else self.asks
    def sorted(self, bids: bool) -> list[tuple[int, int]]: return sorted(self.side(bids).items(), reverse=bids)

    def change(self, draw: random.Random) -> list[tuple[bool, int, int]]:
        "A few levels get another total; the book stays two-sided and uncrossed, between 20 and 40 levels a side"
        changes = []
        for _ in range(draw.randint(1, 4)):
            bids = draw.random() < 0.5
            mine, other = self.side(bids), self.side(not bids)
            best, edge = (max(mine), min(other)) if bids else (min(mine), max(other))
            step = -1 if bids else 1
            tick = best + step * draw.randint(-2, 25)
            if (tick >= edge) if bids else (tick <= edge): continue
            lots = 0 if tick in mine and len(mine) > 20 and draw.random() < 0.5 else draw.randint(1, 90_000)
            if not lots: del mine[tick]
            elif tick in mine or len(mine) < 40: mine[tick] = lots
            else: continue
            changes.append((bids, tick, lots))
        return changes


def price(tick: int) -> str: return f'{tick // 100}.{tick % 100:02d}'
def amount(lots: int) -> str: return f'{lots // 10_000}.{lots % 10_000:04d}'


class MadeMarket:
    def __init__(self, venue: str, symbols: list[str] | None = None, seed: int = 7):
        self.venue, self.symbols, self.draw, self.now_ms = venue, symbols or PAIRS[venue], random.Random(seed), START_MS
        self.books = {symbol: MadeBook() for symbol in self.symbols}
        self.connections: list[Talk] = []
        self.silent: set[str] = set()   # symbols whose book updates are not sent, though the market goes on; until they are asked for anew
        self.asleep: set[str] = set()   # symbols on whose market nothing happens
        self.wrong_sums: set[str] = set()   # symbols whose checksums fit nothing
        self.earlier: dict[str, bytes] = {}   # whole books as REST told them before

    def connect(self) -> Talk:
        self.connections.append(Talk(self))
        return self.connections[-1]

    def advance(self) -> list[tuple[str, list[tuple[bool, int, int]], tuple[int, int, bool] | None]]:
        "The market goes on: (symbol, changes of its book, a trade: tick, lots, whether the taker bought)"
        self.now_ms += self.draw.randint(5, 60)
        awake = [one for one in self.symbols if one not in self.asleep]
        if not awake: return []
        symbol = self.draw.choice(awake)
        book, trade = self.books[symbol], None
        if self.draw.random() < 0.2:
            bought = self.draw.random() < 0.5
            book.trades += 1
            trade = (min(book.asks) if bought else max(book.bids), self.draw.randint(1, 900), bought)
        changes = book.change(self.draw)
        if changes: book.before, book.number = book.number, book.number + (self.draw.randint(1, 4) if self.venue == 'binance_usdm' else 1)
        return [(symbol, changes, trade)]


class Talk:
    "One connection to a made-up venue"
    def __init__(self, market: MadeMarket):
        self.market, self.books, self.trades, self.sequence = market, set[str](), set[str](), -1
        self.quotes = set[str]()   # symbols of which best quotes are told
        self.dumb = False          # nothing is said any more
        self.deaf = False          # pings are answered, and nothing else

    def open(self, path: str) -> None:
        "The path of the connection, in which Binance is told what to send"
        if self.market.venue == 'binance_usdm': self.subscribe(path.partition('streams=')[2].split('/'), True)

    def subscribe(self, streams: list[str], on: bool) -> None:
        "Binance's streams: btcusdt@depth@100ms"
        for stream in streams:
            name, _, kind = stream.partition('@')
            told = {'depth@100ms': self.books, 'trade': self.trades, 'bookTicker': self.quotes}[kind]
            if on: told.add(name.upper())
            else: told.discard(name.upper())
            if on and kind == 'depth@100ms': self.market.silent.discard(name.upper())

    # ---- what the client says

    def receive(self, text: bytes) -> list[bytes]:
        if self.dumb: return []
        asked = json.loads(text) if text != b'ping' else {}
        kind = asked.get('type') or asked.get('method') or asked.get('op') or 'ping'
        if self.deaf and kind != 'ping': return []
        if kind == 'ping': return [b'pong'] if self.market.venue == 'okx' else [self.dump(dict(op='pong', method='pong', success=True))]
        if self.market.venue == 'binance_usdm':
            self.subscribe(asked['params'], kind == 'SUBSCRIBE')
            return [self.dump(dict(result=None, id=asked['id']))]
        symbols, is_book, is_trade = self.asked_for(asked)
        if kind == 'unsubscribe':
            if is_book: self.books -= set(symbols)
            return [self.acknowledged(asked)]
        replies = [self.acknowledged(asked)]
        if is_trade: self.trades |= set(symbols)
        if is_book:
            self.books |= set(symbols)
            self.market.silent -= set(symbols)
            replies += [self.picture(symbol) for symbol in symbols]
            if is_trade and self.market.venue == 'coinbase_exchange':
                replies += [self.traded(symbol, min(self.market.books[symbol].asks), 1, True, 'last_match') for symbol in symbols]
        return replies

    def asked_for(self, asked: dict[str, Any]) -> tuple[list[str], bool, bool]:
        venue = self.market.venue
        if venue == 'coinbase_exchange': return asked['product_ids'], 'level2_batch' in asked['channels'], 'matches' in asked['channels']
        if venue == 'coinbase': return asked['product_ids'], asked['channel'] == 'level2', asked['channel'] == 'market_trades'
        if venue == 'kraken': return asked['params']['symbol'], asked['params']['channel'] == 'book', asked['params']['channel'] == 'trade'
        if venue == 'okx':
            names = {one['channel'] for one in asked['args']}
            return list(dict.fromkeys(one['instId'] for one in asked['args'])), 'books' in names, 'trades' in names
        books = [one.rsplit('.', 1)[1] for one in asked['args'] if one.startswith('orderbook')]
        trades = [one.rsplit('.', 1)[1] for one in asked['args'] if one.startswith('publicTrade')]
        if books and trades: self.trades |= set(trades)
        return books or trades, bool(books), not books

    def acknowledged(self, asked: dict[str, Any]) -> bytes:
        venue = self.market.venue
        if venue == 'coinbase_exchange': return self.dump(dict(type='subscriptions', channels=[dict(name='level2_batch', product_ids=[])]))
        if venue == 'coinbase': return self.framed('subscriptions', [dict(subscriptions={})])
        if venue == 'kraken':
            result = asked['params'] | {'symbol': asked['params']['symbol'][0]}
            return self.dump(dict(method=asked['method'], result=result, success=True, time_in=self.iso(), time_out=self.iso()))
        if venue == 'okx': return self.dump(dict(event=asked['op'], arg=asked['args'][0], connId='1'))
        return self.dump(dict(success=True, ret_msg='', conn_id='1', op=asked['op']))

    # ---- what the venue says

    def step(self) -> list[tuple[str, bytes]]:
        "(symbol, frame) of what this connection is subscribed to; the market has gone on"
        frames = []
        for symbol, changes, trade in self.market.advance(): frames += self.tell(symbol, changes, trade)
        return frames

    def tell(self, symbol: str, changes: list[tuple[bool, int, int]], trade: tuple[int, int, bool] | None) -> list[tuple[str, bytes]]:
        frames = list[tuple[str, bytes]]()
        if self.dumb or self.deaf: return frames
        if trade and symbol in self.trades: frames.append((symbol, self.traded(symbol, *trade)))
        if changes and symbol in self.books and symbol not in self.market.silent: frames.append((symbol, self.update(symbol, changes)))
        if changes and symbol in self.quotes: frames.append((symbol, self.best_quote(symbol)))
        if self.market.venue == 'coinbase_exchange' and symbol in self.books and self.market.now_ms % 5 == 0:
            frames.append((symbol, self.heartbeat(symbol)))
        return frames

    def best_quote(self, symbol: str) -> bytes:
        book, now = self.market.books[symbol], self.market.now_ms
        bid, ask = max(book.bids), min(book.asks)
        return self.dump(dict(stream=f'{symbol.lower()}@bookTicker', data=dict(
            e='bookTicker', u=book.number, E=now, T=now, s=symbol, b=price(bid), B=amount(book.bids[bid]), a=price(ask),
            A=amount(book.asks[ask]))))

    def heartbeat(self, symbol: str) -> bytes:
        last = self.market.books[symbol].trades
        return self.dump(dict(type='heartbeat', sequence=1, last_trade_id=last, product_id=symbol, time=self.iso()))

    def iso(self) -> str: return datetime.fromtimestamp(self.market.now_ms/1000, UTC).strftime('%Y-%m-%dT%H:%M:%S.%f') + 'Z'
    def dump(self, message: Any) -> bytes: return json.dumps(message, separators=(',', ':')).encode()

    def framed(self, channel: str, events: list[Any]) -> bytes:
        self.sequence += 1
        return self.dump(dict(channel=channel, client_id='', timestamp=self.iso(), sequence_num=self.sequence, events=events))

    def picture(self, symbol: str) -> bytes:
        "A whole book; of Binance as REST tells it"
        book = self.market.books[symbol]
        if self.market.venue == 'binance_usdm':
            levels = {name: [[price(tick), amount(lots)] for tick, lots in book.sorted(name == 'bids')] for name in ('bids', 'asks')}
            whole = self.dump(dict(lastUpdateId=book.number, E=self.market.now_ms, T=self.market.now_ms, **levels))
            self.market.earlier.setdefault(symbol, whole)
            return whole
        return self.told(symbol, [(bids, tick, lots) for bids in (True, False) for tick, lots in book.sorted(bids)], True)

    def update(self, symbol: str, changes: list[tuple[bool, int, int]]) -> bytes:
        last = {(bids, tick): lots for bids, tick, lots in changes}
        return self.told(symbol, [(bids, tick, lots) for (bids, tick), lots in last.items()], False)

    def told(self, symbol: str, levels: list[tuple[bool, int, int]], whole: bool) -> bytes:
        venue, book, now, wrong = self.market.venue, self.market.books[symbol], self.market.now_ms, symbol in self.market.wrong_sums
        def side(bids: bool) -> list[tuple[int, int]]: return [(tick, lots) for one, tick, lots in levels if one == bids]
        if venue == 'coinbase':
            updates = [dict(side='bid' if bids else 'offer', event_time=self.iso(), price_level=price(tick), new_quantity=amount(lots))
                       for bids, tick, lots in levels]
            return self.framed('l2_data', [dict(type='snapshot' if whole else 'update', product_id=symbol, updates=updates)])
        if venue == 'kraken':   # numbers, not strings: written by hand, so that every digit stands
            def text(bids: bool) -> str: return ','.join(f'{{"price":{price(tick)},"qty":{amount(lots)}}}' for tick, lots in side(bids))
            return (f'{{"channel":"book","type":"{"snapshot" if whole else "update"}","data":[{{"symbol":"{symbol}","bids":[{text(True)}],'
                    f'"asks":[{text(False)}],"checksum":{kraken_sum(book) ^ wrong},"timestamp":"{self.iso()}"}}]}}').encode()
        pairs = {bids: [[price(tick), amount(lots)] for tick, lots in side(bids)] for bids in (True, False)}
        if venue == 'binance_usdm':
            return self.dump(dict(stream=f'{symbol.lower()}@depth@100ms', data=dict(
                e='depthUpdate', E=now, T=now, s=symbol, U=book.before + 1, u=book.number, pu=book.before, b=pairs[True], a=pairs[False])))
        if venue == 'coinbase_exchange' and whole:
            return self.dump(dict(type='snapshot', product_id=symbol, bids=pairs[True], asks=pairs[False]))
        if venue == 'coinbase_exchange':
            changes = [['buy' if bids else 'sell', *one] for bids in (True, False) for one in pairs[bids]]
            return self.dump(dict(type='l2update', product_id=symbol, changes=changes, time=self.iso()))
        if venue == 'okx':
            data = dict(asks=[[*one, '0', '1'] for one in pairs[False]], bids=[[*one, '0', '1'] for one in pairs[True]], ts=str(now),
                        checksum=okx_sum(book) ^ wrong, prevSeqId=-1 if whole else book.number - 1, seqId=book.number)
            return self.dump(dict(arg=dict(channel='books', instId=symbol), action='snapshot' if whole else 'update', data=[data]))
        return self.dump(dict(topic=f'orderbook.200.{symbol}', type='snapshot' if whole else 'delta', ts=now,
                              data=dict(s=symbol, b=pairs[True], a=pairs[False], u=book.number, seq=book.number), cts=now))

    def traded(self, symbol: str, tick: int, lots: int, bought: bool, kind: str = 'match') -> bytes:
        venue, number, now = self.market.venue, self.market.books[symbol].trades, self.market.now_ms
        if venue == 'binance_usdm':
            return self.dump(dict(stream=f'{symbol.lower()}@trade', data=dict(
                e='trade', E=now, T=now, s=symbol, t=number, p=price(tick), q=amount(lots), X='MARKET', m=not bought)))
        if venue == 'coinbase_exchange':
            return self.dump(dict(type=kind, trade_id=number, maker_order_id='', taker_order_id='', side='sell' if bought else 'buy',
                                  size=amount(lots), price=price(tick), product_id=symbol, sequence=1, time=self.iso()))
        if venue == 'coinbase':
            return self.framed('market_trades', [dict(type='update', trades=[dict(
                trade_id=str(number), product_id=symbol, price=price(tick), size=amount(lots), side='SELL' if bought else 'BUY',
                time=self.iso())])])
        if venue == 'kraken':
            side = 'buy' if bought else 'sell'
            return (f'{{"channel":"trade","type":"update","data":[{{"symbol":"{symbol}","side":"{side}","price":{price(tick)},'
                    f'"qty":{amount(lots)},"ord_type":"market","trade_id":{number},"timestamp":"{self.iso()}"}}]}}').encode()
        if venue == 'okx':
            return self.dump(dict(arg=dict(channel='trades', instId=symbol), data=[dict(
                instId=symbol, tradeId=str(number), px=price(tick), sz=amount(lots), side='buy' if bought else 'sell', ts=str(now),
                count='1')]))
        return self.dump(dict(topic=f'publicTrade.{symbol}', type='snapshot', ts=now, data=[dict(
            T=now, s=symbol, S='Buy' if bought else 'Sell', v=amount(lots), p=price(tick), L='PlusTick', i=str(number), BT=False,
            seq=number)]))


def kraken_sum(book: MadeBook) -> int:
    def digits(text: str) -> str: return text.replace('.', '').lstrip('0')
    levels = book.sorted(False)[:10] + book.sorted(True)[:10]
    return zlib.crc32(''.join(digits(price(tick)) + digits(amount(lots)) for tick, lots in levels).encode())


def okx_sum(book: MadeBook) -> int:
    def pieces() -> Iterator[str]:
        bids, asks = book.sorted(True)[:25], book.sorted(False)[:25]
        for place in range(25):
            for side in (bids, asks):
                if place < len(side): yield f'{price(side[place][0])}:{amount(side[place][1])}'
    number = zlib.crc32(':'.join(pieces()).encode())
    return number - (1 << 32) if number >= 1 << 31 else number


def listing(venue: str, symbols: list[str] | None = None) -> Any:
    "The venue's answer about its instruments"
    symbols = symbols or PAIRS[venue]
    if venue == 'binance_usdm':
        return dict(symbols=[dict(symbol=one, contractType='PERPETUAL', baseAsset=one[:3], quoteAsset=one[3:], pricePrecision=2, filters=[
            dict(filterType='PRICE_FILTER', minPrice='0.01', maxPrice='9000', tickSize='0.01'),
            dict(filterType='LOT_SIZE', minQty='0.0001', maxQty='9000', stepSize='0.0001'),
            dict(filterType='MIN_NOTIONAL', notional='5')]) for one in symbols])
    if venue.startswith('coinbase'):
        return [dict(id=one, base_currency=one[:3], quote_currency=one[4:], quote_increment='0.01', base_increment='0.0001',
                     min_market_funds='1') for one in symbols]
    if venue == 'kraken':
        return dict(error=[], result={one.replace('/', ''): dict(
            wsname=one, pair_decimals=2, lot_decimals=4, ordermin='0.0001', costmin='0.5', tick_size='0.01') for one in symbols})
    if venue == 'okx':
        return dict(code='0', msg='', data=[dict(
            instType='SPOT', instId=one, baseCcy=one[:3], quoteCcy=one[4:], tickSz='0.01', lotSz='0.0001', minSz='0.0001',
            maxLmtSz='9999') for one in symbols])
    return dict(retCode=0, retMsg='OK', result=dict(category='spot', list=[dict(
        symbol=one, baseCoin=one[:3], quoteCoin=one[3:], lotSizeFilter=dict(basePrecision='0.0001', minOrderQty='0.0001', minOrderAmt='1'),
        priceFilter=dict(tickSize='0.01')) for one in symbols]))


class MadeServer:
    """`async with MadeServer('kraken') as server`: rest_url and websocket_url speak like the venue; `pace` frames a second of wall time;
    `refusals` are statuses that answer the next questions over REST, `closed` is one that answers whoever wants a websocket"""
    def __init__(self, venue: str, pace: float = 400.0, seed: int = 7, symbols: list[str] | None = None, refusals: list[int] | None = None,
                 closed: int | None = None, retry_after: str = ''):
        self.market, self.pace, self.sockets = MadeMarket(venue, symbols, seed), pace, dict[web.WebSocketResponse, Talk]()
        self.opened, self.refusals, self.closed, self.retry_after = 0, list(refusals or []), closed, retry_after
        self.asked = list[str]()   # paths of the questions over REST
        self.heard = list[bytes]()   # what came over websockets

    async def __aenter__(self) -> MadeServer:
        application = web.Application()
        application.router.add_get('/{tail:.*}', self.answer)
        self.runner = web.AppRunner(application, shutdown_timeout=0.2, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, HOST, 0).start()
        port = self.runner.addresses[0][1]
        self.rest_url, self.websocket_url = f'http://{HOST}:{port}', f'ws://{HOST}:{port}'
        self.going = asyncio.create_task(self.go())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.going.cancel()
        for socket in list(self.sockets): await socket.close(code=WSCloseCode.GOING_AWAY)
        await self.runner.cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get('Upgrade', '').lower() != 'websocket':
            self.asked.append(request.path_qs)
            if self.refusals:
                headers = {'Retry-After': self.retry_after} if self.retry_after else {}
                return web.json_response(dict(message='refused by the made-up venue'), status=self.refusals.pop(0), headers=headers)
            whole = listing(self.market.venue, self.market.symbols)
            if request.path.lower().endswith('/time'): return web.json_response(dict(serverTime=self.market.now_ms))
            if request.path.endswith('/depth'):
                return web.Response(body=Talk(self.market).picture(request.query['symbol']), content_type='application/json')
            if self.market.venue.startswith('coinbase') and (name := request.path.rsplit('/', 1)[1]) != 'products':
                found = [one for one in whole if one['id'] == name]
                return web.json_response(found[0]) if found else web.json_response(dict(message='NotFound'), status=404)
            return web.json_response(whole)
        if self.closed: return web.json_response(dict(message='refused by the made-up venue'), status=self.closed)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.opened += 1
        talk = self.sockets[socket] = self.market.connect()
        talk.open('/stream?streams=' + request.query.get('streams', ''))
        try:
            async for message in socket:
                self.heard.append(message.data.encode())
                for text in talk.receive(message.data.encode()): await socket.send_str(text.decode())
        except ConnectionError: pass   # whoever asked is gone
        finally: self.sockets.pop(socket, None)
        return socket

    async def go(self) -> None:
        due = asyncio.get_running_loop().time()
        while True:
            for symbol, changes, trade in self.market.advance():
                for socket, talk in list(self.sockets.items()):
                    for _, frame in talk.tell(symbol, changes, trade):
                        try: await socket.send_str(frame.decode())
                        except ConnectionError: self.sockets.pop(socket, None)
            due += 1/self.pace
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
