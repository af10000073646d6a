"Every number of a text is found, held against the facts, and struck where it has none: by tables made by hand, and by hypothesis"
from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.analyst import grounding
from cryptoexp.analyst.answer import Narration, answer
from cryptoexp.analyst.claims import (
    ALL_NAMES,
    DATES,
    DIRECTION,
    HAN_NUMBER,
    NAMES,
    NO_RISK,
    ORDINAL_DIGITS,
    PERIODS,
    RANK_HEADS,
    RANKS,
    ROMAN,
    ROMAN_RUN,
    WORDS,
    Claim,
    Page,
    claims,
    cover,
    found_at,
    lower,
    places_of,
    plain,
)
from cryptoexp.analyst.coins import KNOWN
from cryptoexp.analyst.facts import LANGUAGES, Fact, Facts, from_json
from cryptoexp.analyst.grounding import GONE, STRUCK, WHY, WITHHELD, Checked, Draft, Section, Verdict, check, render, repair_request, strike
from cryptoexp.analyst.llm import Reply
from cryptoexp.analyst.roles import COINS, LEVEL_WORD, Forecasts, coin_names, foretold
from cryptoexp.crypto_agent_wrapper import renamed

HERE = Path(__file__).parent
MARK = re.compile(r'⟦([^|⟧]*)\|([^⟧]*)⟧')
FACTS = from_json((HERE.parent/'evals/facts/ethereum.json').read_bytes())
BITCOIN = from_json((HERE.parent/'evals/facts/bitcoin.json').read_bytes())
TRANSACTION = Facts('a Bitcoin transaction', [   # made up; the ids and names are those of the monitor
    Fact(key, name, value, unit, 1, 'made up', 'as given', chinese) for key, name, chinese, value, unit in (
        ('score', 'risk score', '风险评分', 37.5, 'points'), ('value', 'amount paid', '支付金额', 12.5, 'BTC'),
        ('fee_rate', 'fee rate', '费率', 8.25, 'sat/vB'), ('change_confidence', 'confidence of the change', '找零置信度', 0.65, 'ratio'),
        ('entropy', 'entropy', '熵', 3.17, 'bits'), ('consolidation_inputs', 'consolidation: inputs', '输入', 25, 'count'),
        ('consolidation_outputs', 'consolidation: outputs', '输出', 2, 'count'))])
ABOUT = {'ethereum': FACTS, 'bitcoin': BITCOIN, 'transaction': TRANSACTION, 'both': Facts('ethereum', [*FACTS.values(), *renamed(BITCOIN)])}
REPLIES = ('slots_en', 'figures_en', 'slots_zh', 'figures_zh')


def table(name: str) -> list[str]:
    lines = (HERE/name).read_text(encoding='utf-8').splitlines()
    return [line.replace('\\n', '\n') for line in lines if line and not re.match('# (--|One|An |facts:)', line)]


def verdict_rows() -> list[tuple[str, str]]:
    "Each line of the table of verdicts, and the name of the facts it is held against"
    about, rows = 'ethereum', list[tuple[str, str]]()
    for line in (HERE/'verdicts.txt').read_text(encoding='utf-8').splitlines():
        if line.startswith('# facts: '): about = line.removeprefix('# facts: ')
        elif line and not line.startswith('# -- ') and not line.startswith('# One '): rows.append((about, line.replace('\\n', '\n')))
    return rows


def unmarked(line: str) -> tuple[str, list[tuple[int, int, str]]]:
    "The text without marks, and start, end and note of what was marked"
    text, found, done = '', [], 0
    for mark in MARK.finditer(line):
        text += line[done:mark.start()]
        found.append((len(text), len(text) + len(mark[1]), mark[2]))
        text, done = text + mark[1], mark.end()
    return text + line[done:], found


def reply(name: str) -> Draft:
    parts = json.loads((HERE/f'replies/{name}.json').read_text(encoding='utf-8'))
    return Draft(tuple(Section(one['heading'], one['text']) for one in parts['sections']), parts['language'])


# ---- claims

def test_the_table_is_large_and_in_both_languages() -> None:
    lines = table('claims.txt')
    assert len(lines) >= 250
    assert sum(bool(re.search('[\u4e00-\u9fff]', line)) for line in lines) >= 70
    assert sum('⟦' not in line for line in lines) >= 60


@pytest.mark.parametrize('line', table('claims.txt'))
def test_claims(line: str) -> None:
    "Exactly the marked numbers are found, with their values and units"
    text, marked = unmarked(line)
    found = claims(text)
    assert [one.quote for one in found] == [text[start:end] for start, end, _ in marked]
    assert [(one.start, one.end) for one in found] == [(start, end) for start, end, _ in marked]
    for one, (_, _, note) in zip(found, marked):
        value, _, unit = note.partition(' ')
        assert one.unit == unit
        assert math.isclose(one.value, float(value), rel_tol=1e-3) or (math.isnan(one.value) and value == 'nan')


@pytest.mark.parametrize(('text', 'step'), [
    ('61,843.20 USD', 0.01), ('61,843 USD', 1), ('62,000 USD', 100), ('about 62,000 USD', 1000), ('约 62,000 美元', 1000), ('12,000', 10),
    ('20%', 1), ('100%', 1),
    ('3.2%', 0.1), ('1.2T', 0.1e12), ('1 trillion', 0.1e12), ('12 billion', 1e9), ('6.2 万', 1000), ('6 万', 1000), ('$1.22 trillion',
        0.01e12), ('5‰', 0.1),
    ('百分之十二点五', 0.1), ('two million', 10 ** 4), ('3 bps', 1), ('0.00001234', 1e-8), ('1.5e3', 100)])
def test_rounding_that_digits_imply(text: str, step: float) -> None:
    assert [one.step for one in claims(f'It is {text}.')] == [pytest.approx(step)]


@pytest.mark.parametrize(('text', 'trend'), [
    ('It fell 3.2%.', -1), ('It fell by about 3.2%.', -1), ('It fell to 3.2%.', 0), ('It rose 3.2%.', 1), ('Up 3.2% today.', 1), ('A 3.2%'
        ' decline.', -1),
    ('It is 3.2% higher.', 1), ('3.2% below the high', -1), ('A break below 3.2', 0), ('下跌 3.2%', -1), ('跌至 3.2', 0), ('上涨约 3.2%',
        1), ('3.2% 的跌幅', -1),
    ('涨跌幅 3.2%', 0), ('最低 3.2', 0), ('较均线低 3.2%', -1), ('It fell over the past 30 days by 3.2%', -1)])
def test_directions(text: str, trend: int) -> None:
    assert claims(text)[-1].trend == trend


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from('0123456789.,%-+–$¥kKMB 万亿三成百分之點２٣½①²\u200bRSI(14)[]_\n#:/eEtwo half'), max_size=60))
def test_claims_of_any_text_lie_in_it_in_order(text: str) -> None:
    found, done = claims(text), 0
    for one in found:
        assert done <= one.start < one.end <= len(text)
        assert one.quote == text[one.start:one.end]
        assert one.step > 0
        done = one.end


@settings(deadline=None)
@given(st.text(max_size=80))
def test_no_decimal_digit_outside_a_name_escapes(text: str) -> None:
    "Between letters that make no name, every digit of any script lies in a claim"
    text = f'so {text} so'
    bare = ''.join(char if char.isdecimal() else ' ' for char in text)
    covered = ''.join(bare[one.start:one.end] for one in claims(bare))
    assert sum(map(str.isdecimal, covered)) == sum(map(str.isdecimal, bare))


# ---- verdicts

@pytest.mark.parametrize(('about', 'line'), verdict_rows())
def test_verdicts(about: str, line: str) -> None:
    "Each marked number is borne out by the fact that is noted, or not, for the reason that is noted"
    text, marked = unmarked(line)
    got = [(one.claim.quote, f'!{one.why}' if one.why else one.fact_id) for one in check(text, ABOUT[about]).verdicts]
    assert got == [(text[start:end], note) for start, end, note in marked]


def test_every_reason_occurs_in_the_table() -> None:
    assert {note[1:] for line in table('verdicts.txt') for _, _, note in unmarked(line)[1] if note.startswith('!')} == set(WHY)


@pytest.mark.parametrize('name', REPLIES)
def test_a_capable_model_reads_naturally(name: str) -> None:
    draft = reply(name)
    checked = check(render(draft, FACTS), FACTS)
    assert checked.n >= 25
    assert not [(one.claim.quote, one.why) for one in checked.findings]
    assert strike(checked.text, FACTS, draft.language).text == checked.text


def mutations(quote: str) -> list[str]:
    "The quote with its first digit changed, its last one, and its scale"
    places = [place for place, char in enumerate(quote) if char.isdigit()]
    changed = [f'{quote[:place]}{(int(quote[place]) + 5) % 10 or 7}{quote[place + 1:]}' for place in sorted({places[0],
        places[-1]})] if places else []
    scales = {'billion': 'million', 'B': 'M', '亿': '万', 'million': 'billion'}
    return changed + [quote.replace(one, other) for one, other in scales.items() if one in quote]


@pytest.mark.parametrize('name', REPLIES)
def test_one_changed_figure_is_caught(name: str) -> None:
    "Whichever figure it is, whichever of its digits"
    text = render(reply(name), FACTS)
    for one in check(text, FACTS).verdicts:
        for other in mutations(one.claim.quote):
            changed = check(text[:one.claim.start] + other + text[one.claim.end:], FACTS)
            assert changed.findings, f'{one.claim.quote!r} became {other!r} after {text[max(0, one.claim.start - 60):one.claim.start]!r}'


def test_two_exchanged_figures_of_one_unit_are_mostly_caught() -> None:
    "Neighbours of one unit exchanged: the names beside them, their windows and their signs tell in three of four cases"
    caught = tried = 0
    for name in REPLIES:
        text = render(reply(name), FACTS)
        verdicts = check(text, FACTS).verdicts
        for one, two in pairwise(verdicts):
            if one.claim.unit != two.claim.unit or one.claim.value == two.claim.value: continue
            tried += 1
            between = text[one.claim.end:two.claim.start]
            swapped = text[:one.claim.start] + two.claim.quote + between + one.claim.quote + text[two.claim.end:]
            caught += bool(check(swapped, FACTS).findings)
    assert tried >= 60
    assert caught >= 0.75 * tried, f'{caught} of {tried}'


@pytest.mark.parametrize('line', [line for line in table('claims.txt') if '⟦' in line])
def test_without_facts_nothing_is_grounded_and_all_is_struck(line: str) -> None:
    text = unmarked(line)[0]
    none = Facts('nothing')
    assert check(text, none).k == 0
    assert strike(text, none).n == 0


def test_every_coin_we_know_is_known_by_its_names() -> None:
    for coin in KNOWN:
        names, capital, tickers, chinese = COINS[coin.id]
        assert coin.symbol in tickers.split()
        assert coin.name.lower() in {*names.split(), *capital.lower().split(), *tickers.lower().split()}
        assert any(name.startswith(coin.name_zh) for name in chinese.split())


# ---- drafts

def test_units_around_a_slot() -> None:
    def made(text: str, language: str = 'en') -> str: return render(Draft((Section('', text),), language), FACTS)
    assert made('[[return_30d]]%, [[return_30d]] percent, [[return_30d]] %') == '-29.81%, -29.81%, -29.81%'
    assert made('$[[price]], US$[[price]], [[price]] USD, [[price]] dollars') == ', '.join(['2,988.88 USD'] * 4)
    assert made('[[price]]美元，[[price]] 美元，＄[[price]]', 'zh') == '，'.join(['2,988.88 美元'] * 3)
    assert made('[[funding_rate]] bps; [[funding_rate]]个基点', 'zh') == '1.19 个基点; 1.19 个基点'
    assert made('[[circulating_supply]] ETH') == '120.00 million ETH'
    assert made('[[ price ]]') == '2,988.88 USD'


@pytest.mark.parametrize('text', ['9[[market_cap_rank]]', '[[price]]00', '-[[rsi_14_1d]]', '[[rsi_14_1d]][[adx_14_1d]]', '[[price]] '
    'million', '[[price]]k', '[[rsi_14_1d]]%',
                                  '1.[[market_cap_rank]]', '[[price]]万', '[[market_cap]] thousand', '[[rsi_14_1d]]e5', '[[rsi_14_1d]] × '
                                      '10^3'])
def test_what_is_glued_to_a_slot_is_seen(text: str) -> None:
    "A value that was put in is held against the facts as the reader sees it"
    assert check(render(Draft((Section('', f'It is {text} now.'),)), FACTS), FACTS).findings


def test_headings_are_checked_too() -> None:
    assert [one.claim.quote for one in check(render(Draft((Section('Up 77% soon', 'Nothing.'),)), FACTS), FACTS).findings] == ['77%']


@pytest.mark.parametrize('language', LANGUAGES)
def test_repair_request(language: str) -> None:
    text = {'en': 'The RSI is 1.023. All is well. Expect 99,999 USD.', 'zh': 'RSI 为 1.023。一切正常。有望达到 99,999 美元。'}[language]
    asked = repair_request(check(text, FACTS), FACTS, language)
    assert '1.023' in asked and '[[rsi_14_1d]]' in asked and '99,999' in asked
    assert len(asked.splitlines()) == 4
    assert repair_request(check('Fine.', FACTS), FACTS, language) == ''


# ---- strike

@pytest.mark.parametrize('name', REPLIES)
def test_strike_of_a_changed_reply(name: str) -> None:
    "Every second figure falsified: the marks stand there, and the rest is as it was"
    draft = reply(name)
    text = render(draft, FACTS)
    for one in reversed(check(text, FACTS).verdicts[::2]): text = text[:one.claim.start] + '987.654 XYZ' + text[one.claim.end:]
    shown = strike(text, FACTS, draft.language)
    assert (shown.k, shown.findings) == (shown.n, [])
    assert 'XYZ' not in shown.text
    assert shown.text.count(STRUCK[LANGUAGES.index(draft.language)]) >= check(text, FACTS).n // 2


PIECES = st.one_of(st.sampled_from(['RSI ', 'price ', '价格', '下跌 ', 'fell ', ' to ', '–', '-', '$', '%', ' USD', ' million', '万',
                                    '亿美元', '三成', '百分之', 'half of', 'doubled', '. ', '。', '\n',
                                    '1. ', '(1)', '(2)', '[[price]]', '[[moon]]', '[[max_supply]]', ' days', 'one hundred', '14-day ',
                                    'over 30 days', 'Web3', '2024-08-09', ', ', '½', '①②', '\u200b',
                                    'and ', '2,988.88', '35.27', '29.81', '５', '٣', 'e5', '×10^3', 'between ', '从', '到', '第', '点',
                                    '十', '万一', 'in 2024', '*', '#', '_', '`', '|']),
                   st.integers(0, 10 ** 6).map(str), st.floats(0, 1e5).map(lambda value: f'{value:.2f}'), st.text(max_size=4))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map(''.join), st.sampled_from(LANGUAGES))
def test_what_is_shown_is_grounded_to_the_last_number(text: str, language: str) -> None:
    "After the strike every claim has its fact, and striking again changes nothing"
    shown = strike(text, FACTS, language)
    again = check(shown.text, FACTS)
    assert (again.k, again.findings) == (again.n, [])
    assert strike(shown.text, FACTS, language).text == shown.text
    assert '[[' not in shown.text or not re.search(r'\[\[\s*[^\[\]]{1,80}?\s*\]\]', shown.text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e12, 1e12, allow_nan=False), st.sampled_from(['%', 'USD', 'points', 'ratio', 'bps', 'BTC', 'count'])),
                min_size=1, max_size=8),
       st.sampled_from(LANGUAGES))
def test_every_fact_shown_bears_itself_out(values: list[tuple[float, str]], language: str) -> None:
    "What a fact shows of itself, beside its name, is grounded: in both languages, at any size"
    names = ['alpha', 'gamma', 'delta', 'epsilon', 'zeta', 'theta', 'kappa', 'lambda']
    facts = Facts('x', [Fact(f'{name}_x', name, value, unit, 1, 'made up', 'as given') for name, (value, unit) in zip(names, values)])
    for fact in facts.values():
        checked = check(f'{fact.name}: {fact.shown(language)}', facts)
        assert not checked.findings, (fact, checked)


@pytest.mark.parametrize('language', LANGUAGES)
def test_what_cannot_be_taken_out_is_withheld(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "No text is known for which it comes to that, so a knife that does not cut stands in: the paragraph goes, the rest stays"
    monkeypatch.setattr(grounding, 'taken_out', lambda checked, verdicts, language: checked.text)
    shown = strike('The price is 2,988.88 USD.\n\nThe RSI is 1.023.\n\nAll is well.', FACTS, language)
    mark = WITHHELD[LANGUAGES.index(language)]
    assert shown.text == f'The price is 2,988.88 USD.\n\n{mark}\n\nAll is well.'
    assert (shown.k, shown.n) == (1, 1)


def test_a_block_that_is_sound_alone_only_is_withheld_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    "Where leaving out paragraphs does not help either, nothing but the sentence is shown"
    sick = Checked('x', (Verdict(Claim(0, 1, 'x', 1.0, '', 1.0), '', 'no fact'),))
    monkeypatch.setattr(grounding, 'check', lambda text, facts: Checked(text, ()) if text in WITHHELD else replace(sick, text=text))
    assert strike('x', FACTS).text == WITHHELD[0]


class Writer:
    "A model with prepared replies"
    def __init__(self, *texts: str): self.texts = list(texts)
    def stream(self, messages: Any, schema: Any = None, about: str = '') -> Any: raise NotImplementedError
    async def ask(self, messages: Any, schema: Any = None, about: str = '') -> Reply:
        text = self.texts.pop(0)
        return Reply(text, dict(sections=[dict(heading='', text=text)], scenarios=[]), how='by hand')


@pytest.mark.parametrize(('second', 'how', 'shown'), [
    ('All is well.', 'by hand, set aside: it had no figure left', 'The RSI is [unsupported figure removed] at 2,988.88 USD.'),
    ('The RSI is 1.024 at [[price]].', 'by hand, set aside: it had as many figures without a fact',
     'The RSI is [unsupported figure removed] at 2,988.88 USD.'),
    ('The RSI is [[rsi_14_1d]].', 'by hand', 'The RSI is 35.27.')])
def test_a_repair_that_is_set_aside_says_why(second: str, how: str, shown: str) -> None:
    told = asyncio.run(answer(FACTS, 'What of the RSI?', Narration((), {}), Writer('The RSI is 1.023 at [[price]].', second)))
    assert (told.text, told.how.split('; ')) == (shown, ['by hand', how])
    assert told.grounded == (1, 2)


def test_marks_claim_nothing() -> None:
    for mark in (*STRUCK, *GONE, *WITHHELD, *(text for pair in WHY.values() for text in pair)): assert not claims(mark)


# ---- time

HOSTILE = ['1', '1,234,', '1.2', ' ', 'MACD(1,', '-5', 'one hundred ', '万一', 'fell by ', 'http://', '[[', '[[a]]', '5 ', '(1) (2) ',
           '1. ', 'a', 'a_1_', '0a', '跌3成', '6\u200b', 'x\n',
           '1 to 2 ', 'May 5 ', 'rsi 5.1 ', '5 days ', 'price of ', '1–', 'half of ', '百分之', 'price-price-', '3% over 30 days ', '. 5',
           'ETH 5 ', 'ETH, ', '# BTC\n', 'support 5 ', '支撑 5 ', 'support and ', 'it will 5 ', '明天 5 ', 'if 5 ',
           'no risk ', 'first by ', '第5',
           'ratio 5:30 ', 'is MM', 'v5 ', '2-of-3 ', 'SOL/']


@pytest.mark.parametrize('piece', HOSTILE)
def test_time_grows_with_length_only(piece: str) -> None:
    "Eight times the text may take twenty-four times as long (noise), but not the sixty-four times of a quadratic pattern"
    def seconds(function: Callable[[], object]) -> float:
        times = []
        for _ in range(2):
            begin = time.process_time()
            function()
            times.append(time.process_time() - begin)
        return min(times)
    short, long = ((piece * length)[:length] for length in (2_000, 16_000))
    assert seconds(lambda: check(long, FACTS)) < 24 * max(seconds(lambda: check(short, FACTS)), 0.003)


# ---- heads: where a pattern is tried at all

SAID = [unmarked(line)[0] for line in table('claims.txt')] + [line for _, line in verdict_rows()] + [reply(name).text for name in REPLIES]
HEADED = {'level': LEVEL_WORD, 'number words': WORDS, 'Chinese numbers': HAN_NUMBER, 'promises': NO_RISK, 'direction': DIRECTION,
          'coins': coin_names()[1]}
shuffled = st.lists(st.sampled_from([part for text in SAID for part in re.split(r'(?<=[ .,。，])', text) if part]), min_size=1, max_size=30)


def same_with_heads(text: str) -> None:
    "Every pattern finds at its heads what it finds anywhere"
    flat = plain(text)[0]
    small = lower(flat)
    page = Page(text)
    for what, one in HEADED.items():
        anywhere = [match.span() for match in one.pattern.finditer(small)]
        assert [match.span() for match in one.finditer(small)] == anywhere, what
        if one is not HAN_NUMBER: assert [match.span() for match in one.finditer(small, page.starts)] == anywhere, what
    assert [match.span() for match in found_at(ROMAN, flat, [run.start() for run in ROMAN_RUN.finditer(flat)])] == [
        match.span() for match in ROMAN.finditer(flat)]
    places = [*places_of(RANK_HEADS, small, page.starts), *(match.start() for match in ORDINAL_DIGITS.finditer(small))]
    assert [match.span() for match in found_at(RANKS, small, sorted(places))] == [match.span() for match in RANKS.finditer(small)]
    lengths = [(match.start(), match.end()) for match in grounding.DURATION.finditer(small)]
    assert [match.span() for match in found_at(grounding.DURATION, small, grounding.begins_of_durations(small))] == lengths
    for row in (*NAMES, *PERIODS, *DATES):
        assert cover(flat, [row], page.pairs) == cover(flat, [row]) == cover(flat, [replace(row, heads=(), letters=())]), row.what
    whole = cover(flat, [replace(row, heads=(), letters=()) for row in (*NAMES, *PERIODS, *DATES)])
    assert whole == cover(flat, ALL_NAMES) == cover(flat, ALL_NAMES, page.pairs)


def test_heads_miss_nothing() -> None:
    for text in SAID: same_with_heads(text)
    assert sum(len(list(one.finditer(lower(text)))) for text in SAID for one in HEADED.values()) > 500


@settings(deadline=None, max_examples=150)
@given(shuffled)
def test_heads_miss_nothing_in_a_shuffled_text(parts: list[str]) -> None: same_with_heads(''.join(parts))


def test_no_forecast_is_far_from_its_words() -> None:
    "What `Forecasts` passes over, `foretold` does not call a forecast either"
    told = 0
    for text in SAID:
        small = lower(plain(text)[0])
        ends = [match.start() for match in grounding.SENTENCE.finditer(small)]
        for one in claims(small):
            sentence = max([end + 1 for end in ends if end < one.start], default=0), min([end for end in ends if end >= one.end],
                                                                                         default=len(small))
            said = foretold(small, one.start, one.end, sentence)
            told += said is not None
            assert Forecasts(small).of(one.start, one.end, sentence) == said
    assert told > 40
