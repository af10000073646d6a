"""A Bitcoin node on this machine that does as it is told: the peers' protocol, and Bitcoin Core's RPC with ZeroMQ.

What the two real nodes of the tests (bcoin, Bitcoin Core) can't be made to do is done here: send garbage, messages twice, in the wrong
order, with a wrong checksum, hang up in the middle, lose a number. Blocks are mined for regtest (work, order and both trees hold);
the coins that its transactions spend never existed."""
from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import zmq
import zmq.asyncio
from aiohttp import web

from cryptoexp.chain.block import COMMITMENT, merkle_root
from cryptoexp.chain.peer import HEAD, WITH_WITNESS, inventory_bytes, message_bytes, read_head, read_inventory, version_bytes
from cryptoexp.chain.script import REGTEST, Network
from cryptoexp.chain.transaction import (
    COIN,
    Input,
    Output,
    Transaction,
    double_sha256,
    id_of,
    parse_transaction,
    transaction_bytes,
    write_length,
)

CUT = 'cut'      # a step: the line breaks
TX, BLOCK = 1, 2


def mined(previous: str, height: int, transactions: Sequence[Transaction] = (), time: int = 1_700_000_000) -> tuple[str, bytes]:
    "The hash and the bytes of a block for regtest"
    witnesses = [bytes(32), *(bytes.fromhex(tx.wtxid or tx.txid)[::-1] for tx in transactions)]
    commitment = COMMITMENT + double_sha256(merkle_root(witnesses)[0] + bytes(32))
    script = bytes((2,)) + height.to_bytes(2, 'little') + previous.encode()[:8]     # no two coinbases are alike
    spends = (Input('00' * 32, 0xffffffff, script, 0xffffffff, (bytes(32),)),)
    coinbase = Transaction('', None, 2, 0, spends, (Output(50 * COIN, b'\x51'), Output(0, commitment)))
    raws = [transaction_bytes(coinbase), *map(transaction_bytes, transactions)]
    leaves = [bytes.fromhex(parse_transaction(raw).txid)[::-1] for raw in raws]
    root, stamp = merkle_root(leaves)[0], (time + height).to_bytes(4, 'little')
    head = (0x20000000).to_bytes(4, 'little') + bytes.fromhex(previous)[::-1] + root + stamp
    for nonce in range(10_000):
        header = head + (0x207fffff).to_bytes(4, 'little') + nonce.to_bytes(4, 'little')
        if int(id_of(header), 16) < 0x7fffff << 232: return id_of(header), header + write_length(len(raws)) + b''.join(raws)
    raise AssertionError('half of all hashes would do')


class PeerSite:
    """A peer that follows a plan for each connection; a step is bytes as they are, a name with its content, a pause in seconds, `CUT`,
    or an event to wait for"""
    def __init__(self, *plan: Sequence[Any], network: Network = REGTEST, things: Iterable[Transaction | bytes] = ()):
        self.plan, self.network, self.connections, self.asked = list(plan), network, 0, list[str]()
        self.things: dict[str, tuple[str, bytes]] = {}
        self.serving = list[asyncio.Task[None]]()
        for thing in things: self.have(thing)

    def have(self, thing: Transaction | bytes) -> str:   # its hash
        "Own a transaction or a block: whoever asks for it gets it"
        if isinstance(thing, Transaction): self.things[thing.txid] = ('tx', transaction_bytes(thing))
        else: self.things[id_of(thing[:80])] = ('block', thing)
        return thing.txid if isinstance(thing, Transaction) else id_of(thing[:80])

    def told(self, *things: Transaction | bytes) -> tuple[str, bytes]:
        "The step that announces some things of one kind"
        return 'inv', inventory_bytes(BLOCK if isinstance(things[0], bytes) else TX, [self.have(thing) for thing in things])

    def main_chain(self) -> list[bytes]:
        "The blocks below the one that came last"
        blocks = {one: raw for one, (kind, raw) in self.things.items() if kind == 'block'}
        chain, one = list[bytes](), next(reversed(blocks), '')
        while one in blocks:
            chain.append(blocks[one])
            one = blocks[one][4:36][::-1].hex()
        return chain[::-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        ready, task = asyncio.Event(), asyncio.current_task()
        if task: self.serving.append(task)
        listening = asyncio.create_task(self.listen(reader, writer, ready))
        try:
            await ready.wait()
            for step in self.plan[min(number, len(self.plan) - 1)]:
                if step == CUT: return writer.transport.abort()
                if isinstance(step, float): await asyncio.sleep(step)
                elif isinstance(step, asyncio.Event): await step.wait()
                else: writer.write(step if isinstance(step, bytes) else message_bytes(self.network, *step))
                await writer.drain()
            await listening
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError): pass
        finally:
            listening.cancel()
            writer.close()

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: asyncio.Event) -> None:
        def say(name: str, content: bytes = b'') -> None: writer.write(message_bytes(self.network, name, content))
        while True:
            try: name, length, _ = read_head(await reader.readexactly(HEAD), self.network)
            except ValueError: return writer.transport.abort()      # another network: a node hangs up
            content = await reader.readexactly(length)
            if name == 'version':
                say('version', version_bytes(1_700_000_000, 7))
                say('verack')
            elif name == 'verack': ready.set()
            elif name == 'ping': say('pong', content)
            elif name == 'getheaders':
                headers = [raw[:80] + b'\0' for raw in self.main_chain()]
                say('headers', write_length(len(headers)) + b''.join(headers))
            elif name == 'getdata':
                for kind, one in read_inventory(content):
                    self.asked.append(one)
                    if one in self.things: say(*self.things[one])
                    else: say('notfound', inventory_bytes(kind & ~WITH_WITNESS, [one]))


@contextlib.asynccontextmanager
async def open_peer(site: PeerSite) -> AsyncIterator[int]:
    "The peer on this machine; yields its port"
    server = await asyncio.start_server(site.serve, '127.0.0.1', 0)
    try: yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in site.serving: task.cancel()
        await asyncio.gather(*site.serving, return_exceptions=True)


class CoreSite:
    "A Bitcoin Core that is told what happens: it answers questions, and calls out changes with their numbers"
    def __init__(self, chain: str = 'regtest', rate: float | None = None):
        self.chain, self.rate, self.asked = chain, rate, list[str]()
        self.blocks: list[tuple[str, bytes]] = [mined('00' * 32, 100)]
        self.bottom, self.pool, self.numbers, self.change = 100, dict[str, bytes](), {b'rawtx': 0, b'sequence': 0}, 1
        self.coins: dict[tuple[str, int], tuple[int, bytes]] = {}
        self.down, self.garbled, self.published = False, set[str](), ['pubrawtx', 'pubsequence']   # garbled: answered with nonsense
        self.socket: zmq.asyncio.Socket | None = None

    def answer(self, name: str, arguments: list[Any]) -> Any:
        hashes = [one for one, _ in self.blocks]
        if name == 'getblockchaininfo': return {'chain': self.chain}
        if name == 'getblockcount': return self.bottom + len(self.blocks) - 1
        if name == 'getbestblockhash': return hashes[-1]
        if name == 'getrawmempool': return {'txids': list(self.pool), 'mempool_sequence': self.change}
        if name == 'getzmqnotifications': return [{'type': one, 'address': 'tcp://127.0.0.1:1', 'hwm': 1000} for one in self.published]
        if name == 'estimatesmartfee':
            return {'feerate': self.rate / 1e5, 'blocks': 2} if self.rate else {'errors': ['Insufficient data'], 'blocks': 0}
        if name == 'gettxout':
            found = self.coins.get((arguments[0], arguments[1]))
            return found and {'value': found[0] / COIN, 'confirmations': 3, 'scriptPubKey': {'hex': found[1].hex()}, 'coinbase': False}
        if name == 'getrawtransaction' and arguments[0] in self.pool: return self.pool[arguments[0]].hex()
        if name in ('getblockheader', 'getblock') and arguments[0] in hashes:
            place = hashes.index(arguments[0])
            raw = self.blocks[place][1]
            if name == 'getblock': return raw.hex()
            return {'hash': hashes[place], 'height': self.bottom + place, 'time': 1_700_000_000, 'previousblockhash': raw[4:36][::-1].hex()}
        raise LookupError(name)

    async def serve(self, request: web.Request) -> web.Response:
        questions = await request.json()
        self.asked += [one['method'] for one in questions]
        if self.down: return web.Response(status=503, text='Work queue depth exceeded')
        if self.garbled & {one['method'] for one in questions}: return web.Response(text='<html>nonsense</html>')
        answers: list[dict[str, Any]] = []
        for one in questions:
            try: answers.append(dict(id=one['id'], result=self.answer(one['method'], one['params'])))
            except LookupError: answers.append(dict(id=one['id'], error=dict(code=-5, message='unknown')))
        return web.Response(text=json.dumps(answers))

    async def call(self, topic: bytes, body: bytes, lost: int = 0) -> None:
        "Call out; some messages before it may have been lost on the way"
        self.numbers[topic] += lost
        assert self.socket is not None
        await self.socket.send_multipart([topic, body, self.numbers[topic].to_bytes(4, 'little')])
        self.numbers[topic] += 1

    async def subscribed(self) -> None:
        "Wait for the next listener to both topics"
        assert self.socket is not None
        wanted = {b'\x01rawtx', b'\x01sequence'}
        while wanted: wanted.discard(await self.socket.recv())

    async def notice(self, letter: str, one: str, **more: Any) -> None:
        number = self.change.to_bytes(8, 'little') if letter in 'AR' else b''
        self.change += letter in 'AR'
        await self.call(b'sequence', bytes.fromhex(one) + letter.encode() + number, **more)

    def knows(self, tx: Transaction) -> None:
        "The coins that a transaction spends are there"
        for one in tx.inputs:
            if one.previous and one.outpoint: self.coins[one.outpoint] = (one.previous.value, one.previous.script)

    async def add(self, tx: Transaction, **more: Any) -> None:
        self.knows(tx)
        self.pool[tx.txid] = transaction_bytes(tx)
        await self.call(b'rawtx', self.pool[tx.txid])
        await self.notice('A', tx.txid, **more)

    async def drop(self, tx: Transaction) -> None:
        del self.pool[tx.txid]
        await self.notice('R', tx.txid)

    async def replace(self, old: Transaction, new: Transaction) -> None:
        "As Bitcoin Core calls it out: removed, and then added"
        await self.drop(old)
        await self.add(new)

    async def mine(self, *transactions: Transaction, salt: int = 0) -> str:
        one, raw = mined(self.blocks[-1][0], self.bottom + len(self.blocks), transactions, 1_700_000_000 + salt)
        self.blocks.append((one, raw))
        for tx in transactions: self.pool.pop(tx.txid, None)
        for tx in transactions: await self.call(b'rawtx', transaction_bytes(tx))
        await self.notice('C', one)
        return one

    async def unmine(self, *returned: Transaction) -> str:
        "The last block leaves the chain; its transactions wait again"
        one, _ = self.blocks.pop()
        await self.notice('D', one)
        for tx in returned: await self.add(tx)
        return one


@contextlib.asynccontextmanager
async def open_core(site: CoreSite) -> AsyncIterator[tuple[str, str]]:
    "The node on this machine; yields the addresses of its RPC and of its ZeroMQ"
    application = web.Application()
    application.router.add_post('/', site.serve)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    context = zmq.asyncio.Context()
    site.socket = context.socket(zmq.XPUB)
    try:
        port = site.socket.bind_to_random_port('tcp://127.0.0.1')
        yield f'http://127.0.0.1:{runner.addresses[0][1]}', f'tcp://127.0.0.1:{port}'
    finally:
        context.destroy(linger=0)
        await runner.cleanup()
