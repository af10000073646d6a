"The quoting models: compiled and in plain Python alike, never through the market, every dial felt, every mistake named"
from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from cryptoexp.config import ConfigError, MarketMakingConfig, load_config
from cryptoexp.market.events import concat
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Clock, Tape
from cryptoexp.trading.backtest import backtest
from cryptoexp.trading.models import COMMON, MODELS, MOST_LEVELS, model_of
from cryptoexp.trading.quoting import ASK, BID, LOTS, SCRATCH, TICK, Quoter, View, compile_quoter, new_view
from cryptoexp.trading.venue import Venue

TURNS = 10
FREE: dict[str, Any] = dict(maker_fee=0.0, min_profit_threshold=0.0, spread_percentage=2e-4)


def plain(function: Any, done: dict[Any, Any] | None = None) -> Any:
    "A function with nothing compiled in it: what it calls is replaced by its Python source, all the way down"
    done = {} if done is None else done
    source = getattr(function, 'py_func', function)
    if source not in done:
        names: dict[str, Any] = dict(source.__globals__)
        done[source] = FunctionType(source.__code__, names, source.__name__, source.__defaults__, source.__closure__)
        for name in source.__code__.co_names:
            if hasattr(names.get(name), 'py_func'): names[name] = plain(names[name], done)
    return done[source]


def views(seed: int, turns: int, markets: int = 2) -> Iterator[View]:
    "SYNTHETIC: a session of random books, inventories, fills and signals; a second market a third of the price of the first"
    random = np.random.default_rng(seed)
    mid, time_ns = float(random.choice([2_000, 60_000, 6_000_000])), int(random.integers(1, 10**15))
    for _ in range(turns):
        time_ns += int(random.choice([0, 10**8, 10**9, 10**11]) + random.integers(0, 10**7))
        mid *= float(np.exp(random.normal(0, 3e-4)))
        spread, lots = int(random.choice([1, 1, 2, 5, 40])), int(random.choice([1, 7, 161]))
        filled = random.integers(0, 2 * lots + 1, 2) * (random.random(2) < 0.25)
        view = new_view(markets, time_ns=time_ns, bid_tick=int(mid), ask_tick=int(mid) + spread, bid_lots=int(random.integers(1, 500)),
                        ask_lots=int(random.integers(1, 500)), equity=1e4, share=float(random.choice([.1, random.uniform(-.2, .4)])),
                        order_lots=lots, filled_buy_lots=int(filled[0]), filled_sell_lots=int(filled[1]), usable=1)
        for other in range(1, markets):
            third = int(mid * float(np.exp(random.normal(0, 1e-4))) / 3)
            view.market[other] = view.market[0]
            view.market[other].bid_tick, view.market[other].ask_tick, view.market[other].usable = third, third + 1, random.random() < .9
        view.signals[:] = random.normal(0, 2, view.signals.size)
        yield view


def random_dials(random: np.random.Generator, name: str, waiting: bool) -> dict[str, float]:
    "Some of the common dials, at random; `waiting`: also those that let old orders stand"
    if name == 'constant_spread': return {}
    dials = dict(levels=int(random.integers(1, MOST_LEVELS + 1)), level_spacing_bps=random.uniform(0, 5),
                 level_growth=random.uniform(-.3, 1), minimum_distance_bps=random.uniform(0, 3),
                 inventory_range=random.choice([0., 3., 20.]), ping_pong=random.integers(0, 2))
    if waiting: dials |= dict(filled_order_delay=random.choice([0., 2.]), order_age=random.choice([0., 1.5]),
                              hanging_orders=random.integers(0, 2), hanging_reach_bps=random.choice([2., 1000.]))
    return {key: float(value) for key, value in dials.items() if random.random() < 0.6}


def session(name: str, seed: int, waiting: bool, **config: Any) -> Iterator[tuple[View, np.ndarray, np.ndarray, Any, dict[str, float]]]:
    "Views with the model's parameters, the wishes to fill, the model and its dials"
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    dials = random_dials(random, name, waiting)
    model, parameters = model_of(MarketMakingConfig(model=name, model_parameters=dials, **{**FREE, **config}))
    for view in views(seed, TURNS): yield view, parameters, np.zeros((1, 2, model.levels, 3), np.int64), model, dials


@pytest.mark.parametrize('name', MODELS)
def test_compiled_and_in_python_the_same(name: str) -> None:
    "300 views in 30 sessions with dials at random: wishes, what is kept and the code agree to the last bit"
    compiled, python = compile_quoter(MODELS[name].quoter), plain(MODELS[name].quoter)
    assert compiled is not None
    wished = 0
    for seed in range(30):
        kept, kept_python = np.zeros(SCRATCH), np.zeros(SCRATCH)
        fee = dict(maker_fee=1e-4, min_profit_threshold=1e-4) if seed % 3 == 0 else {}
        for view, parameters, wishes, _, dials in session(name, seed, waiting=True, **fee):
            again = wishes.copy()
            codes = compiled(view, parameters, kept, wishes), python(view, parameters, kept_python, again)
            assert codes[0] == codes[1] and (wishes == again).all() and kept.tobytes() == kept_python.tobytes(), (seed, dials)
            wished += int((wishes[..., LOTS] > 0).sum())
    assert wished > 300


@pytest.mark.parametrize('name', MODELS)
def test_quotes_stay_on_their_side(name: str) -> None:
    "300 views: no bid at or above the best ask nor the other way round, bids below asks, lots bounded, the smallest distance kept"
    quoted = 0
    for seed in range(100, 130):
        kept = np.zeros(SCRATCH)
        for view, parameters, wishes, model, dials in session(name, seed, waiting=False):
            model.quoter(view, parameters, kept, wishes)
            now, mid = view.market[0], 0.5 * (view.market[0].bid_tick + view.market[0].ask_tick)
            assert (wishes[..., LOTS] >= 0).all() and (wishes[..., TICK] >= 0).all()
            bids, asks = ([wish for wish in side if wish[LOTS] > 0] for side in wishes[0])
            quoted += len(bids) + len(asks)
            assert all(0 < wish[TICK] < now.ask_tick for wish in bids) and all(wish[TICK] > now.bid_tick for wish in asks)
            if bids and asks: assert max(wish[TICK] for wish in bids) < min(wish[TICK] for wish in asks), dials
            least = dials.get('minimum_distance_bps', 0.0) * 1e-4 * mid
            assert all(mid - wish[TICK] >= least - 1e-6 for wish in bids) and all(wish[TICK] - mid >= least - 1e-6 for wish in asks)
            most = (2 if dials.get('inventory_range') else 1) * (1 + max(0.0, dials.get('level_growth', 0.0)) * (model.levels - 1))
            assert all(wish[LOTS] <= most * now.order_lots + 0.5 for wish in [*bids, *asks])
            lean = (now.share - .1) / .01
            if 0 < dials.get('inventory_range', 0) <= abs(lean): assert not (bids if lean > 0 else asks)
    assert quoted > 300


@pytest.mark.parametrize('name', [name for name in MODELS if name != 'constant_spread'])
def test_the_price_band_holds_for_every_model(name: str) -> None:
    "No bid while the mid is above the ceiling, no ask while it is below the floor; the profit of a round trip is kept at home"
    for seed in range(200, 215):
        kept = np.zeros(SCRATCH)
        seen = list(views(seed, TURNS))
        middle = float(np.median([view.market[0].bid_tick for view in seen]))
        for dial, side in (('price_ceiling', BID), ('price_floor', ASK)):
            model, parameters = model_of(MarketMakingConfig(model=name, model_parameters={dial: middle}, **FREE))
            for view in seen:
                wishes = np.zeros((1, 2, model.levels, 3), np.int64)
                model.quoter(view, parameters, kept, wishes)
                mid = 0.5 * (view.market[0].bid_tick + view.market[0].ask_tick)
                if (mid > middle if side == BID else mid < middle): assert not wishes[0, side, :, LOTS].any()
            kept[:] = 0
        model, parameters = model_of(MarketMakingConfig(model=name, maker_fee=1e-3, min_profit_threshold=2e-3, rebalance_threshold=.9))
        for view in seen:
            wishes = np.zeros((1, 2, model.levels, 3), np.int64)
            model.quoter(view, parameters, kept, wishes)
            (bid, bid_lots), (ask, ask_lots) = wishes[0, :, 0, :2].tolist()
            mid = 0.5 * (view.market[0].bid_tick + view.market[0].ask_tick)
            if bid_lots and ask_lots: assert ask * (1 - 1e-3) - bid * (1 + 1e-3) >= 2e-3 * mid - 1e-6


def test_a_spread_of_nothing_is_no_trade_with_oneself() -> None:
    model, parameters = model_of(MarketMakingConfig(model='inventory_skew', model_parameters=dict(half_spread_bps=0, skew_bps=0), **FREE))
    wishes = np.zeros((1, 2, 1, 3), np.int64)
    model.quoter(new_view(time_ns=1, bid_tick=90, ask_tick=110, equity=1., share=.1, order_lots=1), parameters, np.zeros(SCRATCH), wishes)
    assert wishes[0, :, 0, TICK].tolist() == [99, 100]


# Every dial, by what it does in a session by hand: the touch 9,999 and 10,001 or 50 ticks up, orders of 100

STILL, UP = dict(bid_tick=9_999, ask_tick=10_001), dict(bid_tick=10_049, ask_tick=10_051)
BOUGHT, SOLD = dict(filled_buy_lots=100), dict(filled_sell_lots=100)
Side = list[tuple[int, int]]


def turns(*seen: dict[str, Any], share: float = .1, config: dict[str, Any] | None = None, **dials: float) -> list[tuple[Side, Side]]:
    "Bids and asks (tick, lots) of `inventory_skew`, five bps from the mid and no skew, once a second"
    own = dict(half_spread_bps=5., skew_bps=0., level_spacing_bps=10.) | dials
    model, parameters = model_of(MarketMakingConfig(model='inventory_skew', model_parameters=own, **FREE, **(config or {})))
    kept, shown = np.zeros(SCRATCH), []
    for at, known in enumerate(seen):
        wishes = np.zeros((1, 2, model.levels, 3), np.int64)
        model.quoter(new_view(**{'time_ns': (at + 1) * 10**9, 'equity': 1e4, 'share': share, 'order_lots': 100, 'usable': 1, **known}),
                     parameters, kept, wishes)
        shown.append(tuple([(int(tick), int(lots)) for tick, lots, _ in side if lots] for side in wishes[0]))
    return shown  # type: ignore[return-value]


def felt_levels() -> None:
    assert turns(STILL, levels=3)[0] == ([(9_995, 100), (9_985, 100), (9_975, 100)], [(10_005, 100), (10_015, 100), (10_025, 100)])
    assert turns(STILL)[0] == ([(9_995, 100)], [(10_005, 100)])


def felt_level_spacing() -> None:
    assert turns(STILL, levels=2, level_spacing_bps=3.)[0][BID] == [(9_995, 100), (9_992, 100)]


def felt_level_growth() -> None:
    assert [lots for _, lots in turns(STILL, levels=3, level_growth=.5)[0][ASK]] == [100, 150, 200]
    assert [lots for _, lots in turns(STILL, levels=3, level_growth=-.5)[0][ASK]] == [100, 50]   # the third would be of nothing


def felt_minimum_distance() -> None:
    assert turns(STILL, minimum_distance_bps=20.)[0] == ([(9_980, 100)], [(10_020, 100)])


def felt_inventory_range() -> None:
    for share, wanted in ((.1, (100, 100)), (.12, (50, 150)), (.13, (25, 175)), (.14, (0, 200)), (.4, (0, 200)), (.08, (150, 50))):
        bids, asks = turns(STILL, share=share, inventory_range=4.)[0]
        assert (sum(lots for _, lots in bids), sum(lots for _, lots in asks)) == wanted, share
    moved = turns(STILL, share=.12, config=dict(inventory_target=.12), inventory_range=4.)[0]      # measured from the target
    assert (moved[BID][0][1], moved[ASK][0][1]) == (100, 100)


def felt_price_ceiling() -> None:
    assert [len(bids) for bids, _ in turns(STILL, UP, STILL, price_ceiling=10_020.)] == [1, 0, 1]


def felt_price_floor() -> None:
    assert [len(asks) for _, asks in turns(UP, STILL, UP, price_floor=10_020.)] == [1, 0, 1]


def felt_filled_order_delay() -> None:
    "What filled is not sent anew, what rests stays, and after the pause the quotes are new"
    at_fill, paused, after = turns(STILL, STILL | BOUGHT, UP, UP, filled_order_delay=1.5)[1:]
    assert at_fill == paused == ([], [(10_005, 100)]) and after == ([(10_044, 100)], [(10_056, 100)])
    two = turns(STILL, STILL | BOUGHT, UP | BOUGHT, UP, filled_order_delay=1.5, levels=2)
    assert two[1] == ([(9_985, 100)], [(10_005, 100), (10_015, 100)])                              # the second bid rests
    assert two[2] == two[3] == ([], [(10_005, 100), (10_015, 100)])   # until it fills: the pause begins anew
    aged = turns(STILL, STILL | BOUGHT, STILL, STILL, STILL, filled_order_delay=9., order_age=1.5)
    assert all(asks == [(10_005, 100)] for _, asks in aged)   # in a pause none is sent anew for its age
    hung = turns(STILL, STILL | BOUGHT, UP, UP | SOLD, filled_order_delay=1.5, hanging_orders=1.)
    assert [asks for _, asks in hung] == [[(10_005, 100)]] * 3 + [[]]                              # it hangs, once, and fills, once


def felt_ping_pong() -> None:
    shown = turns(STILL, STILL | BOUGHT, STILL, STILL | SOLD, STILL | SOLD, STILL | BOUGHT, ping_pong=1.)
    assert [(len(bids), len(asks)) for bids, asks in shown] == [(1, 1), (0, 1), (0, 1), (1, 1), (1, 0), (1, 1)]
    assert all(len(bids) == len(asks) == 1 for bids, asks in turns(STILL, STILL | BOUGHT, STILL))


def felt_order_age() -> None:
    assert [len(bids) for bids, _ in turns(*[STILL] * 7, order_age=2.5)] == [1, 1, 1, 0, 1, 1, 0]
    assert [len(bids) for bids, _ in turns(STILL, STILL, UP, UP, UP, UP, order_age=2.5)] == [1, 1, 1, 1, 1, 0]   # a moved order is young


def felt_hanging_orders() -> None:
    shown = turns(STILL, STILL | BOUGHT, UP, UP | SOLD, UP, hanging_orders=1.)
    assert shown[2][ASK] == [(10_056, 100), (10_005, 100)] and shown[3][ASK] == shown[4][ASK] == [(10_056, 100)]
    assert turns(STILL, STILL | BOUGHT, UP)[2][ASK] == [(10_056, 100)]
    silent = turns(STILL, STILL | BOUGHT, UP, UP | SOLD, UP, hanging_orders=1., filled_order_delay=9.)           # no quote beside it
    assert [asks for _, asks in silent[2:]] == [[(10_005, 100)], [], []]


def felt_hanging_reach() -> None:
    near, far = (turns(STILL, STILL | BOUGHT, UP, hanging_orders=1., hanging_reach_bps=reach)[2][ASK] for reach in (20., 60.))
    assert near == [(10_056, 100)] and far == [(10_056, 100), (10_005, 100)]


FELT: dict[str, Callable[[], None]] = {
    'levels': felt_levels, 'level_spacing_bps': felt_level_spacing, 'level_growth': felt_level_growth,
    'minimum_distance_bps': felt_minimum_distance, 'inventory_range': felt_inventory_range, 'price_ceiling': felt_price_ceiling,
    'price_floor': felt_price_floor, 'filled_order_delay': felt_filled_order_delay, 'ping_pong': felt_ping_pong,
    'order_age': felt_order_age, 'hanging_orders': felt_hanging_orders, 'hanging_reach_bps': felt_hanging_reach}


@pytest.mark.parametrize('dial', COMMON)
def test_a_dial_is_felt(dial: str) -> None: FELT[dial]()


OWN = [(model.name, name) for model in MODELS.values() for name in model.defaults if name not in COMMON]


@pytest.mark.parametrize(('model', 'name'), OWN)
def test_a_parameter_of_its_own_is_felt(model: str, name: str) -> None:
    "Another value gives other wishes somewhere in a random session"
    default = MODELS[model].defaults[name]
    other = {'channel': 3., 'limit': default / 10, 'steps': default / 10, 'improve_ticks': 4., 'patience_ticks': 60.}.get(
        name, default * 5 or 3.)
    assert other != default
    def wished(value: float) -> list[Any]:
        found = []
        chosen, parameters = model_of(MarketMakingConfig(model=model, model_parameters={name: value}, **FREE))
        for seed in range(12):
            kept = np.zeros(SCRATCH)
            for view in views(seed, TURNS):
                wishes = np.zeros((1, 2, chosen.levels, 3), np.int64)
                chosen.quoter(view, parameters, kept, wishes)
                found.append(wishes.tolist())
        return found
    assert wished(other) != wished(default) == wished(default)


def test_in_a_pause_the_engine_sends_nothing() -> None:
    """A minute of the synthetic market at the touch: with the delay no order is sent within five seconds of a fill we knew of;
    on a spot account a quote from before the pause may still go out, when a fill sets free the coins or the money for it"""
    market = SyntheticMarket(7)
    tape = Tape(concat(list(market.batches(60_000_000_000))), market.instrument, Clock(), ('embedded',), True)
    def sent_in_pauses(delay: float, venue: Venue | None) -> tuple[Any, Any]:
        result = backtest(tape, venue=venue, config=load_config(preset='zero-fee-tier', overrides=dict(
            model='join', max_inventory_exposure=1., model_parameters=dict(filled_order_delay=delay, levels=2))))
        assert len(result.fills) > 5
        since = result.orders.placed_ns.to_numpy()[:, None] - result.fills.time_ns.to_numpy()[None, :]
        return result.orders[((since > 200_000_000) & (since < 5_000_000_000)).any(1)], result.fills   # 0.2 s: until we have decided
    margin = Venue(kind='linear', maker_fee=0., taker_fee=.0005)
    for venue in (margin, None): assert len(sent_in_pauses(0., venue)[0]) > 20
    assert len(sent_in_pauses(5., margin)[0]) == 0
    late, fills = sent_in_pauses(5., None)
    assert len(late) < 5
    for order in late.itertuples():
        assert ((fills.time_ns < order.placed_ns) & (fills.time_ns > order.placed_ns - 200_000_000)).any(), order


# Names

# hummingbot/strategy: pure_market_making_config_map.py, and avellaneda_market_making_config_map_pydantic.py for the second line
HUMMINGBOT = set('''bid_spread ask_spread minimum_spread order_refresh_time max_order_age order_refresh_tolerance_pct order_amount
    price_ceiling price_floor ping_pong_enabled order_levels order_level_amount order_level_spread inventory_skew_enabled
    inventory_target_base_pct inventory_range_multiplier inventory_price filled_order_delay hanging_orders_enabled hanging_orders_cancel_pct
    order_optimization_enabled ask_order_optimization_depth bid_order_optimization_depth add_transaction_costs price_source price_type
    price_source_exchange price_source_market take_if_crossed
    risk_factor order_amount_shape_factor min_spread volatility_buffer_size trading_intensity_buffer_size level_distances'''.split())


def test_the_page_for_users_of_hummingbot_names_what_exists() -> None:
    page = json.loads((Path(__file__).parent.parent/'nbs'/'trading'/'01b_models.ipynb').read_text())
    text = next(''.join(cell['source']) for cell in page['cells'] if '| hummingbot | here |' in ''.join(cell['source']))
    rows = [line.strip('|').split(' | ') for line in text.splitlines() if line.startswith('| ')][1:]
    own = {name for model in MODELS.values() for name in model.defaults}
    ours = {*COMMON, *MODELS, *own, *(field.name for field in fields(MarketMakingConfig))}
    named: set[str] = set()
    assert len(rows) > 12
    for theirs, here in rows:
        there = set(re.findall(r'`(\w+)`', theirs))
        assert there and there <= HUMMINGBOT, there - HUMMINGBOT
        mine = there if 'the same' in here else set(re.findall(r'`(\w+)`', here))
        assert mine and mine <= ours, mine - ours
        named |= mine
    assert set(COMMON) <= named, set(COMMON) - named                # no dial of ours goes unmentioned


@pytest.mark.parametrize('name', MODELS)
def test_a_wrong_name_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no model '{name[:-1]}'; did you mean .*{name}"):
        model_of(MarketMakingConfig(model=name[:-1]))
    for parameter in MODELS[name].defaults:
        with pytest.raises(ConfigError, match=f"{name} has no parameter '{parameter[:-1]}'; did you mean .*{parameter}"):
            model_of(MarketMakingConfig(model=name, model_parameters={parameter[:-1]: 1.}))
    if not MODELS[name].defaults:
        with pytest.raises(ConfigError, match="no parameter 'levels'; it has none of its own"):
            model_of(MarketMakingConfig(model=name, model_parameters={'levels': 2}))


BAD: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(('risk_aversion', 'decay', 'intensity', 'horizon_s', 'half_life_s', 'step_bps'), (0, -1)),
    **dict.fromkeys((*COMMON, 'half_spread_bps', 'multiple', 'improve_ticks', 'patience_ticks'), (-1,)),
    'levels': (0, 9, 1.5), 'channel': (-1, 8, 0.5), 'limit': (0, 2.5), 'steps': (0, 1.5), 'level_growth': ()}


@pytest.mark.parametrize('name', [name for name in MODELS if MODELS[name].defaults])
def test_a_value_out_of_range_is_refused(name: str) -> None:
    "With the parameter, its value and what it has to be, before anything runs; all that are wrong at once"
    for parameter in MODELS[name].defaults:
        for value in BAD.get(parameter, ()):
            with pytest.raises(ConfigError, match=f'{parameter} is {value}: it has to be'):
                model_of(MarketMakingConfig(model=name, model_parameters={parameter: value}))
    with pytest.raises(ConfigError, match=r'(?s)levels is 0: .*order_age is -1: |order_age is -1: .*levels is 0: '):
        model_of(MarketMakingConfig(model=name, model_parameters={'levels': 0, 'order_age': -1}))


def test_one_market_is_too_few_for_two() -> None:
    model, parameters = model_of(MarketMakingConfig(model='other_market'))
    quoter: Quoter = model.quoter
    with pytest.raises(ValueError, match='it needs two instruments'):
        quoter(new_view(bid_tick=99, ask_tick=101), parameters, np.zeros(SCRATCH), np.zeros((1, 2, 1, 3), np.int64))
