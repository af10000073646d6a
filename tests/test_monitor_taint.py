"""Taint by three rules against an oracle that follows every satoshi by itself, what withdrawing and restoring do to it, what configuration
chooses; and the votes of change that its spenders cast."""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.chain.events import BlockConnected, BlockDisconnected, Confirmed, Removed, Replaced, Seen
from cryptoexp.chain.flow import (
    CLEAN,
    MOST_PIECES,
    TAINT_RULES,
    carried,
    change_known,
    cut_out,
    first_in_first_out,
    haircut,
    length,
    poison,
    taint_of,
)
from cryptoexp.chain.history import Entry, History, Piece
from cryptoexp.chain.labels import Label, Labels
from cryptoexp.chain.risk import RiskConfig
from cryptoexp.chain.scoring import ScoredTransaction, Scorer, restore
from cryptoexp.chain.signal import Window, context_of
from cryptoexp.chain.transaction import BlockPlace, Input, Output, PreviousOutput, Transaction
from cryptoexp.chain.watch import Watch


def script(name: object) -> bytes: return b'\0\x14' + str(name).encode()[:20].ljust(20, b'.')


LISTED = Labels({script('listed'): (Label('a person', 'sanctioned', 'made up', 'none', True),)})
Spent = tuple[str, int, int, str]      # txid and index of an output, its satoshi and its owner


def name_of(number: int) -> str: return f'{number:08x}' * 8


def made(txid: str, spends: list[Spent], pays: list[tuple[int, str]], **more: Any) -> Transaction:
    inputs = tuple(Input(parent, index, b'', 0xfffffffe, (), PreviousOutput(value, script(owner)))
                   for parent, index, value, owner in spends)
    return Transaction(txid, None, 2, 0, inputs, tuple(Output(value, script(owner)) for value, owner in pays), **(
        dict(size=200, weight=800, first_seen=1) | more))


# ---- the rules by themselves

@st.composite
def coins(draw: st.DrawFn) -> list[list[int]]:
    "A few coins, each a row of satoshi with the distance of its source, 0 for a clean one"
    return draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 2]), max_size=12), min_size=1, max_size=6))


def pieces_of(row: list[int]) -> tuple[Piece, ...]:
    "Runs of equal distances"
    cuts = [0, *(place for place in range(1, len(row)) if row[place] != row[place - 1]), len(row)]
    return tuple((begin, end, row[begin]) for begin, end in pairwise(cuts) if end > begin and row[begin])


def coin(row: list[int]) -> tuple[int, tuple[float, ...], tuple[Piece, ...], int]:
    shares = tuple(row.count(distance) / len(row) for distance in (1, 2)) if row else ()
    return len(row), shares, pieces_of(row), min((distance for distance in row if distance), default=0)


@settings(max_examples=150, deadline=None)
@given(coins(), st.data())
def test_rules_on_a_single_transaction(rows: list[list[int]], data: st.DataObject) -> None:
    "First in, first out is a shift and a cut; nothing grows; what is lost went to the miner; poison is the most"
    laid, purses = [one for row in rows for one in row], [coin(row) for row in rows]
    total = len(laid)
    fee = data.draw(st.integers(0, total))
    paid, tainted = total - fee, sum(one > 0 for one in laid)
    cuts = sorted(data.draw(st.lists(st.integers(0, paid), max_size=4)))
    ends = [*cuts, paid]
    pieces = first_in_first_out(purses, paid)
    assert pieces == pieces_of(laid[:paid])
    outputs = [(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    by_fifo = [length(cut_out(pieces, begin, end)) for begin, end in outputs]
    assert by_fifo == [sum(one > 0 for one in laid[begin:end]) for begin, end in outputs]
    assert tainted - fee <= sum(by_fifo) == length(pieces) <= tainted
    share = sum(haircut(purses))
    by_haircut = [share * (end - begin) for begin, end in outputs]
    assert share == pytest.approx(tainted / total if total else 0.0)
    assert tainted * (1 - (fee / total if total else 0)) == pytest.approx(sum(by_haircut)) and sum(by_haircut) <= tainted + 1e-9
    by_poison = [end - begin if poison(purses) else 0 for begin, end in outputs]
    assert all(most >= exact and most + 1e-9 >= part for most, exact, part in zip(by_poison, by_fifo, by_haircut, strict=True))
    assert poison(purses) == min((one for one in laid if one), default=0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=MOST_PIECES, max_size=4 * MOST_PIECES))
def test_the_number_of_pieces_has_a_bound_and_only_the_smallest_are_lost(parts: list[tuple[int, int]]) -> None:
    rows = [[1] * size + [0] * gap for size, gap in parts]
    whole, kept = pieces_of([one for row in rows for one in row]), first_in_first_out([coin(row) for row in rows], 10**6)
    assert len(kept) == min(len(whole), MOST_PIECES) and set(kept) <= set(whole)
    lost = [end - begin for begin, end, _ in set(whole) - set(kept)]
    assert max(lost, default=0) <= min((end - begin for begin, end, _ in kept), default=0)


# ---- in the machine, against an oracle that follows every satoshi

@st.composite
def economies(draw: st.DrawFn) -> list[Transaction]:
    "Transactions that spend outputs of each other, each once, with balanced amounts, in a possible order"
    unspent = [(name_of(10_000 + number), 0, draw(st.integers(1, 15)), 'listed' if number < 3 else f'owner {number}')
               for number in range(8)]
    transactions = []
    for number in range(draw(st.integers(1, 12))):
        if not unspent: break
        chosen = draw(st.lists(st.sampled_from(unspent), min_size=1, max_size=3, unique=True))
        unspent = [one for one in unspent if one not in chosen]
        total = sum(value for _, _, value, _ in chosen)
        cuts = sorted(draw(st.lists(st.integers(0, total), min_size=1, max_size=3)))
        values = [high - low for low, high in zip([0, *cuts], cuts, strict=False)]     # what is behind the last cut is the fee
        pays = [(value, draw(st.sampled_from(['a', 'b', 'c', 'd', 'listed']))) for value in values]
        transactions.append(made(name_of(number), chosen, pays))
        unspent += [(name_of(number), index, value, owner) for index, (value, owner) in enumerate(pays)]
    return transactions


class Oracle:
    "Every satoshi of every output with its distance; shares as fractions by distance; the nearest source"
    def __init__(self, hops: int) -> None:
        self.hops = hops
        self.rows: dict[tuple[str, int], list[int]] = {}
        self.shares: dict[str, dict[int, Fraction]] = {}
        self.nearest: dict[str, int] = {}

    def further(self, distance: int) -> int: return distance + 1 if 0 < distance < self.hops else 0
    def add(self, tx: Transaction) -> tuple[list[int], dict[int, Fraction], int]:
        laid, shares, near, total = list[int](), dict[int, Fraction](), list[int](), tx.input_value or 0
        for one in tx.inputs:
            assert one.previous is not None and one.txid is not None and one.index is not None
            value = one.previous.value
            if one.previous.script == script('listed'):
                row, parts, distance = [1] * value, {1: Fraction(1)}, 1
            else:
                row = [self.further(each) for each in self.rows.get((one.txid, one.index), [0] * value)]
                parts = {self.further(each): part for each, part in self.shares.get(one.txid, {}).items() if self.further(each)}
                distance = self.further(self.nearest.get(one.txid, 0))
            laid += row
            near += [distance] if distance else []
            for each, part in parts.items():
                if total: shares[each] = shares.get(each, Fraction(0)) + part * value / total
        place = 0
        for index, output in enumerate(tx.outputs):
            self.rows[tx.txid, index] = laid[place:place + output.value]
            place += output.value
        self.shares[tx.txid], self.nearest[tx.txid] = shares, min(near, default=0)
        return laid, shares, self.nearest[tx.txid]


@settings(max_examples=60, deadline=None)
@given(economies(), st.integers(1, 5))
def test_every_satoshi_is_where_the_oracle_has_it(transactions: list[Transaction], hops: int) -> None:
    scorer, oracle = Scorer(LISTED, RiskConfig(hops=hops)), Oracle(hops)
    for tx in transactions:
        taint = taint_of(tx, context_of(tx, 1, scorer.history, LISTED, Window(100)), hops)
        scorer.step(tx)
        entry = scorer.history.entries[tx.txid]
        laid, shares, nearest = oracle.add(tx)
        values = [output.value for output in tx.outputs]
        assert entry.distance == taint.distance == nearest
        assert entry.pieces == pieces_of(laid[:sum(values)])
        assert carried(taint, values, 'fifo') == [sum(one > 0 for one in oracle.rows[tx.txid, index]) for index in range(len(values))]
        for each in range(1, hops + 1):
            told = entry.shares[each - 1] if len(entry.shares) >= each else 0.0
            assert told == pytest.approx(float(shares.get(each, 0)))
        assert max((one for one in laid), default=0) <= hops and len(entry.shares) <= hops
        by = {rule: carried(taint, values, rule) for rule in TAINT_RULES}
        for worst, exact, part in zip(by['poison'], by['fifo'], by['haircut'], strict=True):
            assert worst >= exact and worst + 1e-9 >= part
        assert sum(by['fifo']) <= sum(one > 0 for one in laid) and taint.by('fifo')[0] <= 1


@settings(max_examples=50, deadline=None)
@given(economies(), st.data())
def test_nothing_grows_in_an_economy(transactions: list[Transaction], data: st.DataObject) -> None:
    "Without new sources, what is tainted and unspent never grows, by haircut or first in, first out; the first is lost to fees only"
    listed = next((tx for tx in transactions if any(one.previous and one.previous.script == script('listed') for one in tx.inputs)), None)
    if listed is None: return
    scorer, open_now = Scorer(LISTED, RiskConfig(hops=20)), dict[tuple[str, int], dict[str, float]]()
    for tx in transactions:
        sources = [one.previous.value for one in tx.inputs if one.previous and one.previous.script == script('listed')]
        before = {rule: sum(open_now.get(one.outpoint or ('', 0), {}).get(rule, 0.0) for one in tx.inputs
                            if one.previous and one.previous.script != script('listed')) + sum(sources) for rule in TAINT_RULES}
        taint = taint_of(tx, context_of(tx, 1, scorer.history, LISTED, Window(100)), 20)
        scorer.step(tx)
        values = [output.value for output in tx.outputs]
        after = {rule: carried(taint, values, rule) for rule in TAINT_RULES}
        fee, total = tx.fee or 0, tx.input_value or 0
        assert before['fifo'] - fee <= sum(after['fifo']) <= before['fifo']
        assert sum(after['haircut']) == pytest.approx(before['haircut'] * (1 - fee / total) if total else 0.0)
        for index in range(len(values)): open_now[tx.txid, index] = {rule: after[rule][index] for rule in TAINT_RULES}


def notes(history: History) -> dict[str, tuple[Any, ...]]:
    return {txid: (entry.tainted, entry.distance, entry.shares, entry.pieces, entry.votes) for txid, entry in history.entries.items()}


@pytest.mark.parametrize('rule', TAINT_RULES)
@settings(max_examples=25, deadline=None)
@given(chosen=economies(), cut=st.integers(0, 12), depth=st.integers(2, 30))
def test_a_restored_machine_knows_the_taint(rule: str, chosen: list[Transaction], cut: int, depth: int) -> None:
    config = RiskConfig(taint=rule)
    straight, first = (Scorer(LISTED, config, History(depth)) for _ in range(2))
    expected = [straight.step(tx) for tx in chosen]
    events = [first.step(tx) for tx in chosen[:cut]]
    second = restore(first.snapshot(), Scorer(LISTED, config, History(depth)))
    assert notes(second.history) == notes(first.history)
    events += [second.step(tx) for tx in chosen[cut:]]
    assert events == expected and notes(second.history) == notes(straight.history)


@settings(max_examples=40, deadline=None)
@given(economies(), st.data())
def test_a_withdrawn_transaction_takes_its_taint_with_it(transactions: list[Transaction], data: st.DataObject) -> None:
    "Replaced, it goes with all that spends from it; what is told of the rest is as if it had never been"
    watch, other = (Watch(Scorer(LISTED), min_score=0) for _ in range(2))
    for tx in transactions: watch.push(Seen(1, 'test', tx))
    gone = {data.draw(st.sampled_from(transactions)).txid}
    event = data.draw(st.sampled_from([Replaced, Removed]))
    watch.push(Replaced(2, 'test', next(iter(gone)), None) if event is Replaced else Removed(2, 'test', next(iter(gone)), ''))
    for tx in transactions:
        if any(one.txid in gone for one in tx.inputs): gone.add(tx.txid)
        if tx.txid not in gone: other.push(Seen(1, 'test', tx))
    taints = [{txid: note[:4] for txid, note in notes(one.scorer.history).items()} for one in (watch, other)]
    assert taints[0] == taints[1]       # what was fresh at first sight stays what it was: the votes are not compared


def test_a_reorganisation_takes_taint_with_it() -> None:
    "A block leaves the chain, another holds a rival without the tainted input: what spent from the loser is gone, what follows is clean"
    watch = Watch(Scorer(LISTED), min_score=0, min_btc=0)
    lost, held = BlockPlace('b' * 64, 5, 1), BlockPlace('c' * 64, 5, 2)
    tainted = made(name_of(1), [(name_of(9), 0, 100, 'listed'), (name_of(8), 0, 100, 'clean')], [(190, 'a')])
    watch.push(BlockConnected(1, 'test', lost))
    watch.push(Confirmed(1, 'test', tainted.txid, lost, tainted))
    told = watch.push(Seen(2, 'test', made(name_of(2), [(name_of(1), 0, 190, 'a')], [(80, 'b')])))
    assert told[0].event and shares_of(told[0].event) == dict(haircut=0.5, fifo=round(100 / 190, 4), poison=1.0)
    watch.push(BlockDisconnected(3, 'test', lost))
    rival = made(name_of(3), [(name_of(8), 0, 100, 'clean')], [(90, 'a')])
    told = watch.push(Confirmed(4, 'test', rival.txid, held, rival))
    assert {one.txid for one in told if one.kind == 'withdrawn'} == {name_of(1), name_of(2)}
    assert set(watch.scorer.history.entries) == {rival.txid}
    told = watch.push(Seen(6, 'test', made(name_of(4), [(name_of(3), 0, 90, 'a')], [(80, 'b')])))
    assert told[0].event and shares_of(told[0].event) == {}


def shares_of(event: ScoredTransaction) -> dict[str, Any]:
    found = [signal.values for signal in event.signals if signal.code in ('sanctioned_one_hop', 'tainted')]
    return {rule: found[0][rule] for rule in TAINT_RULES} if found else {}


# ---- what configuration chooses

def mixed(rule: str, hops: int = 4) -> Iterator[ScoredTransaction]:
    "Clean and tainted coins melted together; then both outputs spent, and the second once more"
    scorer = Scorer(LISTED, RiskConfig(taint=rule, hops=hops))
    for tx in (made(name_of(1), [(name_of(9), 0, 100, 'listed')], [(100, 'a')]),
               made(name_of(2), [(name_of(8), 0, 300, 'clean'), (name_of(1), 0, 100, 'a')], [(250, 'b'), (150, 'c')]),
               made(name_of(3), [(name_of(2), 0, 250, 'b')], [(240, 'd')]), made(name_of(4), [(name_of(2), 1, 150, 'c')], [(140, 'e')]),
               made(name_of(5), [(name_of(4), 0, 140, 'e')], [(130, 'f')])):
        event = scorer.step(tx)
        assert event is not None
        yield event


def test_configuration_chooses_the_rule_and_all_three_are_told() -> None:
    said = {rule: [[(one.code, one.values['share']) for one in event.signals if one.code in ('sanctioned_one_hop', 'tainted')]
                   for event in mixed(rule)] for rule in TAINT_RULES}
    assert said['haircut'] == [[], [('sanctioned_one_hop', 0.25)], *[[('tainted', 0.25)]] * 3]
    assert said['fifo'] == [[], [('sanctioned_one_hop', 0.25)], [], [('tainted', 0.6667)], [('tainted', 0.6429)]]
    assert said['poison'] == [[], [('sanctioned_one_hop', 1.0)], *[[('tainted', 1.0)]] * 3]
    for rule in TAINT_RULES:
        last = list(mixed(rule))[-1]
        assert shares_of(last) == dict(haircut=0.25, fifo=0.6429, poison=1.0)
        assert {one.values['rule'] for one in last.signals if one.code == 'tainted'} == {rule}
    points = {rule: list(mixed(rule))[-1].score for rule in TAINT_RULES}
    assert points['haircut'] < points['fifo'] < points['poison']
    assert RiskConfig().taint == 'haircut'


@pytest.mark.parametrize('rule', TAINT_RULES)
def test_hops_bound_every_rule(rule: str) -> None:
    for hops in range(1, 6):
        signalled = [bool(shares_of(event)) for event in mixed(rule, hops)]
        clean_output = [rule == 'fifo' and place == 2 for place in range(5)]
        distance = [1, 2, 3, 3, 4]
        assert signalled == [1 < far <= hops and not clean for far, clean in zip(distance, clean_output, strict=True)]


def test_an_unknown_amount_leaves_poison_only() -> None:
    history = History()
    history.entries[name_of(1)] = Entry(0, 0, (), (), (Output(5, script('a')),), distance=1, tainted=1.0, shares=(1.0,),
                                        pieces=((0, 5, 1),))
    tx = Transaction(name_of(2), None, 2, 0, (Input(name_of(1), 0, b'', 1), Input(name_of(7), 0, b'', 1)), (Output(9, script('b')),))
    taint = taint_of(tx, context_of(tx, 0, history, LISTED, Window(100)))
    assert [taint.by(rule) for rule in TAINT_RULES] == [(0, 0), (0, 0), (1, 2)]
    other = Transaction(name_of(3), None, 2, 0, (Input(name_of(1), 4, b'', 1),), (Output(9, script('b')),))     # no such output
    assert taint_of(other, context_of(other, 0, history, LISTED, Window(100))) is CLEAN


def test_an_older_snapshot_keeps_its_haircut() -> None:
    history = History()
    history.entries[name_of(1)] = Entry(0, 0, (), (), (Output(8, script('a')),), tainted=0.5, distance=2)
    tx = made(name_of(2), [(name_of(1), 0, 8, 'a')], [(8, 'b')])
    taint = taint_of(tx, context_of(tx, 0, history, LISTED, Window(100)))
    assert taint.by('haircut') == (0.5, 3) and taint.by('poison') == (1.0, 3) and taint.by('fifo') == (0.0, 0)


def test_memory_of_taint_has_a_bound() -> None:
    "A purse that melts a tainted and a clean speck again and again keeps no more pieces than allowed, and entries no more than the depth"
    scorer, parent = Scorer(LISTED, RiskConfig(hops=20), History(depth=50)), (name_of(99_999), 0, 10_000, 'purse')
    for number in range(300):
        specks: list[Spent] = [(name_of(50_000 + number), place, 10 + place, 'listed' if place % 2 else f'clean {place}')
                               for place in range(20)]
        total = parent[2] + sum(value for _, _, value, _ in specks)
        scorer.step(made(name_of(number), [*specks, parent], [(total - 10, 'purse')]))
        parent = (name_of(number), 0, total - 10, 'purse')
        entry = scorer.history.entries[name_of(number)]
        assert len(entry.pieces) <= MOST_PIECES and len(entry.shares) <= 20
    assert len(scorer.history.entries) == 50
    assert len(scorer.snapshot()) < 600_000


# ---- change, as its spenders tell it

@settings(max_examples=40, deadline=None)
@given(economies(), st.data())
def test_votes_of_spenders_go_with_them(transactions: list[Transaction], data: st.DataObject) -> None:
    "The change known of each is a function of what stands: withdrawn in any way, it is what a machine says that saw only the rest"
    straight, other = Scorer(LISTED), Scorer(LISTED)
    for tx in transactions: straight.step(tx)
    number = data.draw(st.integers(0, len(transactions)))
    for tx in reversed(transactions[number:]): assert straight.withdraw(tx.txid)
    for tx in transactions[:number]: other.step(tx)
    for tx in transactions: assert change_known(straight.history, LISTED, tx.txid) == change_known(other.history, LISTED, tx.txid)
    again = restore(straight.snapshot(), Scorer(LISTED))
    for tx in transactions: assert change_known(straight.history, LISTED, tx.txid) == change_known(again.history, LISTED, tx.txid)
