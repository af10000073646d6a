"""A feed that is left on: 20 made-up markets over a local server, for minutes; memory has to stay where it was, and rows have to come soon.

    make soak ARGS='--minutes 10'
"""
from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from made_venues import MadeServer

from cryptoexp.market.events import CONTROL, STALE
from cryptoexp.market.live import feed

MARKETS = [f'{letter}{number}C/USD' for letter in 'ABCDE' for number in range(4)]

EDGES = np.logspace(-3, 5, 4001)   # ms: how late rows are is counted, not kept, so that it takes no memory of its own


def resident() -> float:
    "MB"
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages*4096/1e6


async def soak(minutes: float, pace: float) -> int:
    "Read for so long; answers the exit status"
    sizes, counts, rows, stale, begin = list[float](), np.zeros(len(EDGES) + 1, np.int64), 0, 0, time.monotonic()
    async with MadeServer('kraken', pace=pace, symbols=MARKETS) as server:
        urls, told = {'kraken_rest': server.rest_url, 'kraken_websocket': server.websocket_url}, begin
        async with feed({'kraken': MARKETS}, urls, life=60.0, overlap=3.0) as markets:
            async for batch in markets:
                link = markets.links[0]
                clock = link.clocks[batch.instrument.symbol]
                market = batch.events.kind != CONTROL
                if clock.offset_ns is not None and market.any():
                    waits = (link.clock() + clock.offset_ns - batch.events.local_ns[market])/1e6
                    counts += np.bincount(np.searchsorted(EDGES, waits), minlength=len(counts))
                rows += len(batch.events)
                stale += int(((batch.events.kind == CONTROL) & (batch.events.tick == STALE)).sum())
                now = time.monotonic()
                if now - told > 5:
                    if not sizes: counts[:] = 0   # what came while things were imported and compiled
                    told = now
                    sizes.append(resident())
                    replaced = link.wire.handovers
                    print(f'{now - begin:5.0f} s  {rows:,} rows  {sizes[-1]:,.1f} MB  {replaced} connections replaced', flush=True)
                if now - begin > minutes*60: break
            messages = link.wire.messages
    settled = sizes[len(sizes)//4:]   # what is imported and grown once is in
    first, last = (np.median(part) for part in (settled[:3], settled[-3:]))
    growth = (last - first)/first if len(settled) >= 6 else 0.0
    def quantile(part: float) -> float: return float(EDGES[min(len(EDGES) - 1, np.searchsorted(counts.cumsum(), part*counts.sum()))])
    rate = messages/(time.monotonic() - begin)
    print(f'{rate:,.0f} messages/s, {len(MARKETS)} markets, both ends in one process; memory {growth:+.1%}; from the socket to rows: '
          f'median {quantile(0.5):.2f} ms, p99 {quantile(0.99):.2f} ms; times stale: {stale}')
    return int(growth > 0.05 or stale > 0)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--pace', type=float, default=1000.0, help='steps of the market a second')
    arguments = parser.parse_args()
    sys.exit(asyncio.run(soak(arguments.minutes, arguments.pace)))
