"Money adds up, to the last digit, from the files alone: read with csv and Decimal, for random markets, grids, fees and quotes"
from __future__ import annotations

import csv
import json
import re
import tempfile
from collections import deque
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptoexp.config import MarketMakingConfig, load_config
from cryptoexp.market.book import NO_ASK, NO_BID
from cryptoexp.market.events import BUY, CLEAR, CONTROL, DEPTH, LAST, RESUME, SELL, SNAPSHOT, TRADE, Digest, Events, from_rows
from cryptoexp.market.instrument import Instrument
from cryptoexp.trading.ledger import COUNTERS, ORDER_COLUMNS, TRADE_COLUMNS, Session, count_minutes, session_of, write_run
from cryptoexp.trading.matching import Engine
from cryptoexp.trading.report import performance, report_page, show, terminal_report

MS = 1_000_000
START = 1_723_075_200_000 * MS
PLAIN = re.compile(r'-?(0|[1-9]\d*)(\.\d*[1-9])?')  # no exponent, no trailing zero, no dust
MONEY = ('price', 'amount', 'fee', 'mid', 'position', 'cash', 'equity', 'realised_pnl', 'unrealised_pnl')
GRIDS = [('0.01', '0.00001'), ('0.000001', '0.00000001'), ('0.5', '0.01'), ('0.25', '1'), ('1', '1'), ('10', '0.1'),
         ('0.0000000001', '1000')]


def grid(tick: str, lot: str) -> Instrument:
    return Instrument('nowhere', 'TOY', 'TOY', 'USD', tick_size=Decimal(tick), lot_size=Decimal(lot))


def make_session(instrument: Instrument, config: MarketMakingConfig, fills: list[tuple[int, ...]], start: tuple[int, int]) -> Session:
    "A session of given fills: (side, tick, lots, maker, fee_e8, bid_tick, ask_tick)"
    columns = ('side', 'tick', 'lots', 'maker', 'fee_e8', 'bid_tick', 'ask_tick')
    table = pd.DataFrame(np.array(fills, np.int64).reshape(-1, len(columns)), columns=list(columns))
    count = len(table)
    table = table.assign(time_ns=START + np.arange(count) * 1_234_567_891, order_id=np.arange(1, count + 1), maker=table.maker.astype(bool),
                         reason='queue')
    orders = table.assign(filled_lots=table.lots, status='filled', purpose='quote', reason='', placed_ns=table.time_ns - 1,
                          arrived_ns=table.time_ns, ended_ns=table.time_ns, queue_ahead_lots=0)
    samples = pd.DataFrame(dict(time_ns=[START], bid_tick=[start[0]], ask_tick=[start[1]], quote_bid_tick=[-1], quote_ask_tick=[-1],
                                position_lots=[0], cash_e8=[10 ** 12]))
    return Session(instrument, config, 'by hand', None, True, '', START, START + 10 ** 12, table, orders, samples, *start,
                   dict.fromkeys(COUNTERS, 0), {}, {})


def check(folder: Path) -> None:
    "What a stranger can verify with the files, a calculator and nothing of ours"
    summary = json.loads((folder/'summary.json').read_bytes())
    with (folder/'trades.csv').open(encoding='utf-8', newline='') as file: rows = list(csv.DictReader(file))
    assert (folder/'trades.csv').read_bytes().split(b'\n', 1)[0].decode() == ','.join(TRADE_COLUMNS)
    assert (folder/'orders.csv').read_bytes().split(b'\n', 1)[0].decode() == ','.join(ORDER_COLUMNS)
    with localcontext() as context:
        context.prec = 200
        check_rows(rows, summary)


def check_rows(rows: list[dict[str, str]], summary: dict) -> None:
    config = summary['config']
    cash, position = Decimal(str(config['total_capital'])), Decimal(str(config['initial_base']))
    start_equity = Decimal(summary['start_equity'])
    held = deque([[position, (start_equity - cash) / position]] if position else [])  # first in, first out
    realised = fees = Decimal(0)
    for row in rows:
        for name in MONEY: assert PLAIN.fullmatch(row[name]), f'{name} is written {row[name]}'
        price, amount, fee, mid = (Decimal(row[name]) for name in ('price', 'amount', 'fee', 'mid'))
        signed = {'buy': amount, 'sell': -amount}[row['side']]
        cash, position, fees = cash - signed * price - fee, position + signed, fees + fee
        assert (Decimal(row['cash']), Decimal(row['position'])) == (cash, position)
        assert Decimal(row['equity']) == cash + position * mid
        while signed and held and held[0][0] * signed < 0:
            size = min(abs(signed), abs(held[0][0])).copy_sign(held[0][0])
            realised += size * (price - held[0][1])
            held[0][0], signed = held[0][0] - size, signed + size
            if not held[0][0]: held.popleft()
        if signed: held.append([signed, price])
        unrealised = sum((lots * (mid - paid) for lots, paid in held), Decimal(0))
        assert (Decimal(row['realised_pnl']), Decimal(row['unrealised_pnl'])) == (realised, unrealised)
        assert Decimal(row['equity']) - start_equity == realised + unrealised - fees  # two independent ways: cash, and first in first out
        assert row['time'].endswith('Z') and pd.Timestamp(row['time']).value == int(row['time_ns'])
        assert row['liquidity'] in ('maker', 'taker')
    volume = {kind: sum((Decimal(row['price']) * Decimal(row['amount']) for row in rows if row['liquidity'] == kind), Decimal(0))
              for kind in ('maker', 'taker')}
    assert summary['fills'] == len(rows) and Decimal(summary['fees']) == fees
    assert (Decimal(summary['maker_volume']), Decimal(summary['taker_volume'])) == (volume['maker'], volume['taker'])
    assert Decimal(summary['final_position']) == position
    if summary['final_equity'] is not None:
        assert Decimal(summary['pnl']) == Decimal(summary['final_equity']) - start_equity
        assert Decimal(summary['pnl']) == Decimal(summary['realised_pnl']) + Decimal(summary['unrealised_pnl']) - fees
    assert MarketMakingConfig(**config).to_dict() == config  # the run can be repeated from its summary


def written(session: Session, page: bool = True) -> dict[str, bytes]:
    "Write a session, check its files, and hand out their bytes"
    with tempfile.TemporaryDirectory() as name:
        paths = write_run(name, session, performance(session), report_page(session) if page else None)
        check(Path(name))
        return {name: path.read_bytes() for name, path in paths.items()}


# ---- any fills at all

FILL = st.tuples(st.sampled_from([1, -1]), st.integers(1, 10 ** 9), st.integers(1, 10 ** 13), st.integers(0, 1),
                 st.integers(-10 ** 9, 10 ** 12), st.integers(1, 10 ** 9), st.integers(1, 10 ** 9))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fills=st.lists(FILL, max_size=12), steps=st.sampled_from(GRIDS), held=st.integers(0, 5), capital=st.integers(1, 10 ** 15),
       start=st.tuples(st.integers(1, 10 ** 6), st.integers(1, 10 ** 6)))
def test_any_fills_add_up(fills: list[tuple[int, ...]], steps: tuple[str, str], held: int, capital: int, start: tuple[int, int]) -> None:
    "Long, short, through zero, with rebates, on grids finer than 1e-8 and coarser than 1, mids on half ticks"
    instrument = grid(*steps)
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=capital / 1e5, initial_base=float(held * 1000 * instrument.lot_size))
    session = make_session(instrument, config, fills, start)
    with tempfile.TemporaryDirectory() as name:
        write_run(name, session)
        check(Path(name))


@pytest.mark.parametrize('steps', GRIDS, ids='×'.join)
def test_every_report_of_few_fills(steps: tuple[str, str]) -> None:
    "No fill, one fill, two: files, page, terminal and notebook"
    fills = [(1, 101, 7, 1, 3, 100, 103), (-1, 104, 5, 0, -2, 103, 104)]
    for count in range(3):
        session = make_session(grid(*steps), MarketMakingConfig(trading_pair='TOY/USD'), fills[:count], (100, 103))
        files = written(session)
        assert files == written(session)
        assert b'SYNTHETIC' in files['report.html'] and 'SYNTHETIC' in show(session)
        assert terminal_report(session)


def test_a_fill_on_half_a_book_takes_the_last_mid() -> None:
    fills = [(1, 101, 7, 1, 3, 100, 103), (1, 101, 7, 1, 3, NO_BID, 103), (1, 101, 7, 1, 3, 100, NO_ASK)]
    files = written(make_session(grid('0.5', '0.01'), MarketMakingConfig(trading_pair='TOY/USD'), fills, (100, 102)))
    assert [row['mid'] for row in csv.DictReader(files['trades.csv'].decode().splitlines())] == ['50.75', '50.75', '50.75']
    assert any('one side only' in warning for warning in json.loads(files['summary.json'])['warnings'])


# ---- an engine on random rows

def random_rows(seed: int, count: int) -> Events:
    "A random toy market around tick 105"
    draw, time = np.random.default_rng(seed), START + 10 * MS
    rows = [(CLEAR | BUY | SELL, 0, START + MS, 0, 0, 1), (SNAPSHOT | BUY, 0, START + MS, 100, 40, 1),
            (SNAPSHOT | SELL | LAST, 0, START + MS, 110, 40, 1), (CONTROL | LAST, START + MS, START + MS, RESUME, 0, 0)]
    for _ in range(count):
        time += int(draw.integers(1, 200)) * MS
        kind, tick = int(draw.choice([TRADE, DEPTH])), int(draw.integers(101, 109))
        side = BUY if (tick >= 105) == (kind == TRADE) else SELL
        rows.append((kind | side | LAST, time, time + int(draw.integers(1, 20)) * MS, tick, int(draw.integers(0, 60)) + (kind == TRADE), 0))
    return from_rows(sorted(rows, key=lambda row: row[2]))


def restless(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "A model that is filled often, on both sides, in odd sizes"
    now = view.market[0]
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - now.bought_lots % 2, 13
    wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + now.filled_buy_lots % 2, 7
    return 0


def play(instrument: Instrument, config: MarketMakingConfig, events: Events, batch: int = 1 << 30, **options: object) -> Session:
    engine, digest, minutes = Engine(instrument, config, restless, **options), Digest(), dict[int, int]()  # type: ignore[arg-type]
    for start in range(0, len(events), batch):
        part = events[start:start + batch]
        engine.feed(part)
        digest.update(part)
        count_minutes(minutes, part)
    engine.finish()
    assert engine.desk is not None
    own_cash = {'cash_e8': engine.desk.state[0].cash_e8.item()}
    return replace(session_of(engine, 'random rows', digest.hexdigest(), True, minute_lots=minutes), notes=[json.dumps(own_cash)])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10 ** 6), steps=st.sampled_from(GRIDS[:6]), fee=st.sampled_from([0.001, -0.0001, 0.0, 0.00033]),
       held=st.integers(0, 3))
def test_an_engine_adds_up(seed: int, steps: tuple[str, str], fee: float, held: int) -> None:
    instrument = grid(*steps)
    capital = max(1e-4, float(105 * instrument.tick_size * instrument.lot_size * 2000))
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=capital, max_inventory_exposure=1.0, maker_fee=fee,
                                initial_base=float(held * 20 * instrument.lot_size))
    session = play(instrument, config, random_rows(seed, 400))
    assert len(session.fills)
    files = written(session, page=False)
    last = list(csv.DictReader(files['trades.csv'].decode().splitlines()))[-1]
    engine_cash = Decimal(json.loads(session.notes[0])['cash_e8']).scaleb(-8)
    if session.instrument.money_divisor == 1: assert Decimal(last['cash']) == engine_cash  # the engine counted the same
    else: assert abs(Decimal(last['cash']) - engine_cash) <= Decimal('0.5e-8') * len(session.fills)  # on a fine grid it rounds each fill


def test_a_repeated_run_is_the_same_bytes() -> None:
    "The same files, however the rows are cut, and with the model in Python"
    instrument, events = grid('0.5', '0.01'), random_rows(11, 1500)
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=1000, max_inventory_exposure=1.0, initial_base=3)
    first = written(play(instrument, config, events))
    assert first == written(play(instrument, config, events))
    assert first == written(play(instrument, config, events, batch=37))
    assert first == written(play(instrument, config, events, compiled=False))
    for name, data in first.items(): assert b'\r' not in data and data.endswith(b'\n'), name


def test_the_recording_adds_up(data_folder: Path) -> None:
    "Eleven real minutes, with fees, at the touch"
    from cryptoexp.market.tape import read_recording
    tape = read_recording([data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')])
    rows = tape.timeline()
    touching = {'min_profit_threshold': 0.0, 'spread_percentage': 1e-6, 'volatility_widening': 0.0}
    config = load_config(preset='maker-rebate', overrides=touching)
    engine = Engine(tape.instrument, config, hold_ns=int((rows.local_ns - rows.exchange_ns).max()), use_best_quotes=tape.fused)
    engine.feed(rows)
    engine.finish()
    session = session_of(engine, 'recording', Digest().update(rows).hexdigest(), preset='maker-rebate')
    assert len(session.fills) > 50
    written(session)
