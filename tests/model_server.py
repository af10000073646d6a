"""A stand-in for an OpenAI-compatible endpoint on this machine. It is no model: the name of the model asked for says how it behaves.

    python tests/model_server.py [--port 8080]

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1, model `good`: JSON that fits the schema where there is one, else a sentence
    `prose`, `half`, `empty`, `cut`, `refusal`, … : see BEHAVIOURS; `slow:2` waits two seconds; `http:503` is turned down with that status

A test may put names into `script`: each is the behaviour of one request, whatever model it names. `requests` holds what was asked."""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from aiohttp import web

SENTENCE = 'The outlook is unclear, and the RSI stands at 1.023.'
ERRORS: Mapping[str, tuple[str, str]] = {   # what endpoints say with a status: code, message
    '400': ('invalid_request_error', "Unsupported value: 'temperature' does not support 0 with this model."),
    '401': ('invalid_api_key', 'Incorrect API key provided: {key}.'), '402': ('payment_required', 'Insufficient balance'),
    '403': ('unsupported_country', 'Country, region, or territory not supported'), '404': ('model_not_found', 'The model does not exist'),
    '408': ('timeout', 'Request timed out'), '413': ('too_large', 'Payload too large'),
    '422': ('unprocessable', 'Input should be a valid list'),
    '429': ('rate_limit_exceeded', 'Rate limit reached'), '500': ('server_error', 'The server had an error'), '502': ('', 'Bad gateway'),
    '503': ('overloaded', 'Loading model, key was {key}'), '529': ('overloaded', 'Overloaded')}


class Asked(NamedTuple):
    "A request, as it came"
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def words(self) -> str:
        "Everything that was said in it"
        return '\n'.join(message['content'] for message in self.body.get('messages') or self.body.get('input') or [])

    @property
    def dialect(self) -> str:
        "How JSON was asked for: json_schema, json_object, prompt, or not at all"
        form = self.body.get('response_format') or self.body.get('text', {}).get('format') or {}
        return str(form.get('type') or ('prompt' if 'JSON schema: ' in self.words else ''))

    @property
    def schema(self) -> dict[str, Any] | None:
        "The schema that was sent along, wherever it stands"
        form = self.body.get('response_format') or self.body.get('text', {}).get('format') or {}
        found = form.get('schema') or form.get('json_schema', {}).get('schema')
        if found is None and (written := self.words.rpartition('JSON schema: ')[2]) and 'JSON schema: ' in self.words:
            found = json.JSONDecoder().raw_decode(written)[0]
        return dict(found) if found is not None else None


def instance(schema: Mapping[str, Any]) -> Any:
    "The simplest value that fits a schema"
    if 'const' in schema: return schema['const']
    if 'enum' in schema: return schema['enum'][0]
    if 'anyOf' in schema: return instance(schema['anyOf'][0])
    kind = schema.get('type', 'object')
    kind = kind if isinstance(kind, str) else kind[0]
    if kind == 'object': return {name: instance(inner) for name, inner in schema.get('properties', {}).items()}
    if kind == 'array': return [instance(schema.get('items', {})) for _ in range(schema.get('minItems', 1))]
    if kind == 'string': return 'unclear'.ljust(schema.get('minLength', 0), '.')
    if kind in ('number', 'integer'): return schema.get('minimum', 1)
    return False if kind == 'boolean' else None


def fitting(asked: Asked) -> str:
    "What a model says that does as it is told"
    return SENTENCE if asked.schema is None else json.dumps(instance(asked.schema))


class Answer(NamedTuple):
    "What is said, and how it ends"
    text: str | None
    finish: str | None = 'stop'
    refusal: str | None = None
    usage: bool = True


class ModelServer:
    "The endpoint: `async with ModelServer() as server`, then `server.base_url`"
    def __init__(self, port: int = 0):
        self.port, self.script, self.requests = port, list[str](), list[Asked]()
        self.answers: dict[str, str] = {}     # part of a question -> what `good` answers to it, in place of its own invention
        self.gate = asyncio.Event()           # what `gated` waits for
        self.left = 0                         # streams that the other side left early
        application = web.Application(client_max_size=2**26)
        application.add_routes([web.post('/v1/chat/completions', self.chat), web.post('/v1/responses', self.chat),
                                web.get('/v1/models', self.models)])
        self.runner = web.AppRunner(application, shutdown_timeout=0.2)

    @property
    def base_url(self) -> str: return f'http://127.0.0.1:{self.port}/v1'

    async def __aenter__(self) -> ModelServer:
        await self.runner.setup()
        await web.TCPSite(self.runner, '127.0.0.1', self.port).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *what: object) -> None: await self.runner.cleanup()

    async def models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({'object': 'list', 'data': [{'id': name, 'object': 'model'} for name in BEHAVIOURS]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.path, dict(request.headers), json.loads(await request.read()))
        self.requests.append(asked)
        name, _, detail = (self.script.pop(0) if self.script else str(asked.body.get('model'))).partition(':')
        if name not in BEHAVIOURS: return error('404', asked, {})
        try: done = await BEHAVIOURS[name](self, request, asked, detail)
        except ConnectionError:
            self.left += 1
            raise
        return done if isinstance(done, web.StreamResponse) else await said(request, asked, done)


def error(status: str, asked: Asked, headers: Mapping[str, str]) -> web.Response:
    "A request turned down"
    code, message = ERRORS[status]
    key = asked.headers.get('Authorization', '').removeprefix('Bearer ')
    body = {'error': {'code': code, 'type': code, 'param': None, 'message': message.format(key=key)}}
    return web.json_response(body, status=int(status), headers=headers)


async def said(request: web.Request, asked: Asked, answer: Answer, pause: float = 0.0) -> web.StreamResponse:
    "An answer in the form in which it was asked for"
    responses, streamed = asked.path.endswith('responses'), bool(asked.body.get('stream'))
    read, written = len(asked.words) // 4 + 1, len(answer.text or '') // 4 + 1
    if responses: whole = response_body(asked, answer, read, written)
    else:
        usage = {'prompt_tokens': read, 'completion_tokens': written, 'total_tokens': read + written}
        message = {'role': 'assistant', 'content': answer.text, 'refusal': answer.refusal}
        whole = {'id': 'made-up', 'object': 'chat.completion', 'created': 1, 'model': asked.body['model'],
                 'choices': [{'index': 0, 'message': message, 'finish_reason': answer.finish}]} | ({'usage': usage} if answer.usage else {})
    if not streamed: return web.json_response(whole)
    events = response_events(whole, answer) if responses else chunks(whole, answer, asked)
    return await streamed_out(request, events, pause)


def pieces_of(text: str) -> list[str]: return re.findall(r'\S+\s*', text) or ([text] if text else [])


def chunks(whole: Mapping[str, Any], answer: Answer, asked: Asked) -> list[Any]:
    "The events of a streamed chat completion"
    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {'id': 'made-up', 'object': 'chat.completion.chunk', 'created': 1, 'model': whole['model'],
                'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]}
    events: list[Any] = [chunk({'role': 'assistant', 'content': ''})]
    events += [chunk({'content': piece}) for piece in pieces_of(answer.text or '')]
    if answer.refusal: events.append(chunk({'refusal': answer.refusal}))
    if answer.finish: events.append(chunk({}, answer.finish))
    wanted = asked.body.get('stream_options', {}).get('include_usage')
    if answer.usage and wanted: events.append(chunk({}) | {'choices': [], 'usage': whole['usage']})
    return [*events, '[DONE]']


def response_body(asked: Asked, answer: Answer, read: int, written: int) -> dict[str, Any]:
    "A whole answer of the Responses API"
    part: dict[str, Any] = {'type': 'output_text', 'text': answer.text or '', 'annotations': []}
    if answer.refusal: part = {'type': 'refusal', 'refusal': answer.refusal}
    usage = dict(input_tokens=read, output_tokens=written, total_tokens=read + written,
                 input_tokens_details={'cached_tokens': 0}, output_tokens_details={'reasoning_tokens': 0})
    message = dict(type='message', id='m', role='assistant', status='completed', content=[part])
    whole = dict(id='made-up', object='response', created_at=1, model=asked.body['model'], status='completed', incomplete_details=None,
                 error=None, output=[message], parallel_tool_calls=False, tool_choice='none', tools=[], usage=usage)
    why = {'length': 'max_output_tokens', 'content_filter': 'content_filter'}.get(answer.finish or '')
    return whole | (dict(status='incomplete', incomplete_details={'reason': why}) if why else {})


def response_events(whole: Mapping[str, Any], answer: Answer) -> list[Any]:
    "The events of a streamed answer of the Responses API"
    place = dict(item_id='m', output_index=0, content_index=0)
    kind = 'refusal' if answer.refusal else 'output_text'
    deltas = [dict(type=f'response.{kind}.delta', delta=piece, **place) for piece in pieces_of(answer.refusal or answer.text or '')]
    last = [dict(type=f"response.{whole['status']}", response=whole)] if answer.finish else []
    return [dict(type='response.created', response={**whole, 'output': [], 'status': 'in_progress'}), *deltas, *last]


async def streamed_out(request: web.Request, events: list[Any], pause: float) -> web.StreamResponse:
    "Server-sent events, with a pause after each"
    answer = web.StreamResponse(headers={'Content-Type': 'text/event-stream'})
    await answer.prepare(request)
    for number, event in enumerate(events):
        named = f"event: {event['type']}\n" if isinstance(event, dict) and 'type' in event else ''
        if isinstance(event, dict) and 'type' in event: event = event | {'sequence_number': number}
        await answer.write(f"{named}data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
        if pause: await asyncio.sleep(pause)
    return answer


# ---- the behaviours

Behaviour = Callable[[ModelServer, web.Request, Asked, str], Awaitable[Answer | web.StreamResponse]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function      # type: ignore[attr-defined]
    return function


def fixed(name: str, *answer: Any, **more: Any) -> None:
    async def always(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer: return Answer(*answer, **more)
    BEHAVIOURS[name] = always


fixed('prose', SENTENCE)
fixed('half', '{"outlook": "ris')
fixed('cut', '{"outlook": "ris', 'length')
fixed('empty', '')
fixed('blank', ' \n')
fixed('nothing', None)
fixed('refusal', None, 'stop', 'I can not help with that.')
fixed('filter', '', 'content_filter')
fixed('unfit', '{"outlook": "to the moon"}')


@behaviour
async def good(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer:
    "What fits the schema, or what the test has set for a part of the question"
    return Answer(next((text for part, text in server.answers.items() if part in asked.words), None) or fitting(asked))


@behaviour
async def fenced(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer:
    "Good JSON, in a fence and a sentence"
    return Answer(f'Sure, here you are:\n```json\n{fitting(asked)}\n```\nHope this helps!')


@behaviour
async def uncounted(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer:
    "Good, without usage"
    return Answer(fitting(asked), usage=False)


@behaviour
async def object_only(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer | web.StreamResponse:
    "As llama-cpp-python's server: a json_schema is an error 500"
    if asked.dialect != 'json_schema': return Answer(fitting(asked))
    return web.json_response({'error': {'message': "Input should be 'text' or 'json_object'", 'type': 'internal_server_error'}}, status=500)


@behaviour
async def no_format(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer | web.StreamResponse:
    "Takes no response_format at all"
    if 'response_format' not in asked.body: return Answer(fitting(asked))
    return web.json_response({'error': {'message': 'Unrecognized request argument supplied: response_format'}}, status=400)


@behaviour
async def no_stream_options(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer | web.StreamResponse:
    "Does not know how to count tokens in a stream"
    if 'stream_options' not in asked.body: return Answer(fitting(asked), usage=False)
    return web.json_response({'error': {'message': 'Unknown parameter: stream_options'}}, status=400)


@behaviour
async def ignores(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer:
    "Takes a json_schema and answers in prose; does as it is told where the schema stands in the words"
    return Answer(fitting(asked) if 'JSON schema: ' in asked.words else SENTENCE)


@behaviour
async def http(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "Turned down with a status; after a comma the seconds of Retry-After"
    status, _, wait = detail.partition(',')
    return error(status, asked, {'Retry-After': wait} if wait else {})


@behaviour
async def quota(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    return web.json_response({'error': {'code': 'insufficient_quota', 'message': 'You exceeded your current quota'}}, status=429)


@behaviour
async def too_long(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    message = "This model's maximum context length is 128000 tokens."
    return web.json_response({'error': {'code': 'context_length_exceeded', 'message': message}}, status=400)


@behaviour
async def slow(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> Answer:
    "Good, after some seconds"
    await asyncio.sleep(float(detail or 1))
    return Answer(fitting(asked))


@behaviour
async def hangup(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "The connection is cut in the middle of the answer; at once, where that is the detail"
    assert request.transport is not None
    if detail != 'at once':
        answer = web.StreamResponse(headers={'Content-Type': 'application/json', 'Content-Length': '1000'})
        await answer.prepare(request)
        await answer.write(b'{"id": "made-up", "choices": [{"message": {"content": "The out')
    request.transport.abort()
    return web.Response()


@behaviour
async def drip(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "A byte now and then, without end"
    answer = web.StreamResponse(headers={'Content-Type': 'text/event-stream' if asked.body.get('stream') else 'application/json'})
    await answer.prepare(request)
    while True:
        await answer.write(b': still here\n\n' if asked.body.get('stream') else b' ')
        await asyncio.sleep(float(detail or 0.02))


@behaviour
async def page(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "The login page of a hotel"
    return web.Response(text='<html>Welcome to the hotel</html>', content_type='text/html')


@behaviour
async def raw(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "The detail, as the whole body"
    return web.Response(text=detail, content_type='application/json')


@behaviour
async def redirect(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "To the same place, at another name: who follows is seen in `requests`"
    return web.Response(status=307, headers={'Location': f'http://localhost:{server.port}/v1/chat/completions'})


@behaviour
async def slow_stream(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "Word by word"
    return await said(request, asked, Answer(fitting(asked)), float(detail or 0.02))


@behaviour
async def gated(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "The first word, and the others when the test opens the gate"
    events = chunks({'model': asked.body['model']}, Answer(SENTENCE, usage=False), asked)
    answer = await streamed_out(request, events[:2], 0)
    await server.gate.wait()
    for event in events[2:]: await answer.write(f'data: {event if isinstance(event, str) else json.dumps(event)}\n\n'.encode())
    return answer


@behaviour
async def stall(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "A few words, then silence"
    whole = {'model': asked.body['model']}
    events = chunks(whole, Answer('The outlook ', None, usage=False), asked)[:-1]
    answer = await streamed_out(request, events, 0)
    await asyncio.sleep(float(detail or 30))
    return answer


@behaviour
async def cut_stream(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "A few words, then the connection is cut; ended politely but too early, where the detail is polite"
    events = chunks({'model': asked.body['model']}, Answer('The outlook ', None, usage=False), asked)
    answer = await streamed_out(request, events[:-1], 0)
    if detail != 'polite':
        assert request.transport is not None
        request.transport.abort()
    return answer


@behaviour
async def endless(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "Words without end"
    answer = web.StreamResponse(headers={'Content-Type': 'text/event-stream'})
    await answer.prepare(request)
    event = chunks({'model': asked.body['model']}, Answer('on ' * 100, None, usage=False), asked)[1]
    while True:
        await answer.write(f'data: {json.dumps(event)}\n\n'.encode())
        await asyncio.sleep(0)


@behaviour
async def stream_error(server: ModelServer, request: web.Request, asked: Asked, detail: str) -> web.StreamResponse:
    "A few words, then an error within the stream; or, as the detail says, something that is no JSON"
    events = chunks({'model': asked.body['model']}, Answer('The outlook ', None, usage=False), asked)[:-1]
    told = {'error': {'message': 'The server had an error while processing', 'code': 'server_error'}}
    broken: Any = '{"broken' if detail == 'garbage' else told
    return await streamed_out(request, [*events, broken], 0)


@contextlib.contextmanager
def running(port: int = 0) -> Iterator[ModelServer]:
    "The server in a thread of its own, for a test that is not asynchronous or asks from another process"
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    server = ModelServer(port)
    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    if not ready.wait(60): raise RuntimeError('the stand-in for a model did not start')
    try: yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


async def forever(port: int) -> None:
    async with ModelServer(port) as server:
        print(f'OPENAI_BASE_URL={server.base_url}  models: {", ".join(BEHAVIOURS)}', flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--port', type=int, default=8080)
    with contextlib.suppress(KeyboardInterrupt): asyncio.run(forever(parser.parse_args().port))


if __name__ == '__main__': main()
