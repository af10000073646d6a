"""Ask an endpoint the questions of this folder, and say what its answers are worth

    make evals ARGS='--base-url http://127.0.0.1:8080/v1 --model NAME'

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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent/'tests')]

from scoring import Outcome, Question, Score, facts_of, injections, outcome, questions, score, summary, table  # noqa: E402

from cryptoexp.analyst.answer import answer, messages_for  # noqa: E402
from cryptoexp.analyst.coins import EXAMPLE_NS, coin_facts, synthetic_answers  # noqa: E402
from cryptoexp.analyst.facts import digest  # noqa: E402
from cryptoexp.analyst.llm import Model, ModelSettings, settings_from_environment  # noqa: E402
from cryptoexp.crypto_agent_wrapper import COIN_NARRATION  # noqa: E402

PROMPT = 'Analyse the market, the sentiment and the risks.'


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


@contextlib.contextmanager
def endpoint(arguments: argparse.Namespace) -> Iterator[ModelSettings | None]:
    "The model that is to be measured; None: none"
    if arguments.small:
        from small_model import NAME, small_model
        with small_model() as address:
            yield ModelSettings(model=NAME, base_url=address, timeout_s=600, retries=0, max_output_tokens=arguments.most,
                                trace_file=arguments.trace)
    elif arguments.model or arguments.base_url:
        yield settings_from_environment(os.environ, model=arguments.model, base_url=arguments.base_url, trace_file=arguments.trace,
                                        max_output_tokens=arguments.most)
    else: yield None


def main() -> int:
    title, _, rest = (__doc__ or '').partition('\n\n')
    parser = argparse.ArgumentParser(description=title, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--model'); add('--base-url'); add('--small', action='store_true', help='the small local model of the tests')
    add('--limit', type=int, help='only so many questions')
    add('--most', type=int, default=1500, help='tokens of an answer (default 1500)')
    add('--trace', type=Path, help='write every step there'); add('--json', action='store_true', help='the summaries as JSON')
    arguments = parser.parse_args()
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
