"A whole Bitcoin node of another make on this machine: the network's own protocol, and the patterns its wallets make"
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from bcoin_node import BCOIN, BcoinNode, install, running
from kernel import check_spends, height_after
from regtest_patterns import Maker, build, patterns, told

from cryptoexp.chain.block import problems, read_block
from cryptoexp.chain.events import BlockConnected, BlockDisconnected, Confirmed, Event, Gap, Seen
from cryptoexp.chain.peer import PeerSource
from cryptoexp.chain.script import MAINNET, SIGNET, script_of
from cryptoexp.chain.transaction import COIN, parse_transaction
from cryptoexp.net import NetError

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope='module', autouse=True)
def installed() -> None:
    if reason := install(): pytest.skip(f'no bcoin: {reason}')


class Ear:
    "Listens to a source beside the test, which may wait for what it hears"
    def __init__(self, source: PeerSource):
        self.source, self.heard, self.news = source, list[Event](), asyncio.Condition()

    async def listen(self) -> None:
        async with aclosing(self.source.__aiter__()) as events:   # type: ignore[type-var]
            async for event in events:
                async with self.news:
                    self.heard.append(event)
                    self.news.notify_all()

    async def until(self, found: Callable[[list[Event]], bool], seconds: float = 90.0) -> None:
        async with asyncio.timeout(seconds), self.news: await self.news.wait_for(lambda: found(self.heard))

    def seen(self) -> dict[str, Seen]: return {event.tx.txid: event for event in self.heard if isinstance(event, Seen)}
    def confirmed(self) -> dict[str, Confirmed]: return {event.txid: event for event in self.heard if isinstance(event, Confirmed)}
    def kinds(self) -> list[str]: return [type(event).__name__ for event in self.heard if not isinstance(event, Seen | Confirmed)]


@asynccontextmanager
async def listening(source: PeerSource) -> AsyncIterator[Ear]:
    ear, opened, tell = Ear(source), asyncio.Event(), source.opened

    def noted() -> None:
        tell()
        opened.set()
    source.opened = noted   # type: ignore[method-assign]
    task, waiting = asyncio.create_task(ear.listen()), asyncio.create_task(opened.wait())
    try:
        await asyncio.wait((task, waiting), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        if task.done(): task.result()
        assert opened.is_set()
        yield ear
    finally:
        for one in (task, waiting): one.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


def on_a_node(folder: Path, story: Callable[[BcoinNode], Awaitable[None]]) -> None:
    "A story told with a fresh node"
    async def tell() -> None:
        async with running(folder) as node: await story(node)
    asyncio.run(tell())


def test_transactions_and_blocks_arrive(tmp_path: Path) -> None:
    "What the node has, we hear, byte for byte; amounts of coins that went past us are known; a block confirms"
    async def story(node: BcoinNode) -> None:
        miner = await node.address('primary')
        await node.mine(110, miner)
        await node.settled('primary')
        async with listening(PeerSource(port=node.port, network=BCOIN)) as ear:
            await node.mine(1, miner)
            await ear.until(lambda heard: any(isinstance(event, BlockConnected) for event in heard))
            sent = [await node.send('primary', {'address': miner, 'value': COIN * number}) for number in (1, 2, 3)]
            await ear.until(lambda heard: set(sent) <= ear.seen().keys())
            for txid in sent:
                tx = ear.seen()[txid].tx
                assert tx == parse_transaction(await node.rpc('getrawtransaction', txid), tx.source, tx.first_seen)
                assert any(output.script == script_of(miner, BCOIN) for output in tx.outputs)
            await node.mine(1, miner)
            await ear.until(lambda heard: set(sent) <= ear.confirmed().keys())
            assert {event.block.height for txid, event in ear.confirmed().items() if txid in sent} == {112}
            assert ear.kinds() == ['BlockConnected', 'BlockConnected'] and not ear.source.talk.pool.waiting
            await node.settled('primary')
            coin = next(coin for coin in await node.coins('primary') if coin['hash'] == sent[0])
            child = await node.send('primary', {'address': miner, 'value': 30 * COIN})
            await ear.until(lambda heard: child in ear.seen())
            spent = [one for one in ear.seen()[child].tx.inputs if one.outpoint == (coin['hash'], coin['index'])]
            assert all(one.previous is not None and one.previous.value == coin['value'] for one in spent)
    on_a_node(tmp_path, story)


def test_a_reorganisation_is_followed(tmp_path: Path) -> None:
    "Blocks are withdrawn and others stand in their place; what was confirmed waits no longer twice"
    async def story(node: BcoinNode) -> None:
        miner, other = await node.address('primary'), await node.address('primary')
        await node.mine(5, miner)
        async with listening(PeerSource(port=node.port, network=BCOIN)) as ear:
            await node.mine(3, miner)
            await ear.until(lambda heard: ear.kinds() == ['BlockConnected'] * 3)
            old = [event.block.hash for event in ear.heard if isinstance(event, BlockConnected)]
            await node.ask('POST', '/reset', {'height': 6})
            await node.mine(4, other)
            await ear.until(lambda heard: any(isinstance(event, BlockConnected) and event.block.height == 10 for event in heard))
            assert [event.block.hash for event in ear.heard if isinstance(event, BlockDisconnected)] == old[:0:-1]
            assert ear.kinds()[3:] == ['BlockDisconnected'] * 2 + ['BlockConnected'] * 4
            assert ear.source.talk.chain.tip is not None and ear.source.talk.chain.tip.hash == await node.rpc('getbestblockhash')
    on_a_node(tmp_path, story)


def test_what_was_missed_is_fetched(tmp_path: Path) -> None:
    "The line is cut while blocks are mined: a gap is told, and then the blocks, in order"
    async def story(node: BcoinNode) -> None:
        miner = await node.address('primary')
        await node.mine(5, miner)

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            "Hands bytes on in both directions, until it is cut"
            there, back = await asyncio.open_connection('127.0.0.1', node.port)
            lines.append((writer, back))
            async def hand_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
                while data := await source.read(65_536): to.write(data)
                to.close()
            await asyncio.gather(hand_on(reader, back), hand_on(there, writer), return_exceptions=True)
        lines: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        server = await asyncio.start_server(between, '127.0.0.1', 0)
        port = server.sockets[0].getsockname()[1]
        gate = asyncio.Event()
        async def wait(seconds: float) -> None: await gate.wait()
        async with listening(PeerSource(port=port, network=BCOIN, sleep=wait)) as ear:
            await node.mine(1, miner)
            await ear.until(lambda heard: len(ear.kinds()) == 1)
            for line in lines[-1]: line.transport.abort()
            await ear.until(lambda heard: any(isinstance(event, Gap) for event in heard))
            await node.mine(20, miner)
            gate.set()
            await ear.until(lambda heard: len([event for event in heard if isinstance(event, BlockConnected)]) == 21)
            heights = [event.block.height for event in ear.heard if isinstance(event, BlockConnected)]
            assert heights == list(range(6, 27)) and ear.kinds().count('Gap') == 1
        server.close()
    on_a_node(tmp_path, story)


def test_a_node_of_another_network_is_recognised(tmp_path: Path) -> None:
    async def story(node: BcoinNode) -> None:
        for network in (MAINNET, SIGNET):
            with pytest.raises(NetError, match='this node speaks regtest; it should speak'):
                async for _ in PeerSource(port=node.port, network=network): pass
    on_a_node(tmp_path, story)


def test_wallets_make_the_patterns(tmp_path: Path) -> None:
    "Every pattern, made anew: the chain is valid to Bitcoin Core, each spend as well, and the shapes are those of the file"
    made, blocks = asyncio.run(build(tmp_path))
    events = told(blocks)
    assert all(not problems(read_block(raw)) for raw in blocks)
    assert {name: len(txids) for name, txids in made.items()} == {name: len(txs) for name, txs in patterns().items()}
    for name, txids in made.items():
        for txid, before in zip(txids, patterns()[name], strict=True):
            tx = events[txid].tx
            assert tx is not None and tx.data_class == 'P'
            if name != 'funding': assert (len(tx.inputs), len(tx.outputs)) == (len(before.inputs), len(before.outputs))
            check_spends(tx)
    assert height_after(tmp_path/'kernel', blocks) == len(blocks)
    assert Maker.__doc__
