"""Ask an endpoint the questions of this folder, and say what its answers are worth

    make evals ARGS='--base-url http://127.0.0.1:8080/v1 --model NAME'
    make evals ARGS='--reference --small'     the prototype's own question, about bitcoin and ethereum, by the rules and by the model

Without arguments only the narrator, who writes by rules, is measured. With --small the model is the 135-million-parameter one of the
tests, which is there for the plumbing: its row says what the verifier catches, not what a model can do.

The hostile texts stand in the place of a coin's description, name or headline in what CoinGecko would answer. They change neither
the facts nor the prompt, and that is what is checked for each; where both are the same bytes, so is what a model is asked."""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent/'tests')]

from scoring import Outcome, Question, Score, facts_of, injections, outcome, questions, score, summary, table  # noqa: E402

from cryptoexp.analyst.answer import answer, answer_schema, messages_for  # noqa: E402
from cryptoexp.analyst.coins import EXAMPLE_NS, coin_facts, synthetic_answers  # noqa: E402
from cryptoexp.analyst.facts import Fact, Facts, digest, language_of  # noqa: E402
from cryptoexp.analyst.grounding import check  # noqa: E402
from cryptoexp.analyst.llm import (  # noqa: E402
    IN_CHINESE,
    Messages,
    Model,
    ModelSettings,
    Reply,
    Schema,
    Stream,
    TooLong,
    settings_from_environment,
    tokens_of,
)
from cryptoexp.crypto_agent_wrapper import COIN_NARRATION  # noqa: E402

PROMPT = 'Analyse the market, the sentiment and the risks.'
REFERENCE = '请进行技术指标分析、市场情绪评估、风险因素识别，并给出投资建议。'
FIRST = ('price', 'return_24h', 'return_30d', 'rsi_14_1d', 'macd_histogram_1d', 'above_sma_50_1d', 'net_volume_30_1d', 'funding_rate',
         'volatility_30d', 'max_drawdown_365d', 'bollinger_upper_1d', 'sma_50_1d')    # what it is about, before the rest


async def answered(question: Question, model: Model | None) -> tuple[Score, str]:
    "One question asked; its score, and why the model failed, if it did"
    facts = facts_of(question.coin)
    said = await answer(facts, question.question, COIN_NARRATION, model)
    return score(question, said.draft or said.text, said.text, facts), said.error


def hostile_outcomes() -> list[Outcome]:
    "What each hostile text does to facts, prompt and report"
    def told(text: str) -> tuple[str, str, str]:
        answers = synthetic_answers('bitcoin', 7, EXAMPLE_NS)
        coin = dict(answers.coin) | (dict(name=text, description={'en': text}, categories=[text], public_notice=text) if text else {})
        facts = coin_facts('bitcoin', replace(answers, coin=coin), source='SYNTHETIC (seed 7)', places=False)
        report = asyncio.run(answer(facts, PROMPT, COIN_NARRATION))
        return digest(facts), str(messages_for(facts, PROMPT)), report.text
    plain = told('')
    found = []
    for one in injections():
        facts, prompt, text = told(one.text)
        result = outcome(one, plain[2], text, digests=(plain[0], facts), calls=() if prompt == plain[1] else ('another prompt',))
        found.append(result)
    return found


async def measured(settings: ModelSettings | None, asked: list[Question]) -> tuple[list[Score], dict[str, int]]:
    "All questions, one after the other, with progress"
    scores, failures, begin = list[Score](), dict[str, int](), time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        model = await stack.enter_async_context(Model(settings)) if settings else None
        for number, question in enumerate(asked, 1):
            result, error = await answered(question, model)
            if error: failures[error] = failures.get(error, 0) + 1
            else: scores.append(result)
            if model: print(f'\r{number}/{len(asked)}, {time.monotonic() - begin:,.0f} s', end='', file=sys.stderr, flush=True)
    if settings: print(file=sys.stderr)
    return scores, failures


def fitting(facts: Facts, prompt: str, room: int) -> Facts:
    "The facts with which a question still fits into so many tokens, as estimated: those of FIRST, then the others in order"
    kept = list[Fact]()
    for key in dict.fromkeys([key for key in FIRST if key in facts] + list(facts)):
        more = Facts(facts.subject, [*kept, facts[key]])
        if more.known and tokens_of(messages_for(more, prompt, '', language_of(prompt)), answer_schema(more)) > room: break
        kept.append(facts[key])
    return Facts(facts.subject, kept)


def bounded(schema: dict[str, Any], letters: int = 60, items: int = 4) -> dict[str, Any]:
    "The same schema with short texts and lists, so that a model that never stops comes to an end"
    if schema.get('type') == 'string': return schema if 'enum' in schema else schema | dict(maxLength=letters)
    if schema.get('type') == 'array': return schema | dict(maxItems=min(items, schema.get('maxItems', items)),
                                                           items=bounded(schema['items'], letters, items))
    parts = {name: bounded(part, letters // 3 if name in ('heading', 'name') else letters, 1 if name == 'scenarios' else items)
             for name, part in schema.get('properties', {}).items()}
    return schema | dict(properties=parts)


class Brief:
    "A small model that is held to short answers: the schema it must fit has bounds that the one of others has not"
    def __init__(self, model: Model): self.model = model
    async def ask(self, messages: Messages, schema: Schema | None = None, about: str = '') -> Reply:
        return await self.model.ask(messages, None if schema is None else bounded(dict(schema)), about)
    def stream(self, messages: Messages, schema: Schema | None = None, about: str = '') -> Stream:
        return self.model.stream(messages, schema, about)


async def reference(settings: ModelSettings | None, window: int, brief: bool = False) -> list[dict[str, Any]]:
    "The reference prompt about both coins; a model whose window is too small for all facts is given fewer, and the row says how many"
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(Model(settings)) if settings else None
        model = Brief(opened) if opened and brief else opened
        for coin in ('bitcoin', 'ethereum'):
            facts, begin = facts_of(coin), time.monotonic()
            room = window - (settings.max_output_tokens if settings else 0)
            given = facts if settings is None else fitting(facts, REFERENCE, room)
            said = await answer(given, REFERENCE, COIN_NARRATION, model)
            while IN_CHINESE[TooLong.kind][0] in said.error and len(given) > 4:
                given = fitting(facts, REFERENCE, room := room * 3 // 4)
                said = await answer(given, REFERENCE, COIN_NARRATION, model)
            again = check(said.text, given)
            rows.append(dict(coin=coin, who=said.model or 'rules', facts=f'{len(given)} of {len(facts)}', draft=said.grounded,
                             shown=(again.k, again.n), struck=said.struck, seconds=round(time.monotonic() - begin), error=said.error,
                             text=said.text, drafted=said.draft))
            print(f'{coin}: {rows[-1]["who"]}, {rows[-1]["seconds"]} s', file=sys.stderr, flush=True)
    return rows


@contextlib.contextmanager
def endpoint(arguments: argparse.Namespace) -> Iterator[ModelSettings | None]:
    "The model that is to be measured; None: none"
    if arguments.small:
        from small_model import NAME, small_model
        with small_model() as address:
            yield ModelSettings(model=NAME, base_url=address, timeout_s=600, retries=0, max_output_tokens=arguments.most,
                                temperature=arguments.temperature, trace_file=arguments.trace)
    elif arguments.model or arguments.base_url:
        yield settings_from_environment(os.environ, model=arguments.model, base_url=arguments.base_url, trace_file=arguments.trace,
                                        max_output_tokens=arguments.most)
    else: yield None


def referred(arguments: argparse.Namespace) -> int:
    "The table of the reference prompt; 1 where a text that is shown holds a figure without a fact"
    rows = asyncio.run(reference(None, 0))
    with endpoint(arguments) as settings:
        if settings: rows += asyncio.run(reference(settings, arguments.window, arguments.small))
    if arguments.json: print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print('| who writes | coin | facts given | draft k/n | shown | struck |', '| --- | --- | --- | --- | --- | --- |', sep='\n')
        for row in rows:
            (k, n), (shown, all_) = row['draft'], row['shown']
            print(f'| {row["who"]} | {row["coin"]} | {row["facts"]} | {k}/{n} | {shown}/{all_} | {", ".join(row["struck"]) or "–"} |')
    for row in rows:
        if row['error']: print(f'{row["coin"]}: {row["error"]}', file=sys.stderr)
    return int(any(row['shown'][0] != row['shown'][1] for row in rows))


def main() -> int:
    title, _, rest = (__doc__ or '').partition('\n\n')
    parser = argparse.ArgumentParser(description=title, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--model'); add('--base-url'); add('--small', action='store_true', help='the small local model of the tests')
    add('--limit', type=int, help='only so many questions')
    add('--most', type=int, default=1500, help='tokens of an answer (default 1500)')
    add('--trace', type=Path, help='write every step there'); add('--json', action='store_true', help='the summaries as JSON')
    add('--reference', action='store_true', help="the prototype's question about bitcoin and ethereum instead of the questions here")
    add('--window', type=int, default=8000, help='tokens the model can read and write together (default 8000), for --reference')
    add('--temperature', type=float, default=0.0, help='of the small model (default 0)')
    arguments = parser.parse_args()
    if arguments.reference: return referred(arguments)
    asked = questions()[:arguments.limit]
    outcomes = hostile_outcomes()
    scores, failures = asyncio.run(measured(None, asked))
    rows = {f'narrator (rules), {len(scores)} questions': summary(scores, outcomes)}
    with endpoint(arguments) as settings:
        if settings:
            scores, failures = asyncio.run(measured(settings, asked))
            rows[f'{settings.model}, {len(scores)} of {len(asked)} questions answered'] = summary(scores, outcomes)
    print(json.dumps(rows, indent=2) if arguments.json else table(rows))
    for error, count in failures.items(): print(f'{count} not answered: {error}', file=sys.stderr)
    lost = [one for one in outcomes if not one.held]
    for one in lost: print(f'{one.id} changed something: {", ".join(one.why)}', file=sys.stderr)
    return 1 if lost else 0


if __name__ == '__main__': sys.exit(main())
