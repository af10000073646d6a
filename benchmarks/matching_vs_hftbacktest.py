"""The matching engine beside hftbacktest: first whether both give the same, then, only where they do, how long each takes.

    python benchmarks/matching_vs_hftbacktest.py                        the recordings of the data folder, a synthetic stream of 5 M rows
    python benchmarks/matching_vs_hftbacktest.py --quick                the same, a smaller stream and fewer rounds
    python benchmarks/matching_vs_hftbacktest.py btcusdt_20240808.gz    a raw Binance recording, spot or USD-M
    python benchmarks/matching_vs_hftbacktest.py monday.gz+tuesday.gz   recordings that join
    python benchmarks/matching_vs_hftbacktest.py day.npz day.npy        files in hftbacktest's own format

USD-M recordings go through hftbacktest's own converter, spot ones, for which it has none, through our writer (levels and trades, no best
quotes). Both engines read the same rows, by hftbacktest's rules: whole fills, its clocks, its end.

The strategy: one bid and one ask around the mid, never inside the spread, asked every 100 ms, post-only, 5 ms each way, a cap on the
position. Parity is every fill and every order of 16 configurations (8 spreads, 2 caps) under two queue models and two latencies; then each
timed run must end with the same position, trades, volume, balance and fee. A difference ends the program with status 1, a file that can't
be read with status 2.

Times are CPU times of one process, warm, in interleaved rounds; shown are medians, of the ratios the medians of those of single rounds,
since the clock of a machine may change between them. Ours for 16 is measured after each of their sixteen passes. hftbacktest's side is what
its users write, a compiled loop over ROIVectorMarketDepthBacktest; building it is not timed. Ours is the whole call. The machine should be
quiet all the same.
"""
from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from _stream import stream
from hftbacktest import GTX, LIMIT, BacktestAsset, ROIVectorMarketDepthBacktest
from hftbacktest.types import EXCH_EVENT, TRADE_EVENT, event_dtype
from numba import njit

from cryptoexp.config import MarketMakingConfig, data_folder
from cryptoexp.market.instrument import Instrument
from cryptoexp.market.tape import from_hftbacktest, instrument_of, load, to_hftbacktest
from cryptoexp.trading.backtest import Prepared, home_of, prepare, run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.matching import compile_engine
from cryptoexp.trading.quoting import ASK, BID, LOTS, TICK, compile_quoter
from cryptoexp.trading.venue import Latency, QueueModel, Venue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))   # the comparison is that of the tests
import hft
import parity

MAKER_FEE, TAKER_FEE = -0.00005, 0.0004
ENTRY_NS = RESPONSE_NS = 5_000_000
INTERVAL_NS = 100_000_000
SPREADS, CAPS = (2.0, 1.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0), (10, 50)   # half, in ticks; largest position, in orders
QUEUES: dict[str, hft.Queue] = {'risk-averse': 'risk-averse', 'power 2': ('power', 2.0)}
BASE_LATENCY_NS = 1_000_000
Setting = tuple[float, int, int]   # half spread in ticks, lots, largest position in lots


class Source(NamedTuple):
    "A market as both engines read it"
    name: str
    rows: np.ndarray   # hftbacktest's event_dtype
    instrument: Instrument
    lots: int          # of one order
    notes: list[str]

    def settings(self, spreads: Sequence[float]) -> list[Setting]:
        return [(half, self.lots, cap*self.lots) for half in spreads for cap in CAPS]


# ---- reading

def read(words: str) -> Source:
    "A, or A+B for recordings that join; ValueError for what is neither a recording nor a file of hftbacktest"
    files = [Path(word) for word in words.split('+')]
    if missing := [str(file) for file in files if not file.is_file()]: raise ValueError(f'not there: {", ".join(missing)}')
    name = ' + '.join(f'{file.parent.name}/{file.name}' for file in files)
    if {file.suffix for file in files} <= {'.npz', '.npy'}:
        rows = np.concatenate([rows_of(file) for file in files])
        try: return source(name, rows, None)
        except ValueError as error: raise ValueError(f'{words}: {error}') from error
    if mixed := [str(file) for file in files if file.suffix in ('.npz', '.npy')]:
        raise ValueError(f'{", ".join(mixed)} of {words} holds rows of hftbacktest, the others are recordings: give one or the other')
    tape = load(files, streams='diff-only')  # hftbacktest knows no best quotes
    if tape.instrument.kind == 'spot': return source(name, to_hftbacktest(tape), tape.instrument)
    from hftbacktest.data.utils import binancefutures
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder)/'joined.gz'
        with gzip.open(joined, 'wb', compresslevel=1) as target:
            for file in files:
                try:
                    with gzip.open(file, 'rb') as part: shutil.copyfileobj(part, target)
                except DAMAGE as error: raise ValueError(f'{file} is cut or damaged: {error}; copy or record it again') from error
        try:
            with open(os.devnull, 'w') as silence, redirected(silence):
                rows = binancefutures.convert(str(joined), buffer_size=20_000_000)
        except Exception as error:   # of whatever kind: it is theirs, and the file was read by ours
            raise ValueError(f"{words}: hftbacktest's converter stops with {type(error).__name__}: {error}") from error
    return source(name, rows, tape.instrument)


DAMAGE = (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError)   # what a damaged file leads to


def rows_of(file: Path) -> np.ndarray:
    "The rows of a file in hftbacktest's own format; ValueError where it holds none"
    try:
        held = np.load(file, allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile):
            if 'data' not in held: raise ValueError(f'it holds {", ".join(held) or "nothing"}, and no array named data')
            held = held['data']
    except DAMAGE as error: raise ValueError(f'{file} is no file of hftbacktest, or damaged: {error}') from error
    if held.dtype != event_dtype or held.ndim != 1:
        raise ValueError(f'{file} holds an array of {held.dtype.name}{list(held.shape)}, and no rows of hftbacktest')
    if not len(held): raise ValueError(f'{file} has no rows')
    traded = held['px'][held['ev'] & 0xff == TRADE_EVENT]
    if not len(traded): raise ValueError(f'{file} has no trade, so there is nothing to measure')
    wrong = traded[~(np.isfinite(traded) & (traded > 0))]
    if len(wrong): raise ValueError(f'{file} has a trade at the price {wrong[0]}: it is damaged')
    return held


@contextmanager
def redirected(target: Any) -> Iterator[None]:
    "What the converter prints is of no use here"
    before, sys.stdout = sys.stdout, target
    try: yield
    finally: sys.stdout = before


def source(name: str, rows: np.ndarray, instrument: Instrument | None) -> Source:
    "Rows with their grid and a size of order; rows that arrive as they happen are told to arrive a millisecond later, to both engines"
    instrument, notes = instrument or instrument_of(rows, 'BASE/QUOTE'), []
    rows, least = rows.copy(), int((rows['local_ts'] - rows['exch_ts']).min())
    if least <= 0:
        rows['local_ts'] += BASE_LATENCY_NS - least
        notes.append(f'the smallest feed latency was {least} ns: all local times were moved by {(BASE_LATENCY_NS - least)/1e6:.3f} ms')
    price = float(rows['px'][np.argmax(rows['ev'] & 0xff == TRADE_EVENT)])
    amount = 0.01 if 10_000 < price < 1_000_000 else 600/price   # 0.01 BTC, or the like
    return Source(name, rows, instrument, max(1, round(amount/float(instrument.lot_size))), notes)


def sources(arguments: argparse.Namespace) -> Iterator[Source]:
    "What to measure on, one after another"
    files, folder = arguments.files, data_folder()
    if not files and folder is not None:
        spot, futures = (sorted((folder/name).glob('btcusdt_*.gz')) for name in ('binance_spot', 'binance_usdm'))
        files = ['+'.join(map(str, spot))]*bool(spot) + [str(file) for file in futures]
    for words in files: yield read(words)
    if not arguments.files:
        rows = 500_000 if arguments.quick else 5_000_000
        yield source(f'synthetic stream, seed 7, {rows:,} rows asked for', stream(rows, 7), None)


# ---- hftbacktest's side, as its users write it

@njit
def their_quoter(backtest, half, quantity, largest, interval_ns):
    "One bid and one ask; a quote whose price has changed is cancelled and sent anew"
    bid_number, ask_number, number, bid_tick, ask_tick = np.uint64(0), np.uint64(0), np.uint64(1), 0, 0
    tick_size = backtest.depth(0).tick_size
    while backtest.elapse(interval_ns) == 0:
        backtest.clear_inactive_orders(0)
        depth = backtest.depth(0)
        best_bid, best_ask = depth.best_bid_tick, depth.best_ask_tick
        if best_bid < 0 or best_ask > 1 << 50 or best_bid >= best_ask: continue
        middle, position, orders = 0.5*(best_bid + best_ask), backtest.position(0), backtest.orders(0)
        bid, ask = min(np.int64(np.floor(middle - half)), best_bid), max(np.int64(np.ceil(middle + half)), best_ask)
        wanted, there = position < largest - 0.5*quantity, bid_number in orders
        if there and not (wanted and bid_tick == bid):
            if orders.get(bid_number).cancellable: backtest.cancel(0, bid_number, False)
            there = False
        if wanted and not there:
            bid_number, bid_tick, number = number, bid, number + np.uint64(1)
            backtest.submit_buy_order(0, bid_number, bid*tick_size, quantity, GTX, LIMIT, False)
        wanted, there = position > -largest + 0.5*quantity, ask_number in orders
        if there and not (wanted and ask_tick == ask):
            if orders.get(ask_number).cancellable: backtest.cancel(0, ask_number, False)
            there = False
        if wanted and not there:
            ask_number, ask_tick, number = number, ask, number + np.uint64(1)
            backtest.submit_sell_order(0, ask_number, ask*tick_size, quantity, GTX, LIMIT, False)


class Totals(NamedTuple):
    "What a run ends with, in lots and quote currency"
    position: int
    trades: int
    volume: int
    balance: float
    fee: float


def run_theirs(market: Source, setting: Setting, queue: str) -> tuple[float, Totals]:
    "CPU seconds of the run without building it, and its totals"
    tick, lot = float(market.instrument.tick_size), float(market.instrument.lot_size)
    traded = market.rows['px'][market.rows['ev'] & 0xff == TRADE_EVENT]
    asset = (BacktestAsset().data([market.rows]).linear_asset(1.0).constant_order_latency(ENTRY_NS, RESPONSE_NS).no_partial_fill_exchange()
             .trading_value_fee_model(MAKER_FEE, TAKER_FEE).tick_size(tick).lot_size(lot)
             .roi_lb(round(0.96*traded.min()/tick)*tick).roi_ub(round(1.04*traded.max()/tick)*tick))
    asset = asset.risk_adverse_queue_model() if queue == 'risk-averse' else asset.power_prob_queue_model(2.0)
    backtest = ROIVectorMarketDepthBacktest([asset])
    half, lots, largest = setting
    begin = time.process_time()
    their_quoter(backtest, half, lots*lot, largest*lot, INTERVAL_NS)
    seconds, state = time.process_time() - begin, backtest.state_values(0)
    lots = (round(state.position/lot), int(state.num_trades), round(state.trading_volume/lot))
    totals = Totals(*lots, float(state.balance), float(state.fee))
    backtest.close()
    return seconds, totals


# ---- our side

def our_quoter(view, parameters, scratch, wishes):
    "The same: half spread in ticks, lots, largest position in lots"
    now, lots = view.market[0], int(parameters[1])
    middle = 0.5*(now.bid_tick + now.ask_tick)
    if now.position_lots < parameters[2]:
        wishes[0, BID, 0, TICK], wishes[0, BID, 0, LOTS] = min(int(np.floor(middle - parameters[0])), now.bid_tick), lots
    if now.position_lots > -parameters[2]:
        wishes[0, ASK, 0, TICK], wishes[0, ASK, 0, LOTS] = max(int(np.ceil(middle + parameters[0])), now.ask_tick), lots
    return 0


def prepared_of(market: Source) -> tuple[float, Prepared]:
    "Once a tape: rows checked, sorted and shrunk, and whatever a first run makes for those after it; with the CPU seconds"
    begin = time.process_time()
    prepared = prepare([(from_hftbacktest(market.rows, market.instrument), market.instrument)], closing=False)
    seconds, setting = time.process_time() - begin, market.settings((1000.0,))[:1]
    first, again = (run_ours(market, prepared, setting, 'risk-averse')[0] for _ in range(2))
    return seconds + first - again, prepared


def rules_of(market: Source, queue: str, count: int) -> Any:
    venue = Venue('hftbacktest', MAKER_FEE, TAKER_FEE, Latency.constant(ENTRY_NS/1e6, RESPONSE_NS/1e6),
                  QueueModel() if queue == 'risk-averse' else QueueModel('power', 2.0), 'whole', 'linear')
    config = MarketMakingConfig(trading_pair=market.instrument.pair, refresh_interval=INTERVAL_NS/1e9, refresh_tolerance=0.0)
    return np.concatenate([make_rules(config, market.instrument, venue, unlimited=True)]*count).view(np.recarray)


def run_ours(market: Source, prepared: Prepared, settings: Sequence[Setting], queue: str) -> tuple[float, list[Totals]]:
    "CPU seconds of the whole call, and the totals of each configuration"
    rules = rules_of(market, queue, len(settings))
    begin = time.process_time()
    runs = run_configurations(prepared, rules, np.array(settings, float), our_quoter, parity=True, record=False)
    seconds, found = time.process_time() - begin, []
    for state, account in zip(runs.desk.state, runs.desk.accounts):
        fee = (MAKER_FEE*int(state.maker_e8) + TAKER_FEE*int(state.taker_e8))/1e8   # before each is rounded to 1e-8
        balance = int(state.cash_e8 + state.fees_e8)/1e8
        found.append(Totals(int(account.position_lots), int(account.fills), int(account.own_lots), balance, fee))
    return seconds, found


def counted(market: Source, prepared: Prepared, settings: Sequence[Setting]) -> str:
    "How many decisions were taken at all, and how many orders sent"
    runs = run_configurations(prepared, rules_of(market, 'risk-averse', len(settings)), np.array(settings, float), our_quoter, parity=True,
                              record=False)
    skipped, decisions = int(runs.desk.clock[0].skipped), int(runs.desk.state.decisions.max())
    return f'{skipped:,} of {decisions:,} decisions only counted, {int(runs.desk.state.orders_sent.sum()):,} orders'


def compare_totals(market: Source, settings: Sequence[Setting], mine: list[Totals], theirs: list[Totals]) -> None:
    "SystemExit with the first that differs; money within 1e-9, theirs is a sum of floats"
    largest = market.lots*float(market.instrument.lot_size)*float(market.rows['px'].max())
    for setting, here, there in zip(settings, mine, theirs, strict=True):
        for name, one, other in zip(Totals._fields, here, there):
            scale = max(abs(one), abs(other), largest if name == 'balance' else 0.0)
            if one != other and (name not in ('balance', 'fee') or abs(one - other) > 1e-9*scale):
                raise SystemExit(f'{market.name}: {name} of {setting} is {one} here and {other} there')


# ---- parity

def check_parity(market: Source, prepared: Prepared) -> str:
    "Every fill and order of 16 configurations under each queue model and latency; SystemExit with the first difference; what was compared"
    drawn = parity_latency(market.rows)
    cases = fills = orders = 0
    for queue in QUEUES.values():
        for latency in (np.array([[0, ENTRY_NS, ENTRY_NS + RESPONSE_NS]]), drawn):
            case = hft.Case(market.rows, tick_size=float(market.instrument.tick_size), lot_size=float(market.instrument.lot_size),
                            queue=queue, latency=latency, maker_fee=MAKER_FEE, taker_fee=TAKER_FEE, interval_ns=INTERVAL_NS)
            settings = [tuple(map(float, setting)) for setting in market.settings(SPREADS)]
            mine = parity.ours(case, prepared, settings)
            for config, setting in enumerate(settings):
                one = replace(case, parameters=setting)
                outcome = hft.run(one)
                if found := parity.differences(one, outcome, mine, config):
                    raise SystemExit(f'{market.name}: {parity.told(one, found)}')
                cases, fills, orders = cases + 1, fills + len(outcome.fills), orders + outcome.submitted
    return f'{cases} cases, {fills:,} fills, {orders:,} orders: all equal'


def parity_latency(rows: np.ndarray) -> np.ndarray:
    "Round trips drawn anew ten times a second, each way between 2 and 12 ms"
    times = rows['exch_ts'][(rows['ev'] & np.uint64(EXCH_EVENT)) != 0]
    draw = np.random.default_rng(7)
    sent = np.arange(times.min(), times.max(), 100_000_000)
    arrived = np.maximum.accumulate(sent + draw.integers(2_000_000, 12_000_000, len(sent)))
    return np.column_stack([sent, arrived, arrived + draw.integers(2_000_000, 12_000_000, len(sent))])


# ---- time

class Line(NamedTuple):
    "A row of the table"
    what: str
    theirs: str
    ours: str
    ratio: str
    remark: str = ''


def seconds_text(seconds: float) -> str: return f'{seconds*1e3:,.1f} ms' if seconds < 1 else f'{seconds:,.2f} s'
def ratio_text(theirs: float, ours: float) -> str: return f'{theirs/ours:,.1f} ×'


def show(*lines: Line) -> None:
    for line in lines: print(f'  {line.what:<50} {line.theirs:>11} {line.ours:>11} {line.ratio:>9}  {line.remark}'.rstrip(), flush=True)


def bandwidth() -> float:
    "Bytes a second that one core moves, read and written, in a large copy; the best of a few"
    one, other = np.ones(1 << 25), np.zeros(1 << 25)
    best = 1e9
    for _ in range(7):
        begin = time.perf_counter()
        np.copyto(other, one)
        best = min(best, time.perf_counter() - begin)
    return 2*one.nbytes/best


def bytes_of(prepared: Prepared) -> int:
    "What a run without any short cut has to read: the exchange's rows and the turns of our touch"
    course = home_of(prepared, True)
    return sum(column.nbytes for column in prepared.exchange) + (0 if course is None else course.turns.nbytes)


def measure(market: Source, prepared: Prepared, rounds: int, bytes_per_s: float) -> None:
    "Interleaved rounds of all that is timed in one process; shows a row for each"
    sixteen, many = market.settings(SPREADS), market.settings(np.linspace(1, 32, 32).tolist())
    for queue in QUEUES:
        times: dict[str, list[float]] = {name: [] for name in ('their 1', 'their 16', 'our 1', 'our 16', 'our 64')}
        ratios: dict[str, list[float]] = {name: [] for name in ('1', '16', '64', 'times one')}
        for turn in range(rounds + 1):   # the first is to warm up
            seconds, one = run_theirs(market, sixteen[0], queue)
            taken, beside = {'their 1': seconds}, []
            if turn == 0: theirs, all_theirs = ([run_theirs(market, setting, queue)[1] for setting in some] for some in (sixteen, many))
            for setting in sixteen if turn % 4 == 1 else ():
                taken['their 16'] = taken.get('their 16', 0.0) + run_theirs(market, setting, queue)[0]
                beside.append(run_ours(market, prepared, sixteen, queue)[0])
            for name, settings, expected in (('our 1', sixteen[:1], [one]), ('our 16', sixteen, theirs), ('our 64', many, all_theirs)):
                taken[name], mine = run_ours(market, prepared, settings, queue)
                compare_totals(market, settings, mine, expected)
            if turn:
                for name, seconds in taken.items(): times[name].append(seconds)
                for name, ratio in (('1', taken['their 1']/taken['our 1']), ('64', 64*taken['their 1']/taken['our 64']),
                                    ('times one', taken['our 64']/taken['our 1'])): ratios[name].append(ratio)
                if beside: ratios['16'].append(taken['their 16']/(sum(beside)/len(beside)))
        middle = {name: median(measured) for name, measured in times.items()}
        fills, all_fills = (sum(totals.trades for totals in some) for some in (theirs, all_theirs))
        show(
            Line(f'{queue}: one configuration', seconds_text(middle['their 1']), seconds_text(middle['our 1']),
                 f'{median(ratios["1"]):,.1f} ×', f'{one.trades:,} fills'),
            Line(f'{queue}: 16, theirs in 16 passes, ours in one', seconds_text(middle['their 16']), seconds_text(middle['our 16']),
                 f'{median(ratios["16"]):,.1f} ×', f'{fills:,} fills'),
            Line(f'{queue}: 64, theirs 64 × one, ours in one pass', seconds_text(64*middle['their 1']), seconds_text(middle['our 64']),
                 f'{median(ratios["64"]):,.1f} ×', f'{all_fills:,} fills; {median(ratios["times one"]):.2f} times one configuration'))
        if queue != 'risk-averse': continue
        show(Line('64 in one pass', '', '', '', counted(market, prepared, many)),
             unmet(market, prepared, many, rounds), *by_default(market, prepared, (sixteen[:1], sixteen, many), rounds))
        floor = bytes_of(prepared)/bytes_per_s
        show(Line('floor: the prepared tape read once', '', seconds_text(floor), '', f'{bytes_of(prepared)/1e6:,.1f} MB at '
                  f'{bytes_per_s/1e9:.1f} GB/s; one configuration takes {middle["our 1"]/floor:.1f} times as long'))


def unmet(market: Source, prepared: Prepared, settings: Sequence[Setting], rounds: int) -> Line:
    "The same quotes three hundredths of the price farther away, where hardly anything meets them: what is left is sending and cancelling"
    away = 0.03*float(market.rows['px'].max())/float(market.instrument.tick_size)
    settings = [(half + away, lots, largest) for half, lots, largest in settings]
    runs = [[run_ours(market, prepared, some, 'risk-averse') for _ in range(rounds + 1)] for some in (settings[:1], settings)]
    one, all_of_them = (median(seconds for seconds, _ in some[1:]) for some in runs)
    return Line('64 in one pass, quotes 3 % farther away', '', seconds_text(all_of_them), '',
                f'{sum(totals.trades for totals in runs[1][0][1]):,} fills; {all_of_them/one:.2f} times one such configuration')


def by_default(market: Source, prepared: Prepared, sizes: Sequence[Sequence[Setting]], rounds: int) -> list[Line]:
    "What a sweep runs: parts of orders, filled as far as prints go, and limits that are asked for every quote; other rules, so other fills"
    venue = Venue('paper', MAKER_FEE, TAKER_FEE, Latency.constant(ENTRY_NS/1e6, RESPONSE_NS/1e6), QueueModel(), 'partial', 'linear')
    config = MarketMakingConfig(trading_pair=market.instrument.pair, refresh_interval=INTERVAL_NS/1e9, refresh_tolerance=0.0)
    rule, lines = make_rules(config, market.instrument, venue), []
    for settings in sizes:
        times, rules = [], np.concatenate([rule]*len(settings)).view(np.recarray)
        for _ in range(rounds + 1):
            begin = time.process_time()
            runs = run_configurations(prepared, rules, np.array(settings, float), our_quoter, cash_e8=10**15, record=False)
            times.append(time.process_time() - begin)
        lines.append(Line(f'{len(settings)} by the default rules, with limits', '', seconds_text(median(times[1:])), '',
                          f'{int(runs.desk.accounts.fills.sum()):,} fills'))
    return lines


# ---- both cores

def their_share(place: str, market: Source, settings: Sequence[Setting], ready: Any, answers: Any) -> None:
    "One process of theirs: warm, then at the same time as the other"
    market = market._replace(rows=np.load(place))
    run_theirs(market, settings[0], 'risk-averse')
    ready.wait()
    begin = time.perf_counter()
    for setting in settings: run_theirs(market, setting, 'risk-averse')
    answers.put((time.perf_counter() - begin)/len(settings))


def both_cores(market: Source, prepared: Prepared, measured: int) -> Line:
    "A thousand configurations: ours in one call on two threads, theirs on two processes, which run a part and stand for the rest"
    settings = market.settings(np.linspace(1, 40, 500).tolist())
    blocks = [settings[start:start + 64] for start in range(0, len(settings), 64)]
    def ours() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(2) as pool: list(pool.map(lambda block: run_ours(market, prepared, block, 'risk-averse'), blocks))
        return time.perf_counter() - begin
    ours()
    mine = median(ours() for _ in range(3))
    context = multiprocessing.get_context('spawn')
    ready, answers = context.Barrier(2), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder)/'rows.npy')
        np.save(place, market.rows)
        empty = market._replace(rows=market.rows[:0])
        workers = [context.Process(target=their_share, args=(place, empty, settings[side::1000//measured][:measured], ready, answers))
                   for side in range(2)]
        for worker in workers: worker.start()
        each = [answers.get(timeout=600) for _ in workers]
        for worker in workers: worker.join()
    theirs = 500*max(each)
    return Line('1,000 on two cores (wall time)', seconds_text(theirs), seconds_text(mine), ratio_text(theirs, mine),
                f'theirs: two processes, from {2*measured} measured runs; ours: two threads, blocks of 64')


# ---- a fresh process, and memory

BUILT_IN = """
import pickle, sys
from cryptoexp.config import MarketMakingConfig
from cryptoexp.trading.backtest import run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.models import model_of
from cryptoexp.trading.venue import Venue
prepared = pickle.load(open(sys.argv[1], 'rb'))
config = MarketMakingConfig(spread_percentage=2e-5, min_profit_threshold=0.0, maker_fee=0.0, taker_fee=0.0005)
model, own = model_of(config)
rules = make_rules(config, prepared.instruments[0], Venue('paper', 0.0, 0.0005, fills='whole'))
runs = run_configurations(prepared, rules, own[None], model.quoter, model.levels, cash_e8=10**12, parity=True)
print(int(runs.desk.state.orders_sent[0]))
"""
WITH_TABLE = BUILT_IN + "print(runs.totals().to_string())\n"   # the first table imports pandas
USERS_OWN = """
import pickle, sys
import numpy as np
import mine
from cryptoexp.config import MarketMakingConfig
from cryptoexp.trading.backtest import run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.venue import Venue
prepared = pickle.load(open(sys.argv[1], 'rb'))
rules = make_rules(MarketMakingConfig(), prepared.instruments[0], Venue('paper', 0.0, 0.0005, fills='whole'), unlimited=True)
runs = run_configurations(prepared, rules, np.array([[2.0, 10.0]]), mine.quoter, parity=True)
print(int(runs.desk.state.orders_sent[0]))
"""
THEIRS = """
import sys
import numpy as np
import matching_vs_hftbacktest as benchmark
from cryptoexp.market.tape import instrument_of
rows = np.load(sys.argv[1])
print(benchmark.run_theirs(benchmark.source('rows', rows, None), (2.0, 10, 100), 'risk-averse')[1].trades)
"""
MINE = """
import numpy as np

def quoter(view, parameters, scratch, wishes):
    "A quoter that no cache knows: {nonce}"
    now = view.market[0]
    middle = 0.5*(now.bid_tick + now.ask_tick) + {nonce}e-12
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = min(int(np.floor(middle - parameters[0])), now.bid_tick), int(parameters[1])
    wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = max(int(np.ceil(middle + parameters[0])), now.ask_tick), int(parameters[1])
    return 0
"""
PEAK = """
import pickle, sys
import numpy as np
import matching_vs_hftbacktest as benchmark
prepared, lots = pickle.load(open(sys.argv[1], 'rb'))
market = benchmark.Source('stream', np.zeros(0), prepared.instruments[0], lots, [])
print(benchmark.run_ours(market, prepared, market.settings((2.0,))[:1], 'risk-averse')[1][0].trades)
print(benchmark.peak_bytes())
"""


def child(code: str, *words: str, path: Sequence[str] = ()) -> tuple[float, float, list[str]]:
    "Wall and CPU seconds of a fresh process from its start to its end, and what it printed"
    here = [*path, str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([*here, os.environ.get('PYTHONPATH', '')])}
    environment.pop('PYTHONDONTWRITEBYTECODE', None)   # modules are kept compiled, as pip does it
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, '-W', 'ignore', '-c', code, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode: raise SystemExit(f'a fresh process failed:\n{done.stderr}')
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.split()


def cold_start(market: Source, prepared: Prepared, rounds: int) -> None:
    "From the start of Python to the result of a run on the prepared tape; the engine was compiled before, as after an installation"
    with tempfile.TemporaryDirectory() as folder:
        place, rows = str(Path(folder)/'prepared'), str(Path(folder)/'rows.npy')
        Path(place).write_bytes(pickle.dumps(prepared, 5))
        np.save(rows, market.rows)
        def theirs() -> tuple[float, float, list[str]]: return child(THEIRS, rows)
        def built_in() -> tuple[float, float, list[str]]: return child(BUILT_IN, place)
        def with_table() -> tuple[float, float, list[str]]: return child(WITH_TABLE, place)
        def users_own() -> tuple[float, float, list[str]]:
            nonce = time.time_ns()
            (Path(folder)/str(nonce)).mkdir()
            (Path(folder)/str(nonce)/'mine.py').write_text(MINE.format(nonce=nonce))
            return child(USERS_OWN, place, path=[str(Path(folder)/str(nonce))])
        with_table()   # the model is compiled once, with the engine
        their = theirs()
        for name, run, mark in (('a built-in model', built_in, '; asked for: at most 1 s'), ('the same, and a table of it', with_table, ''),
                                ('a new model of one\'s own', users_own, '; asked for: at most 2 s')):
            found = [run() for _ in range(rounds)]
            if not int(found[0][2][0]): raise SystemExit(f'cold start, {name}: no order was sent, so nothing was measured')
            wall, cpu = (median(times) for times in zip(*[(wall, cpu) for wall, cpu, _ in found]))
            show(Line(f'fresh process, {name}', f'{their[1]:.1f} s', f'{cpu:.2f} s', ratio_text(their[1], cpu),
                      f'CPU with imports; wall {their[0]:.1f} s and {wall:.2f} s{mark}'))


def peak_bytes() -> int:
    "The most that this process has held; where the system tells it, without what its parent held when it was started"
    status = Path('/proc/self/status')
    if status.is_file():
        line = next((line for line in status.read_text().splitlines() if line.startswith('VmHWM')), None)
        if line is not None: return int(line.split()[1])*1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def memory(sizes: tuple[int, int]) -> str:
    "Bytes a row: the slope of the peak between two streams, running one configuration from a prepared tape"
    peaks, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            market = source('stream', stream(size, 7), None)
            _, prepared = prepared_of(market)
            place = Path(folder)/str(size)
            place.write_bytes(pickle.dumps((prepared, market.lots), 5))
            rows.append(len(market.rows))
            del market, prepared
            peaks.append(int(child(PEAK, str(place))[2][1]))
    slope = (peaks[1] - peaks[0])/(rows[1] - rows[0])
    return (f'memory: {slope:.1f} B a row (peaks of {peaks[0]/1e6:,.0f} and {peaks[1]/1e6:,.0f} MB with {rows[0]:,} and {rows[1]:,} rows; '
            f'asked for: at most 40); a row of hftbacktest has {event_dtype.itemsize} B')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='*', metavar='FILE', help='a raw recording, several that join (A+B), an npz or npy')
    parser.add_argument('--rounds', type=int, help='interleaved rounds (default: 9, with --quick 5)')
    parser.add_argument('--quick', action='store_true', help='a stream of 500,000 rows, fewer rounds')
    arguments = parser.parse_args()
    rounds = arguments.rounds or (5 if arguments.quick else 9)
    if rounds < 1: parser.error('--rounds: at least one')
    try: measure_all(arguments, rounds)
    except (ValueError, OSError) as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        raise SystemExit(2) from error


def measure_all(arguments: argparse.Namespace, rounds: int) -> None:
    bytes_per_s, begun, fresh = bandwidth(), time.perf_counter(), True
    compile_engine()
    compile_quoter(our_quoter)
    print(f'CPU times, medians of {rounds} interleaved rounds (16 passes of theirs: of {1 + rounds//4}); a copy in memory moves '
          f'{bytes_per_s/1e9:.1f} GB/s')
    for market in sources(arguments):
        if fresh: prepared_of(market)   # what prepares is compiled once, or loaded
        preparing_s, prepared = prepared_of(market)
        length = (int(market.rows['exch_ts'].max()) - int(market.rows['exch_ts'].min()))/1e9
        print(f'\n{market.name}: {len(market.rows):,} rows, {length:,.0f} s of market, ticks of {market.instrument.tick_size}, orders of '
              f'{market.instrument.amount(market.lots)}')
        for note in market.notes: print(f'  {note}')
        print(f'  parity: {check_parity(market, prepared)}')
        show(Line('', 'hftbacktest', 'cryptoexp', 'ratio'),
             Line('preparing, once a tape', '', seconds_text(preparing_s), '', f'{preparing_s/len(market.rows)*1e9:,.0f} ns a row'))
        measure(market, prepared, rounds, bytes_per_s)
        show(both_cores(market, prepared, 4 if len(market.rows) > 1_000_000 else 20))
        if fresh: cold_start(market, prepared, 3)
        fresh = False
    if not arguments.files: print('\n' + memory((1_000_000, 2_000_000) if arguments.quick else (2_500_000, 5_000_000)))
    print(f'\nall of it took {time.perf_counter() - begun:,.0f} s')


if __name__ == '__main__': main()
