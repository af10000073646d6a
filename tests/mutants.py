"""Would a broken rule be noticed? A line of the package is broken in a copy, and a check runs there in another process, not compiled."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 900


class Mutant(NamedTuple):
    "What is broken, in which module of `trading`, the line as it is, the line broken, and in how many places it stands"
    rule: str
    module: str
    line: str
    broken: str
    places: int = 1


def broken_copy(folder: Path, mutant: Mutant) -> str:
    "The package with the line broken, in a folder of its own; answers what is wrong with the mutant, or ''"
    shutil.copytree(ROOT/'cryptoexp', folder/'cryptoexp', ignore=shutil.ignore_patterns('__pycache__'))
    target = folder/'cryptoexp'/'trading'/f'{mutant.module}.py'
    text = target.read_text(encoding='utf-8')
    if text.count(mutant.line) != mutant.places: return f'{mutant.module} has {text.count(mutant.line)} × {mutant.line!r}'
    target.write_text(text.replace(mutant.line, mutant.broken), encoding='utf-8')
    return ''


def run_check(folder: Path, mutant: Mutant, code: str, arguments: Sequence[str]) -> str:
    "Runs the code beside the broken copy: it prints `noticed by ...` or nothing. Other answers say why the mutant could not be tried"
    if flaw := broken_copy(folder, mutant): return flaw
    begin = 'import sys, cryptoexp; assert cryptoexp.__path__[0].startswith(sys.argv[1])\n'
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(folder), str(ROOT/'tests')]), 'NUMBA_DISABLE_JIT': '1',
                                'PYTHONDONTWRITEBYTECODE': '1', 'NUMBA_CACHE_DIR': str(folder/'numba')}
    try:
        done = subprocess.run([sys.executable, '-W', 'ignore', '-c', begin + code, str(folder), *arguments], env=environment,
                              capture_output=True, text=True, check=False, cwd=folder, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired: return f'no answer after {PATIENCE_S} s'
    return f'broken mutant: {done.stderr[-400:]}' if done.returncode else done.stdout.strip()


def missed(folder: Path, mutants: Sequence[Mutant], check: Callable[[Path, Mutant], str]) -> tuple[list[str], list[str]]:
    """Rows of those that were not noticed (of the first, which is whole, the row if it was), and of all.

    A mutant that the check could not try (a line that is not there, a mutant that raises before the check) is missed too."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = list(pool.map(lambda number: check(folder/str(number), mutants[number]), range(len(mutants))))
    rows = [f'{mutant.rule}: {answer or "not noticed"}' for mutant, answer in zip(mutants, answers)]
    right = [answer.startswith('noticed') if number else not answer for number, answer in enumerate(answers)]
    return [row for row, fine in zip(rows, right) if not fine], rows
