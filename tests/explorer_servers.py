"""blockchain.info and mempool.space on this machine, fed with real transactions: the protocols, their limits, and their bad days.

They speak as the sites do, as far as that is documented or can be read in the programs (facts/bitcoin.md); what they say is made from
transactions we give them. Orders are lists of steps: a message, a pause, a cut, a message left out."""
from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from aiohttp import WSMsgType, web

from cryptoexp.chain.block import Block
from cryptoexp.chain.script import address_of, script_kind
from cryptoexp.chain.transaction import Output, Transaction

CUT, GOODBYE = 'cut', 'goodbye'   # steps: the line breaks; the site closes as it should


def info_output(output: Output, place: int) -> dict[str, Any]:
    return dict(spent=False, tx_index=0, type=0, addr=address_of(output.script), value=output.value, n=place, script=output.script.hex())


def utx(tx: Transaction, time: int = 1_570_486_934) -> dict[str, Any]:
    "A transaction with known previous outputs as blockchain.info tells it"
    inputs = [dict(sequence=one.sequence, prev_out=info_output(one.previous, one.index or 0) if one.previous else None,
                   script=(one.script_sig or b'').hex()) for one in tx.inputs]
    outputs = [info_output(output, place) for place, output in enumerate(tx.outputs)]
    told = dict(lock_time=tx.locktime, ver=tx.version, size=tx.size, inputs=inputs, time=time, tx_index=0, vin_sz=len(inputs),
                hash=tx.txid, vout_sz=len(outputs), relayed_by='0.0.0.0', out=outputs)
    return dict(op='utx', x=told)


def info_block(block: Block) -> dict[str, Any]:
    header = block.header
    return dict(op='block', x=dict(txIndexes=[], nTx=len(block.transactions), height=block.height, hash=header.hash, bits=header.bits,
                                   mrklRoot=header.merkle_root, time=header.time // 1_000_000_000, nonce=header.nonce))


NAMES = {'p2wpkh': 'v0_p2wpkh', 'p2wsh': 'v0_p2wsh', 'p2tr': 'v1_p2tr', 'p2ms': 'multisig', 'witness_unknown': 'unknown',
         'nonstandard': 'unknown'}


def esplora_output(output: Output) -> dict[str, Any]:
    kind, address = script_kind(output.script), address_of(output.script)
    told = dict(scriptpubkey=output.script.hex(), scriptpubkey_asm='', scriptpubkey_type=NAMES.get(kind, kind), value=output.value)
    return told | ({'scriptpubkey_address': address} if address else {})


def esplora(tx: Transaction, **more: Any) -> dict[str, Any]:
    "A transaction as mempool.space tells it"
    inputs = [dict(txid=one.txid, vout=one.index, prevout=esplora_output(one.previous) if one.previous else None,
                   scriptsig=(one.script_sig or b'').hex(), scriptsig_asm='', is_coinbase=one.is_coinbase, sequence=one.sequence)
              | (dict(witness=[item.hex() for item in one.witness]) if one.witness else {}) for one in tx.inputs]
    return dict(txid=tx.txid, version=tx.version, locktime=tx.locktime, vin=inputs, vout=[esplora_output(output) for output in tx.outputs],
                size=tx.size, weight=tx.weight, fee=tx.fee, status=dict(confirmed=False), firstSeen=1_700_000_000, **more)


def site_block(block: Block) -> dict[str, Any]:
    header = block.header
    return dict(id=header.hash, height=block.height, version=header.version, timestamp=header.time // 1_000_000_000, bits=header.bits,
                nonce=header.nonce, merkle_root=header.merkle_root, previousblockhash=header.previous, tx_count=len(block.transactions))


def changes(sequence: int, added: Iterable[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
    "A numbered message of mempool.space"
    return {'mempool-transactions': dict(sequence=sequence, added=list(added), removed=[], mined=[], replaced=[]) | more}


class Site:
    "A websocket server that follows a plan: a list of steps for each connection, the last of which stays open"
    def __init__(self, *plan: Sequence[Any]):
        self.plan, self.asked, self.connections, self.pings = list(plan), list[dict[str, Any]](), 0, 0
        self.stats, self.stats_asked = '', 0     # what stands beside the websocket; empty: an error

    def understands(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        "What is answered at once to a request"
        raise NotImplementedError

    def begins(self, requests: int) -> bool: return requests >= 2   # both sites are greeted with two requests

    async def statistics(self, request: web.Request) -> web.Response:
        self.stats_asked += 1
        return web.Response(text=self.stats, status=200 if self.stats else 404)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        line = web.WebSocketResponse()
        await line.prepare(request)
        number, self.connections = self.connections, self.connections + 1
        started, requests = asyncio.Event(), 0

        async def listen() -> None:
            nonlocal requests
            async for message in line:
                if message.type is not WSMsgType.TEXT: continue
                told = json.loads(message.data)
                for answer in self.understands(told): await line.send_str(json.dumps(answer))
                requests += 1
                if self.begins(requests): started.set()
        listening = asyncio.create_task(listen())
        try:
            await started.wait()
            for step in self.plan[min(number, len(self.plan) - 1)]:
                if step == CUT:
                    if request.transport: request.transport.abort()
                    return line
                if step == GOODBYE:
                    await line.close()
                    return line
                if isinstance(step, float): await asyncio.sleep(step)
                elif isinstance(step, asyncio.Event): await step.wait()
                else: await line.send_str(step if isinstance(step, str) else json.dumps(step))
            await listening
        except ConnectionError: pass
        finally: listening.cancel()
        return line


class InfoSite(Site):
    "blockchain.info"
    def understands(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(request)
        if request['op'] != 'ping': return []
        self.pings += 1
        return [{'op': 'pong'}]


class MempoolSite(Site):
    "mempool.space"
    def __init__(self, *plan: Sequence[Any], blocks: Sequence[dict[str, Any]] = (), most_addresses: int = 10):
        super().__init__(*plan)
        self.blocks, self.most_addresses = list(blocks), most_addresses

    def understands(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(request)
        if request.get('action') == 'ping':
            self.pings += 1
            return [{'pong': True}]
        if request.get('action') == 'want': return [{'blocks': self.blocks}] if self.blocks else []
        if len(request.get('track-addresses', ())) > self.most_addresses:
            limit = f'this connection supports tracking a maximum of {self.most_addresses} addresses'
            return [{'track-addresses-error': f'too many addresses requested, {limit}'}]
        return []


@contextlib.asynccontextmanager
async def open_site(site: Site) -> AsyncIterator[str]:
    "The site on this machine; yields the address of its websocket"
    application = web.Application()
    application.router.add_get('/stats', site.statistics)
    application.router.add_get('/{path:.*}', site.serve)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    try: yield f'ws://127.0.0.1:{runner.addresses[0][1]}/inv'
    finally: await runner.cleanup()
