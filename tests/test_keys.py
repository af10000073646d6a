"""A key, wrong or right, is nowhere it could be read by others: not in a log, a trace, an error, a cache, an answer, an address.

The endpoint here repeats the key it was sent wherever it can: in headers, in bodies, in the text of an answer, in the names of models."""
from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from loguru import logger

from cryptoexp.analyst.coins import Access, CoinError, CoinGecko, access_from
from cryptoexp.analyst.llm import Model, ModelError, ModelSettings, settings_from_environment
from cryptoexp.config import ConfigError
from cryptoexp.crypto_agent_wrapper import CryptoAgentWrapper

KEY, COIN_KEY = 'sk-proj-very/secret+key-0123456789', 'CG-secretsecretsecret1'
QUESTION = [{'role': 'user', 'content': 'What is the outlook?'}]
WAYS = ('401', '400', '403', '404', '429', '500', '302', 'answer', 'refusal', 'filter', 'garbage', 'error', 'cut', 'model')


def completion(text: str, **more: Any) -> dict[str, Any]:
    message = dict(role='assistant', content=text) | {name: more.pop(name) for name in ('refusal',) if name in more}
    return dict(id=text, object='chat.completion', created=1, model=more.pop('model', 'm'),
                choices=[dict(index=0, message=message, finish_reason=more.pop('finish', 'stop'))]) | more


@contextlib.asynccontextmanager
async def echoing(way: str) -> Any:
    "A server that repeats the key; yields its address"
    async def answer(request: web.Request) -> web.StreamResponse:
        sent = request.headers.get('Authorization', '').removeprefix('Bearer ') or request.headers.get('x-cg-demo-api-key', '')
        headers = {'X-Echo': sent, 'X-Request-Id': f'req-{sent}', 'Retry-After': '0', 'Location': f'/elsewhere?key={quote(sent, safe="")}'}
        told = f'Your key {sent} (or {quote(sent, safe="")}) was seen'
        if request.path.endswith('/models'): return web.json_response(dict(object='list', data=[dict(id=f'model-{sent}')]), headers=headers)
        if (await request.json() if request.can_read_body else {}).get('stream') and not way.isdigit():
            reply = web.StreamResponse(headers=headers | {'Content-Type': 'text/event-stream'})
            await reply.prepare(request)
            for place in range(0, len(told), 5):
                part = dict(id='x', object='chat.completion.chunk', created=1, model=sent,
                            choices=[dict(index=0, delta=dict(content=told[place:place + 5]), finish_reason=None)])
                await reply.write(f'data: {json.dumps(part)}\n\n'.encode())
            end = dict(part, choices=[dict(index=0, delta={}, finish_reason='length' if way == 'cut' else 'stop')])
            await reply.write(f'data: {json.dumps(end)}\n\ndata: [DONE]\n\n'.encode())
            return reply
        bodies: dict[str, Any] = {
            'answer': completion(told), 'refusal': completion('', refusal=told), 'filter': completion(told, finish='content_filter'),
            'garbage': dict(whatever=told), 'error': dict(error=dict(message=told, code=sent)), 'cut': completion(told, finish='length'),
            'model': completion('Fine.', model=f'm-{sent}')}
        if way in bodies: return web.json_response(bodies[way], headers=headers)
        return web.json_response(dict(error=dict(message=told, code=sent, type=sent)), status=int(way), headers=headers)
    app = web.Application()
    app.router.add_route('*', '/{path:.*}', answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', 0)
    await site.start()
    try: yield f'http://127.0.0.1:{runner.addresses[0][1]}/v1'
    finally: await runner.cleanup()


def forms(key: str) -> list[str]:
    "How a key may be written"
    return [key, quote(key, safe=''), json.dumps(key)[1:-1], base64.b64encode(key.encode()).decode(), repr(key)[1:-1]]


def nowhere(key: str, *texts: str) -> None:
    for form in forms(key):
        for text in texts: assert form not in text, text[max(0, text.find(form) - 200):text.find(form) + 20]


def whole(error: BaseException) -> str:
    "Everything an error can be made to say, with whatever it drags along"
    seen = '' if error.__cause__ is None and error.__context__ is None else whole(error.__cause__ or error.__context__)  # type: ignore[arg-type]
    return f'{error!s} {error!r} {error.args} {vars(error)} {"".join(traceback.format_exception(error))} {seen}'


@contextlib.contextmanager
def listened(caplog: pytest.LogCaptureFixture) -> Iterator[io.StringIO]:
    "All that anybody logs, at the finest level, also with the values of variables"
    caplog.set_level(logging.DEBUG)
    for name in ('openai', 'httpx2', 'httpcore2', 'httpx', 'httpcore', 'aiohttp'): logging.getLogger(name).setLevel(logging.DEBUG)
    out = io.StringIO()
    handle = logger.add(out, level='TRACE')
    try: yield out
    finally: logger.remove(handle)


@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('way', WAYS)
def test_an_endpoint_that_repeats_the_key(way: str, streamed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        async with echoing(way) as address:
            settings = ModelSettings('m', address, KEY, retries=1, timeout_s=30, trace_file=tmp_path/'trace.jsonl',
                                     cache_folder=tmp_path/'cache')
            async with Model(settings) as model:
                try:
                    if not streamed:
                        reply = await model.ask(QUESTION)
                        return f'{reply!r} {reply.to_dict()} {model.client!r}'
                    pieces, stream = [], model.stream(QUESTION)
                    async for piece in stream: pieces.append(piece)
                    return f'{"".join(pieces)} {stream.text} {stream.reply!r}'
                except ModelError as error: return f'{whole(error)} {error.said("zh")}'
    with listened(caplog) as log: said = asyncio.run(main())
    assert len(said) > 20
    # what the openai package and its transport log at DEBUG are headers of the answer, in their own words; ours are the rest
    nowhere(KEY, said, log.getvalue(), (tmp_path/'trace.jsonl').read_text(), *(path.read_text() for path in (tmp_path/'cache').iterdir()))
    ours = '\n'.join(record.getMessage() for record in caplog.records if record.name.split('.')[0] == 'cryptoexp')
    nowhere(KEY, ours, '\n'.join(record.getMessage() for record in caplog.records if record.levelno >= logging.INFO))


def test_the_key_that_is_sent_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    "Of an endpoint that does not repeat it, also at the finest level of all packages"
    async def main() -> None:
        with contextlib.suppress(ModelError):
            async with Model(ModelSettings('m', 'http://127.0.0.1:9/v1', KEY, retries=0, timeout_s=5)) as model: await model.ask(QUESTION)
    with listened(caplog) as log: asyncio.run(main())
    nowhere(KEY, log.getvalue(), caplog.text)


@pytest.mark.parametrize('address', [
    f'https://{quote(KEY, safe="")}@model.example/v1', f'https://user:{quote(KEY, safe="")}@model.example/v1', f'https://model.example/v1?key={KEY}',
    f'https://model.example/v1#{KEY}', f'https://model.example/{KEY}/v1', f'https://[{KEY}', f'//{KEY}', f'{KEY}', f'ftp://{KEY}@host'])
def test_a_key_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    for more in ({'OPENAI_API_KEY': KEY}, {}):
        try: settings_from_environment({'OPENAI_BASE_URL': address} | more)
        except ConfigError as error: nowhere(KEY, whole(error))
        else: assert f'/{KEY}/' in address and not more, address      # a path that holds what nobody said is the key
    with pytest.raises(ConfigError) as caught:
        access_from({'COINGECKO_URL': address.replace('/' + KEY + '/', f'/{COIN_KEY}/'), 'COINGECKO_API_KEY': COIN_KEY})
    nowhere(KEY, whole(caught.value))
    nowhere(COIN_KEY, whole(caught.value))


@pytest.mark.parametrize('way', ['401', '403', '400', '429', '500', '302', '451', 'garbage', 'error'])
def test_a_coingecko_that_repeats_the_key(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        async with echoing(way) as address:
            access = Access('demo', COIN_KEY, address, 6000)
            async with CoinGecko(access, tmp_path, deadline=10.0) as client:
                with pytest.raises(CoinError) as caught: await client.get('coin', 'bitcoin')
                return f'{whole(caught.value)} {caught.value.said("zh")} {access!r} {client.access}'
    with listened(caplog) as log: said = asyncio.run(main())
    nowhere(COIN_KEY, said, log.getvalue(), caplog.text, *(path.read_text() for path in tmp_path.iterdir()))


def test_objects_that_hold_keys_do_not_show_them() -> None:
    access = Access('demo', COIN_KEY)
    settings = ModelSettings(api_key=KEY)
    wrapper = CryptoAgentWrapper(settings=settings, access=access, offline=True, synthetic=True)
    told = wrapper.run('bitcoin', 'Why?')
    assert wrapper.report is not None
    dumped = json.dumps(wrapper.report.to_dict(), default=repr)
    for thing in (access, settings, wrapper):
        nowhere(KEY, repr(thing), str(thing), f'{dataclasses.asdict(thing) if dataclasses.is_dataclass(thing) else vars(thing)}')    # type: ignore[arg-type]
        nowhere(COIN_KEY, repr(thing), str(thing), f'{dataclasses.asdict(thing) if dataclasses.is_dataclass(thing) else vars(thing)}')  # type: ignore[arg-type]
        with pytest.raises(TypeError): pickle.dumps(thing)
    nowhere(KEY, told, dumped, str(settings.to_dict()))
    assert access.headers == {'x-cg-demo-api-key': COIN_KEY}


@pytest.mark.parametrize('words', [
    ['bitcoin', 'Why?', '--verbose'], ['bitcoin', 'Why?', '--verbose', '--json'], ['bitcoin', 'Why?', '--verbose', '--stream'],
    ['bitcoin', 'Why?', '--verbose', '--base-url', f'https://{KEY}@model.example/v1'], ['no-such-coin', 'Why?', '--verbose']])
def test_a_command_with_its_log_and_tracebacks(words: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('OPENAI_', 'COINGECKO_'))}
    environment |= dict(OPENAI_API_KEY=KEY, OPENAI_BASE_URL='http://127.0.0.1:9/v1', OPENAI_LOG='debug', COINGECKO_API_KEY=COIN_KEY,
                        COINGECKO_URL='http://127.0.0.1:9', CRYPTOEXP_CACHE=str(tmp_path), PYTHONUTF8='1')
    more = [] if '--base-url' in words or words[0] != 'bitcoin' else ['--synthetic']
    done = subprocess.run([sys.executable, '-c', 'from cryptoexp.cli import main; raise SystemExit(main())', 'ask', *words, *more,
                           '--trace', str(tmp_path/'t.jsonl')], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stderr and ('Traceback' in done.stderr) == ('--base-url' in words), done.stderr
    kept = (tmp_path/'t.jsonl').read_text() if (tmp_path/'t.jsonl').exists() else ''
    for key in (KEY, COIN_KEY): nowhere(key, done.stdout, done.stderr, kept)
