"""A coverage-guided search for bytes that our parsers of the chain neither read nor refuse: `make fuzz` (longer: ARGS=-max_total_time=600).

The first byte chooses what is read. Whatever is read as a transaction must give the same bytes again. Seeds are the transactions of
tests/regtest_patterns.jsonl and messages made of them; what is found is kept in .cache/fuzz, and a crash in .cache/fuzz/crash-…"""
from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=['cryptoexp.chain']):
    from cryptoexp.chain.block import problems, read_block, read_block_file, read_spent
    from cryptoexp.chain.events import event_line, event_of
    from cryptoexp.chain.explorers import BlockchainInfo, MempoolSpace
    from cryptoexp.chain.peer import Conversation
    from cryptoexp.chain.script import MAINNET, AddressError, address_of, script_kind, script_of
    from cryptoexp.chain.sources import recorded_events
    from cryptoexp.chain.transaction import ParseError, parse_transaction, transaction_bytes

sys.path.insert(0, str(Path(__file__).resolve().parent))
from explorer_servers import changes, esplora, utx
from regtest_patterns import patterns

CACHE = Path(__file__).resolve().parent.parent/'.cache'/'fuzz'


def transaction(data: bytes) -> None:
    with contextlib.suppress(ParseError): assert transaction_bytes(parse_transaction(data)) == data


def block(data: bytes) -> None:
    with contextlib.suppress(ParseError): problems(read_block(data))
    with contextlib.suppress(ParseError): list(read_block_file(MAINNET.magic + data))
    with contextlib.suppress(ParseError): read_spent(data)


def script(data: bytes) -> None:
    script_kind(data)
    if address := address_of(data): assert script_of(address, MAINNET) == data
    with contextlib.suppress(AddressError): script_of(data.decode('latin-1'))


def peer(data: bytes) -> None:
    talk = Conversation('peer')
    for command in ('version', 'inv', 'tx', 'block', 'headers', 'notfound'): talk.hear(command, data, 1)


def message(data: bytes) -> None:
    told = [event for dialect in (BlockchainInfo(), MempoolSpace()) for event in dialect.push(data, 1)]
    for event in (*told, *recorded_events(data.splitlines())): assert event_of(event_line(event)) == event


READERS = (transaction, block, script, peer, message)


def one(data: bytes) -> None:
    if data: READERS[data[0] % len(READERS)](data[1:])


def seeds() -> None:
    "What the search begins with"
    CACHE.mkdir(parents=True, exist_ok=True)
    for number, tx in enumerate(tx for txs in patterns().values() for tx in txs):
        (CACHE/f'seed-{number}-transaction').write_bytes(b'\0' + transaction_bytes(tx))
        (CACHE/f'seed-{number}-script').write_bytes(b'\2' + tx.outputs[0].script)
        (CACHE/f'seed-{number}-utx').write_bytes(b'\4' + json.dumps(utx(tx)).encode())
        (CACHE/f'seed-{number}-esplora').write_bytes(b'\4' + json.dumps(changes(number, [esplora(tx)])).encode())


if __name__ == '__main__':
    seeds()
    atheris.Setup([sys.argv[0], *(sys.argv[1:] or ['-max_total_time=60']), f'-artifact_prefix={CACHE}/', '-max_len=4096', str(CACHE)], one)
    atheris.Fuzz()
