"""The Monte Carlo of Avellaneda and Stoikov's table (six rows of 400,000 days of 200 steps) beside plain NumPy, CPU time, one thread.

NumPy simulates all days of a row at once, in blocks that fit the cache, with its default generator: the fastest plain way we know.
Both have to agree within four standard errors before a ratio is printed."""
import argparse
import math
import time

import numpy as np

from cryptoexp.trading.optimal import avellaneda_stoikov_table, simulate

SIGMA, DECAY, INTENSITY, STEPS = 2.0, 1.5, 140.0, 200


def with_numpy(gamma: float, leaning: bool, days: int, block: int = 20_000) -> np.ndarray:
    "Profit of each day, as the paper's text says it"
    random, profits, step = np.random.default_rng(7), [], SIGMA * math.sqrt(1 / STEPS)
    for first in range(0, days, block):
        size = min(block, days - first)
        price, held, cash = np.full(size, 100.0), np.zeros(size), np.zeros(size)
        for index in range(STEPS):
            risk = gamma * SIGMA**2 * (1 - index / STEPS)
            half = risk / 2 + math.log1p(gamma / DECAY) / gamma
            centre = price - held * risk if leaning else price
            sold = random.random(size) < INTENSITY / STEPS * np.exp(-DECAY * (centre + half - price))
            bought = random.random(size) < INTENSITY / STEPS * np.exp(-DECAY * (price - centre + half))
            cash += sold * (centre + half) - bought * (centre - half)
            held += bought.astype(float) - sold
            price += np.where(random.random(size) < 0.5, step, -step)
        profits.append(cash + held * price)
    return np.concatenate(profits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--days', type=int, default=400_000, help='days a row (default 400,000)')
    days = parser.parse_args().days
    simulate(avellaneda_stoikov_table(STEPS, 1.0, 0.1, SIGMA, DECAY), 1.0, SIGMA, INTENSITY, DECAY, days=2)   # compile
    ours_s = theirs_s = 0.0
    print(f'{"gamma":>6} {"strategy":10} {"ours":>9} {"NumPy":>9} {"ours s":>8} {"NumPy s":>8} {"ratio":>6}')
    for gamma in (0.1, 0.01, 0.5):
        for leaning in (True, False):
            begin = time.process_time()
            mine = simulate(avellaneda_stoikov_table(STEPS, 1.0, gamma, SIGMA, DECAY, leaning=leaning), 1.0, SIGMA, INTENSITY, DECAY,
                            days=days).profit
            middle = time.process_time()
            other = with_numpy(gamma, leaning, days)
            end = time.process_time()
            ours_s, theirs_s = ours_s + middle - begin, theirs_s + end - middle
            print(f'{gamma:6} {"leaning" if leaning else "symmetric":10} {mine.mean():9.3f} {other.mean():9.3f} {middle - begin:8.2f} '
                  f'{end - middle:8.2f} {(end - middle) / (middle - begin):6.1f}', flush=True)
            if abs(mine.mean() - other.mean()) > 4 * math.hypot(mine.std(), other.std()) / math.sqrt(days):
                print('the two do not agree within four standard errors')
                return 1
    print(f'{days * STEPS * 6 / 1e6:,.0f} million steps: ours {ours_s:.1f} s of CPU ({ours_s / (days * STEPS * 6) * 1e9:.2f} ns a step), '
          f'NumPy {theirs_s:.1f} s, ratio {theirs_s / ours_s:.1f}')
    return 0


if __name__ == '__main__': raise SystemExit(main())
