"Money adds up, to the last digit, from the files alone: read with csv and Decimal, for random markets, grids, fees and quotes"
from __future__ import annotations

import csv
import json
import re
import tempfile
from collections import deque
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal, localcontext
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
from cryptoexp.trading.ledger import (
    COUNTERS,
    FUNDING_COLUMNS,
    ORDER_COLUMNS,
    TRADE_COLUMNS,
    Session,
    count_minutes,
    fundings_of,
    session_of,
    totals,
    write_run,
)
from cryptoexp.trading.limits import mid_worth_e8
from cryptoexp.trading.matching import Engine
from cryptoexp.trading.quoting import Quoter
from cryptoexp.trading.report import markout_money, one_line, performance, report_page, show, terminal_report
from cryptoexp.trading.venue import VENUES, Venue

MS = 1_000_000
START = 1_723_075_200_000 * MS
PLAIN = re.compile(r'-?(0|[1-9]\d*)(\.\d*[1-9])?')  # no exponent, no trailing zero, no dust
MONEY = ('price', 'amount', 'value', 'fee', 'mid', 'position', 'cash', 'equity', 'realised_pnl', 'unrealised_pnl')
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
    payments = []
    if (folder/'funding.csv').exists():
        with (folder/'funding.csv').open(encoding='utf-8', newline='') as file: payments = list(csv.DictReader(file))
        assert (folder/'funding.csv').read_bytes().split(b'\n', 1)[0].decode() == ','.join(FUNDING_COLUMNS)
    with localcontext() as context:
        context.prec = 200
        check_rows(rows, payments, summary)


DUST = Decimal('1e-8')


def rounded(money: Decimal) -> Decimal: return money.quantize(DUST, ROUND_HALF_UP)   # half away from zero


class Books:
    "The account as a stranger keeps it: decimals, and first in, first out"

    def __init__(self, summary: dict) -> None:
        config = summary['config']
        self.inverse, self.size = summary['kind'] == 'inverse', Decimal(summary.get('contract_size', 1))
        self.cash, self.position = Decimal(str(config['total_capital'])), Decimal(str(config['initial_base']))
        self.start = Decimal(summary['start_equity'])
        self.held = deque([[self.position, self.start - self.cash]] if self.position else [])   # what is held, and what it cost
        self.realised = self.fees = self.funding = Decimal(0)

    def move(self, signed: Decimal, price: Decimal) -> Decimal:
        "Lots come or go; what they were worth"
        value = rounded(abs(signed) * self.size / price) if self.inverse else abs(signed) * price
        money = value.copy_sign(-signed if self.inverse else signed)   # who buys an inverse contract has coins and owes dollars
        self.cash, self.position = self.cash - money, self.position + signed
        while signed and self.held and self.held[0][0] * signed < 0:
            oldest = self.held[0]
            size = min(abs(signed), abs(oldest[0]))
            cost, given = oldest[1] * size / abs(oldest[0]), money * size / abs(signed)
            if self.inverse: cost, given = rounded(cost), rounded(given)
            self.realised -= cost + given
            oldest[0], oldest[1] = oldest[0] - size.copy_sign(oldest[0]), oldest[1] - cost
            signed, money = signed - size.copy_sign(signed), money - given
            if not oldest[0]: self.held.popleft()
        if signed: self.held.append([signed, money])
        return value

    def check_equity(self, equity: Decimal, mid: Decimal) -> Decimal:
        "Cash, and the position at the mid; what is not realised yet"
        if self.inverse: assert abs(equity - self.cash + self.position * self.size / mid) <= DUST   # the engine rounds two halves
        else: assert equity == self.cash + self.position * mid
        unrealised = equity - self.cash - sum((cost for _, cost in self.held), Decimal(0))
        assert equity - self.start == self.realised + unrealised - self.fees - self.funding   # two ways: cash, and first in first out
        return unrealised


def check_rows(rows: list[dict[str, str]], payments: list[dict[str, str]], summary: dict) -> None:
    config, books, ahead = summary['config'], Books(summary), deque(payments)
    currency = summary['instrument']['base' if summary['kind'] == 'inverse' else 'quote']
    assert summary['currency'] == currency and {row['currency'] for row in rows + payments} <= {currency}
    for row in rows:
        while ahead and int(ahead[0]['time_ns']) < int(row['time_ns']): check_payment(books, ahead.popleft())
        for name in MONEY: assert PLAIN.fullmatch(row[name]), f'{name} is written {row[name]}'
        price, amount, fee, mid = (Decimal(row[name]) for name in ('price', 'amount', 'fee', 'mid'))
        assert Decimal(row['value']) == books.move({'buy': amount, 'sell': -amount}[row['side']], price)
        books.cash, books.fees = books.cash - fee, books.fees + fee
        assert (Decimal(row['cash']), Decimal(row['position'])) == (books.cash, books.position)
        unrealised = books.check_equity(Decimal(row['equity']), mid)
        assert (Decimal(row['realised_pnl']), Decimal(row['unrealised_pnl'])) == (books.realised, unrealised)
        check_closing(books, row['closing_price'], row['liquidation_equity'], Decimal(str(config['taker_fee'])))
        assert row['time'].endswith('Z') and pd.Timestamp(row['time']).value == int(row['time_ns'])
        assert row['liquidity'] in ('maker', 'taker')
    for row in ahead: check_payment(books, row)
    volume = {kind: sum((Decimal(row['value']) for row in rows if row['liquidity'] == kind), Decimal(0)) for kind in ('maker', 'taker')}
    assert summary['fills'] == len(rows) and Decimal(summary['fees']) == books.fees
    assert summary['fundings'] == len(payments) and Decimal(summary['funding']) == books.funding
    assert (Decimal(summary['maker_volume']), Decimal(summary['taker_volume'])) == (volume['maker'], volume['taker'])
    assert Decimal(summary['final_position']) == books.position
    if summary['final_equity'] is not None:
        assert Decimal(summary['pnl']) == Decimal(summary['final_equity']) - books.start
        assert Decimal(summary['realised_pnl']) == books.realised
        assert Decimal(summary['pnl']) == books.realised + Decimal(summary['unrealised_pnl']) - books.fees - books.funding
    assert MarketMakingConfig(**config).to_dict() == config  # the run can be repeated from its summary


def check_closing(books: Books, price: str, left: str, rate: Decimal) -> None:
    "Whoever has to leave sells at the bid or buys back at the ask, and pays the taker fee; no price: nothing is held, or nobody is there"
    if not price:
        assert left == '' if books.position else Decimal(left) == books.cash
        return
    assert books.position and PLAIN.fullmatch(price) and PLAIN.fullmatch(left)
    value = -books.position * books.size / Decimal(price) if books.inverse else books.position * Decimal(price)
    assert abs(Decimal(left) - (books.cash + value - rounded(abs(value) * rate))) <= 2*DUST


def check_payment(books: Books, row: dict[str, str]) -> None:
    "A payment is its position, mid and rate, and nothing else"
    for name in FUNDING_COLUMNS[2:]: assert name == 'currency' or PLAIN.fullmatch(row[name]), f'{name} is written {row[name]}'
    rate, mid, position, value, paid = (Decimal(row[name]) for name in ('rate', 'mid', 'position', 'value', 'paid'))
    assert position == books.position and position
    exact = abs(position) * books.size / mid if books.inverse else abs(position) * mid
    assert abs(value - exact) <= DUST and paid == rounded(value * rate).copy_sign(position * rate)
    books.cash, books.funding = books.cash - paid, books.funding + paid
    assert (Decimal(row['cash']), Decimal(row['funding'])) == (books.cash, books.funding)
    books.check_equity(Decimal(row['equity']), mid)


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


CONTRACTS = [('0.5', '1', '100'), ('0.1', '1', '10'), ('0.01', '0.1', '7.5'), ('0.00001', '1', '1')]
SMALL = st.tuples(st.sampled_from([1, -1]), st.integers(10 ** 4, 10 ** 6), st.integers(1, 10 ** 5), st.integers(0, 1),
                  st.integers(-10 ** 6, 10 ** 6), st.integers(10 ** 4, 10 ** 6), st.integers(10 ** 4, 10 ** 6))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fills=st.lists(SMALL, max_size=12), steps=st.sampled_from(CONTRACTS), held=st.integers(0, 5))
def test_any_fills_of_inverse_contracts_add_up(fills: list[tuple[int, ...]], steps: tuple[str, str, str], held: int) -> None:
    "Values without a last digit, rounded fill by fill, and lots that leave in parts: nothing is lost between them"
    instrument = grid(*steps[:2])
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=12.5, initial_base=float(held * 1000 * instrument.lot_size))
    session = replace(make_session(instrument, config, fills, (20_000, 20_001)), venue=Venue(kind='inverse', contract_size=steps[2]))
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


def play(instrument: Instrument, config: MarketMakingConfig, events: Events, batch: int = 1 << 30, quoter: Quoter = restless,
         **options: object) -> Session:
    engine, digest, minutes = Engine(instrument, config, quoter, **options), Digest(), dict[int, int]()  # type: ignore[arg-type]
    for start in range(0, len(events), batch):
        part = events[start:start + batch]
        engine.feed(part)
        digest.update(part)
        count_minutes(minutes, part)
    engine.finish()
    assert engine.desk is not None
    state, rule, samples = engine.desk.state[0], engine.desk.rules[0], engine.samples
    own_cash = {'cash_e8': state.cash_e8.item(), 'last_e8': int(mid_worth_e8(int(samples.bid_tick.iloc[-1]), int(samples.ask_tick.iloc[-1]),
                                                                            int(engine.desk.accounts[0].position_lots), rule))}
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


# ---- perpetual contracts

def decisions(*seconds: float) -> list[int]: return [START + MS + round(second * 1000) * MS for second in seconds]


def there_and_back(view: np.ndarray, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    "Buy ten at the low touch, wait, sell them at the high one"
    now = view.market[0]
    if now.position_lots == 0 and now.ask_tick < 450: wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick, 10
    if now.position_lots > 0 and now.bid_tick >= 500: wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick, 10
    return 0


def there_and_back_rows() -> Events:
    "200/205, a print below our bid; 220/230; 250/255, a print above our ask"
    rows = [(CLEAR | BUY | SELL, 0, START + MS, 0, 0, 1), (SNAPSHOT | BUY, 0, START + MS, 400, 50, 1),
            (SNAPSHOT | SELL | LAST, 0, START + MS, 410, 50, 1), (CONTROL | LAST, START + MS, START + MS, RESUME, 0, 0)]
    for after, kind, tick, lots in ((150, TRADE | SELL, 399, 100), (200, DEPTH | SELL, 410, 0), (200, DEPTH | SELL, 460, 50),
                                    (200, DEPTH | BUY, 440, 50), (400, DEPTH | SELL, 460, 0), (400, DEPTH | SELL, 510, 50),
                                    (400, DEPTH | BUY, 500, 50), (650, TRADE | BUY, 511, 100), (700, DEPTH | BUY, 500, 60)):
        rows.append((kind | LAST, START + after * MS, START + (after + 1) * MS, tick, lots, 0))
    return from_rows(rows)


@pytest.mark.parametrize(('kind', 'answers'), [
    # 10 × 100 / 200 = 5 coins come, 1000 / 255 go; 1000 / 225 × 0.1 % of funding; fees of 0.01 %
    ('inverse', ('1.07309477', '1.07843137', '0.00089216', '0.00444444', '8.92156863')),
    # 2000 go, 2550 come; 2250 × 0.1 %; 0.2 and 0.255
    ('linear', ('547.295', '550', '0.455', '2.25', '4550'))])
def test_a_round_trip_by_hand(kind: str, answers: tuple[str, ...]) -> None:
    venue = Venue(kind=kind, contract_size=100 if kind == 'inverse' else None, maker_fee=.0001, taker_fee=.0005,
                  funding=np.array([[decisions(.3)[0], 100_000]]))
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=20_000, max_inventory_exposure=1.0, maker_fee=.0001, taker_fee=.0005)
    session = replace(play(grid('0.5', '1'), config, there_and_back_rows(), quoter=there_and_back, venue=venue), notes=())
    files = written(session)
    summary = json.loads(files['summary.json'])
    assert tuple(summary[name] for name in ('pnl', 'realised_pnl', 'fees', 'funding', 'maker_volume')) == answers
    assert (summary['unrealised_pnl'], summary['final_position'], summary['kind']) == ('0', '0', kind)
    currency = {'inverse': 'TOY', 'linear': 'USD'}[kind]
    assert f'profit, {currency}'.encode() in files['report.html'] and f'funding, {currency}'.encode() in files['report.html']
    assert f'({kind})' in one_line(session) and currency in one_line(session)
    paid, = csv.DictReader(files['funding.csv'].decode().splitlines())
    assert (paid['position'], paid['mid'], paid['rate'], paid['paid']) == ('10', '225', '0.001', answers[3])
    later = markout_money(session, (.25, 3600.))   # the buy at 200, and a mid of 225; the sale, and nothing any more
    gain = 5 - Decimal(1000) / 225 if kind == 'inverse' else Decimal(250)
    assert later.fills.tolist() == [1, 0] and later.excluded.tolist() == [1, 2] and later.currency[0] == currency
    assert later.mean_money[0] == pytest.approx(float(gain)) and later.mean_bps[0] == pytest.approx(1250)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10 ** 6), steps=st.sampled_from(CONTRACTS), inverse=st.booleans(), held=st.integers(0, 2),
       rates=st.lists(st.integers(-10 ** 6, 10 ** 6), min_size=1, max_size=5))
def test_an_engine_on_margin_adds_up(seed: int, steps: tuple[str, str, str], inverse: bool, held: int, rates: list[int]) -> None:
    "Long and short, with funding paid and received: the ledger and the engine count the same"
    instrument = grid(*steps[:2])
    times = decisions(*(4 + 7 * at for at in range(len(rates))))
    venue = Venue(kind='inverse' if inverse else 'linear', contract_size=steps[2] if inverse else None, maker_fee=.0001, taker_fee=.0004,
                  funding=np.column_stack([times, rates]))
    price = 105 * float(instrument.tick_size)
    worth = float(instrument.lot_size) * (float(steps[2]) / price if inverse else price)
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=round(max(1e-4, 2000 * worth), 8), max_inventory_exposure=1.0,
                                initial_base=float(held * 20 * instrument.lot_size), maker_fee=.0001, taker_fee=.0004)
    session = play(instrument, config, random_rows(seed, 400), venue=venue)
    moves = [(time, side * lots) for time, side, lots in zip(session.fills.time_ns, session.fills.side, session.fills.lots, strict=True)]
    end = session.samples.time_ns.iloc[-1]
    held_at = {time: held * 20 + sum(lots for at, lots in moves if at <= time) for time in times if time <= end}
    assert moves and session.fundings.time_ns.tolist() == [time for time, lots in held_at.items() if lots]   # the flat pay nothing
    written(session, page=False)
    sums, own = totals(session), json.loads(session.notes[0])
    allowed = Decimal('0.5e-8') * len(session.fills) * (instrument.money_divisor != 1) * (not inverse)   # on a fine grid fills are rounded
    assert abs(sums.cash - Decimal(own['cash_e8']).scaleb(-8)) <= allowed
    if session.samples.time_ns.iloc[-1] > session.fills.time_ns.iloc[-1] and inverse:
        assert sums.final_equity == Decimal(own['cash_e8'] + own['last_e8']).scaleb(-8)


def test_a_payment_without_a_witness_is_refused() -> None:
    venue = Venue(kind='linear', funding=np.array([[decisions(.3)[0], 100_000]]))
    config = MarketMakingConfig(trading_pair='TOY/USD', total_capital=20_000, max_inventory_exposure=1.0)
    session = play(grid('0.5', '1'), config, there_and_back_rows(), quoter=there_and_back, venue=venue)
    alone = replace(session, fundings=session.fundings.assign(position_lots=11))
    with pytest.raises(ValueError, match='paid on 11 lots, but the fills up to its time leave 10'): totals(alone)
    with tempfile.TemporaryDirectory() as name, pytest.raises(ValueError, match=r'lots at this mid and rate owe 225000000 e-8'):
        write_run(name, replace(session, fundings=session.fundings.assign(paid_e8=1)))
    engine = Engine(grid('0.5', '1'), config, there_and_back, venue=venue)
    engine.feed(there_and_back_rows())
    engine.finish()
    assert fundings_of(engine).equals(session.fundings)
    samples = engine._parts['samples']
    engine._parts['samples'] = [part[part['time_ns'] != venue.funding[0, 0]] for part in samples]   # type: ignore[index]
    with pytest.raises(ValueError, match=r'booked 225000000 e-8 of funding, of which 0 e-8 can be proven.*00:00:00\.301'):
        fundings_of(engine)


def real_session(data_folder: Path, **changes: object) -> Session:
    "Ten minutes of BTCUSDT (USD-M), quoted at the touch"
    from cryptoexp.market.tape import read_recording
    from cryptoexp.trading.backtest import backtest
    tape = read_recording([data_folder/'binance_usdm/btcusdt_20240808.gz'])
    rows = tape.timeline()
    first, middle = int(rows.local_ns[0]), int(rows.local_ns[len(rows) // 2])
    if 'after_decision_ns' in changes:
        at = first + (middle - first) // 10 ** 8 * 10 ** 8 + int(changes.pop('after_decision_ns'))   # type: ignore[call-overload]
        changes['funding'] = np.array([[first - 8 * 3600 * 10 ** 9, 9_999], [at, 10_000], [at + 60 * 10 ** 9, -20_000]])
    inverse = changes.pop('inverse', False)
    venue = VENUES['binance-coinm-btcusd' if inverse else 'binance-usdm'](**changes)
    config = MarketMakingConfig(total_capital=1. if inverse else 10_000., max_inventory_exposure=1.0)
    return backtest(tape, restless, venue, config=config).session


@pytest.mark.parametrize('inverse', [False, True])
def test_a_real_perpetual_adds_up(data_folder: Path, inverse: bool) -> None:
    "Real minutes with two payments, each at a decision; as an inverse contract, one lot stands for a thousandth of a contract"
    session = real_session(data_folder, inverse=inverse, after_decision_ns=0)
    assert len(session.fills) > 100 and len(session.fundings) == 2
    assert b'Funding' in written(session)['report.html']
    assert totals(session).cash == Decimal(int(session.samples.cash_e8.iloc[-1])).scaleb(-8)


@pytest.mark.parametrize('inverse', [False, True])
def test_a_real_payment_between_decisions_adds_up(data_folder: Path, inverse: bool) -> None:
    session = real_session(data_folder, inverse=inverse, after_decision_ns=12_345_678)
    assert len(session.fundings) == 2
    written(session)
    assert totals(session).cash == Decimal(int(session.samples.cash_e8.iloc[-1])).scaleb(-8)


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
