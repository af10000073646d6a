"""Run notebooks in place and store what they show.

    python docs/run_notebooks.py [NOTEBOOK ...] [--long] [--jobs 2] [--timeout 600]

A notebook runs against the package: its export cells are not executed, the names of the module they were exported to are there
instead (so run `nbdev_export` first). Cells with `#| eval: false` are left alone; cells with `#| recordings` are left alone when
there is no data folder, cells with `#| long` unless `--long` is given, cells with `#| needs: hftbacktest` where that package is not
installed; what is left alone keeps its stored output. A failing cell stops the notebook, which is then not written."""
from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ['IN_TEST'] = '1'  # fastcore reads it when it is imported
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT/'nbs'
PACKAGE = 'cryptoexp'
EXPORTS = {'export', 'exports', 'exporti'}


class CellError(Exception):
    "A cell failed; the message says which, with its source and traceback"


@dataclass
class Outcome:
    path: Path
    ran: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> number of cells
    seconds: float = 0.0

    def __str__(self) -> str:
        notes = ''.join(f'; {count} not run: {reason}' for reason, count in self.skipped.items())
        return f'{shown(self.path)}: {self.ran} cells in {self.seconds:.1f} s{notes}'


def shown(path: Path) -> str:
    "The path as it is shown: from the repository's root where it lies inside"
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def all_notebooks(root: Path = NOTEBOOKS) -> list[Path]:
    "Every notebook below `root`, in reading order; folders and files that start with `_` or `.` are not looked at"
    paths = (path for path in Path(root).rglob('*.ipynb') if not any(part[0] in '_.' for part in path.relative_to(root).parts))
    return sorted(paths, key=lambda path: path.relative_to(root).parts)


def directives(cell: Any) -> dict[str, list[str]]:
    "The `#| name arguments` lines a code cell starts with: name without colon -> words"
    if cell['cell_type'] != 'code': return {}
    found: dict[str, list[str]] = {}
    for line in ''.join(cell['source']).splitlines():
        text = line.strip()
        if not text: continue
        if not text.startswith('#|'): break
        name, *words = text[2:].replace(':', ' ', 1).split() or ['']
        found[name] = words
    return found


def exported_module(cells: list[Any]) -> str | None:
    "The module of the package a notebook exports to, such as `cryptoexp.market.book`"
    for cell in cells:
        words = directives(cell).get('default_exp')
        if words: return f'{PACKAGE}.{words[0]}'
    return None


def reason_to_skip(found: dict[str, list[str]], long: bool) -> str | None:
    "Why a cell is not run, as told to the reader; the empty string where there is nothing to tell; None: it is run"
    if found.keys() & EXPORTS or 'default_exp' in found or found.get('eval') == ['false']: return ''
    if 'recordings' in found and not data_folder(): return 'no recordings here (set CRYPTOEXP_DATA)'
    if 'long' in found and not long: return 'takes long (make test-long)'
    absent = [name for name in found.get('needs', ()) if importlib.util.find_spec(name) is None]
    if absent: return f'{", ".join(absent)} is not installed (a requirement for development)'
    return None


def data_folder() -> Path | None:
    "Where the recordings are, or None"
    return importlib.import_module(f'{PACKAGE}.config').data_folder()


@contextlib.contextmanager
def left_as_found(folder: Path) -> Iterator[None]:
    "Work in `folder`; working directory, environment, import path and warning filters are put back at the end"
    directory, environment, path = os.getcwd(), dict(os.environ), list(sys.path)
    os.chdir(folder)
    if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))
    try:
        with warnings.catch_warnings(): yield
    finally:
        os.chdir(directory)
        for name in os.environ.keys() - environment.keys(): del os.environ[name]
        os.environ.update(environment)
        sys.path[:] = path
        if pyplot := sys.modules.get('matplotlib.pyplot'): pyplot.close('all')


def failure(path: Path, number: int, source: str, error: BaseException) -> CellError:
    "What is shown of a failed cell: notebook, number, source and the traceback from the cell downwards"
    frames = error.__traceback__
    while frames and any(name in frames.tb_frame.f_code.co_filename for name in ('IPython', 'execnb')): frames = frames.tb_next
    trace = ''.join(traceback.format_exception(type(error), error, frames or error.__traceback__))
    listing = '\n'.join(f'    {line}' for line in source.strip().splitlines())
    return CellError(f'{shown(path)}, cell {number} (counted from 0) failed:\n\n{listing}\n\n{trace}')


def run(path: Path, long: bool = False, store: bool = True, timeout: int | None = None) -> Outcome:
    "Run one notebook; store its outputs, or only see whether all goes well"
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell, _dict2obj

    path, started = Path(path).resolve(), time.perf_counter()
    notebook, outcome = read_nb(path), Outcome(path)
    with left_as_found(path.parent):
        shell = CaptureShell(path)
        if name := exported_module(notebook.cells):
            names = vars(importlib.import_module(name))
            shell.user_ns.update({key: value for key, value in names.items() if not (key.startswith('__') and key.endswith('__'))})
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != 'code' or not cell.source.strip(): continue
            reason = reason_to_skip(directives(cell), long)
            if reason is not None:
                if reason: outcome.skipped[reason] = outcome.skipped.get(reason, 0) + 1
                continue
            outputs = shell.run(cell.source, timeout=timeout)
            if shell.exc: raise failure(path, number, cell.source, shell.exc) from None
            cell['outputs'] = _dict2obj(list(outputs))
            outcome.ran += 1
    if store:
        part = path.with_suffix('.part')
        write_nb(notebook, part)
        os.replace(part, path)
        clean(path)
    outcome.seconds = time.perf_counter() - started
    return outcome


def clean(path: Path) -> None:
    "Take out what changes from run to run: counters, addresses, metadata"
    from execnb.nbio import read_nb, write_nb
    from nbdev.clean import clean_nb

    notebook = read_nb(path)
    for cell in notebook.cells: cell.pop('idx_', None)
    clean_nb(notebook)
    write_nb(notebook, path)


def imported(path: Path) -> set[Path]:
    "The modules of the package that a module imports, wherever in it the import stands"
    found, parts = set(), path.relative_to(ROOT).with_suffix('').parts
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): places = [tuple(alias.name.split('.')) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = (*(parts[:len(parts) - node.level] if node.level else ()), *(node.module.split('.') if node.module else ()))
            places = [module, *((*module, alias.name) for alias in node.names)]
        else: continue
        files = (ROOT.joinpath(*place).with_suffix('.py') for place in places if place[:1] == (PACKAGE,))
        found |= {file for file in files if file.is_file()}
    return found


def forget_stale_kernels() -> None:
    """Delete compiled functions that are older than their module, or than a module which that one builds upon.

    Numba's cache looks at the file of the function alone: after a change in limits.py it would go on using the engine that
    was compiled with the old limits."""
    modules = {path: imported(path) for path in (ROOT/PACKAGE).rglob('*.py')}
    for module in modules:
        known, fresh = {module}, {module}
        while fresh:
            fresh = set().union(*(modules[path] for path in fresh)) - known
            known |= fresh
        newest = max(path.stat().st_mtime for path in known)
        for path in (module.parent/'__pycache__').glob(f'{module.stem}.*.nb[ci]'):
            with contextlib.suppress(FileNotFoundError):   # another process, compiling, has just put a newer one in its place
                if path.stat().st_mtime < newest: path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('notebooks', nargs='*', type=Path, help='default: all of nbs/')
    parser.add_argument('--long', action='store_true', help='run the cells flagged `#| long` too')
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1), help='notebooks at a time (default %(default)s)')
    parser.add_argument('--timeout', type=int, default=600, help='seconds a cell may take (default %(default)s)')
    arguments = parser.parse_args()
    paths = arguments.notebooks or all_notebooks()
    if missing := [str(path) for path in paths if not path.is_file()]: parser.error(f'no such notebook: {", ".join(missing)}')
    failed = 0
    forget_stale_kernels()
    with ProcessPoolExecutor(max(1, min(arguments.jobs, len(paths))), mp_context=get_context('spawn'), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run, path, arguments.long, True, arguments.timeout) for path in paths]):
            try: print(done.result(), flush=True)
            except CellError as error:
                failed += 1
                print(error, file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == '__main__': sys.exit(main())
