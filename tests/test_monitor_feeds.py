"""The monitor's face on each live source, from the wire to what a person hears: faults, withdrawals, signals, a state taken up again.

The servers are those of explorer_servers.py and node_servers.py, and a real node where there is one (bcoin)."""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bcoin_node import BcoinNode, install, running
from explorer_servers import CUT, InfoSite, MempoolSite, changes, esplora, open_site, utx
from node_servers import BLOCK, CoreSite, PeerSite, inventory_bytes, message_bytes, mined, open_core, open_peer

from cryptoexp.analyst.llm import ModelSettings
from cryptoexp.btc_agent import Analysis, BTCTransactionMonitor
from cryptoexp.chain.embedded import Coin, Mint, coin_of, ordinary
from cryptoexp.chain.script import MAINNET, REGTEST
from cryptoexp.chain.state import STATE
from cryptoexp.chain.transaction import COIN, Transaction, transaction_bytes
from cryptoexp.chain.watch import Told
from cryptoexp.net import NetError

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.timeout(300)


def made(seed: int = 5) -> list[Transaction]:
    "Payments of coins that never existed; the second spends a coin that the ninth spends too, the tenth spends from the ninth"
    mint = Mint(seed)
    txs = [ordinary(mint) for _ in range(12)]
    twice = Coin(8 * COIN, mint.somebody(), (mint.generator.randbytes(32).hex(), 0))
    txs[1], txs[8] = mint.pay([twice], mint.outs(7_99_000_000)), mint.pay([twice], mint.outs(7_98_000_000))
    txs[9] = mint.pay([coin_of(txs[8], 0)], mint.outs(7_97_000_000))
    return txs


async def soon(seconds: float) -> None: await asyncio.sleep(min(seconds, 0.05))


async def eventually(true: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if true(): return
        await asyncio.sleep(0.01)
    raise AssertionError('it did not come to that')


class Listener:
    "Runs a monitor beside the test, which waits for what it tells"
    def __init__(self, monitor: BTCTransactionMonitor):
        self.monitor, self.told, self.news = monitor, list[Told](), asyncio.Condition()
        self.task = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        async with aclosing(self.monitor.stream()) as stream:
            async for one in stream:
                async with self.news:
                    if not isinstance(one, Analysis): self.told.append(one)
                    self.news.notify_all()

    async def until(self, kind: str, txid: str = '', times: int = 1, seconds: float = 120.0) -> Told:
        "Wait until something was told (so often)"
        def found() -> list[Told]: return [one for one in self.told if one.kind == kind and one.txid.startswith(txid)]
        async def wait() -> None:
            async with self.news: await self.news.wait_for(lambda: len(found()) >= times)
        waiting = asyncio.create_task(wait())
        await asyncio.wait((waiting, self.task), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if len(found()) < times:
            if self.task.done(): self.task.result()
            raise AssertionError(f'{kind} {txid[:12]} was not told; told were {self.kinds()}')
        return found()[times - 1]

    def kinds(self) -> list[tuple[str, str]]: return [(one.kind, one.txid[:8]) for one in self.told]


@asynccontextmanager
async def heard(**more: Any) -> AsyncIterator[Listener]:
    "A monitor that tells everything; stopped at the end, as by Ctrl-C"
    usual: dict[str, Any] = dict(min_score=0.0, min_btc=None, state=False, settings=ModelSettings(), analyse_from=101.0)
    monitor = BTCTransactionMonitor(**usual | more)
    monitor.source.sleep = soon
    listener = Listener(monitor)
    try: yield listener
    finally:
        monitor.stop()
        await asyncio.wait_for(asyncio.gather(listener.task, return_exceptions=True), 60)


def standing(listener: Listener) -> set[str]:
    "What a person who heard everything believes to have happened; the monitor's memory has to agree"
    believed = set[str]()
    for one in listener.told:
        if one.kind == 'new':
            assert one.txid not in believed
            believed.add(one.txid)
        if one.kind == 'withdrawn': believed.remove(one.txid)
    assert believed == set(listener.monitor.watch.scorer.history.entries) == set(listener.monitor.watch.told)
    return believed


# ---- the websites

def place(name: str, previous: str, height: int) -> dict[str, Any]:
    return dict(id=name * 32, previousblockhash=previous * 32, height=height, timestamp=1_700_000_000 + height)


def test_mempool_space_with_every_fault() -> None:
    txs = made()
    told = [esplora(tx) for tx in txs]
    gone = dict(replaced=[dict(replaced=txs[1].txid, by=told[8])], removed=[txs[1].txid])
    forged = told[4] | dict(version=7)
    first = [changes(5, told[:4]), changes(5, told[:4]), {'mempool-blocks': [dict(medianFee=12.5, nTx=3)]}, 'nonsense',
             '{"mempool-transactions":', changes(6, [told[8]], **gone), changes(7, removed=[txs[2].txid]), changes(8, [told[9], forged]),
             {'block': place('b3', 'b2', 3), **changes(9, mined=[txs[0].txid])}, changes(12, [told[5]]), changes(11, [told[6]]),
             {'blocks': [place('c3', 'b2', 3), place('c4', 'c3', 4)]}, {'pong': True}, CUT]
    second = [changes(90, [told[5], told[7]]), changes(91, [told[1]], replaced=[dict(replaced=txs[8].txid, by=txs[1].txid)])]
    site = MempoolSite(first, second, blocks=[place('b2', 'b1', 2)])

    async def story() -> None:
        async with open_site(site) as url, heard(source='mempool.space', url=url) as listener:
            await listener.until('new', txs[1].txid, 2)
            short = [(one.kind, next((str(number) for number, tx in enumerate(txs) if tx.txid == one.txid), '')) for one in listener.told]
            assert short == [
                ('new', '0'), ('new', '1'), ('new', '2'), ('new', '3'), ('unreadable', ''), ('unreadable', ''), ('withdrawn', '1'),
                ('new', '8'), ('withdrawn', '2'), ('new', '9'), ('unreadable', ''), ('confirmed', '0'), ('gap', ''), ('new', '5'),
                ('gap', ''), ('new', '6'), ('unconfirmed', '0'), ('gap', ''), ('new', '7'), ('withdrawn', '9'), ('withdrawn', '8'),
                ('new', '1')]
            replaced, reasons = listener.told[6], [one.reason for one in listener.told if one.kind == 'gap']
            assert replaced.by == txs[8].txid and 'took its place' in replaced.reason
            assert '(2 messages)' in reasons[0] and 'unknown number' in reasons[1] and 'not sent again' in reasons[2]
            assert listener.told[-2].by == txs[1].txid and 'it spends from' in listener.told[-3].reason
            assert standing(listener) == {txs[number].txid for number in (0, 1, 3, 5, 6, 7)}
            assert listener.monitor.watch.scorer.next_block_rate == 12.5 and listener.monitor.watch.scorer.height == 4
            assert [request for request in site.asked if 'track-mempool' in request] == [{'track-mempool': True}] * 2
    asyncio.run(story())


def test_a_rate_that_gets_in_makes_an_overpayment_visible() -> None:
    "What a source tells of the network reaches the judgement"
    mint = Mint(3)
    dear = mint.pay(mint.coins(9_000_000), mint.outs(8_990_000))      # 91 satoshi a virtual byte
    async def codes(rate: float) -> set[str]:
        site = MempoolSite([{'mempool-blocks': [dict(medianFee=rate)]}, changes(1, [esplora(dear)])])
        async with open_site(site) as url, heard(source='mempool.space', url=url) as listener:
            event = (await listener.until('new')).event
            assert event is not None
            return {one.code for one in event.signals}
    assert 'overpaid' in asyncio.run(codes(2.0)) and 'overpaid' not in asyncio.run(codes(80.0))


def test_blockchain_info_with_holes_in_its_messages() -> None:
    "`addr: null`, a lock time that is none, no scripts, twice, out of order, garbage, a line that is cut; and the volume of a day"
    txs = made()
    bare = utx(txs[1])
    for one in bare['x']['out']: one['addr'] = None
    late = utx(txs[2])
    late['x']['lock_time'] = 'Unavailable'
    unscripted = utx(txs[3])
    for one in (*unscripted['x']['out'], *(spent['prev_out'] for spent in unscripted['x']['inputs'])): del one['script']
    nothing = utx(txs[4])
    for one in nothing['x']['out']: one.update(addr=None, script=None)
    shuffled = utx(txs[5])
    shuffled['x']['out'].reverse()
    block = dict(op='block', x=dict(hash='ab' * 32, height=7, time=1_700_000_000))
    site = InfoSite([utx(txs[9]), bare, late, unscripted, nothing, shuffled, shuffled, 'nonsense', dict(op='weather'), block, block, CUT],
                    [utx(txs[0]), bare, utx(txs[6]), *[0.1, dict(op='pong')] * 500])
    site.stats = '{"estimated_btc_sent": 13507089623837, "n_tx": 335667}'

    async def story() -> None:
        async with open_site(site) as url, heard(url=url, stats_url=url.replace('ws:', 'http:').replace('/inv', '/stats')) as listener:
            await listener.until('new', txs[6].txid)
            kinds = [one.kind for one in listener.told]
            assert kinds == ['new'] * 4 + ['unreadable', 'new', 'unreadable', 'unreadable', 'gap', 'new', 'new']
            assert 'neither script nor address' in listener.told[4].reason
            assert listener.told[2].tx is not None and listener.told[2].tx.locktime is None
            assert [one.txid for one in listener.told if one.kind == 'new'] == [txs[number].txid for number in (9, 1, 2, 3, 5, 0, 6)]
            assert listener.told[5].tx is not None and listener.told[5].tx.outputs == txs[5].outputs
            assert listener.monitor.source.dialect.pool.counts['told again'] == 2    # type: ignore[attr-defined]
            listener.monitor.source.clock = lambda: time.time_ns() + 11 * 10**9     # it is asked again where the cut was quicker
            await eventually(lambda: listener.monitor.watch.scorer.told_volume == 13_507_089_623_837)
            assert site.stats_asked <= 2
            standing(listener)
    asyncio.run(story())


@pytest.mark.parametrize('stats', ['', '<html>', '{"estimated_btc_sent": -1}'])
def test_statistics_that_fail_harm_nothing(stats: str) -> None:
    site = InfoSite([utx(made()[0]), *[0.1, dict(op='pong')] * 500])
    site.stats = stats

    async def story() -> None:
        async with open_site(site) as url, heard(url=url, stats_url=url.replace('ws:', 'http:').replace('/inv', '/stats')) as listener:
            if stats: await listener.until('unreadable')
            else: await eventually(lambda: listener.monitor.source.counts['questions failed'] == 1)
            assert listener.monitor.watch.scorer.told_volume is None and site.stats_asked == 1
            assert {one.kind for one in listener.told} == ({'new', 'unreadable'} if stats else {'new'})
    asyncio.run(story())


# ---- a peer

def test_a_peer_with_every_fault() -> None:
    txs, chain = made(), ['00' * 32]
    blocks = dict[str, bytes]()
    def block(name: str, previous: str, height: int, *held: Transaction) -> bytes:
        one, raw = mined(previous, height, held)
        chain.append(one)
        blocks[name] = raw
        return raw
    block('b1', '11' * 32, 100)
    block('b2', chain[1], 101, txs[0], txs[2])
    block('c2', chain[1], 101, txs[3])
    block('c3', chain[3], 102, txs[0])
    site, steps = PeerSite(things=[]), [asyncio.Event() for _ in range(6)]
    whole = message_bytes(REGTEST, 'tx', transaction_bytes(txs[4]))
    broken = [whole[:20] + bytes(4) + whole[24:], ('tx', transaction_bytes(txs[4])[:-9]), ('inv', b'\xfe\xff\xff\xff\xff'),
              ('weather', b'?')]
    site.plan = [
        [site.told(txs[0], txs[1]), site.told(txs[0]), ('tx', transaction_bytes(txs[0])), *broken, site.told(txs[9]), site.told(txs[8]),
         steps[0], ('inv', inventory_bytes(BLOCK, [chain[1]])), steps[1], ('inv', inventory_bytes(BLOCK, [chain[2]])), steps[2],
         ('inv', inventory_bytes(BLOCK, [chain[4]])), steps[3], b'\xff' * 24, steps[4]],
        [site.told(txs[5]), steps[5], CUT], [site.told(txs[6])]]

    async def story() -> None:
        async with open_peer(site) as port, heard(source='peer', port=port, host='127.0.0.1', network='regtest') as listener:
            await listener.until('new', txs[8].txid)
            assert (await listener.until('withdrawn', txs[1].txid)).by == txs[8].txid
            assert [one.kind for one in listener.told].count('unreadable') == 3
            site.have(blocks['b1'])
            steps[0].set()
            await eventually(lambda: listener.monitor.watch.scorer.height == 100)
            site.have(blocks['b2'])
            steps[1].set()
            await listener.until('confirmed', txs[0].txid)
            await listener.until('new', txs[2].txid)         # never announced: it is heard of in the block
            for name in ('c2', 'c3'): site.have(blocks[name])
            steps[2].set()
            await listener.until('unconfirmed', txs[0].txid)
            await listener.until('unconfirmed', txs[2].txid)
            await listener.until('confirmed', txs[0].txid, 2)
            await listener.until('new', txs[3].txid)
            steps[3].set()                                   # garbage in the middle of the conversation: the line is made anew
            await listener.until('gap')
            await listener.until('new', txs[5].txid)
            steps[5].set()                                   # and cut
            await listener.until('gap', times=2)
            await listener.until('new', txs[6].txid)
            assert {txs[number].txid for number in (0, 2, 3, 5, 6, 8, 9)} < standing(listener) and txs[1].txid not in standing(listener)
            assert site.asked.count(txs[0].txid) == 1 and site.connections == 3
            coinbases = [one.txid for one in listener.told if one.kind == 'new' and one.tx is not None and one.tx.is_coinbase]
            assert len(coinbases) == 4 and [one.txid for one in listener.told if one.kind == 'withdrawn'].count(coinbases[1]) == 1
            listener.monitor.source.connect_limit = 1.0      # type: ignore[attr-defined]
    asyncio.run(story())


@pytest.mark.parametrize('network', [MAINNET, REGTEST])
def test_a_peer_of_another_network_or_none_ends_the_monitor(network: Any) -> None:
    async def story() -> None:
        site = PeerSite([], network=REGTEST)
        async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'HTTP/1.1 400 Bad Request\r\n\r\n<html></html>')
            await writer.drain()
        server = await asyncio.start_server(page, '127.0.0.1', 0)
        async with open_peer(site) as port:
            wrong = port if network is MAINNET else server.sockets[0].getsockname()[1]
            said = 'this node speaks regtest; it should speak mainnet' if network is MAINNET else 'no Bitcoin node'
            with pytest.raises(NetError, match=said):
                async with heard(source='peer', host='127.0.0.1', port=wrong, network=network.name) as listener: await listener.until('new')
        server.close()
    asyncio.run(story())


# ---- a node of one's own

def at_core(story: Callable[[CoreSite, Listener], Awaitable[None]], site: CoreSite | None = None, **more: Any) -> None:
    async def whole() -> None:
        core = site or CoreSite()
        async with open_core(core) as (rpc, zmq):
            async with heard(source='node', rpc=rpc, zmq=zmq, login='u:p', **dict(dict(network='regtest'), **more)) as listener:
                await core.subscribed()
                await eventually(lambda: 'estimatesmartfee' in core.asked)      # the picture is complete
                await story(core, listener)
    asyncio.run(whole())


def test_a_node_with_every_fault() -> None:
    txs = made()
    async def story(core: CoreSite, listener: Listener) -> None:
        scorer, source = listener.monitor.watch.scorer, listener.monitor.source
        for tx in txs[:4]: await core.add(tx)
        first = await listener.until('new', txs[3].txid)
        assert first.event is not None and first.event.fee == txs[3].fee and scorer.next_block_rate is None
        await core.call(b'sequence', bytes.fromhex(txs[3].txid) + b'A' + (2).to_bytes(8, 'little'))      # told again, out of order
        await core.call(b'rawtx', b'nonsense')
        await core.call(b'sequence', b'short')
        await listener.until('unreadable', times=2)
        await core.replace(txs[1], txs[8])
        assert (await listener.until('withdrawn', txs[1].txid)).by == txs[8].txid
        await core.drop(txs[2])
        assert 'no longer waits' in (await listener.until('withdrawn', txs[2].txid)).reason
        core.rate = 7.5
        block = await core.mine(txs[0], txs[4])              # the fifth was never called out
        assert (await listener.until('confirmed', txs[0].txid)).block.hash == block   # type: ignore[union-attr]
        await listener.until('new', txs[4].txid)
        await core.add(txs[5])
        await listener.until('new', txs[5].txid)
        assert scorer.next_block_rate == 7.5 and scorer.height == 101
        await core.unmine(txs[0], txs[4])
        await listener.until('unconfirmed', txs[0].txid)
        await core.mine(txs[0], salt=9)
        await listener.until('confirmed', txs[0].txid, 2)
        core.knows(txs[6])
        core.pool[txs[6].txid], core.change = transaction_bytes(txs[6]), core.change + 1     # happens, and the messages are lost
        await core.add(txs[7], lost=1)
        assert '(1 messages)' in (await listener.until('gap')).reason
        await listener.until('new', txs[6].txid)
        await listener.until('new', txs[7].txid)
        core.down = True                                     # it does not answer while it should say what a transaction is
        core.knows(txs[10])
        core.pool[txs[10].txid] = transaction_bytes(txs[10])
        await core.notice('A', txs[10].txid)
        await listener.until('gap', times=2)
        core.down = False
        await core.subscribed()
        await listener.until('new', txs[10].txid)
        await core.add(txs[11])
        await listener.until('new', txs[11].txid)
        assert {txs[number].txid for number in (0, 3, 4, 5, 6, 7, 8, 10, 11)} < standing(listener)
        assert not {txs[number].txid for number in (1, 2)} & standing(listener) and source.counts['connections'] == 2
    at_core(story)


def test_numbers_that_are_missing_are_noticed_without_counters() -> None:
    "Lost before the first message, when no counter has been heard yet: the numbers of the pool tell; those a block takes are no loss"
    txs = made()
    async def story(core: CoreSite, listener: Listener) -> None:
        core.pool[txs[0].txid], core.change = transaction_bytes(txs[0]), core.change + 1
        core.knows(txs[0])
        await core.add(txs[2])
        await listener.until('gap')
        await listener.until('new', txs[0].txid)
        await listener.until('new', txs[2].txid)
        core.change += 2                                     # as Bitcoin Core does for the two that leave the pool
        await core.mine(txs[0], txs[2])
        await core.add(txs[3])
        await listener.until('new', txs[3].txid)
        assert [one.kind for one in listener.told].count('gap') == 1
    at_core(story)


def test_a_node_that_goes_on_in_silence_is_noticed() -> None:
    "Its messages do not arrive at all any more: after a while it is asked"
    txs = made()
    async def story(core: CoreSite, listener: Listener) -> None:
        listener.monitor.source.pulse = 0.5      # type: ignore[attr-defined]
        core.blocks.append(mined(core.blocks[-1][0], 101, [txs[0]]))
        assert 'without calling it out' in (await listener.until('gap')).reason
        await listener.until('new', txs[0].txid)
    at_core(story)


def test_a_node_that_is_none_or_of_another_network_ends_the_monitor() -> None:
    async def told(core: CoreSite, listener: Listener) -> None: await listener.until('new')
    for site, more, said in ((CoreSite(chain='test'), {}, "follows the chain 'test', not 'regtest'"),
                             (CoreSite(), dict(network='mainnet'), "follows the chain 'regtest', not 'main'")):
        async def whole(site: CoreSite = site, more: Any = more) -> None:
            async with open_core(site) as (rpc, zmq):
                async with heard(source='node', rpc=rpc, zmq=zmq, login='u:p', **dict(dict(network='regtest'), **more)) as listener:
                    await listener.until('new')
        with pytest.raises(NetError, match=said): asyncio.run(whole())
    deaf, garbled = CoreSite(), CoreSite()
    deaf.published, garbled.garbled = ['pubrawtx'], {'getblockchaininfo'}
    for site, said in ((deaf, 'does not publish what happens'), (garbled, 'no answers of a node')):
        async def odd(site: CoreSite = site) -> None:
            async with open_core(site) as (rpc, zmq), heard(source='node', rpc=rpc, zmq=zmq, login='u:p', network='regtest') as listener:
                await listener.until('new')
        with pytest.raises(NetError, match=said): asyncio.run(odd())


def test_the_cookie_of_a_node_may_be_named_as_text(tmp_path: Path) -> None:
    from cryptoexp.chain.node import read_login
    (tmp_path/'.cookie').write_text('__cookie__:abc\n')
    assert read_login(str(tmp_path/'.cookie')) == read_login(tmp_path/'.cookie') == '__cookie__:abc'
    assert read_login('u:p') == 'u:p'
    with pytest.raises(NetError, match='can not be read'): read_login(str(tmp_path/'nowhere'))


# ---- a whole node of another make

def test_the_monitor_on_bcoin(tmp_path: Path) -> None:
    "A wallet pays, a block confirms, the chain is reorganised, and a payment nobody heard of comes in the other block"
    if reason := install(): pytest.skip(f'no bcoin: {reason}')
    async def story(node: BcoinNode, listener: Listener) -> None:
        miner = await node.address('primary')
        await node.mine(1, miner)
        await eventually(lambda: listener.monitor.watch.scorer.height == 111)
        paid = await node.send('primary', {'address': miner, 'value': 3 * COIN})
        first = await listener.until('new', paid)
        assert first.event is not None and any(output.value == 3 * COIN for output in first.tx.outputs)   # type: ignore[union-attr]
        old, = await node.mine(1, miner)
        assert (await listener.until('confirmed', paid)).block.hash == old     # type: ignore[union-attr]
        await node.ask('POST', '/reset', {'height': 111})
        await node.mine(2, await node.address('primary'))
        assert (await listener.until('unconfirmed', paid)).block.hash == old   # type: ignore[union-attr]
        coinbases = [one for one in listener.told if one.kind == 'withdrawn']
        assert len(coinbases) == 1 and old in coinbases[0].reason
        standing(listener)

    async def whole() -> None:
        async with running(tmp_path) as node:
            await node.mine(110, await node.address('primary'))
            await node.settled('primary')
            async with heard(source='peer', host='127.0.0.1', port=node.port, network='regtest') as listener:
                await eventually(lambda: listener.monitor.source.counts['connections'] == 1)
                await story(node, listener)
    asyncio.run(whole())


# ---- as a process, ended by a signal

@contextlib.contextmanager
def in_thread(opening: Callable[[], Any]) -> Iterator[tuple[Any, Callable[[Awaitable[Any]], Any]]]:
    "A server in a thread of its own, for a monitor in another process; yields what it yields, and how to do something there"
    ready, found, loop = threading.Event(), list[Any](), asyncio.new_event_loop()
    stop = asyncio.Event()
    async def serve() -> None:
        async with opening() as where:
            found.append(where)
            ready.set()
            await stop.wait()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    def there(work: Any) -> Any: return asyncio.run_coroutine_threadsafe(work, loop).result(120)
    try: yield found[0], there
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)


class Process:
    "`cryptoexp monitor … --json` as a process"
    def __init__(self, *words: str):
        environment = {name: value for name, value in os.environ.items() if not name.startswith('OPENAI_')} | {'PYTHONPATH': str(ROOT)}
        program = 'from cryptoexp.cli import main; raise SystemExit(main())'
        command = [sys.executable, '-c', program, 'monitor', '--json', '--min-score', '0', *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines = list[dict[str, Any]]()

    def until(self, kind: str, txid: str = '') -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if self.lines[-1]['kind'] == kind and (self.lines[-1]['txid'] or '').startswith(txid): return self.lines[-1]
        raise AssertionError(f'{kind} {txid} was not told: {self.lines[-3:]} {self.process.communicate()}')

    def end(self, number: signal.Signals) -> str:   # what it said about itself
        self.process.send_signal(number)
        out, said = self.process.communicate(timeout=120)
        self.lines += [json.loads(line) for line in out.splitlines()]
        assert self.process.returncode == 0, said
        return said

    def new(self) -> list[str]: return [line['txid'] for line in self.lines if line['kind'] == 'new']


def checked(folder: Path, txs: list[Transaction], name: str) -> None:
    state = json.loads((folder/STATE).read_bytes())
    assert state['source'] == name and state['known'] == len(txs) and {txid for txid, _ in state['told']} == {tx.txid for tx in txs}


@pytest.mark.skipif(os.name == 'nt', reason='signals of this kind are not sent on Windows')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_mempool_space_as_a_process(tmp_path: Path, number: signal.Signals) -> None:
    txs = made()
    told = [esplora(tx) for tx in txs]
    gone = dict(replaced=[dict(replaced=txs[1].txid, by=told[8])], removed=[txs[1].txid])
    site = MempoolSite([changes(1, told[:4])], [changes(7, told[:5]), changes(8, [told[8]], **gone)])
    with in_thread(lambda: open_site(site)) as (url, _):
        words = ('--source', 'mempool.space', '--url', url, '--state', str(tmp_path))
        first = Process(*words)
        first.until('new', txs[3].txid)
        assert '4 transactions of' in first.end(number)
        checked(tmp_path, txs[:4], 'mempool.space')
        second = Process(*words)
        withdrawn = second.until('withdrawn', txs[1].txid)
        second.until('new', txs[8].txid)
        second.end(number)
        assert withdrawn['by'] == txs[8].txid and second.lines[0]['kind'] == 'gap' and 'did not run' in second.lines[0]['reason']
        assert second.new() == [txs[4].txid, txs[8].txid]


@pytest.mark.skipif(os.name == 'nt', reason='signals of this kind are not sent on Windows')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_peer_as_a_process(tmp_path: Path, number: signal.Signals) -> None:
    txs, site = made(), PeerSite()
    _, block = mined('11' * 32, 100, [txs[8]])
    site.plan = [[site.told(*txs[:4])], [site.told(*txs[:5]), 1.0, site.told(block)]]
    with in_thread(lambda: open_peer(site)) as (port, _):
        words = ('--source', 'p2p', f'127.0.0.1:{port}', '--network', 'regtest', '--state', str(tmp_path))
        first = Process(*words)
        for tx in txs[:4]: first.until('new', tx.txid)
        assert '4 transactions of' in first.end(number)
        checked(tmp_path, txs[:4], 'bitcoin node')
        second = Process(*words)
        withdrawn = second.until('withdrawn', txs[1].txid)      # a block holds its rival: the peer does not say so, the coins do
        second.until('new', txs[8].txid)
        second.end(number)
        assert withdrawn['by'] == txs[8].txid and 'did not run' in second.lines[0]['reason']
        assert second.new()[0] == txs[4].txid and not set(second.new()) & {tx.txid for tx in txs[:4]}


@pytest.mark.skipif(os.name == 'nt', reason='signals of this kind are not sent on Windows')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_node_as_a_process(tmp_path: Path, number: signal.Signals) -> None:
    txs, core = made(), CoreSite()
    async def do(*work: Awaitable[Any]) -> None:
        for one in work: await one
    with in_thread(lambda: open_core(core)) as ((rpc, zmq), there):
        (tmp_path/'.cookie').write_text('u:p')
        words = ('--source', 'node', rpc, '--zmq', zmq, '--login', str(tmp_path/'.cookie'), '--network', 'regtest',
                 '--state', str(tmp_path/'state'))
        async def picture(count: int) -> None:
            await core.subscribed()
            await eventually(lambda: core.asked.count('estimatesmartfee') >= count)
        first = Process(*words)
        there(picture(1))
        there(do(*(core.add(tx) for tx in txs[:4])))
        first.until('new', txs[3].txid)
        assert '4 transactions of' in first.end(number)
        checked(tmp_path/'state', txs[:4], 'bitcoin core')
        second = Process(*words)
        there(picture(2))
        there(do(core.replace(txs[1], txs[8]), core.mine(txs[0])))
        second.until('withdrawn', txs[1].txid)
        second.until('confirmed', txs[0].txid)
        second.end(number)
        assert 'did not run' in second.lines[0]['reason'] and txs[8].txid in second.new()
        assert not set(second.new()) & {tx.txid for tx in txs[:4]}
