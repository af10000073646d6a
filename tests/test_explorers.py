"The two websites, served on this machine with real transactions: what they tell arrives, what they lose is told as lost"
from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from explorer_servers import CUT, GOODBYE, InfoSite, MempoolSite, changes, esplora, info_block, open_site, site_block, utx
from regtest_patterns import patterns

from cryptoexp.chain.block import Block, read_block, read_spent, with_spent
from cryptoexp.chain.connection import Source
from cryptoexp.chain.events import BlockConnected, BlockDisconnected, Confirmed, Event, Gap, Replaced, Seen
from cryptoexp.chain.explorers import BlockchainInfo, MempoolSpace
from cryptoexp.chain.sources import WebsiteSource, movements, open_source, watched_scripts
from cryptoexp.chain.transaction import Transaction
from cryptoexp.net import NetError


@pytest.fixture(scope='module')
def block(data_folder: Path) -> Block:
    folder = data_folder/'bitcoin'
    return with_spent(read_block((folder/'block300025.raw').read_bytes()), read_spent((folder/'block300025-undo.raw').read_bytes()))


async def no_wait(seconds: float) -> None: await asyncio.sleep(0)


async def first(source: Source, count: int, seconds: float = 60.0) -> list[Event]:
    "The first events of a source"
    heard: list[Event] = []
    async with asyncio.timeout(seconds), aclosing(source.__aiter__()) as events:   # type: ignore[type-var]
        async for event in events:
            heard.append(event)
            if len(heard) == count: break
    return heard


def kinds(events: list[Event]) -> list[str]: return [type(event).__name__ for event in events]


def same(one: Transaction, other: Transaction) -> None:
    "The record of a website holds what the block holds"
    assert one.txid == other.txid and one.outputs == other.outputs and one.weight == other.weight and one.size == other.size
    assert [spent.previous for spent in one.inputs] == [spent.previous for spent in other.inputs]
    assert (one.fee, one.fee_rate, one.data_class) == (other.fee, other.fee_rate, 'P')


def test_blockchain_info_tells_a_block_of_transactions(block: Block) -> None:
    txs = block.transactions[1:]
    site = InfoSite([*map(utx, txs[:200]), info_block(block), utx(txs[0])])

    async def listen() -> list[Event]:
        async with open_site(site) as url: return await first(open_source('blockchain.info', url=url, sleep=no_wait), 201)
    heard = asyncio.run(listen())
    assert kinds(heard) == ['Seen'] * 200 + ['BlockConnected']
    for event, tx in zip(heard[:200], txs[:200], strict=True):
        assert isinstance(event, Seen)
        same(event.tx, tx)
        assert event.tx.wtxid == tx.wtxid and event.tx.locktime == tx.locktime      # no witness in 2014: one identity
    assert [request['op'] for request in site.asked] == ['unconfirmed_sub', 'blocks_sub']


def test_weights_follow_from_utx_messages_with_witnesses() -> None:
    "The patterns are segregated witness: their weight follows from size and scripts, exactly"
    for txs in patterns().values():
        for tx in txs:
            heard = BlockchainInfo().push(json.dumps(utx(tx)).encode(), 1)
            assert isinstance(heard[0], Seen) and heard[0].tx.weight == tx.weight and heard[0].tx.fee == tx.fee


def test_lines_that_are_cut_are_gaps(block: Block) -> None:
    "Cut, goodbye, silence, garbage: each is told, and the story goes on"
    txs = block.transactions[1:]
    site = InfoSite([utx(txs[0]), CUT], [utx(txs[1]), GOODBYE], [utx(txs[2]), 'nonsense', utx(txs[3]), 5.0], [utx(txs[4])])

    async def listen() -> tuple[list[Event], WebsiteSource]:
        async with open_site(site) as url:
            source = WebsiteSource(BlockchainInfo(), url, silence=1.5, keepalive=60.0, sleep=no_wait)
            return await first(source, 9), source
    heard, source = asyncio.run(listen())
    assert kinds(heard) == ['Seen', 'Gap', 'Seen', 'Gap', 'Seen', 'Unreadable', 'Seen', 'Gap', 'Seen']
    reasons = [event.reason for event in heard if isinstance(event, Gap)]
    assert 'cut' in reasons[0] or 'broke' in reasons[0]
    assert 'ended the connection' in reasons[1] and 'silent for 1.5 s' in reasons[2]
    assert source.counts['connections'] == 4 and source.counts['connections lost'] == 3


def test_pings_keep_a_line_alive(block: Block) -> None:
    site = InfoSite([utx(block.transactions[1]), 1.2, utx(block.transactions[2])])

    async def listen() -> list[Event]:
        async with open_site(site) as url:
            return await first(WebsiteSource(BlockchainInfo(), url, silence=30.0, keepalive=0.2, sleep=no_wait), 2)
    assert kinds(asyncio.run(listen())) == ['Seen', 'Seen']
    assert site.pings >= 1


def test_mempool_space_tells_everything(block: Block) -> None:
    "Added, replaced, removed, mined, a lost message, a reorganisation"
    txs = list(block.transactions[1:40])
    told = [esplora(tx) for tx in txs]
    other = site_block(block) | dict(id='77' * 32)
    before = site_block(block) | dict(id=block.header.previous, height=300_024, previousblockhash='66' * 32)
    gone = dict(replaced=[dict(replaced=txs[0].txid, by=told[30])], removed=[txs[0].txid])
    site = MempoolSite([changes(5, told[:30]), changes(6, told[30:31], **gone), changes(7, removed=[txs[1].txid]),
                        {'block': other, **changes(8, mined=[txs[2].txid, txs[3].txid])}, changes(11, told[31:33]),
                        {'blocks': [before, site_block(block)]}, changes(12, [told[33]])], blocks=[before])

    async def listen() -> list[Event]:
        async with open_site(site) as url: return await first(open_source('mempool.space', url=url, sleep=no_wait), 42)
    heard = asyncio.run(listen())
    assert kinds(heard) == ['Seen'] * 30 + ['Replaced', 'Seen', 'Removed', 'BlockConnected', 'Confirmed', 'Confirmed', 'Gap', 'Seen',
                                            'Seen', 'BlockDisconnected', 'BlockConnected', 'Seen']
    for event in heard:
        if isinstance(event, Seen): same(event.tx, next(tx for tx in txs if tx.txid == event.tx.txid))
    replaced, gap = heard[30], heard[36]
    assert isinstance(replaced, Replaced) and (replaced.txid, replaced.by) == (txs[0].txid, txs[30].txid)
    assert isinstance(gap, Gap) and gap.missed == 2
    confirmed, left, come = heard[34], heard[39], heard[40]
    assert isinstance(confirmed, Confirmed) and (confirmed.block.hash, confirmed.block.height) == ('77' * 32, 300_025)
    assert isinstance(left, BlockDisconnected) and left.block.hash == '77' * 32
    assert isinstance(come, BlockConnected) and come.block.hash == block.header.hash


def test_mempool_space_by_address(block: Block) -> None:
    "Addresses are asked for, and matched here all the same; too many are refused, and that is told"
    tx = block.transactions[5]
    address = next(output.address() for output in tx.outputs if output.address())
    assert address
    both = {address: dict(mempool=[esplora(tx)], confirmed=[], removed=[]), 'x': dict(mempool=[esplora(tx)])}
    message = {'multi-address-transactions': both}
    mined = {'block': site_block(block), 'multi-address-transactions': {address: dict(mempool=[], confirmed=[esplora(tx)], removed=[])}}
    site = MempoolSite([message, mined])

    async def listen() -> tuple[list[Event], list[Event]]:
        async with open_site(site) as url:
            told = await first(open_source('mempool.space', addresses=[address], url=url, sleep=no_wait), 3)
            return told, await first(open_source('mempool.space', addresses=[address] * 11, url=url, sleep=no_wait), 1)
    heard, refused = asyncio.run(listen())
    assert kinds(heard) == ['Seen', 'BlockConnected', 'Confirmed'] and site.asked[1] == {'track-addresses': [address]}
    assert isinstance(heard[0], Seen) and isinstance(heard[2], Confirmed) and heard[2].block.height == 300_025
    found = movements(heard[0].tx, watched_scripts([address]))
    assert found[0].received == sum(output.value for output in tx.outputs if output.address() == address) and found[0].complete
    assert isinstance(refused[0], Gap) and 'too many addresses' in refused[0].reason


def test_a_forged_transaction_is_refused(block: Block) -> None:
    "Any field of a transaction changed: its parts no longer give its txid"
    good = esplora(block.transactions[3])
    forged: list[dict[str, Any]] = [good | dict(version=9), good | dict(locktime=9), good | dict(vout=[*good['vout'], good['vout'][0]]),
                                    good | dict(vin=[good['vin'][0] | dict(sequence=9), *good['vin'][1:]]),
                                    good | dict(vin=[good['vin'][0] | dict(vout=77), *good['vin'][1:]]), good | dict(version=2**40)]
    site = MempoolSpace()
    heard = site.push(json.dumps(changes(1, [*forged, good])).encode(), 1)
    assert kinds(heard) == ['Unreadable'] * len(forged) + ['Seen']


def test_duplicates_and_disorder(block: Block) -> None:
    "Messages told twice, blocks told backwards"
    site = MempoolSpace()
    text = json.dumps(changes(1, [esplora(block.transactions[3])])).encode()
    assert kinds([*site.push(text, 1), *site.push(text, 2)]) == ['Seen']
    told = [dict(id=f'{height:064x}', height=height, timestamp=1, previousblockhash=f'{height - 1:064x}') for height in (7, 6, 5)]
    push = lambda message: site.push(json.dumps(message).encode(), 1)
    push({'blocks': told})
    assert push({'blocks': told}) == [] and site.chain.tip is not None and site.chain.tip.height == 7
    assert kinds(push({'block': told[0] | dict(id='99' * 32, height=9, previousblockhash='88' * 32)})) == ['Gap', 'BlockConnected']


def test_no_site_at_all() -> None:
    "The first connection fails: an error, not an endless wait"
    async def listen() -> None: await first(open_source('mempool.space', url='ws://127.0.0.1:9/x', sleep=no_wait), 1)
    with pytest.raises(NetError, match='no connection'): asyncio.run(listen())


@pytest.mark.long
def test_a_hundred_times_the_main_network(block: Block) -> None:
    "Seven hundred a second for a minute through the wire and the record: all arrive, memory does not grow with the stream"
    import resource
    txs = [utx(tx) for tx in block.transactions[1:]]
    many = [dict(op='utx', x=txs[number % len(txs)]['x'] | dict(hash=f'{number:064x}')) for number in range(42_000)]
    site = InfoSite(many)

    async def listen() -> tuple[Counter[str], int, int]:
        counts, sizes = Counter[str](), []
        async with open_site(site) as url:
            dialect = BlockchainInfo()
            dialect.pool.most_waiting = 2_000
            async for event in WebsiteSource(dialect, url, sleep=no_wait):
                counts[type(event).__name__] += 1
                if counts['Seen'] in (10_000, 42_000): sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
                if counts['Seen'] == 42_000: break
        return counts, *sizes
    counts, early, late = asyncio.run(listen())
    assert counts == {'Seen': 42_000} and late - early < 20_000     # kB
