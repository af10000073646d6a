"""What the analyst costs in time: facts of a coin, ten coins under a rate limit, the first word of a stream, the check of a text

    python benchmarks/analyst.py

Everything runs on this machine: the CoinGecko and the model endpoint of the tests, on loopback. The first word is compared with the
`openai` package asked directly, in one run, by turns; the model's share of the time is the same for both."""
from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tests'))

from coingecko_server import CoinGeckoServer  # noqa: E402
from model_server import ModelServer  # noqa: E402

from cryptoexp.analyst.answer import AnswerStream, messages_for, narrated  # noqa: E402
from cryptoexp.analyst.coins import KNOWN, Access, CoinGecko, synthetic_facts  # noqa: E402
from cryptoexp.analyst.grounding import check  # noqa: E402
from cryptoexp.analyst.llm import Model, ModelSettings  # noqa: E402
from cryptoexp.config import data_folder, why_no_data  # noqa: E402
from cryptoexp.crypto_agent_wrapper import COIN_NARRATION, CryptoAgentWrapper, gathered  # noqa: E402

ROUNDS = 15


def told(what: str, *numbers: str) -> None: print(f'{what:64}', *(f'{number:>16}' for number in numbers), flush=True)


async def facts_of_coins(folder: Path) -> None:
    async with CoinGeckoServer(folder, latency=0.05) as server:
        with tempfile.TemporaryDirectory() as cache:
            wrapper = CryptoAgentWrapper(access=Access(root=server.url, per_minute=600_000), cache=cache, settings=ModelSettings())
            async with CoinGecko(wrapper.access, wrapper.cache) as client:
                await gathered(wrapper, 'bitcoin', client)
                times = []
                for _ in range(ROUNDS):
                    begin = time.process_time()
                    await gathered(wrapper, 'bitcoin', client)
                    times.append(time.process_time() - begin)
            told('facts of one coin, warm cache (CPU)', f'{1e3 * statistics.median(times):.1f} ms')
        with tempfile.TemporaryDirectory() as cache:
            per_minute = 90
            async with CoinGecko(Access(root=server.url, per_minute=600_000), Path(cache)/'before') as client:
                for coin in KNOWN: await client.get('coin', coin.id)   # the server draws each market once
            server.asked.clear()
            wrapper = CryptoAgentWrapper(access=Access(root=server.url, per_minute=per_minute), cache=cache, settings=ModelSettings())
            begin = time.monotonic()
            async with CoinGecko(wrapper.access, wrapper.cache) as client:
                await asyncio.gather(*(gathered(wrapper, coin.id, client) for coin in KNOWN))
            passed, asked = time.monotonic() - begin, len(server.asked)
            told(f'ten coins at once, {asked} questions, 50 ms each, {per_minute} a minute', f'{passed:.1f} s')
            least = max(0, asked - client.session.burst) / client.session.rate
            told('  the rate limit alone allows no less than', f'{least:.1f} s')


async def first_words() -> None:
    from openai import AsyncOpenAI
    facts = synthetic_facts('bitcoin')
    prompt = 'What are the risks?'
    async with ModelServer() as server:
        server.answers[prompt] = 'The market is calm and the trend is weak. The price stands at [[price]], which says little. ' * 8
        settings = ModelSettings(model='slow_stream:0.01', base_url=server.base_url)
        client, ours, raw = AsyncOpenAI(base_url=server.base_url, api_key='none'), [], []
        async with Model(settings) as model, client:
            for turn in range(ROUNDS + 1):
                begin = time.perf_counter()
                stream = AnswerStream(facts, prompt, COIN_NARRATION, model)
                pieces = [time.perf_counter() - begin async for _ in stream]
                if turn: ours.append(pieces[0])
                begin = time.perf_counter()
                asked = dict(model='slow_stream:0.01', messages=messages_for(facts, prompt), stream=True, temperature=0)
                answer = await client.chat.completions.create(**asked)   # type: ignore[call-overload]
                words = [time.perf_counter() - begin async for chunk in answer if chunk.choices and chunk.choices[0].delta.content]
                if turn: raw.append(words[0])
        told('first word: through the check, the openai package alone', f'{1e3 * statistics.median(ours):.1f} ms',
             f'{1e3 * statistics.median(raw):.1f} ms')


def checks() -> None:
    facts = synthetic_facts('bitcoin')
    for language in ('en', 'zh'):
        text = narrated(facts, COIN_NARRATION, language).text
        pages = (text + '\n\n') * max(1, round((5000 if language == 'en' else 2200) / len(text)))
        check(pages, facts)
        times = []
        for _ in range(ROUNDS):
            begin = time.process_time()
            found = check(pages, facts)
            times.append(time.process_time() - begin)
        told(f'check of two pages, {language}, {len(pages):,} characters, {found.n} figures (CPU)',
             f'{1e3 * statistics.median(times):.1f} ms')


def main() -> int:
    checks()
    asyncio.run(first_words())
    folder = data_folder()
    if folder is None: print(f'coins are left out: {why_no_data()}')
    else: asyncio.run(facts_of_coins(folder))
    return 0


if __name__ == '__main__': sys.exit(main())
