"""The monitor left on: a blockchain.info of our own tells 700 new transactions a second (100 times mainnet's); memory has to stay.

    make soak-monitor ARGS='--minutes 10'

The server is a process of its own. The bounds of everything that is remembered are set low, so that all are full within half a minute: what
grows after that is a leak."""
from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from explorer_servers import InfoSite, open_site, utx

from cryptoexp.analyst.llm import ModelSettings
from cryptoexp.btc_agent import BTCTransactionMonitor
from cryptoexp.chain.embedded import Mint, ordinary
from cryptoexp.chain.history import History


class Firehose(InfoSite):
    "Tells transactions nobody has heard of, at a steady pace, for as long as somebody listens"
    def __init__(self, rate: float):
        super().__init__([])
        self.sent = 0
        self.plan = [Pace(self, rate)]


class Pace(list[object]):
    "Steps made when they are wanted"
    def __init__(self, site: Firehose, rate: float):
        super().__init__()
        self.site, self.rate = site, rate

    def __iter__(self):   # type: ignore[no-untyped-def]
        generator, mint, begin = random.Random(1), Mint(1), time.monotonic()
        templates = [json.dumps(utx(ordinary(mint))) for _ in range(200)]
        known = [json.loads(text)['x'] for text in templates]
        while True:
            number = self.site.sent
            ahead = begin + number / self.rate - time.monotonic()
            if ahead > 0.002: yield ahead
            place = number % len(templates)
            text = templates[place].replace(known[place]['hash'], generator.randbytes(32).hex())
            for output in known[place]['out']: text = text.replace(output['script'], '0014' + generator.randbytes(20).hex())
            self.site.sent += 1
            yield text


async def serve(rate: float) -> None:
    site = Firehose(rate)
    async with open_site(site) as url:
        print(url, flush=True)
        while True:
            await asyncio.sleep(1)
            print(site.sent, flush=True)


def resident() -> float: return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 1e6   # MB


def started(rate: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, '--serve', '--rate', str(rate)], stdout=subprocess.PIPE, text=True)


def soak(minutes: float, rate: float) -> int:
    "Watch for so long, by `run` as a user would; answers the exit status"
    server = started(rate)
    assert server.stdout is not None
    ended = threading.Event()
    try:
        with tempfile.TemporaryDirectory() as folder:
            monitor = BTCTransactionMonitor(url=server.stdout.readline().strip(), state=folder, settings=ModelSettings(), save_every=20.0,
                                            duration=minutes * 60, history=History(5_000, 30_000), min_btc=0.3)
            monitor.watch.most_known = monitor.source.dialect.pool.most_waiting = 10_000   # type: ignore[attr-defined]
            monitor.told, monitor.watch.most_told = deque(maxlen=1_000), 1_000
            sizes, begin = list[float](), time.monotonic()
            def measure() -> None:
                while not ended.wait(2.0):
                    sizes.append(resident())
                    if len(sizes) % 5 == 0:
                        print(f'{time.monotonic() - begin:5.0f} s  {monitor.watch.counts["transactions"]:,} transactions  '
                              f'{sizes[-1]:,.1f} MB  {len(monitor.watch.scorer.history.accounts):,} addresses in memory',
                              file=sys.stderr, flush=True)
            measuring = threading.Thread(target=measure, daemon=True)
            measuring.start()
            lines = Path(folder)/'printed.txt'
            with lines.open('w', encoding='utf-8') as printed, redirect_stdout(printed): monitor.run()
            seconds = time.monotonic() - begin
            ended.set()
            measuring.join()
            with lines.open(encoding='utf-8') as printed: told = sum(1 for _ in printed)
    finally:
        ended.set()
        server.terminate()
        sent = int(server.stdout.read().split()[-1])
    counts = monitor.watch.counts + monitor.counts
    _, *settled = np.array_split(sizes, 3)   # a save makes memory a saw: medians of the second and of the last third
    first, last = (float(np.median(part)) for part in settled)
    growth, heard = (last - first) / first, counts['transactions']
    print(f'{heard:,} of {sent:,} transactions in {seconds:,.0f} s, {heard / seconds:,.0f} a second; {told:,} lines printed, '
          f'{counts["saves"]} saves; '
          f'memory {first:,.0f} to {last:,.0f} MB ({growth:+.1%}); gaps {counts["gap"]}, unreadable {counts["unreadable"]}')
    lost = counts['gap'] > 0 or counts['unreadable'] > 0 or heard < 0.95 * sent
    return int(growth > 0.05 or lost or counts['saves'] < 1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--rate', type=float, default=700.0, help='transactions a second')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve: asyncio.run(serve(arguments.rate))
    else: sys.exit(soak(arguments.minutes, arguments.rate))
