"""A real Bitcoin Core node for `make test-node`, built once into .cache/bitcoind from the source that py-bitcoinkernel's sdist carries.

It takes some seven minutes on two cores, and needs cmake, a C++ compiler and the headers of libevent, boost, zeromq and sqlite
(Debian: libevent-dev libboost-dev libzmq3-dev libsqlite3-dev pkg-config). What is missing is said before anything is fetched."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path

PROJECT, VERSION = 'py-bitcoinkernel', '0.1.0a5'
SDIST_SHA256 = '71b91eecac7a8b07248be04471c3bf98016b38bf823aefd28f7b31179940520d'
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT/'.cache'/'bitcoind'
DAEMON = CACHE/'bin'/'bitcoind'
OPTIONS = ['-DCMAKE_BUILD_TYPE=Release', '-DBUILD_TESTS=OFF', '-DBUILD_BENCH=OFF', '-DBUILD_BITCOIN_BIN=OFF', '-DENABLE_WALLET=ON',
           '-DWITH_ZMQ=ON', '-DENABLE_IPC=OFF', '-DBUILD_GUI=OFF', '-DINSTALL_MAN=OFF', '-DENABLE_EXTERNAL_SIGNER=OFF', '-DWITH_CCACHE=OFF']
HEADERS = {'libevent-dev': 'event2/event.h', 'libboost-dev': 'boost/version.hpp', 'libzmq3-dev': 'zmq.h', 'libsqlite3-dev': 'sqlite3.h'}


def missing() -> list[str]:
    "Programs and headers that the build needs and this machine does not have"
    found = [program for program in ('cmake', 'make', 'pkg-config', 'c++') if not shutil.which(program)]
    if 'c++' in found: return found
    for package, header in HEADERS.items():
        text = f'#include <{header}>\n'.encode()
        if subprocess.run(['c++', '-E', '-x', 'c++', '-'], input=text, capture_output=True).returncode: found.append(package)
    return found


def index() -> str:
    "The package index that pip uses here"
    told = subprocess.run([sys.executable, '-m', 'pip', 'config', 'get', 'global.index-url'], capture_output=True, text=True)
    if os.environ.get('PIP_INDEX_URL'): return os.environ['PIP_INDEX_URL']
    if told.returncode == 0 and told.stdout.strip(): return told.stdout.strip()
    from pip._internal.models.index import PyPI
    return str(PyPI.simple_url)


def fetch() -> Path:
    "The sdist, checked against the sum we know it by"
    page = f'{index().rstrip("/")}/{PROJECT}/'
    request = urllib.request.Request(page, headers={'Accept': 'application/vnd.pypi.simple.v1+json'})
    with urllib.request.urlopen(request, timeout=60) as answer: files = json.load(answer)['files']
    name = f'{PROJECT.replace("-", "_")}-{VERSION}.tar.gz'
    address = next((file['url'] for file in files if file['filename'] == name), None)
    if address is None: raise SystemExit(f'the package index has no {name}')
    CACHE.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(urllib.parse.urljoin(page, address), timeout=600) as answer: body = answer.read()
    if (found := hashlib.sha256(body).hexdigest()) != SDIST_SHA256: raise SystemExit(f'{name} has the sum {found}, not the one we know')
    (CACHE/name).write_bytes(body)
    return CACHE/name


def build() -> Path:
    "Build bitcoind where it is not there yet; returns its path"
    if DAEMON.exists(): return DAEMON
    if lacking := missing(): raise SystemExit(f'to build bitcoind this machine lacks {", ".join(lacking)}')
    archive = CACHE/f'{PROJECT.replace("-", "_")}-{VERSION}.tar.gz'
    if not archive.exists(): archive = fetch()
    with tarfile.open(archive) as tar: tar.extractall(CACHE, filter='data')
    source = CACHE/archive.name.removesuffix('.tar.gz')/'depend'/'bitcoin'
    subprocess.run(['cmake', '-B', 'build', *OPTIONS], cwd=source, check=True)
    subprocess.run(['make', '-C', 'build', f'-j{os.cpu_count()}', 'bitcoind'], cwd=source, check=True)
    DAEMON.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source/'build'/'bin'/'bitcoind', DAEMON)
    subprocess.run(['strip', str(DAEMON)], check=False)
    shutil.rmtree(CACHE/archive.name.removesuffix('.tar.gz'))
    return DAEMON


if __name__ == '__main__': print(build())
