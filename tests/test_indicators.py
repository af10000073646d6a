"""Indicators: TA-Lib held against a second library on real bars, against the published definitions, and against what must be true

Where the two libraries start differently, and so differ at first:

- **EMA**: both start with the mean of the first n closes; the same from the first value on.
- **MACD**: TA-Lib starts both averages at the 26th close, the short one with the mean of closes 15 to 26; talipp starts the short one
  at the 12th. The difference fades by (11/13) a candle. The signal line starts with a mean of 9 in both.
- **RSI, ATR, ADX** (Wilder): both start the RSI with the mean of the first 14 moves: the same from the first value on. The true
  range of the first candle has no close before it: TA-Lib leaves it out, talipp takes high less low, so ATR and ADX begin one candle apart
  and the difference fades by 13/14 a candle.
- **Bollinger**: both take the deviation of the population.
- **OBV**: TA-Lib starts with the volume of the first candle, talipp too; only its moves mean something.
"""
from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
import talib
import talipp.indicators as second
from hypothesis import given, settings
from hypothesis import strategies as st
from talipp.ohlcv import OHLCV

from cryptoexp.analyst.facts import Fact
from cryptoexp.analyst.indicators import (
    CLOSES,
    DAY,
    HOUR,
    INDICATORS,
    SECOND,
    VOLUMES,
    Candles,
    NoCandles,
    Prices,
    against_facts,
    bands,
    daily_returns,
    indicator_fact,
    indicator_facts,
    money_flow,
    net_volume,
    resampled,
    rising_volume,
    risk_facts,
    rsi,
    volume_facts,
    window_facts,
)

ROWS = {one.id: one for one in INDICATORS}


@pytest.fixture(scope='module')
def minutes(data_folder: Path) -> Candles:
    with gzip.open(data_folder/'bars'/'btc-perp-20211231-20220201_1m.csv.gz', 'rt') as file:
        table = pd.read_csv(file, parse_dates=['timestamp'])
    columns = [table[name].to_numpy() for name in ('open', 'high', 'low', 'close', 'volume')]
    begin_ns = table.timestamp.astype('datetime64[ns]').astype('int64').to_numpy()
    return Candles(begin_ns, *columns, 60 * SECOND, 'recorded')   # type: ignore[arg-type]


@pytest.fixture(scope='module', params=['1h', '4h', '15m', 'Kraken'])
def candles(request: pytest.FixtureRequest, data_folder: Path, minutes: Candles) -> Candles:
    "Real candles: hours, four hours and quarters of a perpetual, and minutes of a quiet spot market"
    if request.param != 'Kraken': return resampled(minutes, {'1h': HOUR, '4h': 4 * HOUR, '15m': HOUR // 4}[request.param])
    rows = orjson.loads((data_folder/'bars'/'kraken_http_ohlc.json').read_bytes())['result']['XBTUSDT']
    table = np.array([[float(value) for value in row] for row in rows])
    return Candles(table[:, 0].astype(np.int64) * SECOND, *table[:, 1:5].T, table[:, 6], 60 * SECOND, 'Kraken')


def values(series: Any, part: str = '') -> np.ndarray:
    "What talipp computed; not a number where it has none"
    parts = [getattr(one, part, None) if part and one is not None else one for one in series]
    return np.array([np.nan if one is None else float(one) for one in parts])


def rows_of(candles: Candles) -> list[OHLCV]:
    volume = np.zeros(len(candles)) if candles.volume is None else candles.volume
    return [OHLCV(*row) for row in zip(*(column.tolist() for column in (candles.open, candles.high, candles.low, candles.close, volume)))]


def same(ours: np.ndarray, theirs: np.ndarray, scale: float, skip: int = 0, tolerance: float = 1e-9) -> None:
    "Equal wherever both have a value, after the first `skip` common ones, and common values there are"
    both = np.flatnonzero(np.isfinite(ours) & np.isfinite(theirs))[skip:]
    assert len(both) > 50
    assert np.abs(ours[both] - theirs[both]).max() <= tolerance * scale


# ---- against talipp, on real bars

def test_averages(candles: Candles) -> None:
    scale = float(candles.close.max())
    for key, made in (('sma_20', second.SMA(20, candles.close.tolist())), ('sma_50', second.SMA(50, candles.close.tolist())),
                      ('ema_20', second.EMA(20, candles.close.tolist()))):
        same(ROWS[key].series(candles), values(made), scale)
    if len(candles) > 400: same(ROWS['sma_200'].series(candles), values(second.SMA(200, candles.close.tolist())), scale)


def test_rsi(candles: Candles) -> None:
    ours, theirs = rsi(candles), values(second.RSI(14, candles.close.tolist()))
    same(ours, theirs, 100, tolerance=1e-8)


def test_macd_is_the_same_once_the_start_has_faded(candles: Candles) -> None:
    made = second.MACD(12, 26, 9, candles.close.tolist())
    scale = float(np.abs(np.diff(candles.close)).max())
    for key, part in (('macd', 'macd'), ('macd_signal', 'signal'), ('macd_histogram', 'histogram')):
        ours, theirs = ROWS[key].series(candles), values(made, part)
        same(ours, theirs, scale, skip=ROWS[key].needs, tolerance=2e-4)       # from where we tell it
        if len(candles) > 400: same(ours, theirs, scale, skip=250, tolerance=1e-9)


def test_bollinger(candles: Candles) -> None:
    made = second.BB(20, 2.0, candles.close.tolist())
    for ours, part in zip(bands(candles), ('ub', 'cb', 'lb')): same(ours, values(made, part), float(candles.close.max()), tolerance=1e-7)


def test_ranges_are_the_same_once_the_start_has_faded(candles: Candles) -> None:
    rows = rows_of(candles)
    scale = float(np.median(candles.high - candles.low)) or float(np.mean(candles.high - candles.low))
    atr, theirs = ROWS['atr_14'].series(candles), values(second.ATR(14, rows))
    same(atr, theirs, scale, skip=ROWS['atr_14'].needs, tolerance=0.2)
    if len(candles) > 700: same(atr, theirs, scale, skip=500, tolerance=1e-9)
    made = second.ADX(14, 14, rows)
    for key, part in (('adx_14', 'adx'), ('plus_di_14', 'plus_di'), ('minus_di_14', 'minus_di')):
        ours, theirs = ROWS[key].series(candles), values(made, part)
        if len(candles) > 700: same(ours, theirs, 100, skip=500, tolerance=1e-6)
        else: same(ours, theirs, 100, skip=60, tolerance=0.05)


def test_obv_moves_alike(candles: Candles) -> None:
    ours, theirs = ROWS['obv'].series(candles), values(second.OBV(rows_of(candles)))
    both = np.flatnonzero(np.isfinite(ours) & np.isfinite(theirs))
    assert candles.volume is not None
    assert np.abs(np.diff(ours[both]) - np.diff(theirs[both])).max() <= 1e-9 * float(candles.volume.sum() + 1)


# ---- against the published definitions, written out

def wilder_rsi(close: np.ndarray, count: int = 14) -> float:
    "Wilder (1978): averages of gains and of losses, each new one weighing a fourteenth"
    moves = np.diff(close)
    gain, loss = np.maximum(moves, 0), np.maximum(-moves, 0)
    up, down = gain[:count].mean(), loss[:count].mean()
    for rise, fall in zip(gain[count:], loss[count:]): up, down = (up * (count - 1) + rise) / count, (down * (count - 1) + fall) / count
    return float(100 - 100 / (1 + up / down)) if down else 100.0


def wilder_atr(candles: Candles, count: int = 14) -> float:
    before = candles.close[:-1]
    ranges = np.maximum(candles.high[1:], before) - np.minimum(candles.low[1:], before)
    value = ranges[:count].mean()
    for one in ranges[count:]: value = (value * (count - 1) + one) / count
    return float(value)


def quong_soudack_mfi(candles: Candles, count: int = 14) -> float:
    "Money flow index: typical price times volume of the candles in which it rose, against those in which it fell"
    assert candles.volume is not None
    typical = (candles.high + candles.low + candles.close) / 3
    flow, moves = typical[1:] * candles.volume[1:], np.diff(typical)
    into, out = flow[-count:][moves[-count:] > 0].sum(), flow[-count:][moves[-count:] < 0].sum()
    return float(100 * into / (into + out))


def test_definitions_on_real_bars(minutes: Candles) -> None:
    hours = resampled(minutes, HOUR)
    for end in (100, 333, len(hours)):
        part = hours[:end]
        assert part.volume is not None
        assert rsi(part)[-1] == pytest.approx(wilder_rsi(part.close), rel=1e-9)
        assert ROWS['atr_14'].series(part)[-1] == pytest.approx(wilder_atr(part), rel=1e-9)
        assert money_flow(part)[-1] == pytest.approx(quong_soudack_mfi(part), rel=1e-9)
        mean, deviation = part.close[-20:].mean(), part.close[-20:].std()
        position = 100 * (part.close[-1] - mean + 2 * deviation) / (4 * deviation)
        assert ROWS['bollinger_position'].series(part)[-1] == pytest.approx(position, rel=1e-6)
        moves = np.sign(np.diff(part.close))[-30:]
        volume = part.volume[-30:]
        assert net_volume(part)[-1] == pytest.approx(100 * (moves * volume).sum() / volume.sum(), rel=1e-9, abs=1e-9)
        assert rising_volume(part)[-1] == pytest.approx(100 * volume[moves > 0].sum() / volume.sum(), rel=1e-9, abs=1e-9)


def test_the_start_has_faded_where_a_value_is_told(minutes: Candles) -> None:
    "An indicator with just the candles it needs differs little from one with the whole history: that is what `needs` promises"
    hours = resampled(minutes, HOUR)
    spread = {'rsi_14': 100, 'adx_14': 100, 'plus_di_14': 100, 'minus_di_14': 100}
    for one in INDICATORS:
        if one.id in ('close', 'obv'): continue
        whole = one.series(hours)
        scale = spread.get(one.id) or float(np.nanmax(whole) - np.nanmin(whole))
        errors = [abs(float(one.series(hours[end - one.needs:end])[-1]) - float(whole[end - 1])) / scale
                  for end in range(300, len(hours), 9)]
        assert float(np.median(errors)) < 0.03 and max(errors) < 0.15, (one.id, np.median(errors), max(errors))


# ---- what must be true of any candles

def walk(seed: int, count: int = 260, scale: float = 100.0, size: float = 0.03) -> Candles:
    generator = np.random.default_rng(seed)
    close = scale * np.exp(generator.normal(0, size, count).cumsum())
    opened = np.r_[close[:1], close[:-1]]
    high = np.maximum(opened, close) * (1 + generator.uniform(0, size, count))
    low = np.minimum(opened, close) * (1 - generator.uniform(0, size / 2, count))
    return Candles(np.arange(count) * DAY, opened, high, low, close, generator.uniform(1, 9, count), DAY, f'walk {seed}')


def all_facts(candles: Candles) -> list[Fact]:
    prices = Prices(candles.begin_ns + candles.interval_ns, candles.close, candles.source)
    return [*indicator_facts(candles), *window_facts(prices), *risk_facts(candles), *volume_facts(candles),
            *against_facts(candles, walk(1), 'one', 'one', '一')]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10 ** 6), st.sampled_from([1e-12, 1e-8, 1e-5, 1e3, 1e9]))
def test_the_unit_of_money_does_not_matter(seed: int, factor: float) -> None:
    "A price a million times smaller, as some coins have, gives the same readings; levels scale along"
    one, other = walk(seed), walk(seed, scale=100 * factor)
    for before, after in zip(all_facts(one), all_facts(other)):
        assert (before.reason, before.value is None) == (after.reason, after.value is None)
        if before.value is None: continue
        levels = factor if before.unit == 'USD' and not before.id.startswith('obv') else 1
        assert float(after.value or 0) == pytest.approx(float(before.value) * levels, rel=1e-6, abs=1e-7 * levels), before.id


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10 ** 6), st.integers(0, 259))
def test_what_comes_later_changes_nothing_earlier(seed: int, cut: int) -> None:
    "No look-ahead: the series of the first candles is the beginning of the series of all"
    candles = walk(seed)
    for one in INDICATORS:
        whole, part = one.series(candles)[:cut], one.series(candles[:cut]) if cut > 1 else np.array([])
        if cut > 1: np.testing.assert_allclose(part, whole, rtol=1e-9, atol=1e-9, err_msg=one.id)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10 ** 6), st.floats(0.001, 0.5))
def test_bounds(seed: int, size: float) -> None:
    known = {fact.id: float(fact.value) for fact in all_facts(walk(seed, size=size)) if isinstance(fact.value, float)}
    for key in ('rsi_14_1d', 'adx_14_1d', 'mfi_14_1d', 'rising_volume_30_1d', 'plus_di_14_1d'):
        assert -1e-9 <= known[key] <= 100 + 1e-9, key
    assert -100 <= known['net_volume_30_1d'] <= 100
    for window in ('30d', '90d'):
        assert known[f'max_drawdown_{window}'] <= known[f'from_high_{window}'] <= 0 <= known[f'from_low_{window}']
    assert known['volatility_30d'] >= 0 and abs(known['correlation_90d_one']) <= 1 + 1e-12


def test_a_mirror_turns_buyers_into_sellers() -> None:
    candles = walk(3)
    mirrored = replace(candles, open=1e4 / candles.open, close=1e4 / candles.close, high=1e4 / candles.low, low=1e4 / candles.high)
    assert net_volume(mirrored)[-1] == pytest.approx(-net_volume(candles)[-1])
    assert rising_volume(mirrored)[-1] == pytest.approx(100 - rising_volume(candles)[-1])
    assert rsi(mirrored)[-1] == pytest.approx(100 - rsi(candles)[-1], abs=3)      # nearly: gains are not symmetric in price


# ---- absences

@pytest.mark.parametrize('count', range(90))
def test_too_few_candles_say_so(count: int) -> None:
    facts = indicator_facts(walk(5)[:count])
    for one, fact in zip(INDICATORS, facts):
        if count < one.needs: assert (fact.reason, fact.detail) == ('too few data', f'{count} < {one.needs}')
        else: assert fact.value is not None and fact.as_of == count * DAY


def test_real_flat_minutes_have_no_reading(data_folder: Path) -> None:
    "The first minutes of Kraken's recording have no trade; TA-Lib reads them as the RSI of a crash"
    rows = orjson.loads((data_folder/'bars'/'kraken_http_ohlc.json').read_bytes())['result']['XBTUSDT']
    table = np.array([[float(value) for value in row] for row in rows])
    candles = Candles(table[:, 0].astype(np.int64) * SECOND, *table[:, 1:5].T, table[:, 6], 60 * SECOND, 'Kraken')
    flat = int(np.argmax(np.diff(candles.close) != 0)) + 1
    still = candles[np.arange(flat)]
    assert flat >= 2 and np.isnan(rsi(still)).all()
    longer = Candles(np.arange(100) * DAY, *[np.full(100, 5.0)] * 4, np.zeros(100), DAY, 'flat')
    assert talib.RSI(longer.close, 14)[-1] == 0
    absent = {fact.id: fact.reason for fact in indicator_facts(longer) if fact.value is None}
    keys = ('rsi_14', 'adx_14', 'mfi_14', 'bollinger_position', 'net_volume_30', 'rising_volume_30')
    assert {absent[f'{key}_1d'] for key in keys} == {'undefined'}


def test_holes_are_told_and_not_bridged() -> None:
    candles = walk(4)
    holed = candles[np.delete(np.arange(260), [100, 101, 200])]
    assert holed.missing == 3 and '3 missing' in indicator_fact(CLOSES[1], holed).method
    assert int(np.isnan(daily_returns(holed)).sum()) == 3 and len(daily_returns(holed)) == 257


def test_no_candles_for_every_reason() -> None:
    nothing: Callable[[str], NoCandles] = lambda reason: NoCandles(reason, 'HTTP 503', 'somebody')
    for reason in ('unreachable', 'refused', 'unreadable', 'not asked'):
        facts = [*indicator_facts(nothing(reason)), *window_facts(nothing(reason)), *risk_facts(nothing(reason)),
                 *volume_facts(nothing(reason)), *against_facts(walk(1), nothing(reason), 'x', 'x', 'x'),
                 *against_facts(nothing(reason), walk(1), 'x', 'x', 'x')]
        assert {(fact.reason, fact.detail, fact.value) for fact in facts} == {(reason, 'HTTP 503', None)}
    assert {fact.reason for fact in indicator_facts(replace(walk(1), volume=None), VOLUMES)} == {'not reported'}
