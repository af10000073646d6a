"""A backtest of a recording, warm, beside hftbacktest on the same rows: CPU time, interleaved rounds, one process.

    python benchmarks/backtest_vs_hftbacktest.py [FILE …] [--rounds 11]

Both quote one bid and one ask, `half` ticks from the mid, every 100 ms, 5 ms latency each way, no fees. The rules of the two
engines differ on purpose (ours fills in parts, at most a print's volume; hftbacktest's default fills whole orders), so the
numbers of fills differ too: this measures time, not agreement.
"""
from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from hftbacktest import GTX, LIMIT, BacktestAsset, HashMapMarketDepthBacktest, ROIVectorMarketDepthBacktest
from hftbacktest.data import correct_event_order
from hftbacktest.types import BUY_EVENT, DEPTH_EVENT, SELL_EVENT, TRADE_EVENT, event_dtype
from numba import njit

from cryptoexp.config import MarketMakingConfig, data_folder
from cryptoexp.market.events import BUY, DEPTH, SNAPSHOT, TRADE, Events
from cryptoexp.market.tape import Tape, load
from cryptoexp.trading.backtest import largest_latency_ns
from cryptoexp.trading.matching import Engine
from cryptoexp.trading.quoting import ASK, BID, LOTS, TICK

HALF, QUANTITY_LOTS, INTERVAL_NS, LATENCY_NS = 10, 100, 100_000_000, 5_000_000


def as_hftbacktest(rows: Events, tape: Tape) -> np.ndarray:
    "Depth and trades in hftbacktest's row format, in its order"
    rows = rows[np.isin(rows.kind, (DEPTH, SNAPSHOT, TRADE))]
    data = np.zeros(len(rows), event_dtype)
    side = np.where(rows.flags & BUY, BUY_EVENT, SELL_EVENT).astype(np.uint64)
    data['ev'] = np.where(rows.kind == TRADE, TRADE_EVENT, DEPTH_EVENT).astype(np.uint64) | side
    data['exch_ts'], data['local_ts'] = rows.exchange_ns, rows.local_ns
    data['px'], data['qty'] = rows.tick * float(tape.instrument.tick_size), rows.lots * float(tape.instrument.lot_size)
    return correct_event_order(data, np.argsort(data['exch_ts'], kind='stable'), np.argsort(data['local_ts'], kind='stable'))


@njit
def theirs(backtest, half, quantity):
    tick, number, sides = backtest.depth(0).tick_size, np.uint64(1), np.zeros(2, np.uint64)
    while backtest.elapse(INTERVAL_NS) == 0:
        backtest.clear_inactive_orders(0)
        depth, orders = backtest.depth(0), backtest.orders(0)
        if depth.best_bid_tick <= 0 or depth.best_ask_tick > 9_000_000_000 or depth.best_bid_tick >= depth.best_ask_tick: continue
        mid = 0.5 * (depth.best_bid_tick + depth.best_ask_tick)
        for side in range(2):
            wish = min(np.floor(mid - half), depth.best_ask_tick - 1) if side == 0 else max(np.ceil(mid + half), depth.best_bid_tick + 1)
            live = sides[side] in orders
            if live:
                order = orders.get(sides[side])
                if order.price_tick == wish: continue
                if order.cancellable: backtest.cancel(0, sides[side], False)
            sides[side], number = number, number + np.uint64(1)
            if side == 0: backtest.submit_buy_order(0, sides[side], wish * tick, quantity, GTX, LIMIT, False)
            else: backtest.submit_sell_order(0, sides[side], wish * tick, quantity, GTX, LIMIT, False)
    return number


def ours(view, parameters, scratch, wishes):
    mid = 0.5 * (view[0].bid_tick + view[0].ask_tick)
    wishes[BID, 0, TICK], wishes[BID, 0, LOTS] = min(int(np.floor(mid - parameters[0])), view[0].ask_tick - 1), int(parameters[1])
    wishes[ASK, 0, TICK], wishes[ASK, 0, LOTS] = max(int(np.ceil(mid + parameters[0])), view[0].bid_tick + 1), int(parameters[1])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('files', nargs='*', type=Path, help='recordings that join (default: the two spot recordings of the data folder)')
    parser.add_argument('--rounds', type=int, default=11)
    arguments = parser.parse_args()
    folder = data_folder()
    files = arguments.files or ([] if folder is None else sorted((folder / 'binance_spot').glob('btcusdt_*.gz')))
    if not files: parser.error('no recording: name one, or set CRYPTOEXP_DATA')
    tape = load(files)
    rows = tape.timeline()
    data, lot = as_hftbacktest(rows, tape), float(tape.instrument.lot_size)
    config = MarketMakingConfig(total_capital=1e8, initial_base=100.0, max_inventory_exposure=1.0, inventory_target=0.5, maker_fee=0,
                                taker_fee=0, refresh_tolerance=0, max_drawdown=1, max_loss=1)
    traded = rows.tick[rows.kind == TRADE] * float(tape.instrument.tick_size)
    low, high = round(traded.min() * 0.97), round(traded.max() * 1.03)

    def run_theirs(kind: type) -> tuple[float, int]:
        asset = (BacktestAsset().data([data]).linear_asset(1.0).constant_order_latency(LATENCY_NS, LATENCY_NS).risk_adverse_queue_model()
                 .no_partial_fill_exchange().trading_value_fee_model(0.0, 0.0).tick_size(float(tape.instrument.tick_size)).lot_size(lot))
        if kind is ROIVectorMarketDepthBacktest: asset = asset.roi_lb(low).roi_ub(high)
        started = time.process_time()
        engine = kind([asset])
        theirs(engine, HALF, QUANTITY_LOTS * lot)
        fills = int(engine.state_values(0).num_trades)
        engine.close()
        return time.process_time() - started, fills

    def run_ours() -> tuple[float, int]:
        started = time.process_time()
        engine = Engine(tape.instrument, config, ours, parameters=np.array([HALF, QUANTITY_LOTS], float), hold_ns=largest_latency_ns(rows))
        engine.feed(rows)
        engine.finish()
        return time.process_time() - started, engine.fill_count

    runs = {'cryptoexp': run_ours, 'hftbacktest, ROIVector': lambda: run_theirs(ROIVectorMarketDepthBacktest),
            'hftbacktest, HashMap': lambda: run_theirs(HashMapMarketDepthBacktest)}
    for run in runs.values(): run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    fills = {}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            seconds, fills[name] = run()
            times[name].append(seconds)
    length = (rows.local_ns[-1] - rows.local_ns[0]) / 1e9
    print(f'{", ".join(tape.source)}: {len(rows):,} rows ({len(data):,} in hftbacktest\'s format), {length:.0f} s of market')
    for name, measured in times.items():
        ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(measured, times['cryptoexp'], strict=True)]
        print(f'{name:24} median {statistics.median(measured):.3f} s CPU, least {min(measured):.3f} s, {fills[name]:,} fills, '
              f'{statistics.median(ratios):.2f} × the time of cryptoexp')


if __name__ == '__main__': main()
