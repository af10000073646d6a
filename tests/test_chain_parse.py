"Transactions, scripts, addresses and blocks against other people's code, and against bytes that are nothing"
from __future__ import annotations

import base64
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from kernel import check_spends
from regtest_patterns import HOSTILE, MIX, patterns

from cryptoexp.chain.block import Block, problems, read_block, read_block_file, read_spent, with_spent
from cryptoexp.chain.events import Seen, Unreadable, event_line, event_of
from cryptoexp.chain.explorers import BlockchainInfo, MempoolSpace
from cryptoexp.chain.peer import Conversation, read_headers, read_inventory
from cryptoexp.chain.script import (
    KINDS,
    MAINNET,
    NETWORKS,
    AddressError,
    address_of,
    base58check,
    from_base58check,
    from_segwit_address,
    script_kind,
    script_of,
    segwit_address,
)
from cryptoexp.chain.sources import BlockSource, recorded_events
from cryptoexp.chain.transaction import (
    COIN,
    MOST_SATOSHI,
    Input,
    Output,
    ParseError,
    Transaction,
    parse_transaction,
    read_transaction,
    transaction_bytes,
)

BLOCKS = ('300025', '574200', '702861', '928848')


@pytest.fixture(scope='module')
def raws(data_folder: Path) -> dict[str, bytes]:
    return {name: (data_folder/f'bitcoin/block{name}.raw').read_bytes() for name in BLOCKS}


@pytest.fixture(scope='module')
def blocks(raws: dict[str, bytes]) -> dict[str, Block]: return {name: read_block(raw) for name, raw in raws.items()}


# ---- other people's code

def bitcoinlib() -> Any:
    "python-bitcoinlib, whose name `bitcoin` our benchmark has too"
    saved, sys.path[:] = sys.path[:], [folder for folder in sys.path if Path(folder or '.').name != 'benchmarks']
    try: return pytest.importorskip('bitcoin.core')
    finally: sys.path[:] = saved


@pytest.mark.parametrize('name', BLOCKS)
def test_embit_and_bitcoinlib_read_the_same(blocks: dict[str, Block], name: str) -> None:
    "Identity, inputs, outputs and witnesses of every transaction"
    bitcoin = bitcoinlib()
    embit = pytest.importorskip('embit.transaction')
    for tx in blocks[name].transactions:
        raw = transaction_bytes(tx)
        one, other = embit.Transaction.parse(raw), bitcoin.CTransaction.deserialize(raw)
        assert tx.txid == one.txid().hex() == bitcoin.b2lx(other.GetTxid())
        assert tx.wtxid == bitcoin.b2lx(other.GetHash())
        assert tx.weight == other.calc_weight()
        assert (tx.version, tx.locktime) == (other.nVersion, other.nLockTime)
        assert [(one.txid, one.index, one.script_sig, one.sequence) for one in tx.inputs] == [
            (bitcoin.b2lx(one.prevout.hash), one.prevout.n, bytes(one.scriptSig), one.nSequence) for one in other.vin]
        made = [(output.nValue, bytes(output.scriptPubKey)) for output in other.vout]
        assert [(output.value, output.script) for output in tx.outputs] == made
        assert [list(one.witness or ()) for one in tx.inputs] == [list(one.witness.items) for one in one.vin]


@pytest.mark.parametrize('name', BLOCKS)
def test_embit_writes_the_same_addresses(blocks: dict[str, Block], name: str) -> None:
    script = pytest.importorskip('embit.script')
    networks = pytest.importorskip('embit.networks').NETWORKS
    theirs = {'mainnet': networks['main'], 'testnet3': networks['test'], 'signet': networks['signet'], 'regtest': networks['regtest']}
    seen = dict.fromkeys(output.script for tx in blocks[name].transactions for output in tx.outputs)
    for one in list(seen)[:2_000]:
        kind = script_kind(one)
        for ours in ('mainnet', 'testnet3', 'signet', 'regtest'):
            address = address_of(one, NETWORKS[ours])
            if kind in ('p2pkh', 'p2sh', 'p2wpkh', 'p2wsh', 'p2tr'): assert address == script.Script(one).address(theirs[ours])
            if address is not None: assert script_of(address, NETWORKS[ours]) == one
        if kind in ('p2pk', 'p2ms', 'op_return', 'nonstandard'): assert address_of(one) is None


@pytest.mark.parametrize('name', ['300025', '928848'])
def test_bitcoin_core_accepts_every_spend(blocks: dict[str, Block], data_folder: Path, name: str) -> None:
    "Every signature holds for the output we say it spends: so the previous outputs are the right ones, to the satoshi and the byte"
    block = with_spent(blocks[name], read_spent((data_folder/f'bitcoin/block{name}-undo.raw').read_bytes()))
    for tx in block.transactions[1:]: check_spends(tx)


def test_bitcoin_core_accepts_the_early_chain(data_folder: Path) -> None:
    import bz2

    from cryptoexp.chain.transaction import outputs_by_outpoint, with_previous
    file = bz2.decompress((data_folder/'bitcoin/blocks1-256.bz2').read_bytes())
    txs = [tx for height, (_, raw) in enumerate(read_block_file(file), 1) for tx in read_block(raw, height).transactions]
    made = outputs_by_outpoint(txs)
    spending = [with_previous(tx, made.get) for tx in txs if not tx.is_coinbase]
    assert len(spending) == 7
    for tx in spending: check_spends(tx)


def test_bitcoin_core_accepts_what_we_built() -> None:
    for txs in patterns().values():
        for tx in txs: check_spends(tx)


def test_what_we_built_is_what_it_is_called() -> None:
    "The patterns have the shapes that their names say; every previous output is known"
    found = patterns()
    assert all(tx.data_class == 'P' and (tx.fee or 0) > 0 for txs in found.values() for tx in txs)
    batch, gathered = found['batch'][0], found['consolidation'][0]
    assert (len(batch.inputs), len(batch.outputs)) == (1, 16) and (len(gathered.inputs), len(gathered.outputs)) == (6, 1)
    hops = found['peel']
    assert all(len(tx.inputs) == 1 and len(tx.outputs) == 2 for tx in hops)
    assert all(two.inputs[0].txid == one.txid for one, two in pairwise(hops))
    assert sum(output.value == 600 for output in found['dust'][0].outputs) == 8
    assert sum(one.previous is not None and one.previous.value == 600 for one in found['dust spent'][0].inputs) == 8
    joined = found['equal-output join'][0]
    assert [output.value for output in joined.outputs] == [MIX] * 5
    assert len({one.previous.script for one in joined.inputs if one.previous}) == 5
    texts = [output.script for tx in found['hostile text'] for output in tx.outputs if output.kind == 'op_return']
    assert all(text.encode() in script for text, script in zip(HOSTILE, texts, strict=True))
    assert {output.kind for output in found['script forms'][0].outputs} >= {'p2tr', 'p2wsh', 'p2sh', 'p2pkh'}
    again = found['address reuse'][0]
    assert again.outputs[0].script == again.inputs[0].previous.script  # type: ignore[union-attr]


BIP350 = {   # valid addresses of BIP 173 and BIP 350, and their scripts
    'BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4': '0014751e76e8199196d454941c45d1b3a323f1433bd6',
    'tb1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3q0sl5k7':
        '00201863143c14c5166804bd19203356da136c985678cd4d27a1b8c6329604903262',
    'bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y':
        '5128751e76e8199196d454941c45d1b3a323f1433bd6751e76e8199196d454941c45d1b3a323f1433bd6',
    'BC1SW50QGDZ25J': '6002751e', 'bc1zw508d6qejxtdg4y5r3zarvaryvaxxpcs': '5210751e76e8199196d454941c45d1b3a323',
    'bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0':
        '512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798'}
WRONG = ['tc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq5zuyut', 'bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd',
         'BC1S0XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ54WELL', 'bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh',
         'bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4', 'BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R',
         'bc1pw5dgrnzv', 'BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P', 'bc1gmk9yu',
         'tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq47Zagq',
         'bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf', '', '1', 'bc1', '3' * 34]


def test_addresses_of_the_proposals() -> None:
    for address, script in BIP350.items(): assert script_of(address).hex() == script
    for address in WRONG:
        with pytest.raises(AddressError): script_of(address)


# ---- round trips

data = some.binary(max_size=300)
inputs = some.builds(Input, some.binary(min_size=32, max_size=32).map(bytes.hex), some.integers(0, 2**32 - 1), data,
                     some.integers(0, 2**32 - 1), some.lists(data, max_size=4).map(tuple))
outputs = some.builds(Output, some.integers(0, MOST_SATOSHI), data)
made_up = some.builds(lambda version, locktime, spent, made: Transaction('', None, version, locktime, tuple(spent), tuple(made)),
                      some.integers(-2**31, 2**31 - 1), some.integers(0, 2**32 - 1), some.lists(inputs, min_size=1, max_size=6),
                      some.lists(outputs, max_size=300))


@given(made_up)
@settings(deadline=None)
def test_what_is_written_is_read_again(tx: Transaction) -> None:
    raw = transaction_bytes(tx)
    again = parse_transaction(raw)
    assert (again.version, again.locktime, again.inputs, again.outputs) == (tx.version, tx.locktime, tx.inputs, tx.outputs)
    assert transaction_bytes(again) == raw and again.size == len(raw)
    assert again.weight == 3 * len(transaction_bytes(tx, witness=False)) + len(raw)
    assert (again.txid == again.wtxid) == (not tx.has_witness)
    event = Seen(2**62, 'made up', again)
    assert event_of(event_line(event)) == event
    padded, end = read_transaction(b'xyz' + raw + b'more', 3)
    assert (padded, end) == (again, 3 + len(raw))


@given(made_up, some.data())
@settings(deadline=None)
def test_cut_short_anywhere_it_is_an_error(tx: Transaction, draw: some.DataObject) -> None:
    raw = transaction_bytes(tx)
    end = draw.draw(some.integers(0, len(raw) - 1))
    with pytest.raises(ParseError) as caught: parse_transaction(raw[:end])
    assert 0 <= caught.value.offset <= end


@given(some.integers(0, 255), some.binary(max_size=60))
def test_base58_round_trip(version: int, payload: bytes) -> None:
    whole = bytes((version,)) + payload
    assert from_base58check(base58check(whole)) == whole


@given(some.sampled_from(['bc', 'tb', 'bcrt']), some.integers(0, 16), some.binary(min_size=2, max_size=40))
def test_bech32_round_trip(prefix: str, version: int, program: bytes) -> None:
    if not version: program = (program * 16)[:20 if len(program) < 20 else 32]
    text = segwit_address(prefix, version, program)
    assert from_segwit_address(text) == from_segwit_address(text.upper()) == (prefix, version, program)
    place = len(text) - 1 - len(program) % 6
    wrong = text[:place] + ('q' if text[place] != 'q' else 'p') + text[place + 1:]
    with pytest.raises(AddressError): from_segwit_address(wrong)


# ---- bytes that are nothing

@given(some.binary(max_size=200))
def test_any_bytes_are_read_or_refused(junk: bytes) -> None:
    for read in (parse_transaction, read_block, read_spent, lambda raw: list(read_block_file(MAINNET.magic + raw))):
        try: read(junk)   # type: ignore[operator]
        except ParseError as error: assert str(error)
    assert script_kind(junk) in KINDS
    address = address_of(junk)
    if address is not None: assert script_of(address, MAINNET) == junk
    for read in (read_inventory, read_headers):
        try: read(junk)
        except ValueError: pass
    talk = Conversation('peer')
    for command in ('version', 'verack', 'inv', 'tx', 'block', 'headers', 'notfound', 'ping', 'addr', base64.b64encode(junk).decode()):
        events, _ = talk.hear(command, junk, 1)
        assert all(isinstance(event, Unreadable | Seen) for event in events)


@given(some.binary(max_size=120) | some.text(max_size=80).map(str.encode))
def test_any_message_of_a_website_is_read_or_told(junk: bytes) -> None:
    for dialect in (BlockchainInfo(), MempoolSpace()):
        for text in (junk, b'{"op":"utx","x":' + junk + b'}', b'{"mempool-transactions":' + junk + b'}'): dialect.push(text, 1)
    list(recorded_events(junk.splitlines()))


@pytest.mark.parametrize('name', ['300025', '928848'])
def test_one_byte_changed_in_a_block(raws: dict[str, bytes], name: str) -> None:
    "Refused, or read and found wrong; never believed"
    raw, length = raws[name], len(raws[name])
    for place in range(0, length, length // 40):
        changed = raw[:place] + bytes((raw[place] ^ 0x55,)) + raw[place + 1:]
        try: assert problems(read_block(changed))
        except ParseError as error: assert 0 <= error.offset <= length


def test_a_claimed_length_costs_nothing() -> None:
    "Four billion inputs, outputs, witnesses or bytes in a message of sixty: no memory is set aside"
    import tracemalloc
    head = '02000000' '0001'
    one = '01' + '11' * 32 + '00000000'
    most = 'feffffff01'    # 33,554,431: the most that is read at all
    tracemalloc.start()
    for text in ('02000000' + most + '00' * 50, '02000000' + one + most + '00' * 50, '02000000' + one + '00ffffffff' + most + '00' * 50,
                 head + one + '00ffffffff' '00' + most + '00' * 50, head + one + '00ffffffff' '00' '01' + most + '00' * 50,
                 '02000000' 'ffffffffffffffffff' + '00' * 50):
        with pytest.raises(ParseError): parse_transaction(text)
    header, huge = bytes(76) + b'\1\0\0\0', (b'\xfe\xff\xff\xff\1', b'\xff' * 9, b'\xfe\xff\xff\xff\xff')
    for length in huge:
        for read in (lambda claim: read_block(header + claim + bytes(60)), lambda claim: read_spent(bytes(8) + claim + bytes(60)),
                     lambda claim: list(read_block_file(MAINNET.magic + claim[-4:] + bytes(60))),
                     lambda claim: read_inventory(claim + bytes(60)), lambda claim: read_headers(claim + bytes(60))):
            with pytest.raises(ValueError): read(length)
        talk = Conversation('peer')
        for command in ('tx', 'block', 'inv', 'headers', 'notfound', 'version'): talk.hear(command, length + bytes(60), 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_peer_that_claims_a_long_message_gets_no_memory_for_it() -> None:
    "Four million bytes claimed, twenty sent: what is set aside is what came"
    import asyncio
    import tracemalloc

    from cryptoexp.chain.peer import message_bytes, read_message

    async def read() -> int:
        reader = asyncio.StreamReader()
        reader.feed_data(message_bytes(MAINNET, 'tx', b'')[:16] + (4_000_000).to_bytes(4, 'little') + bytes(24))
        reader.feed_eof()
        tracemalloc.start()
        with pytest.raises(asyncio.IncompleteReadError): await read_message(reader, MAINNET)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak
    assert asyncio.run(read()) < 100_000


# ---- what is known of the blocks

def test_known_answers(blocks: dict[str, Block]) -> None:
    "Large payments and a sanctioned address, as the notes on the data tell them"
    large = [tx for tx in blocks['574200'].transactions[1:] if tx.output_value >= 100 * COIN]
    assert len(large) == 20 and any(tx.txid.startswith('6ae2101c36364bde') for tx in large)
    bitfinex = next(tx for tx in large if tx.txid.startswith('6ae2101c36364bde'))
    assert round(max(output.value for output in bitfinex.outputs) / COIN, 2) == 993.09
    listed = next(tx for tx in blocks['574200'].transactions if tx.txid.startswith('41f366c2afcc222f'))
    assert [round(output.value / COIN, 3) for output in listed.outputs if (output.address() or '').startswith('1NpHuti9')] == [0.388]
    assert max(tx.output_value for tx in blocks['702861'].transactions) // COIN == 24_715


def test_a_file_that_is_no_block_is_called_so(tmp_path: Path, raws: dict[str, bytes]) -> None:
    picture = b'\x89PNG\r\n\x1a\n' + bytes(range(256)) * 100      # its four bytes of a target stand for more than any hash
    for name, content, said in (('sheet.png', picture, 'sheet.png is no block: its header does not meet its own target'),
                                ('cut.raw', raws['574200'][:100_000], 'cut.raw: the bytes end too early'),
                                ('short.txt', b'hello', 'after 5 of them')):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ParseError, match=said): list(BlockSource(tmp_path/name).blocks())
