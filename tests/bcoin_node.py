"""A whole Bitcoin node, bcoin from npm, on its own regtest network on this machine, and wallets that make what the detectors look for.

It is installed once into .cache/bcoin, with one override (its database binding of 2018 does not compile for today's node)."""
from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from embit.ec import PrivateKey
from embit.script import Script, Witness, p2pkh_from_p2wpkh
from embit.transaction import Transaction as EmbitTransaction

from cryptoexp.chain.script import REGTEST, from_base58check
from cryptoexp.chain.transaction import Input, Output, Transaction, transaction_bytes

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT/'.cache'/'bcoin'
PACKAGE = {'private': True, 'dependencies': {'bcoin': '1.0.2'}, 'overrides': {'leveldown': '5.6.0'}}
BCOIN = msgspec.structs.replace(REGTEST, name='bcoin regtest', key_version=0x3c, script_version=0x26, prefix='rb')   # its addresses differ
FEE_RATE = 20_000   # satoshi a thousand virtual bytes


def install() -> str:   # empty: it is there; otherwise why it can't be
    "Install bcoin, once, whoever comes first"
    if not (shutil.which('node') and shutil.which('npm')): return 'no node and npm on this machine'
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE/'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (CACHE/'installed').exists(): return ''
        if (CACHE/'failed').exists(): return (CACHE/'failed').read_text()
        (CACHE/'package.json').write_text(json.dumps(PACKAGE))
        prefix = Path(shutil.which('node') or '').resolve().parent.parent   # headers beside the program need not be fetched
        beside = {'npm_config_nodedir': str(prefix)} if (prefix/'include'/'node'/'node.h').exists() else {}
        done = subprocess.run(['npm', 'install', '--no-audit', '--no-fund'], cwd=CACHE, capture_output=True, text=True, timeout=900,
                              env=os.environ | beside)
        if done.returncode or not (CACHE/'node_modules'/'bcoin'/'bin'/'node').exists():
            reason = f'npm could not install bcoin: {done.stderr.strip()[-300:]}'
            (CACHE/'failed').write_text(reason)
            return reason
        (CACHE/'installed').touch()
        return ''


def free_ports(count: int) -> list[int]:
    "Ports that are free now"
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets: one.bind(('127.0.0.1', 0))
        return [int(one.getsockname()[1]) for one in sockets]


class BcoinNode:
    "A running node with its wallets; coins are whole satoshi"
    def __init__(self, session: aiohttp.ClientSession, ports: Sequence[int]):
        self.session, (self.port, self.http, self.wallet_http) = session, ports

    async def ask(self, method: str, path: str, body: Any = None, wallet: bool = False) -> Any:
        port = self.wallet_http if wallet else self.http
        async with self.session.request(method, f'http://127.0.0.1:{port}{path}', json=body) as answer:
            told = await answer.json(content_type=None)
        if isinstance(told, dict) and told.get('error'): raise RuntimeError(f'{method} {path}: {told["error"]}')
        return told

    async def rpc(self, name: str, *arguments: Any) -> Any:
        return (await self.ask('POST', '/', {'method': name, 'params': list(arguments), 'id': 1}))['result']

    async def is_up(self) -> bool:
        "Whether node, wallets and the port for other nodes answer"
        try:
            await self.ask('GET', '/wallet/primary', wallet=True)
            _, writer = await asyncio.open_connection('127.0.0.1', self.port)
        except (aiohttp.ClientError, OSError): return False
        writer.close()
        return True

    async def wallet(self, name: str) -> None: await self.ask('PUT', f'/wallet/{name}', {'witness': True}, wallet=True)
    async def address(self, wallet: str) -> str:
        return str((await self.ask('POST', f'/wallet/{wallet}/address', {'account': 'default'}, wallet=True))['address'])

    async def mine(self, count: int, address: str) -> list[str]: return list(await self.rpc('generatetoaddress', count, address))
    async def height(self) -> int: return int(await self.rpc('getblockcount'))
    async def raw_block(self, height: int) -> bytes:
        return bytes.fromhex(await self.rpc('getblock', await self.rpc('getblockhash', height), 0))

    async def send(self, wallet: str, *outputs: dict[str, Any], **more: Any) -> str:   # the txid
        "A wallet pays; waits until the node has it"
        for attempt in range(600):   # its wallet hears of a block a little later than its chain has it, and till then it has no funds
            try: told = await self.ask('POST', f'/wallet/{wallet}/send', {'rate': FEE_RATE, 'outputs': list(outputs), **more}, wallet=True)
            except RuntimeError as error:
                if 'FundingError' not in str(error) or attempt == 599: raise
                await asyncio.sleep(0.05)
            else: break
        await self.until(told['hash'])
        return str(told['hash'])

    async def coins(self, wallet: str) -> list[dict[str, Any]]: return list(await self.ask('GET', f'/wallet/{wallet}/coin', wallet=True))

    async def join(self, wallets: Sequence[str], coins: Sequence[dict[str, Any]], outputs: Sequence[Output]) -> str:
        "One transaction of several wallets, a P2WPKH coin of each; signed here with their keys, as bcoin signs for one wallet only"
        inputs = tuple(Input(coin['hash'], coin['index'], b'', 0xffffffff, ()) for coin in coins)
        joint = EmbitTransaction.parse(transaction_bytes(Transaction('', None, 2, 0, inputs, tuple(outputs))))
        for place, (wallet, coin) in enumerate(zip(wallets, coins, strict=True)):
            wif = (await self.ask('GET', f'/wallet/{wallet}/wif/{coin["address"]}', wallet=True))['privateKey']
            key = PrivateKey(from_base58check(wif)[1:33])
            digest = joint.sighash_segwit(place, p2pkh_from_p2wpkh(Script(bytes.fromhex(coin['script']))), coin['value'])
            joint.vin[place].witness = Witness([key.sign(digest).serialize() + b'\1', key.sec()])
        txid = str(await self.rpc('sendrawtransaction', joint.serialize().hex()))
        await self.until(txid)
        return txid

    async def until(self, txid: str) -> None:
        "Wait until the node has a transaction in its pool"
        for _ in range(600):
            if txid in await self.rpc('getrawmempool'): return
            await asyncio.sleep(0.05)
        raise TimeoutError(f'{txid} did not reach the pool')

    async def settled(self, wallet: str) -> None:
        "Wait until the wallet has heard of the last block"
        for _ in range(600):
            if await self.caught_up(wallet): return
            await asyncio.sleep(0.05)
        raise TimeoutError('the wallet does not catch up')

    async def caught_up(self, wallet: str) -> bool:
        "Whether no transaction of a wallet still waits for a block that is there"
        waiting = {coin['hash'] for coin in await self.coins(wallet) if coin['height'] < 0}
        return not waiting - set(await self.rpc('getrawmempool'))


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[BcoinNode]:
    "A node with an empty chain, stopped at the end"
    ports = free_ports(3)
    program = CACHE/'node_modules'/'bcoin'/'bin'/'node'
    words = ['node', str(program), '--network=regtest', '--memory=true', f'--prefix={folder}', '--api-key=test',
             '--listen=true', '--host=127.0.0.1', '--public-host=127.0.0.1', '--index-tx', '--index-address',
             '--max-outbound=1', f'--port={ports[0]}', f'--http-port={ports[1]}', f'--wallet-http-port={ports[2]}']
    with (folder/'node.log').open('wb') as log:
        process = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, env={**os.environ, 'NODE_NO_WARNINGS': '1'})
    try:
        headers = {'Authorization': 'Basic ' + base64.b64encode(b'x:test').decode()}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as session:
            node = BcoinNode(session, ports)
            for _ in range(1_200):
                if process.returncode is not None: raise RuntimeError((folder/'node.log').read_text()[-2_000:])
                if await node.is_up(): break
                await asyncio.sleep(0.05)
            else: raise TimeoutError('bcoin does not start')
            yield node
    finally:
        if process.returncode is None: process.terminate()
        try: await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()
