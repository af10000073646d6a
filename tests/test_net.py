"A faulty network: whatever goes wrong, the error says what it was, and nothing stays open"
from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import shutil
import ssl
import subprocess
import time
import traceback
import warnings
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cryptoexp.net import NetError, RateLimit, Session, connection_failure, open_socket

SIGNATURE = 'c0ffee00'
KEY = 'vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A'


class Waits:
    "Notes how long it was told to wait, and does not"
    def __init__(self) -> None: self.seconds: list[float] = []
    async def __call__(self, seconds: float) -> None: self.seconds.append(seconds)


def session(**settings: Any) -> Session:
    return Session(**{'generator': random.Random(7), 'sleep': Waits(), 'deadline': 5.0, 'attempt_limit': 1.0} | settings)


@contextlib.asynccontextmanager
async def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    "A web server on this machine; yields host and port"
    application = web.Application()
    application.router.add_get('/{path:.*}', handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    try: yield f'127.0.0.1:{runner.addresses[0][1]}'
    finally: await runner.cleanup()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    "A server of bare bytes on this machine, which tidies up after itself; yields host and port"
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError): await talk(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError): await asyncio.wait_for(writer.wait_closed(), 0.5)

    server = await asyncio.start_server(serve, '127.0.0.1', 0, ssl=tls)
    try: yield f'127.0.0.1:{server.sockets[0].getsockname()[1]}'
    finally:
        server.close()
        for task in tasks: task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def speaking(raw: bytes, hold: float = 0.0, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    "A server that reads a request, sends these bytes whatever was asked, and hangs up; yields host and port, and what it was sent"
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))
        writer.write(raw)
        await writer.drain()
        await asyncio.sleep(hold)

    async with serving(talk, tls) as host: yield host, heard


def failing(action: Callable[[], Awaitable[Any]]) -> NetError:
    "Run it, and hand back the error it ends in"
    with pytest.raises(NetError) as caught: asyncio.run(action())  # type: ignore[arg-type]
    return caught.value


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    "No test of this file may leave a connection or a socket behind"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)] == []


@pytest.mark.parametrize('status', [500, 502, 503, 504, 520])
def test_trouble_at_the_venue_is_tried_again_and_then_told(status: int) -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, text='sorry')

    async def action() -> None:
        async with answering(handler) as host, session(attempts=3) as network: await network.get(f'http://{host}/depth')

    error = failing(action)
    assert (error.status, error.attempts, len(asked), error.transient) == (status, 3, 3, True)
    assert 'tried 3 times' in str(error) and 'sorry' in str(error)


@pytest.mark.parametrize('status', [301, 400, 401, 403, 404, 418, 451])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, headers={'Location': 'http://elsewhere.example.org/x?token=abc'})

    async def action() -> None:
        async with answering(handler) as host, session() as network: await network.get(f'http://{host}/depth')

    error = failing(action)
    assert (error.status, error.attempts, len(asked), error.transient) == (status, 1, 1, False)
    assert 'What to do' in str(error) and 'abc' not in str(error)
    if status == 451: assert 'location' in error.reason
    if status == 418: assert 'banned' in error.reason


def test_retry_after_is_honoured() -> None:
    waits, asked = Waits(), []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=429, headers={'Retry-After': '3'}) if len(asked) == 1 else web.Response(body=b'fine')

    async def action() -> bytes:
        async with answering(handler) as host, session(sleep=waits) as network: return await network.get(f'http://{host}/depth')

    assert asyncio.run(action()) == b'fine'
    assert waits.seconds == [3.0]


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    waits = Waits()
    async def handler(_: web.Request) -> web.Response: return web.Response(status=429, headers={'Retry-After': '120'})

    async def action() -> None:
        async with answering(handler) as host, session(sleep=waits) as network: await network.get(f'http://{host}/depth')

    error = failing(action)
    assert (error.retry_after, error.attempts, waits.seconds) == (120.0, 1, [])
    assert 'asks to wait 120 s' in str(error)


def test_a_silent_server_ends_at_the_limit_of_an_attempt() -> None:
    async def action() -> None:
        async with speaking(b'', hold=2.0) as (host, _), session(attempt_limit=0.05, attempts=2) as network:
            await network.get(f'http://{host}/depth')

    error = failing(action)
    assert 'no answer in time' in error.reason and error.attempts == 2


def test_the_deadline_counts_attempts_and_waits() -> None:
    async def action() -> None:
        async with speaking(b'', hold=2.0) as (host, _), session(attempt_limit=0.06, attempts=100, deadline=0.15) as network:
            await network.get(f'http://{host}/depth')

    error = failing(lambda: asyncio.wait_for(action(), 1.5))
    assert 'no answer' in error.reason and 1 <= error.attempts < 10 and error.transient


HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"lastUpdateId":'
CHUNK = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab'


@pytest.mark.parametrize('raw', [b'', HALF, CHUNK, b'\x00\xff\x13garbage\r\n\r\n'],
                         ids=['hangs up', 'half an answer', 'half a chunk', 'garbage'])
def test_a_cut_or_garbled_answer_is_never_taken_for_an_answer(raw: bytes) -> None:
    async def action() -> None:
        async with speaking(raw) as (host, heard), session(attempts=3) as network:
            try: await network.get(f'http://{host}/depth')
            finally: assert len(heard) >= 3

    error = failing(action)
    assert error.transient and error.attempts == 3 and error.host in str(error)


def test_refused() -> None:
    async def action() -> None:
        async with speaking(b'') as (host, _): pass
        async with session(attempts=2) as network: await network.get(f'http://{host}/depth')

    error = failing(action)
    assert 'Connection refused' in str(error) and error.attempts == 2


def test_no_network_names_the_host() -> None:
    async def action() -> None:
        async with session(attempts=1) as network: await network.get('https://no-such-host.invalid/api')

    assert 'no-such-host.invalid' in str(failing(action))


def test_answers_that_are_not_json_or_too_long() -> None:
    async def handler(request: web.Request) -> web.Response: return web.Response(text='<html>hotel</html>' * 100)

    async def action(limit: int) -> None:
        async with answering(handler) as host, session(max_bytes=limit) as network: await network.get_json(f'http://{host}/depth')

    assert 'not JSON' in str(failing(lambda: action(10_000))) and 'hotel' in str(failing(lambda: action(10_000)))
    assert 'longer than 100 bytes' in str(failing(lambda: action(100)))


def test_plain_http_to_another_machine_is_refused_before_anything_is_sent() -> None:
    async def action() -> None:
        async with session() as network: await network.get('http://example.org/')

    assert 'not encrypted' in str(failing(action))


def test_a_server_that_does_not_speak_tls() -> None:
    async def action() -> None:
        async with speaking(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n') as (host, _), session() as network:
            await network.get(f'https://{host}/depth')

    error = failing(action)
    assert 'certificate' in error.reason and not error.transient and error.attempts == 1


def test_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    if shutil.which('openssl') is None: pytest.skip('openssl is not installed: no certificate to be refused can be made')
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', 'key.pem', '-out', 'cert.pem', '-days', '1',
                    '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1'], cwd=tmp_path, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path/'cert.pem', tmp_path/'key.pem')

    async def action(scheme: str) -> None:
        async with speaking(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', tls=tls) as (host, heard), session() as network:
            try:
                if scheme == 'https': await network.get(f'https://{host}/depth')
                else:
                    async with network.socket(f'wss://{host}/ws'): pass
            finally: assert heard in ([], [b''])        # nothing was told to it

    for scheme in ('https', 'wss'):
        error = failing(lambda scheme=scheme: action(scheme))  # type: ignore[misc]
        assert 'certificate' in error.reason and not error.transient and error.attempts == 1


def test_secrets_are_in_no_part_of_an_error() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=400, text=f'you sent signature={request.query["signature"]} and {request.headers["X-MBX-APIKEY"]}')

    async def refused() -> None:
        async with answering(handler) as host, session() as network:
            await network.get(f'http://{host}/order', {'signature': SIGNATURE, 'symbol': 'BTCUSDT'}, {'X-MBX-APIKEY': KEY})

    async def cut() -> None:
        async with speaking(HALF) as (host, _), session(attempts=1) as network:
            await network.get(f'http://{host}/order?signature={SIGNATURE}', headers={'X-MBX-APIKEY': KEY})

    for action in (refused, cut):
        error = failing(action)
        assert error.__cause__ is None and error.__context__ is None
        text = ''.join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        assert SIGNATURE not in text and KEY not in text
    signed = f'https://x/?signature={SIGNATURE}'
    assert SIGNATURE not in str(connection_failure(signed, RuntimeError(f'GET {signed}')))


# Websockets

def upgrade(then: bytes) -> Talk:
    "A server that opens a websocket properly, then sends these raw bytes and hangs up"
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b'\r\n\r\n')
        key = next(line.split(b': ')[1] for line in request.split(b'\r\n') if line.lower().startswith(b'sec-websocket-key'))
        accept = b64encode(sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest())
        writer.write(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
                     b'Sec-WebSocket-Accept: ' + accept + b'\r\n\r\n' + then)
        await writer.drain()
    return talk


@pytest.mark.parametrize('then', [b'', b'\x81\x7e\x01\x00half', b'\xff\xff\xff\xff', b'\x81\x02\xff\xfe'],
                         ids=['cut', 'cut inside a message', 'not a frame', 'not UTF-8'])
def test_a_cut_or_broken_stream_keeps_what_came_and_says_so(then: bytes) -> None:
    received = []

    async def action() -> None:
        talk = upgrade(b'\x81\x02hi' + then)
        async with serving(talk) as host, session() as network, network.socket(f'ws://{host}/', silence=2.0) as socket:
            async for message in socket: received.append(message)

    error = failing(action)
    assert received == [b'hi'] and error.transient and 'connect again' in str(error)


def test_pings_do_not_make_a_silent_stream_alive() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not socket.closed:
                await socket.ping()
                await asyncio.sleep(0.02)
        return socket

    async def action() -> None:
        async with answering(handler) as host, session() as network, network.socket(f'ws://{host}/', silence=0.2) as socket:
            await socket.receive()

    assert 'silent for 0.2 s' in str(failing(action))


@pytest.mark.parametrize(('status', 'transient'), [(451, False), (429, True), (503, True), (403, False)])
def test_a_stream_that_is_refused(status: int, transient: bool) -> None:
    async def handler(_: web.Request) -> web.Response: return web.Response(status=status, headers={'Retry-After': '9'})

    async def action() -> None:
        async with answering(handler) as host, session() as network, network.socket(f'ws://{host}/'): pass

    error = failing(action)
    assert (error.status, error.transient, error.retry_after) == (status, transient, 9.0)


def test_a_stream_that_never_opens() -> None:
    async def action() -> None:
        async with speaking(b'', hold=2.0) as (host, _), session() as network:
            async with open_socket(network, f'ws://{host}/', connect_limit=0.05): pass

    assert 'no answer in time' in str(failing(action))


def test_messages_both_ways_and_large_ones() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket: await socket.send_str(message.data * 1000)
        return socket

    async def action() -> bytes | None:
        async with answering(handler) as host, session() as network, network.socket(f'ws://{host}/', max_message=16 * 2**20) as socket:
            await socket.send('x' * 8_000)
            return await socket.receive()

    assert asyncio.run(action()) == b'x' * 8_000_000


def test_one_pool_serves_many_questions_at_the_rate_allowed() -> None:
    peers = set()

    async def handler(request: web.Request) -> web.Response:
        peers.add(request.transport.get_extra_info('peername') if request.transport else None)
        return web.Response(body=b'x')

    async def action() -> None:
        async with answering(handler) as host, session(rate=1000.0) as network:
            for _ in range(20): await network.get(f'http://{host}/')

    asyncio.run(action())
    assert len(peers) == 1


def test_the_rate_is_kept_by_many_at_once() -> None:
    waits = Waits()

    async def action() -> None:
        limit = RateLimit(rate=100.0, burst=5, sleep=waits)
        await asyncio.gather(*(limit.turn() for _ in range(25)))

    asyncio.run(action())
    assert len(waits.seconds) == 20 and waits.seconds == sorted(waits.seconds)
    assert waits.seconds[-1] == pytest.approx(0.2, abs=0.02)


def test_a_cancelled_question_is_cancelled() -> None:
    async def action() -> None:
        async with speaking(b'', hold=2.0) as (host, _), session() as network:
            task = asyncio.create_task(network.get(f'http://{host}/'))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError): await task

    asyncio.run(action())


def test_a_program_that_stood_still_does_not_blame_the_stream() -> None:
    "The loop was busy for longer than the silence allowed: what came meanwhile is read, and a stream that is really silent still ends"
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            for number in range(8):
                await socket.send_str(str(number))
                await asyncio.sleep(0.1)
            await socket.receive()
        return socket

    async def action() -> None:
        async with answering(handler) as host, session() as network, network.socket(f'ws://{host}/', silence=0.6) as socket:
            async for message in socket:
                received.append(message)   # while the socket waits for the next one, something else takes all the time
                if len(received) in (2, 5): asyncio.get_running_loop().call_later(0.02, time.sleep, 1.5)

    received = list[bytes]()
    assert 'silent for 0.6 s' in str(failing(action))
    assert received == [str(number).encode() for number in range(8)]


def test_a_host_that_asked_to_wait_is_not_asked_anything_until_then() -> None:
    "A ban is meant by everybody: other questions wait for it, or are told at once that there is no time to"
    asked, waits = list[str](), Waits()

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=418, headers={'Retry-After': '300'}) if len(asked) == 1 else web.Response(body=b'fine')

    async def action() -> list[NetError]:
        async with answering(handler) as host, answering(handler) as other, session(sleep=waits) as network:
            told = list[NetError]()
            for path in ('one', 'two', 'three'):
                try: await network.get(f'http://{host}/{path}')
                except NetError as error: told.append(error)
            assert await network.get(f'http://{other}/') == b'fine'    # another host knows nothing of it
            assert await network.get(f'http://{host}/patient', deadline=400.0) == b'fine'
            return told

    told = asyncio.run(action())
    assert asked == ['/one', '/', '/patient'] and [error.status for error in told] == [418]*3
    assert all('told before' in str(error) and 299 <= (error.retry_after or 0) <= 300 for error in told[1:])
    assert [round(seconds) for seconds in waits.seconds] == [300]
