"What all tests share: the recordings, the long tests, and a report of the notebook cells that were not run"
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ['IN_TEST'] = '1'
os.environ.setdefault('MPLBACKEND', 'agg')
ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT/'docs', ROOT/'benchmarks'):
    if str(folder) not in sys.path: sys.path.insert(0, str(folder))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--seed', type=int, default=None, help='one seed of the seeded plans only, to replay a failure')
    parser.addoption('--long', action='store_true', help='run what takes minutes too (make test-long)')


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, 'workerinput'): return
    from run_notebooks import forget_stale_kernels
    forget_stale_kernels()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption('--long'): return
    for item in items:
        if 'long' in item.keywords: item.add_marker(pytest.mark.skip(reason='takes minutes: make test-long'))


@pytest.fixture(scope='session')
def data_folder() -> Path:
    "The folder of the recordings; a test that needs it is skipped where there is none"
    from cryptoexp.config import data_folder
    folder = data_folder()
    if folder is None: pytest.skip('no recordings here: set CRYPTOEXP_DATA to their folder')
    return folder


@pytest.fixture(scope='session')
def usdm_tape(request: pytest.FixtureRequest, data_folder: Path) -> np.ndarray:
    "The USD-M recording as hftbacktest converts it, made once and kept in pytest's cache"
    from hft import recorded_tape
    return recorded_tape(data_folder/'binance_usdm'/'btcusdt_20240808.gz', request.config.cache.mkdir('hftbacktest'))


@pytest.fixture(scope='session')
def small_model() -> Iterator[str]:
    "The base_url of a small but real language model on this machine; a test that needs it is skipped where its packages can't be had"
    from small_model import NoModel, small_model
    with contextlib.ExitStack() as stack:
        try: address = stack.enter_context(small_model())
        except NoModel as why: pytest.skip(str(why))
        yield address


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    "Parts of tests: the cells that were left out of a passed notebook, and what the seeded plans of faults have compared"
    reports = [report for outcome in ('passed', 'failed') for report in terminalreporter.stats.get(outcome, [])]
    for title in ('cells not run', 'plans of faults'):
        notes = sorted({str(value) for report in reports for name, value in getattr(report, 'user_properties', []) if name == title})
        if notes: terminalreporter.section(f'notebook {title}' if title == 'cells not run' else title)
        for note in notes: terminalreporter.line(note)
