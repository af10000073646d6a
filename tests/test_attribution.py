"The parts of a profit, the life of an order, runs side by side: against oracles that count one by one, on random sessions and recordings"
from __future__ import annotations

import html
import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import by_order
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from test_money import CONTRACTS, FILL, GRIDS, MS, SMALL, START, grid, make_session, play, random_rows

from cryptoexp import cli
from cryptoexp.config import MarketMakingConfig, load_config
from cryptoexp.market.events import BEST_QUOTE, BUY, CLEAR, CONTROL, DEPTH, LAST, RESUME, SELL, SNAPSHOT, TRADE, Events, from_rows
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Clock, Tape, read_recording
from cryptoexp.page import for_screen, in_dark
from cryptoexp.trading.attribution import ADVERSE_SECONDS, attribute, attribution_figure, part_table, parts_figure
from cryptoexp.trading.attribution import by_order as orders_of
from cryptoexp.trading.backtest import QUEUE_BRACKET, Result, backtest
from cryptoexp.trading.compare import Run, compare, compared_csv, match_fills, read_run
from cryptoexp.trading.ledger import Session, fill_mids, open_account, start_mid, totals, touches
from cryptoexp.trading.orders import (
    CAUSES,
    fill_curves,
    fill_figure,
    fill_probability,
    follow,
    known_at,
    order_life,
    queue_figure,
    queue_life,
    rested,
    waits,
)
from cryptoexp.trading.report import equity_figure, inventory_figure, markout_figure, price_figure, report_page
from cryptoexp.trading.tear_sheet import save_tear_sheet, tear_sheet
from cryptoexp.trading.venue import QueueModel, Venue

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ---- attribution: the oracle walks the fills with exact fractions

def mid_at(session: Session, time_ns: int, own: int) -> int:
    "The last mid known at a moment, in half ticks, found by looking at every one"
    known = touches(session)
    found = own
    for when, mid in zip(known.time_ns.tolist(), known.mid.tolist()):
        if when <= time_ns: found = mid
    return found


def expected(session: Session, seconds: tuple[float, ...]) -> list[dict[str, Fraction]]:
    "The parts of each fill in the account's currency, without any rounding"
    tick, lot = Fraction(session.instrument.tick_size), Fraction(session.instrument.lot_size)
    known, rows = touches(session), []
    last = int(known.mid.iloc[-1]) if len(known) else start_mid(session) or 0
    def worth(lots: int, half_ticks: int) -> Fraction:
        price = half_ticks * tick / 2
        return -lots * lot * Fraction(session.contract_size) / price if session.kind == 'inverse' else lots * lot * price
    for (_, fill), own in zip(session.fills.iterrows(), fill_mids(session)):
        lots = int(fill.side) * int(fill.lots)
        mids = [own, *(mid_at(session, int(fill.time_ns) + round(second * 1e9), own) for second in seconds), last]
        values = [worth(lots, mid) for mid in mids]
        row = {'spread': values[0] - worth(lots, 2 * int(fill.tick)), 'inventory': values[-1] - values[-2],
               'fees': -Fraction(int(fill.fee_e8), 10 ** 8)}
        rows.append(row | {f'adverse_{second:g}s': values[at + 1] - values[at] for at, second in enumerate(seconds)})
    return rows


def check_parts(session: Session, seconds: tuple[float, ...] = ADVERSE_SECONDS, slack: Fraction = Fraction(0)) -> Any:
    "Each part is what the oracle says, and all of them are the profit of the ledger to the last digit"
    found = attribute(session, seconds)
    assert found.money(found.pnl) == totals(session).pnl
    assert sum(found.sums().values()) == found.pnl
    for row, fill in zip(expected(session, seconds), found.fills.to_dict('records')):
        for name, value in row.items(): assert abs(Fraction(int(fill[name]), 10 ** found.decimals) - value) <= slack, name
    total = sum(int(value) for name in ('spread', *found.steps, 'inventory', 'fees', 'funding') for value in found.fills[name])
    assert total + sum(found.opening.values()) == found.pnl
    orders = orders_of(found)
    assert sum(int(value) for value in orders.pnl) + sum(found.opening.values()) == found.pnl
    assert orders.fills.sum() == len(session.fills)
    return found


SAMPLES = st.lists(st.tuples(st.integers(0, 10 ** 10), st.integers(1, 10 ** 6), st.integers(0, 50)), min_size=1, max_size=20)


def sampled(session: Session, rows: list[tuple[int, int, int]]) -> Session:
    "The same session with samples after its start"
    table = pd.DataFrame([(START + after, bid, bid + wide, -1, -1, 0, 0) for after, bid, wide in sorted(rows)],
                         columns=list(session.samples.columns))
    return replace(session, samples=pd.concat([session.samples, table], ignore_index=True))


@SLOW
@given(fills=st.lists(FILL, max_size=12), steps=st.sampled_from(GRIDS), held=st.integers(0, 5), capital=st.integers(1, 10 ** 15),
       start=st.tuples(st.integers(1, 10 ** 6), st.integers(1, 10 ** 6)), rows=SAMPLES)
def test_parts_of_any_fills(fills: list[tuple[int, ...]], steps: tuple[str, str], held: int, capital: int, start: tuple[int, int],
                            rows: list[tuple[int, int, int]]) -> None:
    "Spot: long, short, rebates, any grid, amounts beyond 64 bits"
    instrument = grid(*steps)
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=capital / 1e5, initial_base=float(held * 1000 * instrument.lot_size))
    check_parts(sampled(make_session(instrument, config, fills, start), rows))


def test_amounts_beyond_64_bits_are_met() -> None:
    fills = [(1, 10 ** 9, 10 ** 13, 1, 10 ** 12, 10 ** 9, 10 ** 9 + 1)] * 5
    config = MarketMakingConfig(trading_pair='TOY/USD')
    found = check_parts(make_session(grid('0.000001', '0.00000001'), config, fills, (10 ** 6, 10 ** 6 + 1)))
    assert found.fills.inventory.dtype == object and attribute(make_session(grid('1', '1'), config, fills[:1], (1, 2))).decimals == 8
    small = attribute(make_session(grid('0.01', '0.00001'), config, [(1, 6_000_000, 100, 1, 5, 5_999_999, 6_000_001)], (1, 2)))
    assert small.fills.inventory.dtype == np.int64


@SLOW
@given(fills=st.lists(SMALL, max_size=12), steps=st.sampled_from(CONTRACTS), held=st.integers(0, 5), rows=SAMPLES)
def test_parts_of_any_inverse_fills(fills: list[tuple[int, ...]], steps: tuple[str, str, str], held: int,
                                    rows: list[tuple[int, int, int]]) -> None:
    "Each part within the roundings of the values that make it; the sum without any"
    instrument = grid(*steps[:2])
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=12.5, initial_base=float(held * 1000 * instrument.lot_size))
    session = replace(make_session(instrument, config, fills, (20_000, 20_001)), venue=Venue(kind='inverse', contract_size=steps[2]))
    rows = [(after, bid + 10_000, wide) for after, bid, wide in rows]
    check_parts(sampled(session, rows), slack=Fraction(2, 10 ** 8))


@FEW
@given(seed=st.integers(0, 10 ** 6), kind=st.sampled_from(['linear', 'inverse']), rate=st.integers(-200_000, 200_000),
       held=st.integers(-1, 2))
def test_parts_with_funding(seed: int, kind: str, rate: int, held: int) -> None:
    "An engine on random rows, paid and paying funding, with contracts held from the start"
    rows = random_rows(seed, 300)
    times = START + MS + np.arange(2, 30) * 1_000 * MS
    venue = Venue(kind=kind, contract_size=100 if kind == 'inverse' else None, maker_fee=.0001, taker_fee=.0005,
                  funding=np.column_stack([times, np.where(np.arange(28) % 2, rate, -rate // 2)]))
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=20_000, max_inventory_exposure=1.0, maker_fee=.0001, taker_fee=.0005,
                                initial_base=20.0 * max(0, held))
    session = replace(play(grid('0.5', '1'), config, rows, venue=venue), notes=())
    assert len(session.fundings)
    found = check_parts(session, slack=Fraction(2, 10 ** 8))
    assert Decimal(found.sums()['funding']).scaleb(-found.decimals) == -totals(session).funding
    wrong = replace(session, fundings=session.fundings.assign(paid_e8=session.fundings.paid_e8 + 1))
    with pytest.raises(ArithmeticError, match='the parts come to'): attribute(wrong)


def test_funding_goes_to_who_held_the_position() -> None:
    "Two buys before a payment bear it in the ratio of their lots, one after it nothing"
    fills = [(1, 100, 30, 1, 0, 99, 101), (1, 100, 10, 1, 0, 99, 101), (1, 100, 5, 1, 0, 99, 101)]
    venue = Venue(kind='linear', funding=np.array([[START + 2 * 10 ** 9, 1_000_000]]))
    session = replace(make_session(grid('1', '1'), MarketMakingConfig(trading_pair='TOY/USD'), fills, (99, 101)), venue=venue)
    paid = pd.DataFrame(dict(time_ns=[START + 2 * 10 ** 9], rate_e8=[1_000_000], position_lots=[40], bid_tick=[99], ask_tick=[101],
                             paid_e8=[4_000_000_000]))
    found = check_parts(replace(session, fundings=paid))
    assert [int(share) for share in found.fills.funding] == [-3_000_000_000, -1_000_000_000, 0]


def test_a_horizon_past_the_end_is_cut_and_counted() -> None:
    fills = [(1, 100, 10, 1, 0, 99, 101), (-1, 103, 10, 1, 0, 102, 104)]   # 1.2 s apart, then nothing
    session = make_session(grid('1', '1'), MarketMakingConfig(trading_pair='TOY/USD'), fills, (99, 101))
    found = check_parts(session, (0.5, 1.0, 5.0))
    assert found.cut == (1, 1, 2)
    assert [float(found.money(value)) for value in found.fills['adverse_5s']] == [30, 0] and not any(found.fills.inventory)


# ---- the probability of a fill

def product_limit(seconds: list[float], filled: list[bool], age: float) -> Fraction:
    "Kaplan and Meier, one moment after the other"
    still = Fraction(1)
    for when in sorted(set(seconds)):
        if when > age: break
        waiting, events = sum(other >= when for other in seconds), sum(one for one, other in zip(filled, seconds) if other == when)
        still *= 1 - Fraction(events, waiting)
    return 1 - still


@SLOW
@given(rows=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=30))
def test_kaplan_meier_against_the_product(rows: list[tuple[int, bool]]) -> None:
    seconds, filled = [float(age) for age, _ in rows], [one for _, one in rows]
    curve = fill_probability(np.array(seconds), np.array(filled, bool))
    for row in curve.itertuples():
        assert row.probability == pytest.approx(float(product_limit(seconds, filled, row.seconds)), abs=1e-12)
        share = sum(one and age <= row.seconds for one, age in zip(filled, seconds)) / len(rows)
        assert row.share == pytest.approx(share, abs=1e-12)   # nobody comes late, so the incidence is a plain share
        assert row.probability >= row.share - 1e-12
        if not np.isnan(row.low): assert 0 <= row.low <= row.probability <= row.high <= 1
    assert curve.fills.sum() == sum(filled) and (curve.probability.diff().dropna() >= 0).all()


def test_the_band_holds_the_truth_as_often_as_it_says() -> None:
    "Exponential fills and independent cancels: the truth is known, and lies in the band of 95 % in 95 of 100 draws"
    draw, inside = np.random.default_rng(5), 0
    for _ in range(400):
        fills, cancels = draw.exponential(1.0, 200), draw.exponential(0.7, 200)
        curve = fill_probability(np.minimum(fills, cancels), fills <= cancels)
        told = known_at(curve.assign(group='', orders=200), [0.8]).iloc[0]
        inside += told.low <= 1 - np.exp(-0.8) <= told.high
    assert 0.92 <= inside / 400 <= 0.98


# ---- the life of an order: the walk finds what the engine did

def wandering_rows(seed: int, count: int, fused: bool) -> Events:
    "A random book around a centre that wanders, so that one side comes to the other; prints, pictures of the whole book, best quotes"
    draw, time, centre = np.random.default_rng(seed), START + 10 * MS, 105
    rows = [(CLEAR | BUY | SELL, 0, START + MS, 0, 0, 1), (SNAPSHOT | BUY, 0, START + MS, 100, 40, 1),
            (SNAPSHOT | SELL | LAST, 0, START + MS, 110, 40, 1), (CONTROL | LAST, START + MS, START + MS, RESUME, 0, 0)]
    for row in range(count):
        time += int(draw.integers(1, 200)) * MS
        centre = max(60, centre + int(draw.integers(-1, 2)) * (row % 5 == 0))
        late, choice = time + int(draw.integers(1, 20)) * MS, draw.random()
        buys = bool(draw.integers(0, 2))
        side, away = BUY if buys else SELL, int(draw.integers(0, 5))
        near = centre - 1 - away if buys else centre + away
        if choice < 0.45: rows.append((DEPTH | side | LAST, time, late, near, int(draw.integers(0, 60)), 0))
        elif choice < 0.85: rows.append((TRADE | side | LAST, time, late, centre - away // 2 if not buys else centre + away // 2,
                                         int(draw.integers(1, 40)), 0))
        elif choice < 0.95 and fused: rows.append((BEST_QUOTE | side | LAST, time, late, near, int(draw.integers(1, 60)), 0))
        elif choice > 0.98:
            whole = [(CLEAR | BUY | SELL, time, late, 0, 0, 0)]
            whole += [(SNAPSHOT | BUY, time, late, centre - 1 - step, int(draw.integers(1, 60)), 0) for step in range(0, 5, 2)]
            whole += [(SNAPSHOT | SELL, time, late, centre + step, int(draw.integers(1, 60)), 0) for step in range(0, 5, 2)]
            rows += [*whole[:-1], (whole[-1][0] | LAST, *whole[-1][1:])]
    return from_rows(sorted(rows, key=lambda row: row[2]))


def toy_tape(seed: int, count: int = 800, fused: bool = False) -> Tape:
    return Tape(wandering_rows(seed, count, fused), grid('0.5', '0.01'), Clock(), (f'random rows, seed {seed}',), synthetic=True,
                notes={'fused': fused})


def three_deep(view: Any, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "Three levels a side near the touch, in odd sizes, so that own orders share prints and queues"
    now = view.market[0]
    for level in range(3):
        wishes[0, 0, level, 0], wishes[0, 0, level, 1] = now.bid_tick - level, 13 + level
        wishes[0, 1, level, 0], wishes[0, 1, level, 1] = now.ask_tick + level, 7 + level
    return 0


TOYS = load_config(preset='zero-fee-tier', overrides=dict(total_capital=100_000.0, max_inventory_exposure=1.0, initial_base=3.0))


@pytest.mark.parametrize('queue', [*QUEUE_BRACKET, QueueModel('power2', 2), QueueModel('power3', 3), QueueModel('log2')], ids=str)
def test_the_walk_finds_the_fills_of_the_engine(queue: QueueModel) -> None:
    "`follow` raises where an arrival or a fill differs from the engine's; several levels, all queue models, random books"
    reasons, causes, queued = set[str](), set[str](), 0
    for seed in range(12):
        tape = toy_tape(seed, fused=seed % 2 == 1)
        session = backtest(tape, three_deep, Venue(maker_fee=0.0, taker_fee=0.0, queue=queue), config=TOYS, levels=3).session
        moves = follow(tape, session)
        causes |= set(moves.cause)
        made = moves[moves.filled > 0]
        assert made.filled.sum() == session.fills.lots[session.fills.maker].sum() > 0
        reasons |= set(session.fills.reason)
        queued += int((session.fills.reason == 'queue').sum())
        assert (moves.after >= 0).all() and (moves.after <= moves.before + 1e-6).all()   # lots to coins and back in floats
    assert {'queue', 'through', 'cross'} <= reasons and queued > 20 and causes == set(CAUSES)


def test_the_walk_follows_named_orders() -> None:
    "A tape by order id under the queue model l3"
    count = 0
    for seed in range(6):
        tape = by_order.tape_of(by_order.stream(seed))
        session = backtest(tape, by_order.restless, by_order.venue(QueueModel('l3')), config=by_order.settings(), levels=2,
                           parameters=np.array([float(seed), 0.0, 1.0])).session
        count += int((follow(tape, session).filled > 0).sum())
    assert count > 20


def test_the_walk_on_the_recording(data_folder: Path) -> None:
    "Both ways to make the book; in batches or not, the session is the same"
    files = [data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')]
    for streams in ('diff-only', 'fused'):
        tape = read_recording(files, streams=streams)   # type: ignore[arg-type]
        session = backtest(tape, preset='zero-fee-tier').session
        moves = follow(tape, session)
        assert (moves.filled > 0).sum() == session.fills.maker.sum() > 500
        found = attribute(session)
        assert found.money(found.pnl) == totals(session).pnl
        alone = follow(tape, session, [int(moves.order_id.iloc[-1])])
        assert alone.equals(moves[moves.order_id == moves.order_id.iloc[-1]].reset_index(drop=True))


def test_a_print_that_is_missing_is_noticed() -> None:
    tape = toy_tape(3)
    session = backtest(tape, three_deep, Venue(maker_fee=0.0, taker_fee=0.0), config=TOYS, levels=3).session
    assert len(follow(tape, session))
    first = session.fills[session.fills.reason == 'queue'].iloc[0]
    lost = (tape.events.kind == TRADE) & (tape.events.exchange_ns == int(first.time_ns))
    assert lost.any()
    with pytest.raises(ValueError, match='the tape of this session'): follow(replace(tape, events=tape.events[~lost]), session)
    moved = replace(session, orders=session.orders.assign(queue_ahead_lots=session.orders.queue_ahead_lots + 1))
    with pytest.raises(ValueError, match='lots before it, and on this tape'): follow(tape, moved)


def test_queue_life_one_by_one() -> None:
    "The table against a loop over orders and moves"
    tape = toy_tape(5)
    session = backtest(tape, three_deep, Venue(maker_fee=0.0, taker_fee=0.0, queue=QueueModel('power', 1)), config=TOYS, levels=3).session
    moves = follow(tape, session)
    table = queue_life(session, moves, (0.05, 0.5, 2.0))
    for row in table.itertuples():
        left = []
        for order in rested(session).itertuples():
            when = order.arrived_ns + round(row.seconds * 1e9)
            if order.queue_ahead_lots == 0 or (order.ended_ns - order.arrived_ns) // 1000 < round(row.seconds * 1e6): continue
            ours = moves[(moves.order_id == order.order_id) & (moves.time_ns <= when)]
            left.append(ours.after.iloc[-1] / order.queue_ahead_lots)
        assert row.resting == len(left) > 0
        assert (row.left, row.median) == (pytest.approx(np.mean(left)), pytest.approx(np.median(left)))


def test_every_order_tells_its_life() -> None:
    "Words and picture of every order that rested, filled, in part, or in vain"
    tape = toy_tape(3, 300)
    session = backtest(tape, three_deep, Venue(maker_fee=0.0, taker_fee=0.0), config=TOYS, levels=3).session
    ends = set[str]()
    for order in rested(session).itertuples():
        life = order_life(tape, session, order.order_id)
        assert ('It was filled' in life.why) == (order.status == 'filled') and life.why.startswith('It came')
        assert ('of it was filled' in life.why) == (order.status != 'filled' and order.filled_lots > 0)
        ends.add(order.status + '+' * (order.filled_lots > 0))
    assert {'filled+', 'cancelled'} <= ends
    assert len(life.figure().axes) == 2 and 'SYNTHETIC' in life._repr_html_()


def test_waits_and_groups() -> None:
    tape = toy_tape(3)
    session = backtest(tape, three_deep, Venue(maker_fee=0.0, taker_fee=0.0), config=TOYS, levels=3).session
    table = waits(session)
    assert len(table) == len(rested(session)) and table.filled.sum() == session.fills[session.fills.maker].order_id.nunique()
    for by in ('distance', 'queue', 'side', None):
        counts = fill_curves(session, by).drop_duplicates('group').orders.sum()
        assert counts == len(table if by != 'distance' else table.dropna())
    with pytest.raises(ValueError, match='known are distance, queue, side'): fill_curves(session, 'colour')


# ---- runs side by side

ONE_FILL = st.tuples(st.integers(0, 6), st.sampled_from(['buy', 'sell']), st.integers(100, 102), st.integers(1, 2))


def table_of(rows: list[tuple[int, str, int, int]]) -> pd.DataFrame:
    return pd.DataFrame([(str(when * 10 ** 9), side, str(price), str(amount), '0', 'maker') for when, side, price, amount in sorted(rows)],
                        columns=['time_ns', 'side', 'price', 'amount', 'fee', 'liquidity'], dtype=str)


@SLOW
@given(one=st.lists(ONE_FILL, max_size=14), other=st.lists(ONE_FILL, max_size=14), within=st.sampled_from([0.0, 1.0, 2.5]))
def test_every_fill_is_told_once(one: list[Any], other: list[Any], within: float) -> None:
    first, second = table_of(one), table_of(other)
    found = match_fills(first, second, within)
    for letter, given_rows in (('a', first), ('b', second)):
        here = found[found.match != f'only {"b" if letter == "a" else "a"}']
        told = sorted(zip(*(here[f'{name}_{letter}'] for name in given_rows.columns)))
        assert told == sorted(given_rows.itertuples(index=False, name=None))
    for row in found.itertuples():
        if row.match.startswith('only'): continue
        assert row.side_a == row.side_b and abs(int(row.time_ns_a) - int(row.time_ns_b)) <= within * 1e9 + (row.time_ns_a == row.time_ns_b)
        differ = [name for name in ('time_ns', 'price', 'amount') if getattr(row, f'{name}_a') != getattr(row, f'{name}_b')]
        assert row.match == (', '.join(differ).replace('time_ns', 'time') or 'same')
    back = match_fills(second, first, within).match.replace({'only a': 'only b', 'only b': 'only a'})
    assert (back == 'same').sum() == (found.match == 'same').sum()
    assert set(match_fills(first, first, within).match) <= {'same'}


def test_what_stands_alone_has_no_partner_near() -> None:
    "After the pairing no two lone fills of one side lie within reach"
    draw = np.random.default_rng(4)
    tables = [table_of([(int(when), 'buy', int(price), 1) for when, price in zip(draw.integers(0, 400, 150), draw.integers(100, 104, 150))])
              for _ in range(2)]
    found = match_fills(*tables, within=2.0)
    alone = [found[found.match == f'only {letter}'].time_ns.to_numpy() for letter in 'ab']
    assert len(alone[0]) and (abs(alone[0][:, None] - alone[1][None, :]) > 2 * 10 ** 9).all()


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Runs of the embedded market: near, far (latency), and dear (fees)"
    market, folder = SyntheticMarket(seed=11), tmp_path_factory.mktemp('runs')
    tape = Tape(market.events(120 * 10 ** 9), market.instrument, Clock(), ('embedded',), synthetic=True)
    for name, change in (('near', {}), ('far', dict(entry_latency_ms=60.0)), ('dear', dict(maker_fee=0.00001))):
        (folder/name).mkdir()
        backtest(tape, config=load_config(preset='zero-fee-tier', overrides=change)).write(folder/name)
    return folder


def test_compare_of_folders(folders: Path) -> None:
    found = compare(*(folders/name for name in ('near', 'far', 'dear')))
    assert set(found.config.field) == {'entry_latency_ms', 'maker_fee'} and list(found.labels) == ['near', 'far', 'dear']
    counts = found.counts()
    fills = [len(run.trades) for run in found.runs]
    for row, count in zip(counts.to_dict('records'), fills[1:]):
        assert row['same'] + row['different'] + row['only first'] == fills[0]
        assert row['same'] + row['different'] + row['only other'] == count
    assert len(compared_csv(found).splitlines()) == 1 + sum(map(len, found.fills.values()))
    assert found.page().html() == compare(*(folders/name for name in ('near', 'far', 'dear'))).page().html()
    assert 'SYNTHETIC' in found.page().html() and json.dumps(found.to_dict())


def broken(folders: Path, tmp_path: Path, **files: str) -> Path:
    for name in ('summary.json', 'trades.csv'):
        (tmp_path/name).write_text(files.get(name.split('.')[0], (folders/'near'/name).read_text()))
    return tmp_path


@pytest.mark.parametrize(('damage', 'words'), [
    (lambda text: text[:40], 'is no JSON'), (lambda text: '[]', 'holds no object'),
    (lambda text: text.replace('"currency"', '"coin"'), 'has no currency.*another version'),
    (lambda text: text.replace('"fills": ', '"fills": 9'), 'trades.csv has')])
def test_a_damaged_summary_is_named(folders: Path, tmp_path: Path, damage: Any, words: str) -> None:
    damaged = damage((folders/'near'/'summary.json').read_text())
    with pytest.raises(ValueError, match=words): read_run(broken(folders, tmp_path, summary=damaged))


@pytest.mark.parametrize('name', ['summary.json', 'trades.csv'])
def test_bytes_that_are_no_text_are_named(folders: Path, tmp_path: Path, name: str) -> None:
    broken(folders, tmp_path)
    (tmp_path/name).write_bytes(bytes([0xff, 0xfe, 0xff]))
    with pytest.raises(ValueError, match=f'{name} is no text'): read_run(tmp_path)


@pytest.mark.parametrize(('words', 'told'), [
    (['trade', '--duration', '0s'], 'more than 0'), (['trade', '--duration', 'soon'], 'write 90s'),
    (['trade', '--tear-sheet', 'no/such/folder/sheet.png'], 'there is no folder no/such/folder'),
    (['trade', '--tear-sheet', 'sheet.gif'], '.pdf')])
def test_the_command_line_says_at_once_what_it_cannot_do(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended: cli.main(words)
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(('damage', 'words'), [
    (lambda text: text.replace('liquidity', 'role', 1), 'other columns.*liquidity, role'), (lambda text: '', 'is no table'),
    (lambda text: text[:text.rindex('\n', 0, -1) + 1], 'trades.csv has')])
def test_damaged_trades_are_named(folders: Path, tmp_path: Path, damage: Any, words: str) -> None:
    damaged = damage((folders/'near'/'trades.csv').read_text())
    with pytest.raises(ValueError, match=words): read_run(broken(folders, tmp_path, trades=damaged))


def test_the_command_compares(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near, far = (str(folders/name) for name in ('near', 'far'))
    assert cli.main(['compare', near, far, '--json', '--csv', str(tmp_path/'f.csv'), '--html', str(tmp_path/'c.html')]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['config'] == {'entry_latency_ms': {'near': '5.0', 'far': '60.0'}}
    assert (tmp_path/'c.html').read_text().startswith('<!doctype')
    assert cli.main(['compare', near, far]) == 0
    assert 'only first' in capsys.readouterr().out
    for words, text in (([near], 'two runs or more'), ([near, f'{folders}/fare'], 'did you mean'), ([near, str(folders)], 'it holds runs'),
                        ([near, f'{near}/trades.csv'], 'is a file')):
        assert cli.main(['compare', *words]) == 2
        out, error = capsys.readouterr()
        assert (out, text in error) == ('', True) and error.count('cryptoexp:') == 1
    for words in (['compare', near, far, '--within', 'soon'], ['trade', '--tear-sheet', 'sheet.doc']):
        with pytest.raises(SystemExit): cli.main(words)
        assert 'write 100ms' in (error := capsys.readouterr().err) or '.pdf, .png or .svg' in error


def test_a_run_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match='its summary has no source, synthetic'): Run('x', {}, pd.DataFrame())


# ---- pictures

@pytest.fixture(scope='module')
def sessions() -> dict[str, Session]:
    "With fills, without, without a price, of an inverse contract, of one fill"
    tape = toy_tape(3)
    free = Venue(maker_fee=0.0, taker_fee=0.0)
    whole = backtest(tape, three_deep, free, config=TOYS, levels=3).session
    few = make_session(grid('1', '1'), MarketMakingConfig(trading_pair='TOY/USD'), [(1, 100, 10, 1, 0, 99, 101)], (99, 101))
    venue = Venue(kind='inverse', contract_size=100, maker_fee=0.0)
    inverse = replace(make_session(grid('0.5', '1'), MarketMakingConfig(trading_pair='TOY/USD', total_capital=12.5),
                                   [(1, 20_000, 10, 1, 5, 19_999, 20_001), (-1, 20_100, 10, 1, 5, 20_099, 20_101)], (20_000, 20_001)),
                      venue=venue)
    none = replace(whole, fills=whole.fills[:0], orders=whole.orders[:0])
    return dict(whole=whole, none=none, priceless=replace(none, samples=none.samples[:0], start_bid_tick=-1, start_ask_tick=-1), few=few,
                inverse=inverse)


@pytest.mark.parametrize('which', ['whole', 'none', 'priceless', 'few', 'inverse'])
def test_a_tear_sheet_of_any_session(sessions: dict[str, Session], which: str, tmp_path: Path) -> None:
    sheet = tear_sheet(sessions[which])
    assert len(sheet.axes) == 7 and [round(side, 2) for side in sheet.get_size_inches()] == [8.27, 11.69]   # A4
    words = ' '.join(text.get_text() for text in sheet.findobj(lambda artist: hasattr(artist, 'get_text')))
    assert 'SYNTHETIC MARKET' in words and 'profit' in words
    assert save_tear_sheet(sessions[which], tmp_path/'sheet.png', dark=True).read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ValueError, match='pdf, png, svg'): save_tear_sheet(sessions[which], tmp_path/'sheet')


def figures(session: Session, tape: Tape) -> list[Any]:
    found, moves = attribute(session), follow(tape, session)
    return [price_figure(session), inventory_figure(session), equity_figure(session), markout_figure(session), attribution_figure(found),
            parts_figure(found), fill_figure(session, 'queue'), queue_figure(session, moves), compare(session, session).figure(),
            order_life(tape, session, int(rested(session).order_id.iloc[0])).figure(), tear_sheet(session)]


def test_every_figure_in_the_dark_and_on_a_screen(sessions: dict[str, Session]) -> None:
    "Nothing stays black on black, and the screen shows the same numbers in panels that do not overlap"
    for figure in figures(sessions['whole'], toy_tape(3)):
        for dark in (False, True):
            shown = for_screen(figure, dark=dark)
            lines = [line for axes in figure.axes for line in axes.get_lines()]
            drawn = [trace for trace in shown.data if trace.mode != 'none' and len(trace.x)]
            plain = [line for line in lines if line.get_transform() == line.axes.transData and len(line.get_xdata())]
            assert len(shown.data) >= max(1, len(lines)) and len(plain) + sum(len(axes.patches) for axes in figure.axes) > 0
            words = {label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]}
            assert {html.unescape(trace.name) for trace in shown.data if trace.showlegend} == words
            told = shown.to_plotly_json()['layout']
            boxes = [(*told[f'xaxis{number}']['domain'], *told[f'yaxis{number}']['domain'])
                     for number in ['', *range(2, len(figure.axes) + 1)]]
            for place, one in enumerate(boxes):
                assert one[0] < one[1] and one[2] < one[3]
                for other in boxes[:place]: assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
            for line in plain:
                assert any(len(trace.y) == len(line.get_ydata()) and np.array_equal(
                    np.asarray(trace.y, float), np.asarray(line.get_ydata(orig=False), float), equal_nan=True) for trace in drawn)
            assert shown.to_json()
        in_dark(figure)
        for text in figure.findobj(Text): assert text.get_color() not in ('black', '#000000', 'k')
        assert figure.get_facecolor() == (18 / 255, 23 / 255, 28 / 255, 1.0)


def test_a_result_hands_them_out(sessions: dict[str, Session]) -> None:
    result = Result(sessions['whole'])
    assert result.attribution().pnl == attribute(result.session).pnl and len(result.tear_sheet().axes) == 7
    table = part_table(result.attribution())
    assert table.part.iloc[-1] == 'profit' and table.money.iloc[-1] == pytest.approx(table.money.iloc[:-1].sum())


def test_every_report_shows_the_parts(sessions: dict[str, Session], tmp_path: Path) -> None:
    for which in ('whole', 'priceless'):
        session = sessions[which]
        Result(session).write(tmp_path)
        page = (tmp_path/'report.html').read_text()
        assert page.count('</svg>') == report_page(session).count('</svg>') + 1 and 'Where the profit came from' in page, which


def test_the_account_opens_where_the_parts_begin(sessions: dict[str, Session]) -> None:
    "What was held at the start is a part of its own"
    session = sessions['whole']
    found, account = attribute(session), open_account(session)
    assert account.position == session.instrument.lots(3.0)
    last = int(touches(session).mid.iloc[-1])
    begin = account.worth_at(start_mid(session) or 0, account.position)
    assert found.opening['inventory'] == account.worth_at(last, account.position) - begin
