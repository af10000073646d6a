"""Bitcoin transactions into records, beside embit, python-bitcoinlib and plain msgspec: the same work on both sides, ratios in one run.

    python benchmarks/bitcoin.py [BLOCK …]

A block is a raw file; by default those of the recordings. Work on a transaction, from its bytes: *txid* is the parsed transaction and its
txid; *scripts* adds every script of its inputs and outputs, as bytes; *types, addresses* adds the form of every output's script and its
address. Each side does it in its own way; what they found is compared before anything is timed. All tasks run in turn, several rounds, on
one core; the best round counts, and the spread of the ratio over the rounds is told. `utx` messages of blockchain.info are made from the
block (prev_out made up); plain msgspec decodes them into typed structs and stops there, we go on to the record."""
from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]   # else this file were `bitcoin`

from cryptoexp.chain.block import read_block  # noqa: E402
from cryptoexp.chain.explorers import Utx, utx_transaction  # noqa: E402
from cryptoexp.chain.script import address_of, script_kind  # noqa: E402
from cryptoexp.chain.transaction import Transaction, parse_transaction, transaction_bytes  # noqa: E402
from cryptoexp.config import data_folder  # noqa: E402

ROUNDS = 5


def rounds(tasks: dict[str, Callable[[Any], Any]], items: list[Any], count: int = ROUNDS) -> dict[str, list[float]]:
    "Seconds of every task in every round; in turn, so that a busy moment hits them all"
    took: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(count):
        for name, task in tasks.items():
            gc.collect()
            start = time.perf_counter()
            kept = [task(item) for item in items]
            took[name].append(time.perf_counter() - start)
            del kept
    return took


# ---- ours, embit's, python-bitcoinlib's

def ours_scripts(raw: bytes) -> Any:
    tx = parse_transaction(raw)
    return tx.txid, [one.script_sig for one in tx.inputs], [output.script for output in tx.outputs]


def ours_addresses(raw: bytes) -> Any:
    tx = parse_transaction(raw)
    scripts = [output.script for output in tx.outputs]
    return tx.txid, [script_kind(script) for script in scripts], [address_of(script) for script in scripts]


def embit_tasks() -> dict[str, Callable[[bytes], Any]]:
    from embit.networks import NETWORKS
    from embit.transaction import Transaction as Embit
    main = NETWORKS['main']

    def scripts(raw: bytes) -> Any:
        tx = Embit.parse(raw)
        return tx.txid().hex(), [one.script_sig.data for one in tx.vin], [output.script_pubkey.data for output in tx.vout]

    def address(script: Any, kind: str | None) -> str | None: return script.address(main) if kind else None

    def addresses(raw: bytes) -> Any:
        tx = Embit.parse(raw)
        kinds = [output.script_pubkey.script_type() for output in tx.vout]
        return tx.txid().hex(), kinds, [address(output.script_pubkey, kind) for output, kind in zip(tx.vout, kinds, strict=True)]
    return {'txid': lambda raw: Embit.parse(raw).txid().hex(), 'scripts': scripts, 'types, addresses': addresses}


def bitcoinlib_tasks() -> dict[str, Callable[[bytes], Any]]:
    from bitcoin.core import CTransaction, b2lx
    from bitcoin.wallet import CBitcoinAddress, CBitcoinAddressError

    def scripts(raw: bytes) -> Any:
        tx = CTransaction.deserialize(raw)
        return b2lx(tx.GetTxid()), [bytes(one.scriptSig) for one in tx.vin], [bytes(output.scriptPubKey) for output in tx.vout]

    def address(script: Any) -> tuple[str, str | None]:
        try: found = CBitcoinAddress.from_scriptPubKey(script)
        except CBitcoinAddressError: return 'other', None
        return type(found).__name__, str(found)

    def addresses(raw: bytes) -> Any:
        tx = CTransaction.deserialize(raw)
        found = [address(output.scriptPubKey) for output in tx.vout]
        return b2lx(tx.GetTxid()), [kind for kind, _ in found], [text for _, text in found]
    return {'txid': lambda raw: b2lx(CTransaction.deserialize(raw).GetTxid()), 'scripts': scripts, 'types, addresses': addresses}


OURS: dict[str, Callable[[bytes], Any]] = {
    'txid': lambda raw: parse_transaction(raw).txid, 'scripts': ours_scripts, 'types, addresses': ours_addresses}


def agree(work: str, raws: list[bytes], theirs: Callable[[bytes], Any]) -> None:
    "Both found the same (types have other names; addresses of forms that the other does not know are left out)"
    for raw in raws[:400]:
        one, other = OURS[work](raw), theirs(raw)
        if work == 'types, addresses':
            one, other = (one[0], [a for a, b in zip(one[2], other[2], strict=True) if b]), (other[0], [b for b in other[2] if b])
        assert one == other, (work, one, other)


# ---- utx

def utx_message(tx: Transaction) -> bytes:
    "The message that blockchain.info would send; what the inputs spend is made up"
    def output(value: int, script: bytes, place: int) -> dict[str, Any]:
        return dict(spent=False, tx_index=0, type=0, addr=address_of(script), value=value, n=place, script=script.hex())
    spent = bytes.fromhex('76a9147b962060ae4cdf0d236f2530e4dbd0fdf362456488ac')
    inputs = [dict(sequence=one.sequence, prev_out=output(12_909_020, spent, place), script=(one.script_sig or b'').hex())
              for place, one in enumerate(tx.inputs)]
    made = [output(one.value, one.script, place) for place, one in enumerate(tx.outputs)]
    told = dict(lock_time=tx.locktime, ver=tx.version, size=tx.size, inputs=inputs, time=1_570_486_934, tx_index=0, vin_sz=len(inputs),
                hash=tx.txid, vout_sz=len(made), relayed_by='0.0.0.0', out=made)
    return json.dumps(dict(op='utx', x=told)).encode()


class Envelope(msgspec.Struct):
    op: str
    x: Utx


def utx_tasks() -> dict[str, Callable[[bytes], Any]]:
    decode = msgspec.json.Decoder(Envelope).decode
    return {'ours, to the record': lambda text: utx_transaction(decode(text).x),
            'plain msgspec, typed': decode, 'json of Python': json.loads}


# ---- the tables

def table(title: str, took: dict[str, list[float]], first: str, count: int) -> None:
    print(f'\n{title}')
    for name, seconds in took.items():
        ratio = [other / one for one, other in zip(took[first], seconds, strict=True)]
        middle = statistics.median(ratio)
        spread = f'({min(ratio):.2f} … {max(ratio):.2f})'
        print(f'  {name:24} {count / min(seconds):>11,.0f} tx/s   ours is {middle:5.2f} times as fast {spread}')


def run(path: Path) -> None:
    block = read_block(path.read_bytes())
    raws = [transaction_bytes(tx) for tx in block.transactions]
    others = {'embit': embit_tasks(), 'python-bitcoinlib': bitcoinlib_tasks()}
    spends, makes = sum(len(tx.inputs) for tx in block.transactions), sum(len(tx.outputs) for tx in block.transactions)
    print(f'\n=== {path.name}: {len(raws):,} transactions, {spends:,} inputs, {makes:,} outputs, {block.size:,} bytes')
    for work, ours in OURS.items():
        for tasks in others.values(): agree(work, raws, tasks[work])
        table(work, rounds({'ours': ours} | {name: tasks[work] for name, tasks in others.items()}, raws), 'ours', len(raws))
    whole = rounds({'ours': read_block}, [path.read_bytes()])
    print(f'\nthe whole block: {min(whole["ours"]) * 1e3:.0f} ms')
    messages = [utx_message(tx) for tx in block.transactions[1:]]
    title = f'utx messages, {statistics.mean(map(len, messages)):,.0f} bytes each'
    table(title, rounds(utx_tasks(), messages), 'ours, to the record', len(messages))


def main() -> None:
    folder = data_folder()
    paths = [Path(word) for word in sys.argv[1:]] or [folder/f'bitcoin/block{name}.raw' for name in ('574200', '928848')] if folder else []
    if not paths: raise SystemExit('no recordings here: name the files of raw blocks')
    for path in paths: run(path)


if __name__ == '__main__': main()
