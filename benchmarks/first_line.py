"""How long until `cryptoexp trade` says something, and until it has traded: with nothing compiled yet, and after that.

    python benchmarks/first_line.py

Cold means an empty Numba cache, as after an install. Beside it, in the same run, the import of hftbacktest, which a first
backtest with it has to wait for before it compiles anything. Wall time; the machine should be quiet.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

PROGRAM = 'from cryptoexp.cli import main; raise SystemExit(main())'


def session(cache: str) -> tuple[float, float, float]:
    "Seconds to the first line, to the first look at the market, and to the end of half an hour of market time"
    with tempfile.TemporaryDirectory() as folder:
        started, marks = time.perf_counter(), []
        words = [sys.executable, '-c', PROGRAM, 'trade', '--duration', '30m', '--out', folder]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, 'NUMBA_CACHE_DIR': cache}) as running:
            assert running.stderr is not None
            for line in running.stderr:
                if not marks or line.startswith('market'): marks.append(time.perf_counter() - started)
            running.wait()
        if running.returncode: raise SystemExit(f'the session failed with status {running.returncode}')
        return marks[0], marks[1], time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        for name in ('cold', 'warm', 'warm'):
            first, market, end = session(cache)
            print(f'{name}: first line {first:.2f} s, first market state {market:.1f} s, report and files {end:.1f} s')
        started = time.perf_counter()
        done = subprocess.run([sys.executable, '-c', 'import hftbacktest'], env={**os.environ, 'NUMBA_CACHE_DIR': cache}, check=False)
        if done.returncode: print('hftbacktest is not installed: nothing to set beside it')
        else: print(f'beside it: `import hftbacktest` {time.perf_counter() - started:.1f} s')


if __name__ == '__main__': main()
