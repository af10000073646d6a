"""Light orders are a shorter way only: whatever can be asked of a pass without tables is what the pass with tables says (promise 1)."""
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import Mutant, missed, run_check
from oracle import scenario, wild
from test_engine import TOY, control, happens, opening, settings

from cryptoexp.market.events import BUY, CLEAR, DEPTH, KILL, RESUME, SELL, SNAPSHOT, STALE, TRADE, Events, from_rows
from cryptoexp.market.instrument import MONEY_SCALE, decimal
from cryptoexp.trading.backtest import Prepared, Runs, prepare, run_configurations, short_of
from cryptoexp.trading.limits import make_rules
from cryptoexp.trading.quoting import compile_quoter, fields_read
from cryptoexp.trading.venue import Latency, QueueModel, Venue

QUEUES = (QueueModel(), QueueModel('power', 2.), QueueModel('ahead'), QueueModel('log'))
LATENCIES = ((0.5, 0.), (1., 1.), (2., 5.), (5., 5.), (5., 30.))   # ms there and back
compiled_wild = compile_quoter(wild)


def forceful(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "As `wild`, and now and then an order of another kind"
    code = compiled_wild(view, parameters, scratch, wishes)
    random = int(scratch[0]) >> 12
    for side in range(2):
        if (random >> 3*side) % 8 == 0: wishes[0, side, 0, 2] = 1 + (random >> 6) % 4
        if (random >> 3*side) % 64 == 1: wishes[0, side, 0, 1] = -1
    return code


def standing(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Goes by prices and its account alone"
    now, away = view.market[0], int(parameters[0]) % 5
    lots = 1 + int(now.equity) % 3
    if now.position_lots > -20: wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + away, max(lots, min(now.order_lots, 9))
    if now.position_lots < 20: wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - away, lots
    if now.position_lots % 7 == 6: wishes[0, 0, 0, 2] = 1
    return int(abs(now.position_lots)) % 6


def by_touch(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Goes by the touch and its position alone"
    now, away = view.market[0], int(parameters[0]) % 4
    if now.position_lots > -30: wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + away, 1 + now.bid_tick % 3
    if now.position_lots < 30: wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - away, 1 + now.ask_tick % 3
    return abs(now.position_lots) % 6


def by_lots(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Stands behind where little stands at the touch"
    now = view.market[0]
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - (now.bid_lots < now.ask_lots), 1 + now.bid_lots % 3
    wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + (now.ask_lots < now.bid_lots), 1 + now.ask_lots % 3
    return (now.bid_lots + now.ask_lots) % 6


def by_flow(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Makes way for what was traded since it was last asked, and stays out after a fill"
    now = view.market[0]
    if not now.filled_buy_lots: wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - min(now.sold_lots, 3), 2
    if not now.filled_sell_lots: wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + min(now.bought_lots, 3), 2
    return (now.bought_lots + now.sold_lots) % 6


def by_clock(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Moves with the time of day"
    now, away = view.market[0], int(view.market[0].time_ns // 3_000_000) % 3
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = now.bid_tick - away, 2
    wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = now.ask_tick + away, 2
    return away


class Market:
    "A random market, and a few accounts that differ in everything that may differ within one pass"
    def __init__(self, seed: int, whole: bool, steps: int, slower: int = 1):
        draw, case = np.random.default_rng(seed), scenario(seed, steps)
        rows, least_ms = case.rows, 0.
        begin, between = int(rows.local_ns[0]), rows.local_ns - rows.exchange_ns
        local_ns = begin + slower*(rows.local_ns - begin)
        rows = Events(rows.flags, local_ns - between, local_ns, *rows.columns[3:])
        later = rows.exchange_ns >= rows.exchange_ns[rows.kind == DEPTH].min()
        rows = rows[~(later & np.isin(rows.kind, (CLEAR, SNAPSHOT)))]   # else every row has to be looked at
        self.whole, self.parity, self.rules, self.parameters, self.cash, self.lots = whole, whole and seed % 4 > 0, [], [], [], []
        for account in range(5):
            there, back = LATENCIES[draw.integers(len(LATENCIES))]
            least_ms = 2*there + back
            config = replace(case.config, maker_fee=case.config.maker_fee + account/10_000, entry_latency_ms=there,
                             response_latency_ms=back, reduce_by_taking=False,
                             refresh_interval=(least_ms + [0., 3., 20.][draw.integers(3)])/1e3,
                             refresh_tolerance=[0., 0., .01, .03][draw.integers(4)])
            queue = QUEUES[draw.integers(len(QUEUES))]
            venue = Venue.from_config(config, queue=queue, fills='whole' if whole else 'partial', kind='linear' if whole else None)
            self.rules.append(make_rules(config, case.instrument, venue, unlimited=bool(whole and draw.integers(2))))
            self.parameters.append([float(seed*7 + account), *case.parameters[1:]])
            self.cash.append(round(decimal(config.total_capital)*MONEY_SCALE)*int(draw.integers(1, 40)))
            self.lots.append([case.instrument.lots(config.initial_base)])
        if seed % 3 == 0: self.rules = self.rules[:1] * 5   # what is read once for all (alike)
        self.prepared: Prepared = prepare([(rows, case.instrument)], closing=not self.parity)

    def play(self, record: bool, quoter: Any = forceful, **options: Any) -> Runs:
        return run_configurations(
            self.prepared, np.concatenate(self.rules).view(np.recarray), np.array(self.parameters), quoter, cash_e8=np.array(self.cash),
            position_lots=np.array(self.lots), parity=self.parity, record=record, **options)


KEPT = {'request_head', 'request_tail', 'news_head', 'news_tail', 'next_request_ns', 'next_news_ns', 'order_count',
        'taken_count', 'quiet'}   # how things are kept, not what they are


def compare(seed: int, whole: bool, steps: int = 400, **options: Any) -> tuple[int, int, int]:
    "Both ways through one market; answers how many orders were sent, how many cancels came too late, and how many fills there were"
    market = Market(seed, whole, steps)
    return same(market, seed, market.play(True, **options), market.play(False, **options))


FLOW = {'seen_bought', 'seen_sold', 'filled_buy_lots', 'filled_sell_lots', 'heard_count'}   # what is kept for those who read it
UNREAD = {by_touch: FLOW | {'last_equity_e8'}, by_lots: FLOW | {'last_equity_e8'}, by_flow: {'last_equity_e8'},
          by_clock: FLOW | {'last_equity_e8'},
          standing: FLOW | {'last_equity_e8'}}   # who is not asked is not weighed for it; only takers that reduce read it, none is light


def same(market: Market, seed: int, plain: Runs, light: Runs, unread: frozenset[str] | set[str] = frozenset()) -> tuple[int, int, int]:
    whole = market.whole
    assert not plain.desk.clock[0].light and light.desk.clock[0].light == (short_of(market.prepared, whole) is not None), seed
    for name in plain.desk.state.dtype.names:
        if name not in KEPT | unread: assert plain.desk.state[name].tolist() == light.desk.state[name].tolist(), (seed, name)
    for name in plain.desk.accounts.dtype.names:
        if name not in unread: assert plain.desk.accounts[name].tolist() == light.desk.accounts[name].tolist(), (seed, name)
    for name in ('refusals', 'bound', 'scratch', 'windows'):
        assert getattr(plain.desk, name).tolist() == getattr(light.desk, name).tolist(), (seed, name)
    assert plain.totals().equals(light.totals()), seed
    counts = int(plain.desk.state.orders_sent.sum()), int(plain.desk.state.late_cancels.sum()), int(plain.desk.state.fills.sum())
    return counts if light.desk.clock[0].light else (0, 0, 0)   # a picture of the book stands in between: every row was looked at


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('block', range(4))
def test_light_orders_change_nothing(block: int, whole: bool) -> None:
    "Sums, positions, refusals, counts, memories of the models: five different accounts in random markets, with stops and pauses"
    found = np.array([compare(seed, whole, every_message=bool(seed % 3)) for seed in range(block*10, block*10 + 10)])
    assert (found.sum(axis=0) > (1000, 10, 200)).all(), found.sum(axis=0)


def compare_standing(seed: int, whole: bool, steps: int = 400, model: Any = standing, **options: Any) -> tuple[int, int, int]:
    "The same for a model that can be shown to read little; answers decisions, how many were only counted, and fills"
    market = Market(seed, whole, steps, slower=1 + seed % 8)
    longest = max(int(rules.interval_ns[0]) for rules in market.rules)
    for rules in market.rules: rules.interval_ns = longest
    plain, light = market.play(True, model, **options), market.play(False, model, **options)
    _, _, fills = same(market, seed, plain, light, UNREAD[model])
    return int(light.desk.state.decisions.max()), int(light.desk.clock[0].skipped), fills


@pytest.mark.parametrize('whole', [False, True])
def test_decisions_that_change_nothing_need_not_be_taken(whole: bool) -> None:
    assert fields_read(standing) == {'bid_tick', 'ask_tick', 'position_lots', 'equity', 'order_lots'}
    found = np.array([compare_standing(seed, whole, every_message=bool(seed % 3)) for seed in range(300, 315)])
    assert (found.sum(axis=0) > (500, 50, 50)).all(), found.sum(axis=0)


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('model', [by_touch, by_lots, by_flow, by_clock])
def test_what_a_model_does_not_read_need_not_be_worked_out(model: Any, whole: bool) -> None:
    "Views are filled with what the model can be shown to read, and no more; what it does is the same"
    read = fields_read(model)
    assert read
    clock = Market(500, whole, 50).play(False, model).desk.clock[0]
    kinds = {'reads_worth': {'equity', 'share', 'order_lots'}, 'reads_lots': {'bid_lots', 'ask_lots'},
             'reads_flow': {'bought_lots', 'sold_lots', 'filled_buy_lots', 'filled_sell_lots'}, 'reads_time': {'time_ns'}}
    assert {name: bool(clock[name]) for name in kinds} == {name: bool(read & fields) for name, fields in kinds.items()}
    found = np.array([compare_standing(seed, whole, model=model, every_message=bool(seed % 3)) for seed in range(500, 512)])
    assert (found.sum(axis=0)[[0, 2]] > (400, 100)).all(), found.sum(axis=0)


@pytest.mark.long
@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('block', range(20))
def test_light_orders_change_nothing_in_many_markets(block: int, whole: bool) -> None:
    for seed in range(1000 + block*50, 1050 + block*50): compare(seed, whole, every_message=bool(seed % 3))


def bid_at_100(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = 100, 5
    return 0


def by_whole_fills(rows: list[Any]) -> list[Runs]:
    "A bid of five at 100, asked for each tenth of a second, in a book of 100 and 110, by hftbacktest's rules: with tables and light"
    venue = Venue('paper', latency=Latency.constant(5, 30), fills='whole', kind='linear')
    rules = make_rules(settings(refresh_interval=.1), TOY, venue, unlimited=True)
    prepared = prepare([(from_rows([*opening({100: 10}, {110: 10}), *rows]), TOY)], closing=False)
    both = [run_configurations(prepared, rules, np.zeros((1, 1)), bid_at_100, parity=True, record=record) for record in (True, False)]
    assert [bool(runs.desk.clock[0].light) for runs in both] == [False, True]
    return both


def by_hand() -> None:
    "Ten stand before our light bid of five when it arrives; six of them leave; so a print of six has two for us"
    rows = from_rows([*opening({100: 10}, {110: 10}), happens(300, DEPTH | BUY, 100, 4), happens(500, TRADE | SELL, 100, 6),
                      control(900, RESUME)])
    prepared, config = prepare([(rows, TOY)]), settings()
    for record in (True, False):
        runs = run_configurations(prepared, make_rules(config, TOY), np.zeros((1, 1)), bid_at_100, cash_e8=10**13, record=record)
        assert bool(runs.desk.clock[0].light) == (not record) and int(runs.desk.accounts[0].position_lots) == 2


def test_a_light_order_is_told_of_its_queue() -> None: by_hand()


def out_of_range() -> None:
    "A bid below the least price is refused at each decision, the ask beside it is sent"
    def low(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
        wishes[0, 0, 0, 0], wishes[0, 0, 0, 1], wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = -5, 5, 120, 5
        return 0
    rows = from_rows([*opening({100: 10}, {110: 10}), happens(300, DEPTH | BUY, 100, 4), control(900, RESUME)])
    rules = make_rules(settings(), TOY, Venue('paper', fills='whole', kind='linear'), unlimited=True)
    for record in (True, False):
        runs = run_configurations(prepare([(rows, TOY)], closing=False), rules, np.zeros((1, 1)), low, parity=True, record=record)
        assert bool(runs.desk.clock[0].light) == (not record)
        assert int(runs.desk.refusals.sum()) > 0 and runs.desk.state.orders_sent.tolist() == [1]


def test_a_quote_out_of_range_is_refused_as_a_light_one() -> None: out_of_range()


PART, HALF = slice(1, 2), 3


def keeps_in_its_parameters(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Remembers by way of a view of its parameters"
    half = parameters[PART]
    half *= .5
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - int(parameters[1]), 2
    return 0


def by_a_name(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    part = PART
    half = parameters[part]
    half *= .5
    return 0


def adds_an_axis(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    half = parameters[np.newaxis]
    half *= .5
    return 0


def makes_an_array(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    near = np.zeros(2)
    near[0] = view.market[0].bid_tick
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = int(near.sum()) - 1, 2
    return 0


def by_a_number(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1] = view.market[0].bid_tick - HALF, 2
    return 0


def test_a_model_that_may_remember_is_asked_each_time() -> None:
    for model in (keeps_in_its_parameters, by_a_name, adds_an_axis): assert fields_read(model) is None
    market = Market(501, False, 100)
    plain, light = market.play(True, keeps_in_its_parameters), market.play(False, keeps_in_its_parameters)
    assert not light.desk.clock[0].steady and plain.desk.state.orders_sent.tolist() == light.desk.state.orders_sent.tolist()


def test_a_model_may_make_arrays() -> None:
    market = Market(502, False, 100)
    plain, light = market.play(True, makes_an_array), market.play(False, makes_an_array)
    assert light.desk.clock[0].light
    same(market, 502, plain, light)


def test_a_model_is_compiled_for_the_numbers_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    market, placed = Market(503, False, 100), []
    for half in (3, 1, 3):
        monkeypatch.setattr(sys.modules[__name__], 'HALF', half)
        assert fields_read(by_a_number) == {'bid_tick'}
        runs = market.play(True, by_a_number)
        placed.append(int(runs.orders.tick.iloc[0]))
        assert market.play(False, by_a_number).desk.state.orders_sent.tolist() == runs.desk.state.orders_sent.tolist()
    assert placed[0] == placed[1] - 2 == placed[2]


def test_a_number_is_kept_with_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    "1, 1.0 and True are equal, and not compiled alike"
    made = []
    for half in (1, 1.0, True):
        monkeypatch.setattr(sys.modules[__name__], 'HALF', half)
        made.append(compile_quoter(by_a_number))
    assert len({id(one) for one in made}) == 3


def test_a_model_that_speaks_of_what_is_not_there_yet_runs_in_python() -> None:
    def model(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int: return later
    assert compile_quoter(model) is None
    later = 0
    assert compile_quoter(model) is not None and later == 0


def stopped_between() -> None:
    "The feed breaks off and goes on between two decisions at an unchanged touch: what was cancelled then is sent again"
    breaks = [happens(50, DEPTH | BUY, 95, 4), control(450, STALE), control(470, RESUME), control(900, RESUME)]
    prepared = prepare([(from_rows([*opening({100: 10}, {110: 10}), *breaks]), TOY)])
    for record in (True, False):
        runs = run_configurations(prepared, make_rules(settings(refresh_interval=.1), TOY), np.zeros((1, 1)), by_touch, cash_e8=10**13,
                                  position_lots=np.array([[5]]), record=record)
        assert bool(runs.desk.clock[0].light) == (not record) and (record or runs.desk.clock[0].skipped > 2)
        sent, cancels = runs.desk.state.orders_sent.tolist(), runs.desk.state.cancels_sent.tolist()
        assert (sent, cancels) == ([4], [4]), record   # two are cancelled at the break, two at the end


def test_a_decision_after_a_break_is_taken() -> None: stopped_between()


def at_the_end() -> None:
    "The last row fills our bid at 183 ms; we hear of it at 213, so the decision of 200 is not the last as long as hftbacktest waits"
    for last_ms, decisions in ((183, 2), (165, 1)):
        for runs in by_whole_fills([happens(last_ms, TRADE | SELL, 99, 20)]):
            assert int(runs.desk.accounts[0].fills) == 1 and runs.desk.state.decisions.tolist() == [decisions], last_ms


def test_a_light_account_waits_for_its_answers_at_the_end() -> None: at_the_end()


def an_offer_that_is_gone() -> None:
    "An ask through our bid fills it; the news that nothing is left at such a price, where nothing stood, does not"
    for lots, fills in ((0, 0), (7, 1)):
        for runs in by_whole_fills([happens(150, DEPTH | SELL, 99, lots), happens(190, DEPTH | SELL, 111, 3)]):
            assert int(runs.desk.accounts[0].fills) == fills, lots


def test_an_offer_that_is_gone_fills_nothing() -> None: an_offer_that_is_gone()


def news_at_its_moment() -> None:
    "Filled at 150 ms, heard of at 180: the account is weighed at the price of then, and not at all where the feed has broken off before"
    better, back = happens(160, DEPTH | BUY, 104, 3), happens(190, DEPTH | BUY, 104, 0)
    peaks = []
    for between in ([], [better], [better, control(170, STALE)]):
        after = [*([back] if between else []), happens(390, DEPTH | SELL, 111, 3)]
        both = by_whole_fills([happens(150, TRADE | SELL, 99, 20), *between, *after])
        assert len({int(runs.desk.state.peak_e8[0]) for runs in both}) == 1, between
        peaks.append(int(both[0].desk.state.peak_e8[0]))
    assert len(set(peaks)) == 3, peaks


def test_news_is_weighed_at_its_moment() -> None: news_at_its_moment()


def five_each(view: Any, parameters: Any, scratch: Any, wishes: Any) -> int:
    "Five at 100, five at 110"
    wishes[0, 0, 0, 0], wishes[0, 0, 0, 1], wishes[0, 1, 0, 0], wishes[0, 1, 0, 1] = 100, 5, 110, 5
    return 0


def flattened_at_once() -> None:
    "Who is halted flattens at his next decision: a cancel that travels after a fill is no order, and what he sends counts at once"
    killed = [happens(168, TRADE | SELL, 100, 20), control(197, KILL)]
    stopped = [happens(120, TRADE | SELL, 100, 20)]
    after = [happens(250, DEPTH | BUY, 100, 0), happens(600, DEPTH | BUY, 95, 4)]
    limits = dict(maker_fee=.09, max_loss=.0001)
    for between, model, every, more in ((killed, bid_at_100, True, {}), (stopped, five_each, False, limits)):
        config = settings(refresh_interval=.1, entry_latency_ms=5., response_latency_ms=30., flatten_on_halt=True, flatten_band=.3, **more)
        prepared = prepare([(from_rows([*opening({100: 10, 99: 50, 98: 50}, {110: 10}), *between, *after]), TOY)])
        for fills in ('partial', 'whole'):
            rules = make_rules(config, TOY, Venue.from_config(config, fills=fills, kind='linear'))
            heavy, light = (run_configurations(prepared, rules, np.zeros((1, 1)), model, cash_e8=10**13, record=record, every_message=every)
                            for record in (True, False))
            assert light.desk.clock[0].light and heavy.fills.tick.tolist()[:2] == [100, 100]   # bought, and sold before the level went
            assert heavy.desk.state.cash_e8.tolist() == light.desk.state.cash_e8.tolist(), (fills, every)


def test_who_is_halted_flattens_at_once() -> None: flattened_at_once()


MUTANTS = [Mutant(*words) for words in (   # the first is whole and must not be noticed
    ('as it is', 'matching', 'if kept != -2 and light.known_tick >= 0:', 'if kept != -2 and light.known_tick >= 0:'),
    ('a light order that would take rests', 'matching',
     'if (light.next_tick >= ask) if index == 0 else (light.next_tick <= bid):', 'if False:'),
    ('what has happened since it arrived is not told', 'matching', 'for at in range(first + count, first + last):', 'for at in range(0):'),
    ('a cancel that came too late is not counted', 'matching', 'elif light.drops: state.late_cancels += 1', 'elif light.drops: pass'),
    ('what was thought better of on its way stays', 'matching',
     'light.known_tick, light.moved, light.stop_ns = -1, 2, due', 'light.known_tick, light.moved, light.stop_ns = -1, 1, due'),
    ('a light bid holds back no cash', 'matching', 'left if known else 0', '0'),
    ('a light order that is being cancelled is dead', 'matching', "        _request_between(desk, config, slot, light.due_ns)\n", ''),
    ('a plain quote that makes way is not cancelled', 'matching',
     'if known >= 0: light.drops, light.moved,', 'if False: light.drops, light.moved,'),
    ('a plain quote within the tolerance moves', 'matching',
     'lots > 0 and 0 <= outside <= slack: continue', 'lots > 0 and outside == 0: continue'),
    ('a plain order that was refused is thought to rest', 'matching',
     'known = light.known_tick if light.refused_ns > time_ns else -1', 'known = light.known_tick'),
    ('a plain quote may stand anywhere', 'matching', 'lots < 0 or outside or', 'lots < 0 or'),
    ('a plain quote with another of its account is light', 'matching', 'if state.order_count > 0 or most <= 0 or', 'if most <= 0 or'),
    ('limits are not asked about plain quotes', 'matching', 'rule.max_lots if rule.unlimited else 0, slack', 'rule.max_lots, slack'),
    ('all have the limits of the first', 'matching',
     'if not alike: low, high, most, slack =', 'if False: low, high, most, slack ='),
    ('what stood before one order stood before the next', 'matching',
     'if clock.then_row != light.row or clock.then_level != level:', 'if clock.then_row == 0 or clock.then_level == 0:'),
    ('a plain model sees its fills at once', 'matching',
     'view.position_lots = bid, ask, account.known_position_lots', 'view.position_lots = bid, ask, account.position_lots'),
    ('a cancel on its way is an order', 'matching', '(light.moved and light.next_tick >= 0) or known', 'light.moved or known'),
    ('what is sent as one hears comes after the decision', 'matching',
     'if min(clock.next_request_ns, clock.light_due_ns) <= horizon: continue', 'if clock.next_request_ns <= horizon: continue'),
    ('the time is not shown', 'matching', 'if timed: view.time_ns', 'if False: view.time_ns'),
    ('all fills of a market cost what the first did', 'matching', 'tick != clock.paid_tick or ', ''),
    ('all pay the fees of the first', 'matching', 'if not clock.alike or tick !=', 'if tick !='),
    ('small fills cost what large ones do', 'matching', 'lots != clock.paid_lots or ', ''),
    ('takers pay what makers do', 'matching', ' or maker != clock.paid_maker:', ':'),
    ('the size at the touch is not shown', 'matching', 'if shown: view.bid_lots', 'if False: view.bid_lots'),
    ('news is heard with the prices of before', 'matching',
     'while at < stop and rows.time_ns[turns[at, ROW]] <= limit_ns: at += 1', 'pass'),
    ('news overtakes a break', 'matching',
     'if at == stop and at < turns.shape[0] and rows.time_ns[turns[at, ROW]] <= limit_ns: return False', 'pass'),
    ('all wait for the first', 'matching',
     'together = clock.light and clock.alike and desk.asking[0] + clock.kept == clock.configs', 'together = clock.light'),
    ('news of whole fills comes as it happened', 'matching',
     'if at != clock.filled_head and desk.news[shared, (at - 1) & last].due_ns > due: return False', 'pass'),
    ('a whole fill is thought to rest', 'matching', 'if light.known_id == news.tick and light.moved == 0:', 'if False:'),
    ('an order on its way is forgotten with the one that was filled', 'matching',
     'if light.known_id == news.tick and light.moved == 0:', 'if True:'),
    ('one of many models sees its fills at once', 'matching',
     'view.position_lots = side.bid_lots, side.ask_lots, account.known_position_lots',
     'view.position_lots = side.bid_lots, side.ask_lots, account.position_lots'),
    ('a break wakes nobody', 'matching',
     '    clock, side = desk.clock[0], desk.sides[asset]\n    if clock.settled: _wake(desk)\n    if code == STALE',
     '    clock, side = desk.clock[0], desk.sides[asset]\n    if code == STALE'),
    ('a touch that moved wakes nobody', 'matching', 'if not same or (clock.parity_end', 'if (clock.parity_end'),
    ('decisions that were counted are forgotten', 'matching', 'state.decisions += clock.calm', 'state.decisions += 0'),
    ('the next decision comes at its old time', 'matching',
     'state.next_decision_ns += clock.calm * _rule_of', 'state.next_decision_ns += 0 * _rule_of'),
    ('an order on its way lets decisions be skipped', 'matching',
     'if count + clock.kept < configs or min(clock.light_due_ns, clock.next_request_ns, clock.next_news_ns) < NEVER: clock.settled = 0',
     'if count + clock.kept < configs: clock.settled = 0'),
    ('who is quiet lets nobody else be asked', 'matching', 'if count + clock.kept < configs or min(', 'if count < configs and min('),
    ('a fill that is heard of changes no wish', 'matching', '    clock.filled_head += 1\n    state.quiet = 0\n',
     '    clock.filled_head += 1\n'),
    ('other news changes no wish', 'matching', '    state.news_head += 1\n    state.quiet = 0\n', '    state.news_head += 1\n'),
    ('who was refused stays quiet', 'matching', 'light.refused_ns, state.quiet = heard_ns, 0', 'light.refused_ns = heard_ns'),
    ('who was recalled stays quiet', 'matching', '    state.quiet = 0\n    for index in range(2):', '    for index in range(2):'),
    ('the touch is always the same', 'matching', 'clock.touch_ask = clock.touches + 1, side', 'clock.touch_ask = clock.touches, side'),
    ('any model may be left unasked', 'matching', 'clock.touches if clock.steady else -1', 'clock.touches'),
    ('who is quiet decides nothing', 'matching',
     '            _decided(state, account, bound, config, due[config, 1], there_bid, there_ask)\n', ''),
    ('who was told before is told nothing more', 'matching', 'there = clock.then_now == now and', 'there ='),
    ('all at a level arrived with the first', 'matching',
     'clock.then_now == now and clock.then_row == light.row and', 'clock.then_now == now and'),
    ('all at a level are told what the first is', 'matching', 'return there and light.told < 0 and', 'return there and'),
    ('all have the queue of the first', 'matching', 'rule.queue == clock.then_queue and rule.exponent == clock.then_exponent', 'True'),
    ('who arrives is told with those of before', 'matching',
     'clock.then_row, clock.then_level, clock.then_now = light.row, level, -1', 'clock.then_row, clock.then_level = light.row, level'),
    ('all at a level are filled with the first', 'matching',
     'if clock.then_filled and _as_told(desk, config, index, row) and', 'if clock.then_filled and'),
    ('equity is not shown', 'matching', 'if worth: _show_worth', 'if False: _show_worth'),
    ('what was traded is not shown', 'matching',
     '        if flow:\n            view.bought_lots', '        if False:\n            view.bought_lots'),
    ('what was traded is told twice', 'matching',
     '        if flow:\n            account.seen_bought', '        if False:\n            account.seen_bought'),
    ('light orders are not met', 'matching', 'if not 0 <= config < clock.configs: break', 'break'),
    ('rules that differ are those of the first', 'matching',
     'return desk.rules[0 if desk.clock[0].alike else at]', 'return desk.rules[0]'),
    ('light bids are met too late', 'matching', 'resting[0, config] < tick: config += 1', 'resting[0, config] <= tick: config += 1'),
)]
CHECK = """
import test_light
try:
    test_light.by_hand(); test_light.out_of_range(); test_light.at_the_end(); test_light.stopped_between()
    test_light.an_offer_that_is_gone(); test_light.news_at_its_moment(); test_light.flattened_at_once()
except AssertionError: print('noticed by hand'); sys.exit()
for seed in map(int, sys.argv[2:]):
    for whole in (True, False):
        try: test_light.compare(seed, whole, 110)
        except (AssertionError, IndexError, ArithmeticError) as error: print('noticed by', seed, whole); sys.exit()
        models = test_light.standing, test_light.by_lots, test_light.by_clock
        try: [test_light.compare_standing(300 + seed, whole, 200, model) for model in models]
        except (AssertionError, IndexError, ArithmeticError) as error: print('noticed, skipping, by', seed, whole); sys.exit()
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_broken_rule_is_noticed(tmp_path: Path) -> None:
    "Each line that carries a rule of light orders, broken in a copy of the engine, makes the comparison fail"
    wrong, rows = missed(tmp_path, MUTANTS, lambda folder, mutant: run_check(folder, mutant, CHECK, list('0123456')))
    assert not wrong, '\n'.join(wrong)
    print(*rows, sep='\n')
