"A real Bitcoin Core on its own regtest network (`make test-node`): ZeroMQ with RPC, its peers, replacement, reorganisation, taproot"
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bcoin_node import free_ports
from build_node import DAEMON
from kernel import check_spends
from test_peer import listening

from cryptoexp.chain.block import problems, read_block
from cryptoexp.chain.events import BlockConnected, BlockDisconnected, Confirmed, Gap, Removed, Replaced, Seen
from cryptoexp.chain.node import NodeSource, Questions
from cryptoexp.chain.peer import PeerSource
from cryptoexp.chain.script import MAINNET, REGTEST, script_of
from cryptoexp.chain.transaction import COIN, parse_transaction
from cryptoexp.net import NetError, Session

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(not DAEMON.exists(), reason='no bitcoind built: make test-node')]
LOGIN = 'u:p'


class Core:
    "A running bitcoind with one wallet"
    def __init__(self, folder: Path):
        self.folder, (self.rpc_port, self.port, self.zmq_port) = folder, free_ports(3)
        self.process: asyncio.subprocess.Process | None = None
        self.session = Session()
        self.questions = Questions(self.session, f'http://127.0.0.1:{self.rpc_port}', LOGIN)
        self.wallet = Questions(self.session, f'http://127.0.0.1:{self.rpc_port}/wallet/w', LOGIN)

    @property
    def zmq(self) -> str: return f'tcp://127.0.0.1:{self.zmq_port}'

    async def start(self) -> None:
        words = [str(DAEMON), '-regtest', f'-datadir={self.folder}', '-server', '-rpcuser=u', '-rpcpassword=p', f'-rpcport={self.rpc_port}',
                 f'-port={self.port}', '-fallbackfee=0.0001', f'-zmqpubrawtx={self.zmq}', f'-zmqpubsequence={self.zmq}', '-listen=1',
                 '-bind=127.0.0.1', '-dnsseed=0', '-natpmp=0', '-debug=0', '-persistmempool=1']
        quiet = asyncio.subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(*words, stdout=quiet, stderr=quiet)
        for _ in range(1_200):
            try: await self.ask('getblockcount')
            except NetError: await asyncio.sleep(0.05)
            else: return
        raise TimeoutError('bitcoind does not start')

    async def stop(self) -> None:
        assert self.process
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 60)

    async def ask(self, name: str, *arguments: Any) -> Any: return msgspec.json.decode(await self.questions.ask(name, *arguments))
    async def own(self, name: str, *arguments: Any) -> Any: return msgspec.json.decode(await self.wallet.ask(name, *arguments))
    async def address(self, kind: str = 'bech32m') -> str: return str(await self.own('getnewaddress', '', kind))
    async def mine(self, count: int) -> list[str]: return list(await self.ask('generatetoaddress', count, await self.address()))
    async def pay(self, address: str, bitcoin: int) -> str: return str(await self.own('sendtoaddress', address, bitcoin))
    def source(self, **more: Any) -> NodeSource:
        return NodeSource(f'http://127.0.0.1:{self.rpc_port}', LOGIN, self.zmq, REGTEST, **more)


@asynccontextmanager
async def core(folder: Path) -> AsyncIterator[Core]:
    node = Core(folder)
    try:
        await node.start()
        await node.ask('createwallet', 'w')
        await node.mine(110)
        yield node
    finally:
        if node.process and node.process.returncode is None: await node.stop()
        await node.session.close()


def on_core(folder: Path, story: Callable[[Core], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with core(folder) as node: await story(node)
    asyncio.run(tell())


def test_taproot_spends_with_amounts_and_ages(tmp_path: Path) -> None:
    "A transaction of a taproot wallet is told with what it spends, at once; Bitcoin Core's code agrees; an unconfirmed parent is found"
    async def story(node: Core) -> None:
        async with listening(node.source()) as ear:
            address = await node.address()
            assert address.startswith('bcrt1p')
            txid = await node.pay(address, 7)
            await ear.until(lambda heard: txid in ear.seen())
            tx = ear.seen()[txid].tx
            again = parse_transaction(await node.ask('getrawtransaction', txid), tx.source, tx.first_seen)
            assert tx == msgspec.structs.replace(again, inputs=tx.inputs)
            assert tx.data_class == 'P' and {one.previous.kind for one in tx.inputs if one.previous} == {'p2tr'}
            assert tx.fee == round((await node.ask('getmempoolentry', txid))['fees']['base'] * COIN)
            assert all(one.previous and one.previous.height and one.previous.coinbase for one in tx.inputs)
            assert any(output.script == script_of(address, REGTEST) for output in tx.outputs)
            check_spends(tx)
            place = next(place for place, output in enumerate(tx.outputs) if output.value == 7 * COIN)
            ear.source.story.pool.outputs.clear()      # forget: the parent has to be asked for
            raw = await node.own('createrawtransaction', [{'txid': txid, 'vout': place}], [{await node.address(): 6.999}])
            child = await node.ask('sendrawtransaction', (await node.own('signrawtransactionwithwallet', raw))['hex'])
            await ear.until(lambda heard: child in ear.seen())
            young = ear.seen()[child].tx
            assert young.fee == 100_000 and young.inputs[0].previous and young.inputs[0].previous.height is None
            check_spends(young)
            block, = await node.mine(1)
            await ear.until(lambda heard: child in ear.confirmed())
            assert ear.confirmed()[child].block.hash == block and ear.confirmed()[child].block.height == 111
            whole = read_block(bytes.fromhex(await node.ask('getblock', block, 0)))
            assert problems(whole) == [] and whole.height == 111
    on_core(tmp_path, story)


def test_replacement_and_removal(tmp_path: Path) -> None:
    "A raised fee replaces; what was replaced is told as that, and what is dropped without one as removed"
    async def story(node: Core) -> None:
        async with listening(node.source()) as ear, listening(PeerSource(port=node.port, network=REGTEST)) as other:
            txid = await node.pay(await node.address(), 3)
            await ear.until(lambda heard: txid in ear.seen())
            await other.until(lambda heard: txid in other.seen())
            assert ear.seen()[txid].tx.signals_replacement
            better = (await node.own('bumpfee', txid))['txid']
            await ear.until(lambda heard: better in ear.seen())
            await other.until(lambda heard: better in other.seen())
            for one in (ear, other):
                replaced = [event for event in one.heard if isinstance(event, Replaced)]
                assert [(event.txid, event.by) for event in replaced] == [(txid, better)]
                assert not [event for event in one.heard if isinstance(event, Removed)]
            assert (ear.seen()[better].tx.fee or 0) > (ear.seen()[txid].tx.fee or 0)
    on_core(tmp_path, story)


def test_a_reorganisation(tmp_path: Path) -> None:
    "A block is withdrawn: the transactions in it wait again, and stand in another block later; both sources say the same"
    async def story(node: Core) -> None:
        async with listening(node.source()) as ear, listening(PeerSource(port=node.port, network=REGTEST)) as other:
            await node.mine(1)
            await other.until(lambda heard: any(isinstance(event, BlockConnected) for event in heard))
            txid = await node.pay(await node.address(), 2)
            await other.until(lambda heard: txid in other.seen())
            block, = await node.mine(1)
            for one in (ear, other): await one.until(lambda heard, one=one: txid in one.confirmed())
            await node.ask('invalidateblock', block)
            await ear.until(lambda heard: any(isinstance(event, BlockDisconnected) for event in heard))
            await ear.until(lambda heard: sum(isinstance(event, Seen) and event.tx.txid == txid for event in heard) == 2)
            new = await node.mine(2)
            for one in (ear, other):
                await one.until(lambda heard, one=one: one.confirmed()[txid].block.hash == new[0])
                await one.until(lambda heard: any(isinstance(event, BlockConnected) and event.block.hash == new[1] for event in heard))
                gone = [event.block.hash for event in one.heard if isinstance(event, BlockDisconnected)]
                assert gone == [block]
            assert ear.source.story.chain.tip.hash == other.source.talk.chain.tip.hash == new[1]   # type: ignore[union-attr]
    on_core(tmp_path, story)


def test_a_restart_is_a_gap_and_then_put_right(tmp_path: Path) -> None:
    "The node goes away and comes back: told as a gap; what happened meanwhile is found by asking"
    async def story(node: Core) -> None:
        async def short(seconds: float) -> None: await asyncio.sleep(0.2)
        async with listening(node.source(pulse=1.0, sleep=short)) as ear:
            first = await node.pay(await node.address(), 1)
            await ear.until(lambda heard: first in ear.seen())
            await node.stop()
            await ear.until(lambda heard: any(isinstance(event, Gap) for event in heard))
            await node.start()
            if 'w' not in await node.ask('listwallets'): await node.ask('loadwallet', 'w')
            blocks = await node.mine(2)
            second = await node.pay(await node.address(), 1)
            await ear.until(lambda heard: second in ear.seen() and first in ear.confirmed())
            assert [event.block.hash for event in ear.heard if isinstance(event, BlockConnected)] == blocks
            assert len([event for event in ear.heard if isinstance(event, Seen) and event.tx.txid == first]) == 1
    on_core(tmp_path, story)


def test_missing_messages_are_noticed(tmp_path: Path) -> None:
    "Messages are thrown away on the way: the numbers tell, and the picture is put right"
    async def story(node: Core) -> None:
        source = node.source()
        async with listening(source) as ear:
            first = await node.pay(await node.address(), 1)
            await ear.until(lambda heard: first in ear.seen())
            source.story.counters[b'sequence'] -= 3            # as if three had been lost before the next
            source.story.pool.forget(first)                    # and with them this one
            second = await node.pay(await node.address(), 1)
            await ear.until(lambda heard: second in ear.seen() and any(isinstance(event, Gap) for event in heard))
            gap = next(event for event in ear.heard if isinstance(event, Gap))
            assert gap.missed == 3
            await ear.until(lambda heard: sum(isinstance(event, Seen) and event.tx.txid == first for event in heard) == 2)
    on_core(tmp_path, story)


def test_backlog_wrong_password_wrong_chain(tmp_path: Path) -> None:
    async def story(node: Core) -> None:
        txid = await node.pay(await node.address(), 1)
        async with listening(node.source(backlog=True)) as ear: await ear.until(lambda heard: txid in ear.seen())
        for wrong, said in ((NodeSource(f'http://127.0.0.1:{node.rpc_port}', 'u:wrong', node.zmq, REGTEST), 'refuses the password'),
                            (NodeSource(f'http://127.0.0.1:{node.rpc_port}', LOGIN, node.zmq, MAINNET), "follows the chain 'regtest'"),
                            (NodeSource('http://127.0.0.1:9', LOGIN, node.zmq, REGTEST, first_attempts=1), 'no connection')):
            with pytest.raises(NetError, match=said):
                async for _ in wrong: pass
        with pytest.raises(NetError, match='this node speaks regtest; it should speak mainnet'):
            async for _ in PeerSource(port=node.port, network=MAINNET): pass
    on_core(tmp_path, story)


def test_the_confirmed_tell_more_than_the_seen(tmp_path: Path) -> None:
    "A block with its transactions, each once, the coinbase among them"
    async def story(node: Core) -> None:
        async with listening(node.source()) as ear:
            sent = [await node.pay(await node.address(), 1) for _ in range(5)]
            await ear.until(lambda heard: set(sent) <= ear.seen().keys())
            await node.mine(1)
            await ear.until(lambda heard: set(sent) <= ear.confirmed().keys())
            confirmed = [event for event in ear.heard if isinstance(event, Confirmed)]
            assert len(confirmed) == 6 and confirmed[0].tx is not None and confirmed[0].tx.is_coinbase
    on_core(tmp_path, story)
