"""Events of the queue-reactive market a second, beside a plain-Python way of the same, CPU time, one thread.

The plain way is the module's own step function without Numba (NUMBA_DISABLE_JIT=1 in a process of its own): the same random numbers, and so
the same rows, which is checked before a ratio is printed. The embedded market's speed stands beside them.

    python benchmarks/synthetic_market.py [--seconds 600] [--plain-seconds 2]
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from cryptoexp.market.events import Digest
from cryptoexp.market.queue_reactive import QueueReactiveMarket
from cryptoexp.market.synthetic import SECOND, SyntheticMarket


def timed(made: Callable[[], Any], seconds: float) -> dict[str, Any]:
    "Rows, CPU seconds and digest of so much market time; making the market, and its snapshot, are not counted"
    market = made()
    market.events(SECOND // 100)
    begin = time.process_time()
    events = market.events(round(seconds * SECOND))
    return dict(rows=len(events), cpu_s=time.process_time() - begin, digest=Digest().update(events).hexdigest())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=600, help='market time of the compiled runs (default 600)')
    parser.add_argument('--plain-seconds', type=float, default=2, help='market time of the plain run (default 2)')
    parser.add_argument('--plain', action='store_true', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:     # in the process without Numba
        print(json.dumps(timed(QueueReactiveMarket, arguments.plain_seconds)))
        return 0
    QueueReactiveMarket().events(SECOND)    # compile
    SyntheticMarket().events(SECOND)
    ours, old = timed(QueueReactiveMarket, arguments.seconds), timed(SyntheticMarket, arguments.seconds * 20)
    same = timed(QueueReactiveMarket, arguments.plain_seconds)
    result = subprocess.run([sys.executable, __file__, '--plain', '--plain-seconds', str(arguments.plain_seconds)], check=True,
                            capture_output=True, text=True, env=os.environ | {'NUMBA_DISABLE_JIT': '1'})
    plain = json.loads(result.stdout)
    if plain['digest'] != same['digest']:
        print(f'the plain run made other rows: {plain["rows"]:,} against {same["rows"]:,}')
        return 1
    print(f'{"":28}{"rows":>12}{"CPU s":>9}{"rows/s":>12}')
    for name, one in (('queue-reactive, Numba', ours), ('queue-reactive, plain Python', plain), ('embedded, Numba', old)):
        print(f'{name:28}{one["rows"]:12,}{one["cpu_s"]:9.2f}{one["rows"] / one["cpu_s"]:12,.0f}')
    ratio = ours['rows'] / ours['cpu_s'] / (plain['rows'] / plain['cpu_s'])
    print(f'Numba is {ratio:.0f} times as fast as plain Python, row by row the same')
    return 0


if __name__ == '__main__': raise SystemExit(main())
