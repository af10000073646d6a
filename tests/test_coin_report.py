"The plain report on a coin: every sentence true, every number a fact, in both languages, whatever is missing"
from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cryptoexp.analyst.coin_report import GROUPS, HEADINGS, PHRASES
from cryptoexp.analyst.coins import EXAMPLE_NS, KNOWN, Answers, NoAnswer, coin_facts, fresh, synthetic_answers, synthetic_facts
from cryptoexp.analyst.facts import LANGUAGES, Fact, Facts, shown
from cryptoexp.analyst.grounding import check, render
from cryptoexp.analyst.indicators import DAY, HOUR
from cryptoexp.analyst.narrator import narrate, usable

PARTS = ('coin', 'days', 'hours', 'bitcoin_days', 'ohlc', 'tickers', 'derivatives')


def report(facts: Facts, language: str) -> str:
    "The report; every number in it must be borne out"
    text = render(narrate(facts, PHRASES, language, HEADINGS, groups=GROUPS), facts)
    checked = check(text, facts)
    assert not checked.findings, [(text[max(0, one.claim.start - 60):one.claim.end + 10], one.why) for one in checked.findings]
    assert '[[' not in text
    return text


def sentences(text: str) -> list[str]: return [one for one in re.split(r'(?<=\.)\s+|(?<=。)|\n+', text) if one and not one.startswith('#')]


BASE, ALL_IDS = synthetic_facts('cardano'), synthetic_facts('ethereum').keys()

def drawn(seed: int) -> Facts:
    "Facts with values drawn at random, wide enough to reach every condition"
    generator, facts = random.Random(seed), list[Fact]()
    for fact in BASE.values():
        span = {'%': 100.0, 'bps': 30.0, 'points': 50.0, 'ratio': 0.5, 'USD': 100.0}.get(fact.unit)
        centre = {'%': 20.0, 'points': 50.0, 'ratio': 0.8, 'bps': 10.0}.get(fact.unit, 0.0)
        fixed = span is None or fact.value is None or isinstance(fact.value, str)
        facts.append(fact if fixed else replace(fact, value=centre + generator.uniform(-(span or 0), span or 0)))
    return Facts('cardano', facts)


@pytest.mark.parametrize('language', ['en', 'zh'])
@pytest.mark.parametrize('coin', [coin.id for coin in KNOWN])
def test_a_whole_report(coin: str, language: str) -> None:
    for seed in (1, 7, 30):
        text = report(synthetic_facts(coin, seed), language)
        headings = re.findall(r'(?m)^## (.+)$', text)
        assert headings[:5] == [names[language == 'zh'] for names in HEADINGS.values()]
        said = sentences(text)
        assert len(said) == len(set(said)) and 18 <= len(said) <= 45
        assert 900 < len(text) < 4500 if language == 'en' else 350 < len(text) < 2000


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_whatever_is_missing(language: str) -> None:
    whole = synthetic_answers('solana')
    for missing in [{part} for part in PARTS] + [set(PARTS) - {part} for part in PARTS] + [{'days', 'hours'}, {'coin', 'hours'}]:
        answers = Answers(**{part: NoAnswer('refused', 'HTTP 429') if part in missing else getattr(whole, part) for part in PARTS})
        text = report(coin_facts('solana', answers), language)
        assert '429' not in text and ('the source refused' in text or '数据源拒绝' in text)
        last = text.rpartition('\n\n')[2]
        assert len(re.split('[,;、；]', last)) <= 16, last      # sixty absences are told in groups
    nothing = report(coin_facts('solana', Answers(*[NoAnswer('unreachable')] * 7)), language)
    assert re.findall(r'(?m)^## (.+)$', nothing) == [{'en': 'What is not known', 'zh': '未知的数据'}[language]]
    stale = report(fresh(synthetic_facts('solana'), 10 ** 18 * 2), language)
    assert len(re.findall(r'(?m)^## ', stale)) == 1


def test_every_phrase_is_used_and_alternatives_exclude_each_other() -> None:
    used, sides = Counter[str](), Counter[str]()
    full = [drawn(seed) for seed in range(250)]
    whole = synthetic_answers('solana')
    poor = [coin_facts('solana', Answers(**{part: NoAnswer('refused') if part in missing else getattr(whole, part) for part in PARTS}))
            for missing in ({'days'}, {'hours', 'bitcoin_days'}, {'days', 'bitcoin_days'}, set[str]())]
    absent = ({'market_cap_rank'}, {'turnover_24h'}, {'above_sma_200_1d'}, {'volatility_365d', 'max_drawdown_365d'}, {'return_365d'},
              {'return_30d'}, {'supply_issued'}, {'return_24h'}, {'volatility_30d'})
    few = [Facts('x', [fact for key, fact in synthetic_facts('ripple', seed).items() if key not in gone])
           for seed in range(3) for gone in absent]
    still = Facts('x', [replace(fact, value=0.0) if key.startswith('macd') and key.endswith('_1d') else fact for key, fact in BASE.items()])
    for facts in [*full, *poor, *few, still]:
        text = narrate(facts, PHRASES, 'en', HEADINGS).text
        told = [phrase for phrase in PHRASES if usable(phrase, facts) and phrase.en in text]
        told = [phrase for phrase in told if not any(phrase.en != other.en and phrase.en in other.en for other in told)]
        used.update(phrase.en for phrase in told)
        for choice in {phrase.choice for phrase in PHRASES if phrase.choice}:
            sides[choice] = max(sides[choice], sum(phrase.choice == choice for phrase in told))
    assert [phrase.en for phrase in PHRASES if not used[phrase.en]] == []
    assert max(sides.values()) == 1


def test_conditions_fit_the_words() -> None:
    "What a sentence says of a value is so"
    for seed in range(200):
        facts = drawn(seed)
        text = narrate(facts, PHRASES, 'en', HEADINGS).text
        number = lambda key: facts.number(key) or 0.0     # noqa: B023
        assert ('overbought' in text) == (number('rsi_14_1d') >= 70) and ('oversold' in text) == (number('rsi_14_1d') < 30)
        above = number('above_sma_50_1d') >= 0, number('above_sma_200_1d') >= 0
        assert ('the shorter and the longer view disagree' in text) == (above[0] != above[1])
        assert f'{"above" if above[1] else "below"} its 200-day moving average' in text
        assert ('is positive, ' in text) == (number('macd_1d') > 0) and ('is negative, ' in text) == (number('macd_1d') < 0)
        assert ('above its signal line' in text) == (number('macd_histogram_1d') > 0)
        assert not re.search(r'growing|fading|worsening|easing|confirm|both horizons', text)   # more than the sign of one day can show
        assert ('shorts pay longs' in text) == (number('funding_rate') < 0)
        assert ('swings of late are larger' in text) == (number('volatility_30d') > 1.2 * number('volatility_365d'))
        assert ('volume and price disagree' in text) == (
            (number('net_volume_30_1d') >= 10 and number('return_30d') < -3)
            or (number('net_volume_30_1d') < -10 and number('return_30d') >= 3))
        assert ('is usually read as a strong trend' in text) == (number('adx_14_1d') >= 25)


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_nobody_is_told_to_buy_or_to_sell(language: str) -> None:
    for phrase in PHRASES:
        text = phrase.en if language == 'en' else phrase.zh
        english = r'\b(should|must|recommend|we advise|buy now|sell now|guarantee\w*)\b'
        assert not re.search(english, text.replace('one should buy or sell', ''))
        assert not re.search('建议(买入|卖出|持有)|应当|必须|一定会|必将|推荐', text)
    advice = report(synthetic_facts('bitcoin'), language).split(HEADINGS['scenarios'][language == 'zh'])[1]
    assert ('None of this says that one should buy or sell' if language == 'en' else '并不构成买入或卖出的建议') in advice


def test_both_languages_cite_the_same_facts() -> None:
    for phrase in PHRASES:
        cited = [Counter(re.findall(r'\[\[(\w+(?:\|size)?)\]\]', text)) for text in (phrase.en, phrase.zh)]
        assert cited[0] == cited[1], phrase.en
        assert set(phrase.needs) <= ALL_IDS, phrase.needs
        assert phrase.en[-1] == '.' and phrase.zh[-1] == '。'


def test_real_time_flows_through() -> None:
    facts = synthetic_facts('tron', now_ns=1_800_000_000 // 3600 * HOUR)
    assert report(facts, 'en') and facts['price'].as_of == 1_800_000_000 // 3600 * HOUR


@pytest.mark.parametrize('language', LANGUAGES)
def test_a_book_beside_the_facts_of_the_coin_is_told_whole(language: str, data_folder: Path) -> None:
    "CoinGecko has a spread of its own; the one of the recorded book is not taken for it"
    from cryptoexp.analyst.answer import narrated
    from cryptoexp.crypto_agent_wrapper import COIN_NARRATION, facts_of_tape
    from cryptoexp.market.tape import read_recording
    facts = synthetic_facts('bitcoin')
    both = Facts('bitcoin', [*facts.values(), *facts_of_tape(read_recording([data_folder/'binance_usdm/btcusdt_20240808.gz']))])
    found = narrated(both, COIN_NARRATION, language)
    assert found.grounded[0] == found.grounded[1] and not found.struck
    spread, volatility = both['book_spread'], both['book_volatility']
    for one in (spread, volatility): assert one.value is not None and shown(one.value, one.unit, language) in found.text


@pytest.mark.parametrize('hour', range(24))
def test_no_fact_is_from_the_future_at_any_hour_of_the_day(hour: int) -> None:
    "In the last hours of a day its close is not known yet, neither from a price a day nor from prices an hour apart"
    now_ns = EXAMPLE_NS // DAY * DAY + hour * HOUR
    facts = synthetic_facts('ethereum', now_ns=now_ns)
    assert len(fresh(facts, now_ns).known) >= 80
    ends = {fact.as_of for fact in facts.known if fact.id in ('close_1d', 'rsi_14_1d', 'atr_14_1d')}
    assert ends == {now_ns // DAY * DAY}
