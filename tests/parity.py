"""The same case through our engine and through hftbacktest: fills as a multiset by exchange time, then positions, volumes, money.

`ours(case)` plays a `hft.Case` in our engine by hftbacktest's rules; `differences(case)` plays it in both and says where they part."""
from __future__ import annotations

import numpy as np
from hft import STRATEGIES, Case, Outcome, quote, run
from numba import njit

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.events import BUY, CLEAR, DEPTH, EXCHANGE_ONLY, LAST, LOCAL_ONLY, SELL, SNAPSHOT, TRADE, Events, concat
from cryptoexp.market.instrument import Instrument
from cryptoexp.trading.backtest import Prepared, Runs, run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.matching import rows_of
from cryptoexp.trading.venue import Latency, QueueModel, Venue

KEPT = 8   # place in the scratch of the wishes; before it are the quoting function's own numbers


@njit(cache=True)
def new_state(seed): return float((seed * 2654435761 + 97) % (1 << 31))


@njit(cache=True)
def follow_strategy(view, parameters, scratch, wishes):
    "A quoter of ours that asks the quoting functions of `hft`; parameters: strategy, seed, theirs; scratch: their state, then the wishes"
    assets, levels = wishes.shape[0], wishes.shape[2]
    if scratch[KEPT - 1] == 0.0: scratch[0], scratch[KEPT - 1] = new_state(int(parameters[1])), 1.0
    at = KEPT
    for asset in range(assets):
        for side in range(2):
            for level in range(levels):
                for word in range(3):
                    wishes[asset, side, level, word] = int(scratch[at])
                    at += 1
    positions = np.zeros(assets, np.int64)
    for asset in range(assets): positions[asset] = view.market[asset].position_lots
    for asset in range(assets):
        now = view.market[asset]
        if now.usable: quote(int(parameters[0]), asset, now.bid_tick, now.ask_tick, positions, parameters[2:], scratch[:1 + assets], wishes)
    at = KEPT
    for asset in range(assets):
        for side in range(2):
            for level in range(levels):
                for word in range(3):
                    scratch[at] = wishes[asset, side, level, word]
                    at += 1
    return 0


def rows_of_file(data: np.ndarray, tick_size: float, lot_size: float) -> Events:
    "An hftbacktest file as it lies: every row, in its order, for the clocks that it names"
    ev = data['ev'].astype(np.int64)
    kind = np.array([0, DEPTH, TRADE, CLEAR, SNAPSHOT])[ev & 0xff]
    side = np.where(ev & (1 << 29), BUY, 0) | np.where(ev & (1 << 28), SELL, 0)
    clock = np.where(ev & (1 << 31), 0, LOCAL_ONLY) | np.where(ev & (1 << 30), 0, EXCHANGE_ONLY)
    tick = np.floor(data['px'] / tick_size + 0.5).astype(np.int64)
    lots = np.rint(data['qty'] / lot_size).astype(np.int64)
    return Events((kind | side | clock | LAST).astype(np.uint8), data['exch_ts'].copy(), data['local_ts'].copy(), tick, lots,
                  np.zeros(len(data), np.int64))


def prepared_file(data: np.ndarray, instrument: Instrument) -> Prepared:
    "A file as it lies, without sorting"
    rows = rows_of_file(data, float(instrument.tick_size), float(instrument.lot_size))
    there, here = (rows.flags & LOCAL_ONLY) == 0, (rows.flags & EXCHANGE_ONLY) == 0
    low = max(0, int(rows.tick[rows.kind != CLEAR].min()) - 4096)
    local = rows_of(rows.local_ns, rows, -low)
    begin, end = (int(pick((pick(rows.exchange_ns[there]), pick(rows.local_ns[here])))) for pick in (min, max))
    return Prepared((instrument,), local._replace(time_ns=rows.exchange_ns), local, ((low, int(rows.tick.max()) + 4096),),
                    int(rows.local_ns[here][0]), begin, end, False, False)


def toy(case: Case) -> Instrument: return Instrument('nowhere', 'TOYUSD', 'TOY', 'USD', str(case.tick_size), str(case.lot_size))


def venue_of(case: Case) -> Venue:
    word, *power = case.queue if isinstance(case.queue, tuple) else (case.queue,)
    queue = QueueModel(word.replace('-', '_'), *power)
    table = np.asarray(case.latency, np.int64)
    if len(table) == 1: table = table - table[0, 0] + 1
    return Venue('parity', case.maker_fee, case.taker_fee, Latency.samples(table), queue, 'whole', 'linear')


def ours(case: Case, prepared: Prepared | None = None, many: list[tuple[float, ...]] | None = None) -> Runs:
    "The case in our engine; many: the parameters of several configurations that run in one pass"
    instrument, venue = toy(case), venue_of(case)
    prepared = prepared or (prepared_file(case.tapes[0], instrument) if len(case.tapes) == 1 else prepare_files(case.tapes, instrument))
    sets = many or [case.parameters]
    config = MarketMakingConfig(trading_pair='TOY/USD', refresh_interval=case.interval_ns / 1e9, refresh_tolerance=0.0)
    rules = np.concatenate([make_rules(config, instrument, venue, unlimited=True, replace=case.replace == 'modify')]
                           * (len(sets) * len(case.tapes))).view(np.recarray)
    parameters = np.array([[STRATEGIES.index(case.strategy), case.seed, *one] for one in sets], float)
    latency = venue.latency.table if len(venue.latency.table) > 1 else None
    return run_configurations(prepared, rules, parameters, follow_strategy, case.levels, latency=latency, whole=True, slots=256, ring=2048)


def prepare_files(tapes: list[np.ndarray], instrument: Instrument) -> Prepared:
    "Several files side by side"
    events = [rows_of_file(data, float(instrument.tick_size), float(instrument.lot_size)) for data in tapes]
    capacity = [(0, int(rows.tick.max()) + 4096) for rows in events]
    bases = np.cumsum([0, *(top for _, top in capacity[:-1])]).tolist()
    streams = []
    for name, other in (('exchange_ns', LOCAL_ONLY), ('local_ns', EXCHANGE_ONLY)):
        kept = [rows[(rows.flags & other) == 0] for rows in events]
        moved = concat([Events(*rows.columns[:3], rows.tick + base, *rows.columns[4:]) for rows, base in zip(kept, bases)])
        order = np.argsort(getattr(moved, name), kind='stable')
        streams.append(rows_of(getattr(moved, name)[order], moved[order]))
    begin, end = (int(pick((pick(streams[0].time_ns), pick(streams[1].time_ns)))) for pick in (min, max))
    return Prepared((instrument,) * len(tapes), streams[0], streams[1], tuple(capacity), begin, begin, end, False, False)


def fill_rows(runs: Runs, config: int = 0) -> np.ndarray:
    "Fills as `hft.Outcome.rows` has them: asset, exchange time ns, side, tick, lots, maker, sorted"
    fills = runs.fills
    table = fills[fills.config == config][['asset', 'time_ns', 'side', 'tick', 'lots', 'maker']].to_numpy(np.int64)
    return table[np.lexsort(table.T[::-1])]


def differences(case: Case, outcome: Outcome | None = None, runs: Runs | None = None, config: int = 0) -> list[str]:
    "Where the two engines part; empty: nowhere"
    theirs, mine = outcome or run(case), runs or ours(case)
    found, rows = [], fill_rows(mine, config)
    their_rows = theirs.rows()
    their_rows = their_rows[np.lexsort(their_rows.T[::-1])]
    if not np.array_equal(rows, their_rows):
        least = min(len(rows), len(their_rows))
        at = next((n for n in range(least) if not np.array_equal(rows[n], their_rows[n])), least)
        here, there = (table[at].tolist() if at < len(table) else 'none' for table in (rows, their_rows))
        found.append(f'{len(rows)} fills here, {len(their_rows)} there; the first that differs is {at}: here {here}, there {there}')
    state, assets = mine.desk.state[config], len(case.tapes)
    for name, number, other in (('orders sent', state.orders_sent, theirs.submitted), ('cancels', state.cancels_sent, theirs.cancels)):
        if number != other: found.append(f'{name}: {number} here, {other} there')
    for asset in range(assets):
        account = mine.desk.accounts[config * assets + asset]
        sums = dict(position=(account.position_lots, theirs.position_lots[asset]), trades=(account.fills, theirs.trades[asset]),
                    volume=(account.own_lots, theirs.volume_lots[asset]))
        for name, (number, other) in sums.items():
            if number != other: found.append(f'{name}: {number} here, {other} there')
    if not theirs.unpriced:
        for name, number, other in (('cash', state.cash_e8 / 1e8, float(theirs.balance.sum() - theirs.fee.sum())),
                                    ('fees', state.fees_e8 / 1e8, float(theirs.fee.sum()))):
            tolerance = 1e-9 * max(1.0, state.maker_e8 / 1e8 + state.taker_e8 / 1e8) + 1e-8 * state.fills
            if abs(number - other) > tolerance: found.append(f'{name}: {number} here, {other} there')
    return found
