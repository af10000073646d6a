"""What a person reads of a transaction: every figure in it is a fact, every pattern has its sentence, in both languages."""
from __future__ import annotations

import asyncio
from collections import Counter
from functools import lru_cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regtest_patterns import patterns

from cryptoexp.analyst.answer import answer
from cryptoexp.analyst.grounding import check, render
from cryptoexp.analyst.narrator import narrate
from cryptoexp.btc_agent import EVENT_NARRATION, PROMPTS, UNTOLD, event_facts
from cryptoexp.chain.embedded import embedded_labels, embedded_transactions
from cryptoexp.chain.labels import read_labels
from cryptoexp.chain.patterns import FLAGS, RISKY, SERVICES
from cryptoexp.chain.risk import CODES_ZH, SAID, SENTENCES, RiskConfig, judge, sentence
from cryptoexp.chain.scoring import ScoredTransaction, Scorer
from cryptoexp.chain.signal import Signal, found
from cryptoexp.chain.sources import BlockSource
from cryptoexp.chain.watch import Watch

LANGUAGES = ('en', 'zh')


def findings(event: ScoredTransaction, signals: tuple[Signal, ...] | None = None) -> list[str]:
    "What would be struck from the report of an event, and from its reasons"
    facts, wrong = event_facts(event), []
    for language in LANGUAGES:
        draft = narrate(facts, EVENT_NARRATION.phrases, language, EVENT_NARRATION.headings)
        for text in (render(draft, facts), *(sentence(one, language) for one in signals or event.signals if one.code not in UNTOLD)):
            wrong += [f'{one.claim.quote!r} ({one.why}) in {text!r}' for one in check(text, facts).findings]
    return wrong


@lru_cache(1)
def embedded() -> list[ScoredTransaction]:
    scorer = Scorer(embedded_labels())
    scorer.height, scorer.next_block_rate = 300_000, 8.0
    return [event for tx in embedded_transactions() if (event := scorer.step(tx))]


def test_nothing_is_struck_of_what_the_embedded_stream_tells() -> None:
    events = embedded()
    assert len(events) > 200
    told = Counter(one.code for event in events for one in event.signals)
    assert set(SENTENCES) - set(told) == set()
    assert [text for event in events for text in findings(event)] == []


def test_nothing_is_struck_of_what_wallets_made() -> None:
    scorer = Scorer()
    events = [event for made in patterns().values() for tx in made if (event := scorer.step(tx, 1))]
    assert len(events) > 20 and [text for event in events for text in findings(event)] == []


@pytest.mark.parametrize('number', [574200, 702861])
def test_nothing_is_struck_of_a_real_block(data_folder: Path, number: int) -> None:
    folder = data_folder/'bitcoin'
    watch = Watch(Scorer(read_labels(folder)), min_score=3.0)
    told = [one.event for heard in BlockSource(folder/f'block{number}.raw').events() for one in watch.push(heard) if one.event]
    assert len(told) > 20 and [text for event in told for text in findings(event)] == []


def test_every_name_of_the_lists_may_be_said(data_folder: Path) -> None:
    event, wrong = embedded()[160], []
    labels = {label.name: label for told in read_labels(data_folder/'bitcoin').by_script.values() for label in told if not label.sanctioned}
    for name in labels:
        signal = found('known_party', 0.3, 0.8, 'L', side='receiver', category='exchange', name=name, amount=5)
        wrong += findings(with_signals(event, signal))
    assert len(labels) > 200 and wrong == []


# ---- every pattern, with figures as short and as odd as they come

def with_signals(event: ScoredTransaction, *signals: Signal) -> ScoredTransaction:
    return msgspec.structs.replace(event, signals=signals, judgement=judge(signals, RiskConfig()))


count = st.integers(1, 12) | st.sampled_from([20, 40, 100, 1_000, 1_234, 100_000, 2_000_000])
money = st.integers(1, 10**4) | st.sampled_from([10**power for power in range(15)]) | st.integers(1, 21 * 10**14)
rate = st.floats(0.1, 5_000).map(lambda value: round(value, 2)) | st.integers(1, 12).map(float)
share = st.floats(0.0001, 1).map(lambda value: round(value, 4)) | st.sampled_from([1.0, 0.5, 0.02])
NUMBERS = {'amount': money, 'pool': money, 'least': st.integers(1, 545), 'limit': st.just(1_000), 'units': money,
           'rate': rate, 'usual': rate, 'enough': rate, 'together': rate,
           'share': share, 'token': st.integers(0, 10**6), 'type': st.integers(0, 70)}
WORDS = {'side': ['receiver', 'sender', 'both'], 'category': sorted({*RISKY, *SERVICES, 'other'}), 'flag': list(FLAGS.values()),
         'rule': list(SAID['rule']),
         'name': ['bitfinex.com', 'F2Pool', '999Dice.com'], 'alphabet': list(SAID['alphabet']), 'protocol': [*SAID['protocol'], 'none']}
KINDS = {'rare_script': ['p2pk', 'p2ms', 'anchor', 'witness_unknown', 'nonstandard'],
         'inscription': ['image', 'text', 'application', 'audio', 'video', 'model', 'font', 'json', 'html', 'other']}
FIELDS = {code: {part.split('}')[0].split(':')[0] for part in SENTENCES[code][0].split('{')[1:]} for code in SENTENCES}
EXTRA = {'address_reuse': ['used_before'], 'omni': ['type']}


def value_of(code: str, name: str) -> st.SearchStrategy[int | float | str]:
    if name == 'kind': return st.sampled_from(KINDS[code])
    if code == 'inscription' and name == 'token': return st.sampled_from(['mint', 'deploy', 'transfer', 'other', 'none'])
    if name in WORDS: return st.sampled_from(WORDS[name])
    return NUMBERS.get(name, count)


@st.composite
def a_signal(draw: st.DrawFn, code: str) -> Signal:
    values = {name: draw(value_of(code, name)) for name in [*sorted(FIELDS[code]), *EXTRA.get(code, [])]}
    if code == 'omni' and draw(st.booleans()): values = {'type': values['type']}
    if code in ('sanctioned_direct', 'address_reuse', 'ancient_coins') and draw(st.booleans()):
        values[{'sanctioned_direct': 'amount', 'address_reuse': 'to_itself', 'ancient_coins': 'coin_days'}[code]] = 0
    return found(code, draw(st.floats(0.2, 1)), 0.9, 'P', **values)


@pytest.mark.parametrize('code', [code for code in SENTENCES if code not in UNTOLD])
def test_every_pattern_is_told_and_nothing_of_it_struck(code: str) -> None:
    event = embedded()[160]

    @settings(max_examples=25, deadline=None, database=None)
    @given(a_signal(code))
    def told(signal: Signal) -> None:
        made = with_signals(event, signal)
        assert findings(made) == []
        facts = event_facts(made)
        for language in LANGUAGES:
            bare = render(narrate(facts, [one for one in EVENT_NARRATION.phrases if one.choice == code], language,
                                  EVENT_NARRATION.headings), facts)
            assert bare.count('\n\n') >= 1 and len(bare) > 20, f'{signal} is not told'
    told()


def test_one_of_a_thing_is_not_many() -> None:
    assert sentence(found('peeling_chain', 1, 1, 'S', hops=2)).endswith('which has 2 hops so far.')
    assert sentence(found('fake_keys', 1, 1, 'S', keys=1)) == '1 of its public keys is no key but data.'
    assert sentence(found('ancient_coins', 1, 1, 'P', days=3650, coin_days=0, dormancy=3650)) == (
        'Its oldest coin is ancient, it lay still for 3,650 days.')
    assert sentence(found('ancient_coins', 1, 1, 'P', days=3650, coin_days=1, dormancy=3650)).endswith('1 coin day is destroyed.')


def test_every_fact_has_a_name_in_chinese() -> None:
    assert set(CODES_ZH) == set(SENTENCES)
    for event in embedded():
        for fact in event_facts(event).values(): assert fact.name_zh, fact


@pytest.mark.parametrize('language', LANGUAGES)
def test_an_answer_by_rules_says_all_that_was_drafted(language: str) -> None:
    async def said() -> None:
        for event in embedded():
            if event.score < 10: continue
            told = await answer(event_facts(event), PROMPTS[language], EVENT_NARRATION, None)
            assert not told.struck and told.grounded[0] == told.grounded[1] == told.shown
    asyncio.run(said())
