"""Attribution of at least 100,000 fills beside the backtest that made them: CPU time of one process, one thread.

The market is the embedded (synthetic) one, quoted a tick from the mid without fees, for as long as it takes. Both are warm: what
compiles is compiled before. The parts have to come to the profit of the ledger before a ratio is printed."""
import argparse
import time

from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Clock, Tape
from cryptoexp.trading.attribution import attribute, by_order
from cryptoexp.trading.backtest import backtest
from cryptoexp.trading.ledger import totals


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fills', type=int, default=100_000, help='at least so many (default 100,000)')
    parser.add_argument('--repeats', type=int, default=3, help='the best of so many of each (default 3)')
    arguments = parser.parse_args()
    seconds = 900
    while True:
        market = SyntheticMarket(seed=11)
        tape = Tape(market.events(seconds * 10 ** 9), market.instrument, Clock(), ('embedded',), synthetic=True)
        result = backtest(tape, preset='zero-fee-tier')
        if len(result.fills) >= arguments.fills: break
        seconds = max(seconds + 900, int(1.05 * seconds * arguments.fills / max(1, len(result.fills))))
    by_order(attribute(result.session))   # compile
    ran, explained = [], []
    for _ in range(arguments.repeats):
        begin = time.process_time()
        session = backtest(tape, preset='zero-fee-tier').session
        middle = time.process_time()
        found = attribute(session)
        orders = by_order(found)
        ran, explained = [*ran, middle - begin], [*explained, time.process_time() - middle]
    if found.money(found.pnl) != totals(session).pnl or int(orders.pnl.sum()) + found.opening['inventory'] != found.pnl:
        print('the parts do not come to the profit')
        return 1
    best, least = min(ran), min(explained)
    print(f'{len(tape):,} rows, {len(found.fills):,} fills of {len(orders):,} orders (SYNTHETIC): backtest {best:.3f} s of CPU, '
          f'attribution by fill and order {least:.3f} s, ratio {least / best:.3f} (at most 0.5)')
    return 0 if least <= best / 2 else 1


if __name__ == '__main__': raise SystemExit(main())
