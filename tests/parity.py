"""The same case through our engine and through hftbacktest, and where the two part.

`run(case)` of `hft` is their outcome, `ours(case)` is ours, by their rules (whole fills, their clocks, their end); `ours(case, many=[...])`
takes any number of parameter sets through one pass, and `differences` compares one of them with their outcome: every fill with its exchange
time, side, tick, lots and the order that it belongs to, every order that was sent, positions, trades, volumes, counts, money.

Both sides ask the quoting functions of `hft`, and read the same rows. What their exchange gets wrong is not compared: market orders that
fill against an empty side at no price at all (`Outcome.unpriced`), orders that change their quantity with their price (the old quantity
fills there, so `modify` is compared with orders of one size), partial fills. Rows that clear levels do stand in the recordings; a picture
of the whole book follows at once, which heals what theirs forgets.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from hft import STRATEGIES, Case, Outcome, quote, run
from hftbacktest.types import DEPTH_CLEAR_EVENT, TRADE_EVENT
from numba import njit

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.events import BUY, CLEAR, DEPTH, EXCHANGE_ONLY, LAST, LOCAL_ONLY, SELL, SNAPSHOT, TRADE, Events, concat
from cryptoexp.market.instrument import Instrument, decimal
from cryptoexp.trading.backtest import Prepared, run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.matching import Desk, rows_of
from cryptoexp.trading.quoting import SCRATCH, View
from cryptoexp.trading.venue import Latency, QueueModel, Venue

Parameters = tuple[float, ...]   # of a strategy, as its docstring in `hft` says
STARTED, KEPT = 7, 8             # places in the scratch: whether the random numbers have begun; the first of the wishes
MARGIN = 4096                    # ticks of room beyond the highest price


# ---- one strategy, two engines

@njit(cache=True)
def follow_strategy(view: View, parameters: np.ndarray, scratch: np.ndarray, wishes: np.ndarray) -> int:
    """A quoter of ours that asks the quoting functions of `hft`. Parameters: number of the strategy, seed, then the strategy's own.

    Their functions keep a state and the table of wishes from call to call; we start with zeros each time, so both live in our scratch."""
    assets = wishes.shape[0]
    kept = scratch[KEPT:KEPT + wishes.size].reshape(wishes.shape)
    if scratch[STARTED] == 0.0:
        scratch[0], scratch[STARTED] = (int(parameters[1])*2654435761 + 97) % (1 << 31), 1.0   # as hft.new_scratch
    wishes[:] = kept
    positions = np.empty(assets, np.int64)
    for asset in range(assets): positions[asset] = view.market[asset].position_lots
    for asset in range(assets):
        now = view.market[asset]
        if now.usable: quote(int(parameters[0]), asset, now.bid_tick, now.ask_tick, positions, parameters[2:], scratch[:1 + assets], wishes)
    kept[:] = wishes
    return 0


# ---- one tape, two engines

def rows_of_file(
    data: np.ndarray,        # rows of hftbacktest's `event_dtype`
    instrument: Instrument,  # whose grid they are on
) -> Events:
    "An hftbacktest file as it lies: every row, in its order, for the clocks that it names"
    ev = data['ev'].astype(np.int64)
    kind = np.array([0, DEPTH, TRADE, CLEAR, SNAPSHOT])[ev & 0xff]
    side = np.where(ev & (1 << 29), BUY, 0) | np.where(ev & (1 << 28), SELL, 0)
    clock = np.where(ev & (1 << 31), 0, LOCAL_ONLY) | np.where(ev & (1 << 30), 0, EXCHANGE_ONLY)
    side = np.where(side == 0, BUY | SELL, side)                     # a clear of both sides
    price = np.where(np.isfinite(data['px']), data['px'], 0.0)       # a clear of all levels has no price
    tick = np.floor(price/float(instrument.tick_size) + 0.5).astype(np.int64)
    lots = np.rint(data['qty']/float(instrument.lot_size)).astype(np.int64)
    return Events((kind | side | clock | LAST).astype(np.uint8), data['exch_ts'].copy(), data['local_ts'].copy(), tick, lots,
                  np.zeros(len(data), np.int64))


def without_far_levels(data: np.ndarray, share: float = 0.03) -> np.ndarray:
    "The rows within a share of the first trade's price: hftbacktest's `roi` books hold a range of prices in memory, recordings name any"
    middle = data['px'][np.argmax(data['ev'] & 0xff == TRADE_EVENT)]
    return data[(np.abs(data['px'] - middle) <= share*middle) | (data['ev'] & 0xff == DEPTH_CLEAR_EVENT)]


def prepared_files(
    tapes: Sequence[np.ndarray], instrument: Instrument,
    shorter: bool = True,   # False: the engine looks at every row, and leaves none out that can't matter
) -> Prepared:
    "Files side by side, rows in their order, without any help of `prepare`: what the engine does with them is all that is compared"
    events = [rows_of_file(data, instrument) for data in tapes]
    capacity = [(0, int(rows.tick.max()) + MARGIN) for rows in events]
    bottoms = np.cumsum([0, *(top for _, top in capacity)])[:-1].tolist()
    streams = []
    for clock, other in (('exchange_ns', LOCAL_ONLY), ('local_ns', EXCHANGE_ONLY)):
        kept = [rows[(rows.flags & other) == 0] for rows in events]
        moved = concat([Events(*rows.columns[:3], rows.tick + bottom, *rows.columns[4:]) for rows, bottom in zip(kept, bottoms)])
        order = np.argsort(getattr(moved, clock), kind='stable')
        streams.append(rows_of(getattr(moved, clock)[order], moved[order]))
    begin, end = (int(pick(pick(stream.time_ns) for stream in streams)) for pick in (min, max))
    prepared = Prepared((instrument,)*len(tapes), *streams, tuple(capacity), int(streams[1].time_ns[0]), begin, end, False, False,
                        (False,)*len(tapes))
    if not shorter: prepared.shorts[True] = None
    return prepared


def instrument_of_case(case: Case) -> Instrument:
    return Instrument('nowhere', 'TOYUSD', 'TOY', 'USD', decimal(case.tick_size), decimal(case.lot_size))


def venue_of(case: Case) -> Venue:
    word, *power = case.queue if isinstance(case.queue, tuple) else (case.queue,)
    table = np.asarray(case.latency, np.int64)
    if len(table) == 1: table = table - table[0, 0] + 1   # one row is a constant latency: its times say nothing, but none may be zero
    return Venue('parity', case.maker_fee, case.taker_fee, Latency.samples(table), QueueModel(word.replace('-', '_'), *power), 'whole',
                 'linear')


class Ours(NamedTuple):
    "What we made of a case, for all configurations of the pass"
    desk: Desk
    fills: pd.DataFrame    # as `Runs.fills`
    orders: pd.DataFrame   # as `Runs.orders`


def ours(
    case: Case,
    prepared: Prepared | None = None,            # the case's tapes, where they are used more than once
    many: Sequence[Parameters] | None = None,    # the parameters of several configurations, in place of the case's own
) -> Ours:
    "The case in our engine"
    instrument, venue = instrument_of_case(case), venue_of(case)
    prepared = prepared or prepared_files(case.tapes, instrument)
    configurations, assets = list(many or [case.parameters]), len(prepared.instruments)
    if KEPT + 2*3*assets*case.levels > SCRATCH: raise ValueError(f'{assets} assets of {case.levels} levels do not fit into the scratch')
    config = MarketMakingConfig(trading_pair='TOY/USD', refresh_interval=case.interval_ns/1e9, refresh_tolerance=0.0)
    rule = make_rules(config, instrument, venue, unlimited=True, replace=case.replace == 'modify')
    rules = np.concatenate([rule]*(len(configurations)*assets)).view(np.recarray)
    parameters = np.array([[STRATEGIES.index(case.strategy), case.seed, *own] for own in configurations], float)
    latency = venue.latency.table if len(venue.latency.table) > 1 else None
    runs = run_configurations(prepared, rules, parameters, follow_strategy, case.levels, latency=latency, parity=True, slots=256, ring=2048)
    return Ours(runs.desk, runs.fills, runs.orders)


# ---- the comparison

FILL = ('asset', 'time_ns', 'side', 'tick', 'lots', 'maker', 'order_id')


def fill_rows(runs: Ours, config: int = 0) -> np.ndarray:   # int64, shape (n, 7), sorted
    "Fills of one configuration as `hft.Outcome.fills` has them"
    fills = runs.fills
    return sorted_rows(fills[fills.config == config][[*FILL]].to_numpy(np.int64))


def sorted_rows(table: np.ndarray) -> np.ndarray: return table[np.lexsort(table.T[::-1])]


def first_difference(what: str, here: np.ndarray, there: np.ndarray) -> list[str]:
    "Nothing where two tables are equal"
    if np.array_equal(here, there): return []
    shorter = min(len(here), len(there))
    at = next((row for row in range(shorter) if not np.array_equal(here[row], there[row])), shorter)
    one, other = (table[at].tolist() if at < len(table) else 'none' for table in (here, there))
    return [f'{len(here)} {what} here, {len(there)} there; the first that differs is {at}: here {one}, there {other}']


def different_orders(case: Case, outcome: Outcome, runs: Ours, config: int) -> list[str]:
    "Orders that ended: number, asset, side, lots, when they were sent, what became of them; and their price, where none is changed"
    orders = runs.orders
    orders = orders[orders.config == config]
    number, theirs = orders.order_id.to_numpy(), outcome.orders
    if len(number) and number.max() > len(theirs): return [f'order {number.max()} was sent here and not there']
    there = theirs[number - 1]
    status = np.array(['', '', 'expired', 'filled', 'cancelled', ''])[there[:, 6]]
    heard = status != ''            # the end of the data may come before they hear of an end
    price = case.replace == 'cancel'   # a changed order is told with its last price here, with its first there
    here = np.column_stack([number, orders.asset, orders.side < 0, orders.tick*price, orders.lots, orders.placed_ns])
    there = np.column_stack([number, there[:, 0], there[:, 1], there[:, 2]*price, there[:, 3], there[:, 5]])
    found = first_difference('orders', here, there)
    wrong = np.flatnonzero(heard & (orders.status.to_numpy() != status))
    return found + [f'order {number[row]}: {orders.status.iloc[row]} here, {status[row]} there' for row in wrong[:1]]


def different_money(case: Case, outcome: Outcome, runs: Ours, config: int) -> list[str]:
    """Balance and fee of each asset within 1e-9 of what theirs, sums of floats, are; ours are exact.

    The fee compared is the one before rounding: ours rounds each fill's to 1e-8, and it is checked that it differs by no more than that."""
    unit = decimal(case.tick_size).as_integer_ratio(), decimal(case.lot_size).as_integer_ratio()
    value = Fraction(*unit[0])*Fraction(*unit[1])
    rates = Fraction(str(case.taker_fee)), Fraction(str(case.maker_fee))
    rows, found, cash, fees, count = fill_rows(runs, config), [], Fraction(0), Fraction(0), 0
    for asset in range(len(case.tapes)):
        mine = rows[rows[:, 0] == asset]
        worth = mine[:, 3]*mine[:, 4]
        balance = -int((mine[:, 2]*worth).sum())*value
        fee = sum(int(worth[mine[:, 5] == maker].sum())*rates[maker] for maker in (0, 1))*value
        cash, fees, count = cash + balance, fees + fee, count + len(mine)
        largest = float(worth.max()*value) if len(mine) else 0.0   # a balance near zero is a difference of sums that are not
        for name, here, there, scale in (('balance', float(balance), outcome.balance[asset], largest),
                                         ('fee', float(fee), outcome.fee[asset], 0.0)):
            if abs(here - there) > 1e-9*max(abs(here), abs(there), scale):
                found.append(f'{name} of asset {asset}: {here} here, {there} there')
    state = runs.desk.state[config]
    if abs(int(state.fees_e8) - fees*10**8) > Fraction(count, 2):
        found.append(f'fees: {state.fees_e8} in the account, {fees*10**8} by the fills')
    if abs(int(state.cash_e8 + state.fees_e8) - cash*10**8) > Fraction(count, 2):
        found.append(f'cash before fees: {state.cash_e8 + state.fees_e8} in the account, {cash*10**8} by the fills')
    return found


def differences(
    case: Case,
    outcome: Outcome | None = None,   # theirs, where it is known
    runs: Ours | None = None,         # ours
    config: int = 0,                  # which of them
) -> list[str]:                       # empty: the engines agree
    "Where the two engines part, in words"
    outcome, runs = outcome or run(case), runs or ours(case)
    state, assets = runs.desk.state[config], len(case.tapes)
    found = first_difference('fills', fill_rows(runs, config), sorted_rows(outcome.fills)) + different_orders(case, outcome, runs, config)
    counts: list[tuple[str, int, int]] = [
        ('orders sent', state.orders_sent, outcome.submitted), ('cancels', state.cancels_sent, outcome.cancels)]
    if case.replace == 'cancel': counts.append(('orders left alone until they were confirmed', state.waited, outcome.not_cancellable))
    for asset in range(assets):
        account = runs.desk.accounts[config*assets + asset]
        counts += [(f'position of asset {asset}', account.position_lots, outcome.position_lots[asset]),
                   (f'trades of asset {asset}', account.fills, outcome.trades[asset]),
                   (f'volume of asset {asset}', account.own_lots, outcome.volume_lots[asset])]
    found += [f'{name}: {here} here, {there} there' for name, here, there in counts if here != there]
    return found if outcome.unpriced else found + different_money(case, outcome, runs, config)


class Tally:
    "What happened over many comparisons: one that meets nothing proves nothing"
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def add(self, outcome: Outcome, runs: Ours, config: int = 0) -> None:
        fills = runs.fills
        self.seen.update(f'{reason} fills' for reason in fills.reason[fills.config == config])
        self.seen.update({'cases': 1, 'late cancels': outcome.late, 'expired post only': outcome.expired,
                          'expired takers': outcome.unfilled, 'refused': outcome.refused, 'changes': outcome.modifies})

    def __iadd__(self, other: Tally) -> Tally:
        self.seen.update(other.seen)
        return self

    def at_least(self, **least: int) -> None:
        "AssertionError that names what was met too rarely; names with spaces as underscores"
        rare = {name: self.seen[name.replace('_', ' ')] for name, number in least.items() if self.seen[name.replace('_', ' ')] < number}
        assert not rare, f'too rare to prove anything: {rare}; seen: {dict(self.seen)}'


def agree(case: Case, tally: Tally | None = None, many: Sequence[Parameters] | None = None, prepared: Prepared | None = None,
          outcomes: Sequence[Outcome] | None = None) -> list[Outcome]:
    "AssertionError where the engines part: ours takes all configurations in one pass, theirs one after another"
    runs, theirs = ours(case, prepared, many), []
    for config, parameters in enumerate(many or [case.parameters]):
        one = case if many is None else Case(**{**case.__dict__, 'parameters': tuple(parameters)})
        outcome = outcomes[config] if outcomes else run(one)
        assert outcome.code == 1, f'hftbacktest ended with {outcome.code}'
        assert not (found := differences(one, outcome, runs, config)), told(one, found)
        if tally is not None: tally.add(outcome, runs, config)
        theirs.append(outcome)
    return theirs


def told(case: Case, found: list[str]) -> str:
    "A failure with all that is needed to see it again"
    words: dict[str, Any] = {name: value for name, value in case.__dict__.items() if name not in ('data', 'latency')}
    return '\n'.join([*found, f'{words}, latency {np.asarray(case.latency)[:2].tolist()} …, rows {[len(tape) for tape in case.tapes]}'])
