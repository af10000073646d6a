"""What was compiled once is only taken for a model that is still the same, and only where its file is whole."""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from loguru import logger
from numba import njit

from cryptoexp.config import MarketMakingConfig
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.trading.backtest import Prepared, prepare, run_configurations
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.quoting import SIGNATURE, Kept, compile_quoter, compiled_as, fingerprint
from cryptoexp.trading.venue import Venue

AWAY = (1, 1)
settings = ModuleType('settings')   # stands for a file of the user's
settings.__file__, settings.AWAY = '/somewhere/settings.py', 1   # type: ignore[attr-defined]
folder = ModuleType('folder')       # of files, one of which names it again
folder.__path__, folder.settings, settings.folder = ['/somewhere'], settings, folder   # type: ignore[attr-defined]


class Distance(Enum): NEAR, FAR = 1, 2


class Farther(Enum): NEAR, FAR = 4, 5


Farther.__qualname__, Farther.__module__ = Distance.__qualname__, Distance.__module__   # the same class, written anew


def helper() -> int: return 1


def by_a_tuple(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - AWAY[0], 2
    return 0


def by_an_attribute(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - settings.AWAY, 2
    return 0


def by_a_file_in_a_folder(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - folder.settings.AWAY, 2
    return 0


def by_a_word(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - Distance.NEAR.value, 2
    return 0


def by_a_helper(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - quick(), 2
    return 0


quick: Any = njit(helper)


def first_bid(prepared: Prepared, quoter: Any, **options: Any) -> int:
    rules = make_rules(MarketMakingConfig(), prepared.instruments[0], Venue.from_config(MarketMakingConfig()), unlimited=True)
    runs = run_configurations(prepared, rules, np.zeros((1, 1)), quoter, cash_e8=10**12, **options)
    return int(runs.orders.sort_values('order_id').tick.iloc[0])


@pytest.fixture(scope='module')
def tape() -> Prepared:
    market = SyntheticMarket(7)
    return prepare([(market.step(500), market.instrument)])


def test_a_model_is_compiled_anew_when_what_it_reads_has_changed(tape: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]
    def farther() -> int: return 4
    for model, owner, name, value in ((by_a_tuple, here, 'AWAY', (4, 4)), (by_an_attribute, settings, 'AWAY', 4),
                                      (by_a_word, here, 'Distance', Farther),
                                      (by_a_helper, here, 'quick', njit(farther))):
        before = first_bid(tape, model)
        assert compile_quoter(model) is not None and before == first_bid(tape, model, compiled=False)
        monkeypatch.setattr(owner, name, value)
        assert first_bid(tape, model) == before - 3 == first_bid(tape, model, compiled=False), name


def test_so_does_what_lies_deeper_in_a_folder_of_files(tape: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    before = first_bid(tape, by_a_file_in_a_folder)
    assert compile_quoter(by_a_file_in_a_folder) is not None
    monkeypatch.setattr(settings, 'AWAY', 3)
    assert first_bid(tape, by_a_file_in_a_folder) == before - 2 == first_bid(tape, by_a_file_in_a_folder, compiled=False)


RUN = """
import pickle, sys
from cryptoexp.trading.quoting import compile_quoter
from test_kept import first_bid
import model
prepared = pickle.load(open('tape', 'rb'))
hits = compile_quoter(model.quoter).stats.cache_hits.total()
print(first_bid(prepared, model.quoter), first_bid(prepared, model.quoter, compiled=False), hits)
"""
MODEL = """
from numba import njit
from others import HALF, half
import others
def quoter(view, parameters, scratch, wishes):
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - HALF - half() - others.MORE, 2
    return 0
"""
OTHERS = """
from numba import njit
HALF, MORE = {0}, {1}
@njit
def half(): return {2}
"""


def told(folder: Path) -> tuple[int, int, int]:
    "First bid of a fresh process, compiled and in Python, and how much of it was read from disk"
    path = os.pathsep.join([str(folder), str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, '-c', RUN], cwd=folder, env=os.environ | {'PYTHONPATH': path}, capture_output=True, text=True,
                          check=False)
    assert not done.returncode, done.stderr
    first, python, hits = map(int, done.stdout.split())
    return first, python, hits


def in_a_folder(tape: Prepared, folder: Path) -> None:
    (folder/'tape').write_bytes(pickle.dumps(tape))
    (folder/'model.py').write_text(MODEL)
    (folder/'others.py').write_text(OTHERS.format(1, 1, 1))


def test_nor_is_it_taken_from_disk_after_another_file_has_changed(tape: Prepared, tmp_path: Path) -> None:
    in_a_folder(tape, tmp_path)
    near, python, hits = told(tmp_path)
    assert (near, hits) == (python, 0) and told(tmp_path) == (near, near, 1)   # the second time it is read
    for step, numbers in enumerate(((3, 1, 1), (3, 4, 1), (3, 4, 7)), 1):
        (tmp_path/'others.py').write_text(OTHERS.format(*numbers) + '\n'*step)   # of another size: the clock of a file is coarse
        first, python, hits = told(tmp_path)
        assert (first, python, hits) == (near + 3 - sum(numbers), near + 3 - sum(numbers), 0), numbers


def test_a_damaged_file_is_compiled_anew(tape: Prepared, tmp_path: Path) -> None:
    in_a_folder(tape, tmp_path)
    near = told(tmp_path)[0]
    def kept(ending: str) -> Path: return next(path for path in (tmp_path/'__pycache__').glob(f'model.quoter-*.{ending}'))
    body = kept('nbc').read_bytes()
    for ending, damage in (('nbc', body[:len(body)//2]), ('nbc', body[:-600] + bytes(200) + body[-400:]), ('nbc', b''), ('nbi', b'')):
        kept(ending).write_bytes(damage)
        assert told(tmp_path) == (near, near, 0), damage[:20]
        assert told(tmp_path) == (near, near, 1)   # the damaged file was replaced


def test_a_damaged_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path/'told_model.py').write_text('def quoter(view, parameters, scratch, wishes): return 0\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    import told_model  # type: ignore[import-not-found]
    compiled_as(SIGNATURE, told_model.quoter, Kept)
    for path in (tmp_path/'__pycache__').glob('*.nbc'): path.write_bytes(path.read_bytes()[:-9])
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record['message']), level='WARNING')
    again = compiled_as(SIGNATURE, told_model.quoter, Kept)
    logger.remove(sink)
    assert not again.stats.cache_hits and len(said) == 1 and 'is damaged, so it is compiled anew' in said[0]


OWN = """
from numba import njit
from cryptoexp.trading.quoting import SIGNATURE
@njit(SIGNATURE, cache=True)
def quoter(view, parameters, scratch, wishes):
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - parameters[0], 2
    return 0
"""


def test_a_model_that_its_user_compiled_is_checked_all_the_same(tape: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Numba's own cache holds it without the checks: a price that is no number must not pass, compiled or not"
    (tmp_path/'own_model.py').write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_model  # type: ignore[import-not-found]
    assert list((tmp_path/'__pycache__').glob('*.nbc'))
    rules = make_rules(MarketMakingConfig(), tape.instruments[0], Venue.from_config(MarketMakingConfig()), unlimited=True)
    for options in ({'record': True}, {'record': False}, {'compiled': False}):
        with pytest.raises(ValueError, match='cannot convert float NaN'):
            run_configurations(tape, rules, np.full((1, 1), np.nan), own_model.quoter, cash_e8=10**12, **options)   # type: ignore[arg-type]


def test_what_cannot_be_written_down_tells_a_model_by_what_it_is() -> None:
    file = open(__file__, encoding='utf-8')
    def reads(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int: return file.fileno()
    with file: assert fingerprint(reads) == fingerprint(reads)
