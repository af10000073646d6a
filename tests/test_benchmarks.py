"What the benchmark of the matching engine says of files that it can't read"
from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matching_vs_hftbacktest as benchmark
import numpy as np
import pytest
from _stream import stream
from hftbacktest.types import event_dtype

SCRIPT = Path(benchmark.__file__)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole')/'day.npz'
    np.savez_compressed(path, data=stream(2_000, 7))
    return path


def cut(path: Path) -> bytes: return path.read_bytes()[:-400]
def flipped(path: Path) -> bytes: return path.read_bytes()[:900] + b'x' * 40 + path.read_bytes()[940:]
def priced(price: float) -> Callable[[Path], bytes]:
    def made(path: Path) -> bytes:
        rows = stream(2_000, 7)
        rows['px'][np.flatnonzero(rows['ev'] & 0xff == 2)[3]] = price
        return saved(rows)
    return made


def saved(array: np.ndarray) -> bytes:
    import io
    held = io.BytesIO()
    np.save(held, array, allow_pickle=True)
    return held.getvalue()


WRONG: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    'cut': ('day.npz', cut, 'or damaged'), 'changed': ('day.npz', flipped, 'is no file of hftbacktest, or damaged'),
    'a text': ('day.npz', lambda path: b'price,size', 'or damaged'), 'empty': ('day.npz', lambda path: b'', 'or damaged'),
    'an empty array': ('day.npy', lambda path: b'', 'damaged'), 'objects': ('day.npy', lambda path: saved(np.array([{}])), 'damaged'),
    'another array': ('day.npy', lambda path: saved(np.zeros((3, 2))), 'holds an array of float64[3, 2]'),
    'no rows': ('day.npy', lambda path: saved(np.zeros(0, event_dtype)), 'has no rows'),
    'no trade': ('day.npy', lambda path: saved(np.zeros(5, event_dtype)), 'has no trade'),
    'a trade at nothing': ('day.npy', priced(0.0), 'a trade at the price 0.0'),
    'a trade at no number': ('day.npy', priced(np.nan), 'at the price nan'),
    'no gzip': ('day.gz', lambda path: b'\x1f\x8b and no more', 'is not a recording'),
    'a cut recording': ('day.gz', lambda path: gzip.compress(b'1723161600 {"stream":')[:20], 'is not a recording'),
    'nothing of a recording': ('day.gz', lambda path: gzip.compress(b''), 'is not a recording')}


@pytest.mark.parametrize('name', WRONG)
def test_a_file_that_cannot_be_read(whole: Path, tmp_path: Path, name: str) -> None:
    file, made, told = WRONG[name]
    (tmp_path/file).write_bytes(made(whole))
    with pytest.raises(ValueError, match=r'(?s)' + told.replace('[', r'\[')) as error: benchmark.read(str(tmp_path/file))
    assert str(tmp_path/file) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path/'day.npz', rows=np.zeros(3), times=np.zeros(3))
    with pytest.raises(ValueError, match='it holds rows, times, and no array named data'): benchmark.read(str(tmp_path/'day.npz'))


def test_what_does_not_join(whole: Path, tmp_path: Path) -> None:
    (tmp_path/'day.gz').write_bytes(gzip.compress(b'1 {}'))
    with pytest.raises(ValueError, match='give one or the other'): benchmark.read(f'{whole}+{tmp_path}/day.gz')
    with pytest.raises(ValueError, match=r'not there: .*nowhere\.npz'): benchmark.read(f'{whole}+nowhere.npz')


def test_a_file_that_can_be_read(whole: Path) -> None:
    assert len(benchmark.read(str(whole)).rows) > 1_000
    with pytest.raises(ValueError, match=r'day\.npz\+.*day\.npz: row .* runs backwards'): benchmark.read(f'{whole}+{whole}')


def test_one_line_and_status_two(whole: Path, tmp_path: Path) -> None:
    (tmp_path/'day.npz').write_bytes(cut(whole))
    ran = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path/'day.npz')], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 2 and 'Traceback' not in ran.stderr
    assert ran.stderr.count('\n') == 1 and ran.stderr.startswith(f'{SCRIPT.name}: {tmp_path/"day.npz"} is no file of hft')
