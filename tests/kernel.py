"Bitcoin Core's own consensus code, from the package py-bitcoinkernel: whether a transaction or a chain is valid to it"
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cryptoexp.chain.transaction import Transaction, transaction_bytes

WHY_NOT = 'py-bitcoinkernel has no wheel for this Python and machine'


def kernel() -> Any:
    "The package; skips the test where there is none"
    return pytest.importorskip('pbk', reason=WHY_NOT)


def check_spends(tx: Transaction) -> None:
    "Every input spends its previous output by the rules; raises what the kernel raises"
    pbk = kernel()
    from pbk.script import PrecomputedTransactionData
    spender = pbk.Transaction(transaction_bytes(tx))
    spent = []
    for one in tx.inputs:
        assert one.previous is not None
        spent.append(pbk.TransactionOutput(pbk.ScriptPubkey(one.previous.script), one.previous.value))
    data = PrecomputedTransactionData(spender, spent)
    for place, output in enumerate(spent):
        flags = pbk.ScriptVerificationFlags.ALL
        assert output.script_pubkey.verify(output.amount, spender, data, place, flags), (tx.txid, place)


def height_after(folder: Path, blocks: list[bytes]) -> int:
    "The height that a chain of regtest reaches when every block of it is handed to the kernel"
    pbk = kernel()
    manager = pbk.load_chainman(folder, pbk.ChainType.REGTEST)
    for raw in blocks: manager.process_block(pbk.Block(raw))
    return int(manager.get_active_chain().height)
