"""What a person reads of a transaction: every figure in it is a fact, every pattern has its sentence, in both languages."""
from __future__ import annotations

import ast
import asyncio
import re
from collections import Counter
from collections.abc import Iterator
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
from cryptoexp.btc_agent import (
    EVENT_NARRATION,
    HEADINGS,
    KIND_WORDS,
    PROMPTS,
    UNTOLD,
    VERDICT_NAMES,
    VERDICT_NOTE,
    event_facts,
    events_frame,
    to_dict,
    words_of,
)
from cryptoexp.chain.embedded import embedded_events, embedded_labels, embedded_transactions
from cryptoexp.chain.events import Gap, Removed, Unreadable
from cryptoexp.chain.labels import read_labels
from cryptoexp.chain.patterns import FLAGS, RISKY, SERVICES
from cryptoexp.chain.reasons import FRAMES, LEAVING, LINES, MISSING, chinese_of, reason_in
from cryptoexp.chain.reasons import NUMBERS as NUMBER_PLACES
from cryptoexp.chain.risk import CODES_ZH, SAID, SENTENCES, VERDICTS, WITHOUT, RiskConfig, judge, sentence
from cryptoexp.chain.scoring import ScoredTransaction, Scorer, Shift
from cryptoexp.chain.signal import Signal, found
from cryptoexp.chain.sources import BlockSource
from cryptoexp.chain.watch import Told, Watch
from cryptoexp.monitor import SUMMARY, line_of, status_of, summary

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
           'share': share, 'rank': share, 'token': st.integers(0, 10**6), 'type': st.integers(0, 70)}
WORDS = {'side': ['receiver', 'sender', 'both'], 'form': list(SAID['form']), 'feature': list(SAID['feature']),
         'category': sorted({*RISKY, *SERVICES, 'other'}), 'flag': list(FLAGS.values()),
         'rule': list(SAID['rule']), 'bound': list(SAID['bound']),
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
    if code in ('sanctioned_direct', 'known_party', 'risky_party', 'address_reuse', 'ancient_coins') and draw(st.booleans()):
        values[WITHOUT[code][0]] = 0
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


def test_an_amount_is_called_what_it_is() -> None:
    told = dict[str, ScoredTransaction]()
    for event in embedded(): told.setdefault(str(event_facts(event)['value_is'].value), event)
    assert set(told) == {'exact', 'guess', 'most', 'joint'} and told['most'].significance.upper_bound
    words = {'exact': ('It pays', '它的支付金额为'), 'most': ('It pays at most', '它的支付金额至多为'),
             'guess': ('if its change is guessed right', '若找零判断正确'), 'joint': ('went through it', '经过它的支付金额为')}
    for kind, event in told.items():
        facts = event_facts(event)
        for language, said in zip(LANGUAGES, words[kind], strict=True):
            assert said in render(narrate(facts, EVENT_NARRATION.phrases, language, EVENT_NARRATION.headings), facts)
    assert 'at most' not in sentence(found('large_value', 1, 1, 'P', amount=5, bound='exact'))
    assert sentence(found('large_value', 1, 1, 'S', amount=5, bound='most'), 'zh').startswith('它转移的金额至多为 0.00000005 BTC')


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


# ---- both languages, for everything that is said

HAN = re.compile('[\u4e00-\u9fff]')
KEPT_AS_THEY_ARE = {   # names, units and words of protocols that Chinese writes in Latin letters
    'btc', 'sat', 'vb', 'cookie', 'whirlpool', 'wasabi', 'wabisabi', 'joinmarket', 'stonewall', 'payjoin', 'omni', 'brc', 'runes',
    'rootstock', 'stacks', 'counterparty', 'taproot', 'json', 'html', 'z', 'http', 'ctrl', 'c', 'utc', 'synthetic', 'embedded', 'none',
    'single', 'all', 'with', 'anyonecanpay', 'cryptoexp', 'bitfinex', 'com'}


def english_left(text: str, *given: object) -> list[str]:
    "Words in Latin letters that a Chinese sentence has no reason to hold; what was put into it from outside is taken out"
    for one in sorted((str(value) for value in given), key=len, reverse=True): text = text.replace(one, '')
    return [word for word in re.findall('[A-Za-z]+', text) if word.lower() not in KEPT_AS_THEY_ARE]


@pytest.mark.parametrize('code', list(SENTENCES))
def test_every_reason_of_a_score_is_said_in_both_languages(code: str) -> None:
    @settings(max_examples=40, deadline=None, database=None)
    @given(a_signal(code))
    def said(signal: Signal) -> None:
        english, chinese = sentence(signal, 'en'), sentence(signal, 'zh')
        outside = [value for name, value in signal.values.items() if name in ('name', 'flag', 'token')]
        assert not HAN.search(english) and HAN.search(chinese) and not english_left(chinese, *outside), (english, chinese)
    said()


SHIFTS = [Shift(kind, number, before, after) for kind in ('fee', 'volume', 'spike') for number in (1, 8)
          for before, after in ((2.0, 300.0), (3e9, 5e8))]


@pytest.mark.parametrize('shift', SHIFTS, ids=lambda shift: f'{shift.kind} {shift.before:g} {shift.after:g} {shift.number}')
def test_every_regime_is_said_in_both_languages(shift: Shift) -> None:
    told = Told('regime', 1, 'somebody', reason=shift.sentence(), shift=shift)
    assert not HAN.search(told.why('en')) and HAN.search(told.why('zh')) and not english_left(told.why('zh'))
    assert told.why('en') == told.reason and told.why('zh') in words_of(told, 'zh') and told.why('zh') == to_dict(told, 'zh')['reason']


def test_every_kind_of_shift_is_among_those() -> None:
    source = Path(__file__).resolve().parents[1]/'cryptoexp/chain/scoring.py'
    calls = [node for node in ast.walk(ast.parse(source.read_text('utf-8'))) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name) and node.func.id == 'Shift']
    kinds = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert kinds == {one.kind for one in SHIFTS} and len(calls) == 3


ROOMS = ['chain/connection', 'chain/embedded', 'chain/events', 'chain/explorers', 'chain/node', 'chain/peer', 'chain/sources',
         'chain/watch', 'chain/state', 'btc_agent']


def written_in(node: ast.expr) -> Iterator[str]:
    "The sentences that an expression may be, with the name of a number or some word in each place"
    if isinstance(node, ast.BoolOp): yield from (text for value in node.values for text in written_in(value))
    elif isinstance(node, ast.IfExp): yield from (*written_in(node.body), *written_in(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str): yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield ''.join(str(part.value) if isinstance(part, ast.Constant) else '7' for part in node.values)


def reasons_of_a_room(room: str) -> list[str]:
    "Every sentence in the source that becomes the reason of something told"
    source = Path(__file__).resolve().parents[1]/f'cryptoexp/{room}.py'
    places: list[ast.expr] = []
    for node in ast.walk(ast.parse(source.read_text('utf-8'))):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ''
            if name in ('Gap', 'Removed', 'Unreadable', 'withdrawn', 'remove') or (name == 'append' and 'problems' in ast.dump(node.func)):
                places += node.args
            if name in ('Told', 'Gap', 'Removed', 'Unreadable'): places += [one.value for one in node.keywords if one.arg == 'reason']
            if name == 'ValueError' and room == 'chain/state': places += node.args
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ('reason', 'why', 'asleep', 'missed'): places.append(node.value)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names = [one.id for one in node.targets[0].elts if isinstance(one, ast.Name)]
            if 'reason' in names and isinstance(node.value, ast.Tuple): places.append(node.value.elts[names.index('reason')])
    return [text for place in places for text in written_in(place) if ' ' in text]


def test_every_reason_in_the_source_has_its_row() -> None:
    "Whoever writes a new reason for a gap, a withdrawal or a damaged file has to say it in Chinese too"
    found = {room: reasons_of_a_room(room) for room in ROOMS}
    assert sum(map(len, found.values())) >= 25 and all(found[room] for room in ('chain/node', 'chain/watch', 'chain/state', 'btc_agent'))
    parts = {'an unknown number of messages', '7 messages', '7 (7)', '7: 7'}        # of a sentence that is looked up as a whole
    missing = {room: [text for text in texts if text not in parts and chinese_of(text) is None] for room, texts in found.items()}
    assert {room: texts for room, texts in missing.items() if texts} == {}


def test_every_reason_is_said_in_both_languages() -> None:
    rows = {**FRAMES, **LEAVING, **MISSING, **LINES}
    for english in rows:
        made = re.sub(r'{(\w+)}', lambda place: '7' if place[1] in NUMBER_PLACES else 'XYZ', english)
        said = reason_in(made, 'zh')
        assert reason_in(made, 'en') == made and HAN.search(said) and not english_left(said, 'XYZ'), (made, said)


def test_what_was_told_is_told_in_chinese() -> None:
    "Everything that the embedded stream, a gap, a removal and garbage make a monitor say: lines, JSON, table, terminal"
    watch = Watch(Scorer(embedded_labels()), min_score=0)
    heard = [*embedded_events(), Gap(1, 'somebody', 'messages of the node are missing', 3),
             Unreadable(1, 'somebody', '7: the checksum is wrong')]
    told = [one for event in heard for one in watch.push(event)]
    last = next(one for one in reversed(told) if one.kind == 'new')
    told += watch.push(Removed(1, 'somebody', last.txid))
    assert {one.kind for one in told} == set(KIND_WORDS) - {'regime'}
    for one in told:
        given = [one.txid, one.txid[:16], one.txid[:8]]
        given += [str(signal.values[name]) for signal in (one.event.signals if one.event else ()) for name in ('name', 'flag')
                  if name in signal.values]
        texts = [words_of(one, 'zh'), str(line_of(one, 'zh', 400)), *(one.event.reasons('zh') if one.event else [one.why('zh')])]
        for text in texts:
            assert not english_left(re.sub(r'\d\d-\d\dT', '', text), *[name for name in given if name]), text
        assert all(HAN.search(text) for text in texts[:2])
    frame = events_frame(told, 'zh')
    assert all(HAN.search(text) or kind == 'confirmed' for kind, text in zip(frame['kind'], frame['reasons'], strict=True))


def test_tables_of_words_are_whole_in_both_languages() -> None:
    pairs = [*KIND_WORDS.values(), *VERDICT_NAMES.values(), *HEADINGS.values(), *(row[1:] for row in WITHOUT.values()), *SENTENCES.values(),
             *((one, chinese) for _, one, _, chinese in SUMMARY), (VERDICT_NOTE['en'], VERDICT_NOTE['zh'])]
    assert set(VERDICT_NAMES) == set(VERDICTS)
    for english, chinese in pairs: assert english and not HAN.search(english) and HAN.search(chinese), (english, chinese)


@pytest.mark.parametrize('language', LANGUAGES)
def test_the_last_line_and_the_line_below_are_in_the_language(language: str) -> None:
    from cryptoexp.btc_agent import BTCTransactionMonitor
    monitor = BTCTransactionMonitor(source='embedded', language=language)
    for event in embedded_events(): monitor.watch.push(event)
    monitor.counts.update({name: 2 for name, *_ in SUMMARY})
    for text in (str(status_of(monitor, 300)), summary(monitor, Counter(dict.fromkeys(VERDICTS, 3)))):
        assert bool(HAN.search(text)) == (language == 'zh')
        if language == 'zh': assert not english_left(text), text
