"Files of other people become tapes: every digit, every bad row named, and the book of the rows is the book of the file"
from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.market import binance, layouts, tape
from cryptoexp.market.events import (
    BUY,
    CLEAR,
    CONTROL,
    DEPTH,
    KIND_MASK,
    LAST,
    RESUME,
    SELL,
    SNAPSHOT,
    STALE,
    TRADE,
    Events,
    from_rows,
)
from cryptoexp.market.instrument import Instrument
from cryptoexp.market.layouts import cryptofeed_lines, open_tape, read_klines
from cryptoexp.market.okx import OkxStream

TOY = Instrument('toy', 'BTCUSDT', 'BTC', 'USDT', Decimal('0.1'), Decimal('0.001'))
Book = tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]  # bids, asks


def books(made: tape.Tape) -> list[tuple[int, Book]]:
    "(local time, book) after every message, by plain dictionaries"
    sides: Book = {}, {}
    out = []
    for flags, _, local, tick, lots, _ in zip(*(column.tolist() for column in made.events.columns)):
        kind = flags & KIND_MASK
        if kind == CLEAR: sides[0].clear(), sides[1].clear()
        elif kind in (DEPTH, SNAPSHOT):
            side, price = sides[0 if flags & BUY else 1], made.instrument.price(tick)
            if lots: side[price] = made.instrument.amount(lots)
            else: side.pop(price, None)
        if flags & LAST and kind in (DEPTH, SNAPSHOT): out.append((local, (dict(sides[0]), dict(sides[1]))))
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with (gzip.open(path, 'rt') if path.suffix == '.gz' else path.open()) as lines: return list(csv.DictReader(lines))


def written(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text('\n'.join([*([header] if header else []), *rows]) + '\n')
    return path


# ---- numbers

@given(st.text('0123456789.eE+-', min_size=0, max_size=24))
@settings(max_examples=400, deadline=None)
def test_a_number_is_read_exactly_or_not_at_all(text: str) -> None:
    line = text.encode()
    value, decimals = layouts._number(np.frombuffer(line, np.uint8), 0, len(line)) if line else (0, layouts.BAD)
    try: wanted = Decimal(text)
    except ArithmeticError: wanted = None
    if decimals == layouts.BAD:
        plain = wanted is not None and not text.startswith(('-', '+')) and len(text) <= 15 and 'e' not in text.lower()
        assert not plain, 'a plain number was refused'
    else: assert wanted == Decimal(int(value)).scaleb(-int(decimals)) and 0 <= decimals <= 18


def test_common_decimals_refuse_what_does_not_fit() -> None:
    values, decimals, good = layouts.at_common_decimals(np.array([2 ** 60, 1]), np.array([0, 12], np.int8))
    assert (decimals, good.tolist(), int(values[1])) == (12, [False, True], 1)


@pytest.mark.parametrize('time, ns', [
    (10 ** 14 - 1, (10 ** 14 - 1) * 10 ** 6), (10 ** 14, 10 ** 17), (10 ** 17 - 1, (10 ** 17 - 1) * 1000), (10 ** 17, 10 ** 17)])
def test_units_of_time_by_magnitude(time: int, ns: int) -> None:
    times, good = layouts.nanoseconds(np.array([time]))
    assert (times[0] == ns) == good[0] and good[0] == (ns < 2 ** 63)


# ---- Tardis

def test_tardis_trades(data_folder: Path) -> None:
    path = data_folder/'layouts'/'binance-futures_trades_BTCUSDT_20200222_10k.csv.gz'
    made, rows = open_tape(path), rows_of(path)
    assert len(made) == len(rows) == 9999 and made.problems == []
    for place, row in enumerate(rows):
        assert made.instrument.price(int(made.events.tick[place])) == Decimal(row['price'])
        assert made.instrument.amount(int(made.events.lots[place])) == Decimal(row['amount'])
    assert made.events.exchange_ns.tolist() == [int(row['timestamp']) * 1000 for row in rows]
    assert made.events.local_ns.tolist() == [int(row['local_timestamp']) * 1000 for row in rows]
    assert made.events.id.tolist() == [int(row['id']) for row in rows]
    assert made.events.flags.tolist() == [TRADE | LAST | (BUY if row['side'] == 'buy' else SELL) for row in rows]
    assert (made.instrument.venue, made.instrument.pair, made.instrument.kind) == ('binance', 'BTC/USDT', 'usdm')
    assert len(made.timeline()) == 9999 and made.clock.points == 9999


@pytest.mark.parametrize('depth', [5, 25])
def test_tardis_pictures(data_folder: Path, depth: int) -> None:
    path = data_folder/'layouts'/f'binance-futures_book_snapshot_{depth}_BTCUSDT.csv'
    made, rows = open_tape(path), rows_of(path)
    assert made.problems == [] and made.notes['pictures'] == len(rows) == 10
    found = dict(books(made))
    for row in rows:
        wanted = tuple({Decimal(row[f'{side}[{level}].price']): Decimal(row[f'{side}[{level}].amount']) for level in range(depth)}
                       for side in ('bids', 'asks'))
        assert found[int(row['local_timestamp']) * 1000] == wanted
    assert tape.crossings(made) == 0 and (made.events.kind == CLEAR).sum() == 1


def test_tardis_quotes_and_ids_that_are_no_numbers(data_folder: Path) -> None:
    path = data_folder/'layouts'/'huobi-dm-swap_quotes_BTC-USD.csv'
    made, rows = open_tape(path), rows_of(path)
    assert [made.instrument.price(int(tick)) for tick in made.events.tick[::2]] == [Decimal(row['bid_price']) for row in rows]
    assert [made.instrument.amount(int(lots)) for lots in made.events.lots[1::2]] == [Decimal(row['ask_amount']) for row in rows]
    bitmex = open_tape(data_folder/'layouts'/'bitmex_trades_XBTUSD.csv')
    assert bitmex.problems == [] and not bitmex.events.id.any() and bitmex.instrument.pair == 'XBT/USD'


def test_tardis_levels(data_folder: Path) -> None:
    path = data_folder/'layouts'/'deribit_incremental_book_L2_BTC-PERPETUAL.csv'
    made, rows = open_tape(path), rows_of(path)
    assert books(made)[-1][1] == ({}, {Decimal(row['price']): Decimal(row['amount']) for row in rows})
    assert made.events.kind.tolist() == [CLEAR, *[SNAPSHOT] * 15, CONTROL] and made.events.tick[-1] == RESUME


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.booleans(), st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_levels_against_plain_dictionaries(tmp_path_factory: pytest.TempPathFactory, draws: list[tuple[bool, int, bool, int, int]]) -> None:
    "Any file of levels: the book of the rows is that of Tardis' own rule, which clears where is_snapshot turns true"
    folder = tmp_path_factory.mktemp('levels')
    sides: Book = {}, {}
    lines, wanted, time, before, started = [], dict[int, Book](), 1_585_699_200_000_000, False, False
    for snapshot, step, bid, price, amount in draws:
        time += step
        lines.append(f'x,BTC-USD,{time},{time + 1000},{str(snapshot).lower()},{"bid" if bid else "ask"},{price}.5,{amount}')
        if snapshot and not before: sides[0].clear(), sides[1].clear()
        before, started = snapshot, started or snapshot
        if not started: continue
        side, level = sides[0 if bid else 1], Decimal(price) + Decimal('0.5')
        if amount: side[level] = Decimal(amount)
        else: side.pop(level, None)
        wanted[(time + 1000) * 1000] = dict(sides[0]), dict(sides[1])
    path = written(folder/'levels.csv', ','.join(layouts.TARDIS['incremental_book_L2']), lines)
    if not any(draw[0] for draw in draws):
        with pytest.raises(ValueError, match='holds no snapshot'): open_tape(path)
        return
    if not any(draw[4] for draw in draws[[draw[0] for draw in draws].index(True):]): return   # nothing to read a lot size from
    made = open_tape(path)
    assert dict(books(made)) == wanted
    runs = sum(now[0] and not (place and draws[place - 1][0]) for place, now in enumerate(draws))
    first = [draw[0] for draw in draws].index(True)
    for place in np.flatnonzero(made.events.kind == CONTROL).tolist(): assert made.events.flags[place - 1] & LAST, 'a message is whole'
    controls = made.events.tick[made.events.kind == CONTROL].tolist()
    assert controls.count(RESUME) == runs and controls.count(STALE) == runs - 1
    assert sum('before the first snapshot' in one for one in made.problems) == (first > 0)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    good = 'deribit,BTC-PERPETUAL,1585699200245000,1585699200355684,7,buy,6421.5,10'
    bad = {3: good.replace('6421.5', '-6421.5'), 4: good.replace('buy', 'hold'), 5: good.rsplit(',', 1)[0], 6: good.replace(',10', ',0'),
           7: good.replace('1585699200245000', '12'), 8: good.replace('BTC-P', 'ETH-P'), 9: good + ',', 10: 'garbage \x00',
           11: good.replace('6421.5', '0'), 12: good.replace(',10', ',0.1234567890123')}
    path = written(tmp_path/'trades.csv', ','.join(layouts.TARDIS['trades']), [good, *bad.values(), good])
    made = open_tape(path)
    assert len(made) == 2 and all('trades.csv' in one for one in made.problems)
    for line in bad: assert any(f'{line}' in one.split('(line')[1] for one in made.problems), line
    assert sum(int(one.split(': ')[1].split()[0]) for one in made.problems) == len(bad)


def test_a_symbol_of_many(tmp_path: Path) -> None:
    rows = [f'deribit,{name}-PERPETUAL,1585699200245000,1585699200355684,7,buy,{price},10' for name, price in (('BTC', 6421), ('ETH', 130))]
    path = written(tmp_path/'trades.csv', ','.join(layouts.TARDIS['trades']), rows)
    assert open_tape(path, symbol='ETH-PERPETUAL').instrument.price(1) * int(open_tape(path, symbol='ETH-PERPETUAL').events.tick[0]) == 130
    with pytest.raises(ValueError, match='no row of it can be used'): open_tape(path, symbol='SOL-PERPETUAL')


def test_a_cut_file_keeps_its_beginning(data_folder: Path, tmp_path: Path) -> None:
    whole = (data_folder/'layouts'/'binance-futures_trades_BTCUSDT_20200222_10k.csv.gz').read_bytes()
    (tmp_path/'cut.csv.gz').write_bytes(whole[:len(whole) // 2])
    made = open_tape(tmp_path/'cut.csv.gz')
    assert 4000 < len(made) < 6000 and 'cut or damaged after line' in made.problems[0]


def test_book_and_trades_are_merged(tmp_path: Path) -> None:
    head = 'x,BTC-USD,{0},{0}'
    levels = written(tmp_path/'levels.csv', ','.join(layouts.TARDIS['incremental_book_L2']), [
        head.format(1_585_699_200_000_000 + time) + f',{kind},bid,{price},2'
        for time, kind, price in ((0, 'true', 100), (20, 'false', 100.25))])
    trades = written(tmp_path/'trades.csv', ','.join(layouts.TARDIS['trades']), [
        head.format(1_585_699_200_000_000 + time) + ',1,sell,100.5,0.5' for time in (10, 30)])
    made = open_tape([trades, levels])
    assert made.events.kind.tolist() == [CLEAR, SNAPSHOT, CONTROL, TRADE, DEPTH, TRADE]
    assert (made.instrument.tick_size, made.instrument.lot_size) == (Decimal('0.25'), Decimal('0.5'))
    assert made.source == ('trades.csv', 'levels.csv') and made.notes['trades'] == 2


def test_a_given_grid(tmp_path: Path) -> None:
    "Off the ticks: left out; finer than a lot: a level is rounded up (it is not gone), a print down, and one below a lot is left out"
    head = 'x,BTC-USD,1585699200000000,1585699200000100'
    levels = written(tmp_path/'levels.csv', ','.join(layouts.TARDIS['incremental_book_L2']), [
        f'{head},true,bid,{price},{amount}' for price, amount in ((100, '2.5'), (99, '4'), (98.5, '1'))])
    prints = [f'{head},1,sell,100,{amount}' for amount in ('5.5', '1.5', '4')]
    trades = written(tmp_path/'trades.csv', ','.join(layouts.TARDIS['trades']), prints)
    grid = Instrument('x', 'BTC-USD', 'BTC', 'USD', Decimal(1), Decimal(2))
    made = open_tape([levels, trades], grid)
    assert made.instrument is grid and made.events.flags.tolist()[1:3] == [SNAPSHOT | BUY, SNAPSHOT | BUY | LAST]
    assert [made.events.lots[made.events.kind == kind].tolist() for kind in (SNAPSHOT, TRADE)] == [[2, 2], [2, 2]]
    assert len(made.problems) == 3 and '1 rows off the grid' in made.problems[0] and '1 quantities finer' in made.problems[1]


# ---- the archive of Binance

SPOT = ['4081,61837.63000000,0.02000000,1236.75260000,{0},True,True', '4082,61837.64000000,0.00100000,61.83764000,{0},False,True']


@pytest.mark.parametrize('time', [1_723_161_255_342, 1_735_689_600_123_456])
@pytest.mark.parametrize('packed', [True, False])
def test_binance_spot_trades(tmp_path: Path, time: int, packed: bool) -> None:
    text = '\n'.join(SPOT).format(time) + '\n'
    path = tmp_path/('BTCUSDT-trades-2024-08-08.zip' if packed else 'BTCUSDT-trades-2024-08-08.csv')
    if packed:
        with zipfile.ZipFile(path, 'w') as archive: archive.writestr('BTCUSDT-trades-2024-08-08.csv', text)
    else: path.write_text(text)
    made = open_tape(path)
    assert made.events.exchange_ns.tolist() == [time * (10 ** 6 if time < 10 ** 14 else 1000)] * 2
    assert made.events.flags.tolist() == [TRADE | SELL | LAST, TRADE | BUY | LAST] and made.events.id.tolist() == [4081, 4082]
    assert (made.instrument.tick_size, made.instrument.lot_size, made.instrument.kind) == (Decimal('0.01'), Decimal('0.001'), 'spot')
    assert (made.timeline().local_ns - made.events.exchange_ns == 1_000_000).all() and 'no time of receipt' in made.clock.remark


@pytest.mark.parametrize('header', [True, False])
def test_binance_futures(tmp_path: Path, header: bool) -> None:
    heads = {'trades': 'id,price,qty,quote_qty,time,is_buyer_maker',
             'aggTrades': 'agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker'}
    rows = {'trades': '5,61837.6,0.002,123.6,1723161255342,true', 'aggTrades': '5,61837.6,0.002,7,9,1723161255342,true'}
    for kind, row in rows.items():
        made = open_tape(written(tmp_path/f'BTCUSDT-{kind}-2024-08-08.csv', heads[kind] if header else '', [row]))
        assert made.events.flags.tolist() == [TRADE | SELL | LAST] and made.events.id.tolist() == [5] and made.problems == []
        assert made.instrument.kind == 'usdm' and made.notes.get('trades are aggregated', False) == (kind == 'aggTrades')


def test_a_wrong_sum_is_refused(tmp_path: Path) -> None:
    path = tmp_path/'BTCUSDT-trades-2024-08-08.csv'
    path.write_text('\n'.join(SPOT).format(1_723_161_255_342) + '\n')
    beside = tmp_path/'BTCUSDT-trades-2024-08-08.csv.CHECKSUM'
    beside.write_text(f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n')
    assert open_tape(path).notes['sha256'] == 'as published'
    path.write_text(path.read_text().replace('0.02', '0.03'))
    with pytest.raises(ValueError, match='is not what was published'): open_tape(path)


def test_a_damaged_zip_is_called_damaged(tmp_path: Path) -> None:
    "A bit flipped in the middle of a zip without a sum beside it: nothing can be read, which is not `nothing known here`"
    path = tmp_path/'BTCUSDT-trades-2024-08-08.zip'
    rows = random.Random(7).randbytes(3000).hex()
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive: archive.writestr('BTCUSDT-trades-2024-08-08.csv', rows)
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r'is damaged, nothing of it can be read.*Fetch it again'): open_tape(path)


def test_quotes_of_futures_are_put_in_order(tmp_path: Path) -> None:
    draw = random.Random(3)
    begin = 1_711_756_800_000
    rows = [f'{number},{100 + number},1,{101 + number},1,{begin + number // 3},{begin + number // 2}' for number in range(60)]
    files = {29: rows, 30: draw.sample(rows, len(rows))}
    ordered, made = (open_tape(written(tmp_path/f'BTCUSDT-bookTicker-2024-03-{day}.csv', '', some)) for day, some in files.items())
    assert ordered.events.equals(made.events) and made.notes['rows put in order'] > 40 and made.events.id[::2].tolist() == list(range(60))


def test_klines(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder/'layouts'/'ADABTC-1m-2021-11-28.csv'
    bars = read_klines(path)
    with path.open() as lines: rows = list(csv.reader(lines))
    for column, name in enumerate('open high low close volume'.split(), 1):
        assert bars[name].tolist() == [float(row[column]) for row in rows]
    assert [int(time.value) for time in bars.open_time] == [int(row[0]) * 10 ** 6 for row in rows]
    (tmp_path/'bad.csv').write_text(path.read_text() + '1,2\n')
    assert len(read_klines(tmp_path/'bad.csv')) == len(bars) and '1 rows skipped' in read_klines(tmp_path/'bad.csv').attrs['problems'][0]
    with pytest.raises(ValueError, match='read_klines'): open_tape(path)


# ---- Bybit

def bybit_lines(data_folder: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(data_folder/'layouts'/'bybit_xrpusdt-ob500.data.zip') as archive:
        return [json.loads(line) for line in archive.read(archive.namelist()[0]).splitlines()]


def test_bybit_book(data_folder: Path) -> None:
    made = open_tape(data_folder/'layouts'/'bybit_xrpusdt-ob500.data.zip')
    sides: Book = {}, {}
    wanted = list[Book]()
    for message in bybit_lines(data_folder):
        for side, name in zip(sides, 'ba'):
            if message['type'] == 'snapshot': side.clear()
            for price, amount in message['data'][name]:
                if Decimal(amount): side[Decimal(price)] = Decimal(amount)
                else: side.pop(Decimal(price), None)
        wanted.append((dict(sides[0]), dict(sides[1])))
    assert [book for _, book in books(made)] == wanted and len(wanted) == 50
    assert tape.crossings(made) == 0 and made.instrument.tick_size == Decimal('0.0001') and len(made.timeline()) == len(made)


@pytest.mark.parametrize('fault', ['dropped', 'doubled', 'digit', 'garbage', 'cut', 'snapshot'])
def test_bybit_faults(data_folder: Path, tmp_path: Path, fault: str) -> None:
    messages = bybit_lines(data_folder)
    lines = [json.dumps(message) for message in messages]
    again = json.dumps(messages[0] | {'data': messages[0]['data'] | {'u': 1}, 'ts': messages[40]['ts'], 'cts': messages[40]['cts']})
    if fault == 'dropped': del lines[10]
    if fault == 'doubled': lines.insert(10, lines[9])
    if fault == 'digit': lines[10] = lines[10].replace('"1.9', '"1,9', 1)
    if fault == 'garbage': lines[10] = 'garbage'
    if fault == 'cut': lines[10] = lines[10][:80]
    if fault == 'snapshot': lines[10:40] = [again]
    made = open_tape(written(tmp_path/'2024-12-01_XRPUSDT_ob500.data', '', lines))
    controls = made.events.tick[made.events.kind == CONTROL].tolist()
    if fault == 'doubled': assert controls == [RESUME] and made.notes['repeated'] == 1 and made.notes['changes'] == 49
    elif fault == 'snapshot': assert controls == [RESUME, RESUME, STALE]   # the changes after it number on from before
    else: assert controls == [RESUME, STALE] and made.notes['changes'] == 9 and made.notes['changes without a book'] in (39, 40)
    assert len(made.problems) == (fault in ('digit', 'garbage', 'cut'))
    if made.problems: assert 'line 11' in made.problems[0]


# ---- hftbacktest, both ways

sides_of = st.sampled_from([BUY, SELL])
message = st.one_of(
    st.tuples(st.just(DEPTH), st.lists(st.tuples(sides_of, st.integers(1, 50), st.integers(0, 9)), min_size=1, max_size=4)),
    st.tuples(st.just(TRADE), st.lists(st.tuples(sides_of, st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=1)),
    st.tuples(st.just(SNAPSHOT), st.lists(st.tuples(sides_of, st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4)))


@given(st.lists(st.tuples(message, st.integers(0, 3), st.integers(1, 5), st.integers(0, 1000)), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, draws: list[Any]) -> None:
    "A tape → a file of hftbacktest → a tape: the same rows, also where messages overtake one another on the way"
    rows, local = [], 1_000_000
    for (kind, levels), step, latency, number in draws:
        local += step
        if kind == SNAPSHOT: rows.append((CLEAR | BUY | SELL, local - latency, local, 0, 0, number))
        rows += [(kind | side | (LAST if place == len(levels) - 1 else 0), local - latency, local, tick, lots, number)
                 for place, (side, tick, lots) in enumerate(levels)]
    made = tape.Tape(from_rows(rows), TOY)
    path = tape.save_hftbacktest(tape.to_hftbacktest(made), tmp_path_factory.mktemp('npz')/'btcusdt.npz')
    back = tape.load(path, TOY)
    again = tape.to_hftbacktest(back)
    assert again.tobytes() == tape.load_hftbacktest(path).tobytes()
    for clock in ('local_rows', 'exchange_rows'):
        mine, theirs = (plain(getattr(one, clock)()) for one in (made.events, back.events))
        assert mine == theirs


def plain(events: Events) -> list[tuple[int, ...]]:
    "Rows without the bits that say which clock they concern, and without the ends of messages, which stand once a clock"
    return list(zip((events.flags & 0x37).tolist(), *(column.tolist() for column in events.columns[1:2] + events.columns[3:])))


def test_there_and_back_of_a_recording(data_folder: Path, tmp_path: Path) -> None:
    made = open_tape(data_folder/'binance_spot'/'btcusdt_20240808.gz', streams='diff-only')
    path = tape.save_hftbacktest(tape.to_hftbacktest(made), tmp_path/'btcusdt_20240808.npz')
    back, rows = open_tape(path), made.timeline()
    assert back.events.equals(rows[np.isin(rows.kind, (DEPTH, TRADE, SNAPSHOT, CLEAR))]) and back.instrument.pair == 'BTC/USDT'


def test_hftbacktest_files_say_what_is_missing(tmp_path: Path) -> None:
    made = tape.Tape(from_rows([(DEPTH | BUY | LAST, 1, 2, 100, 5, 0)]), TOY)
    path = tape.save_hftbacktest(tape.to_hftbacktest(made), tmp_path/'x.npz')
    with pytest.raises(ValueError, match='does not say what it is of'): open_tape(path)
    assert open_tape(path, symbol='BTCUSDT').instrument.symbol == 'BTCUSDT'


# ---- cryptofeed

@pytest.mark.parametrize('name, count', [
    ('COINBASE.ws.28.0.gz', 9946), ('KRAKEN.ws.50.0.gz', 4321), ('OKX.ws.1.0.gz', 410), ('COINBASE.jsonl.zst', 1030)])
def test_cryptofeed_lines(data_folder: Path, name: str, count: int) -> None:
    problems: list[str] = []
    lines = list(cryptofeed_lines(data_folder/'exchanges'/name, problems=problems))
    times = [time for time, _ in lines]
    assert len(lines) == count and problems == [] and times == sorted(times)
    assert all(json.loads(text) is not None for _, text in lines)
    with pytest.raises(ValueError, match='recorded by cryptofeed'): open_tape(data_folder/'exchanges'/name)


def test_cryptofeed_stamps_are_exact(tmp_path: Path) -> None:
    path = written(tmp_path/'x', '', [
        'wss://host <-> 1618677816.8434298', '1618677817.0618958: {"a":1}', '1618677818: []', '1618677818.1: {"b": "c: d"}'])
    assert list(cryptofeed_lines(path)) == [
        (1618677817061895800, b'{"a":1}'), (1618677818000000000, b'[]'), (1618677818100000000, b'{"b": "c: d"}')]


def test_cryptofeed_damage(data_folder: Path, tmp_path: Path) -> None:
    whole = (data_folder/'exchanges'/'COINBASE.jsonl.zst').read_bytes()
    (tmp_path/'cut.zst').write_bytes(whole[:len(whole) // 2])
    problems: list[str] = []
    assert 0 < len(list(cryptofeed_lines(tmp_path/'cut.zst', problems=problems))) < 1030 and 'cut or damaged' in problems[0]
    path = written(tmp_path/'y', '', ['1618677817.06: {}', 'noise', '1618677818.06: {}'])
    problems.clear()
    assert len(list(cryptofeed_lines(path, problems=problems))) == 2 and 'line 2' in problems[0]


@pytest.mark.parametrize('drop', [False, True])
def test_a_tape_of_raw_messages(data_folder: Path, tmp_path: Path, drop: bool) -> None:
    "OKX by its stream: the whole recording never goes stale, one without a message does, and says so on the tape"
    lines = list(cryptofeed_lines(data_folder/'exchanges'/'OKX.ws.1.0.gz'))
    books_of = [place for place, (_, text) in enumerate(lines) if b'"channel":"books","instId":"BTC-USDT"' in text and b'"bids"' in text]
    if drop: del lines[books_of[40]]
    stream = OkxStream({'BTC-USDT': Instrument('okx', 'BTC-USDT', 'BTC', 'USDT', Decimal('0.1'), Decimal('1e-8'))})
    made = layouts.stream_tape(stream, lines, 'BTC-USDT', ['OKX.ws.1.0.gz'])
    controls = made.events.tick[made.events.kind == CONTROL].tolist()
    assert controls == ([RESUME, STALE] if drop else [RESUME]) and made.notes.get('gaps', 0) == drop
    assert tape.crossings(made) == 0 and (np.diff(made.timeline().local_ns) >= 0).all() and made.source == ('OKX.ws.1.0.gz',)
    assert open_tape(made.save(tmp_path/'okx.parquet')).events.equals(made.events)


# ---- one entry, and whatever comes in

@pytest.mark.parametrize('seed', range(12))
def test_any_bytes_end_in_a_tape_or_a_clear_error(data_folder: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    small = (path for path in (data_folder/'layouts').iterdir() if path.is_file() and path.stat().st_size < 100_000)
    paths = sorted(path for path in small if 'ADABTC' not in path.name)
    path = paths[seed % len(paths)]
    data = bytearray(path.read_bytes())
    for _ in range(1 + seed % 4): data[draw.randrange(len(data))] = draw.randrange(256)
    (tmp_path/path.name).write_bytes(data)
    try: made = open_tape(tmp_path/path.name)
    except ValueError as error: assert path.name in str(error)
    else: assert len(made.events) and (made.events.tick[made.events.kind != CONTROL] >= 0).all()


def test_what_cannot_be_joined(data_folder: Path, tmp_path: Path) -> None:
    saved = tape.Tape(from_rows([(TRADE | BUY | LAST, 1, 2, 100, 5, 0)]), TOY).save(tmp_path/'a.parquet')
    trades = data_folder/'layouts'/'bitmex_trades_XBTUSD.csv'
    with pytest.raises(ValueError, match='can\'t be merged'): open_tape([saved, trades])
    with pytest.raises(ValueError, match='can\'t be joined'): open_tape([saved, saved])
    with pytest.raises(ValueError, match='2 markets'): open_tape([trades, data_folder/'layouts'/'huobi-dm-swap_quotes_BTC-USD.csv'])
    with pytest.raises(ValueError, match='no file'): open_tape([])
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='there is no tape'): open_tape(tmp_path/'empty')
    assert open_tape(tmp_path).events.equals(open_tape(saved).events)   # a folder stands for the tapes in it
    assert len(open_tape(saved)) == 1


# ---- a saved tape that has lost a part

def spoil(path: Path, group: int, column: int = 3) -> None:
    data = bytearray(path.read_bytes())
    found = pq.ParquetFile(pa.py_buffer(bytes(data))).metadata.row_group(group).column(column)
    data[found.data_page_offset + found.total_compressed_size // 2] ^= 0xff
    path.write_bytes(data)


@pytest.mark.parametrize('lost', [(0,), (2,), (4,), (1, 2), (0, 4)])
def test_a_damaged_row_group_is_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]) -> None:
    monkeypatch.setattr(tape, 'ROW_GROUP', 200)
    draw = np.random.default_rng(1)
    rows = [(DEPTH | BUY | (LAST if place % 3 == 2 else 0), 1000 * place + 1, 1000 * place + 500, *map(int, draw.integers(1, 9, 2)), place)
            for place in range(1000)]
    whole = tape.Tape(from_rows(rows), TOY, source=('x',), notes={'seed': 1})
    path = whole.save(tmp_path/'a.parquet')
    for group in lost: spoil(path, group)
    made = tape.load(path)
    kept = np.concatenate([np.arange(200 * group, 200 * group + 200) for group in range(5) if group not in lost])
    stale = made.events.kind == CONTROL
    assert made.notes == {'seed': 1, 'rows lost': 200 * len(lost)} and len(made.problems) == len(lost) == stale.sum()
    rest = made.events[~stale]
    assert all(np.array_equal(mine, theirs[kept]) for mine, theirs in zip(rest.columns[1:], whole.events.columns[1:]))
    assert set(made.events.tick[stale].tolist()) == {STALE} and (np.diff(made.events.local_ns) >= 0).all()
    for place in np.flatnonzero(stale).tolist():
        before = max(place - 1, 0) if place else 1   # the hole begins with the last row that is there; at the very start, with the first
        assert made.events.local_ns[place] == made.events.local_ns[before]
        assert place == 0 or made.events.flags[place - 1] & LAST or stale[place - 1]
    for group, problem in zip(lost, made.problems): assert f'row group {group + 1} of 5' in problem
    with pytest.raises(ValueError, match='is damaged'): tape.load_tape(path, strict=True)
    assert len(made.timeline()) == len(made)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = tape.Tape(from_rows([(DEPTH | BUY | LAST, 1, 2, 100, 5, 0)] * 100), TOY).save(tmp_path/'a.parquet')
    spoil(path, 0, 0)
    with pytest.raises(ValueError, match='is damaged'): tape.load(path)


def test_names_shared_with_binance_agree() -> None:
    assert layouts.pair_of('BTCUSDT') == binance.split_symbol('BTCUSDT')
