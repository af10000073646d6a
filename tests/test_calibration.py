"Volatility and fill intensity on made-up markets: the estimates, how often the bands hold the truth, and what is refused"
from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from cryptoexp.market.events import BUY, LAST, TRADE, from_rows
from cryptoexp.market.statistics import SECOND
from cryptoexp.trading.calibration import (
    LEAST_DISTANCES,
    IntensityFit,
    bipower,
    block_bootstrap,
    fit_intensity,
    reaches,
    realised,
    realised_kernel,
    two_scale,
    volatility_table,
)

SIGMA, INTENSITY, DECAY = 2.0, 0.9, 1.0           # bps per root second; fills per second; 1/bps
SPACING = 0.1                                     # s between two mids
ROBUST = ['two scales (no noise)', 'realised kernel (no noise)']


def bounds(runs: int, share: float = 0.95, odds: float = 1e-3) -> tuple[int, int]:
    "Fewest and most hits in so many runs that a band of exactly `share` gives but for `odds` on either side"
    chance = [math.comb(runs, hits) * share**hits * (1 - share)**(runs - hits) for hits in range(runs + 1)]
    below, above = np.cumsum(chance), np.cumsum(chance[::-1])[::-1]
    return int(np.argmax(below >= odds)), int(np.flatnonzero(above >= odds)[-1])


def test_the_binomial_bounds() -> None:
    assert bounds(40) == (33, 40) and bounds(400)[0] < 380 < bounds(400)[1] < 400


# Volatility

def walk(seed: int, steps: int, noise: float = 0.0) -> np.ndarray:
    "SYNTHETIC: log prices in bps, a random walk of SIGMA seen through a bounce between bid and ask"
    random = np.random.default_rng(seed)
    moved = np.concatenate([[0.0], np.cumsum(random.normal(0, SIGMA * math.sqrt(SPACING), steps))])
    return moved + (random.choice([-noise, noise], steps + 1) if noise else 0.0)


def tables(seeds: Iterable[int], steps: int, noise: float = 0.0) -> tuple[dict[str, int], dict[str, float]]:
    "By estimator: how many bands held the truth, and the mean estimate"
    clock = np.arange(steps + 1) * (SECOND // 10)
    found = [volatility_table(clock, np.exp(1e-4 * walk(seed, steps, noise))) for seed in seeds]
    names = found[0].index
    return ({name: sum(bool(one.low[name] < SIGMA < one.high[name]) for one in found) for name in names},
            {name: float(np.mean([one.bps_per_root_s[name] for one in found])) for name in names})


def test_every_estimator_is_right_on_the_mean() -> None:
    "Without noise: within four standard errors of the mean of 400 stretches, which is under two per cent of the variance"
    returns = np.diff([walk(seed, 600) for seed in range(400)], axis=1)
    truth = SIGMA**2 * SPACING * 600
    for estimate in (realised, bipower, two_scale, realised_kernel):
        values = np.array([estimate(one) for one in returns])
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert error < 0.02 * truth and abs(values.mean() - truth) < 4 * error, estimate.__name__
    short = np.array([bipower(one[:12]) for one in returns.reshape(-1, 12)])     # what it is given in a block of a minute
    assert abs(short.mean() / (SIGMA**2 * SPACING * 12) - 1) < 4 * short.std() / math.sqrt(short.size) / (SIGMA**2 * SPACING * 12)


def test_two_scales_are_right_through_noise_of_any_size() -> None:
    "The estimator is unbiased for noise of its own, at any scale; the naive one is off by twice the noise's variance a return"
    truth = SIGMA**2 * SPACING * 600
    for noise in (1.0, 3.0):
        returns = np.diff([walk(seed, 600, noise) for seed in range(500, 900)], axis=1)
        naive = np.mean([realised(one) for one in returns])
        assert naive == pytest.approx(truth + 600 * 2 * noise**2, rel=0.02)
        for scale in (0, 10, 40):
            values = np.array([two_scale(one, scale) for one in returns])
            assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(values.size), (noise, scale)


def test_jumps_count_for_all_but_bipower() -> None:
    returns = np.diff(walk(3, 20_000)[::50])
    jumped = returns.copy()
    jumped[200] += 300
    assert realised(jumped) > realised(returns) + 0.95 * 300**2 and bipower(jumped) < bipower(returns) + 0.05 * 300**2


def test_volatility_bands_hold_the_truth() -> None:
    "Twenty minutes of a clean market, 40 times: each band of 95 % misses at most seven times; on the mean all are within 2 %"
    held, mean = tables(range(40), 12_000)
    fewest, most = bounds(40)
    assert len(held) == 5 and all(fewest <= hits <= most for hits in held.values()), held
    assert all(abs(value / SIGMA - 1) < 0.02 for value in mean.values()), mean


def test_only_the_robust_bands_hold_it_through_noise() -> None:
    "A bounce of 1 bps: the naive estimate is 2.4 times too large and never within its band; the two robust ones are"
    held, mean = tables(range(100, 140), 12_000, noise=1.0)
    assert held['realised, 0.1 s'] == 0 and mean['realised, 0.1 s'] == pytest.approx(math.sqrt(SIGMA**2 + 2 / SPACING), rel=0.01)
    assert all(held[name] >= bounds(40)[0] and abs(mean[name] / SIGMA - 1) < 0.02 for name in ROBUST), (held, mean)


@pytest.mark.long
@pytest.mark.parametrize('noise', [0.0, 1.0])
def test_volatility_bands_at_length(noise: float) -> None:
    "An hour, 400 times; the robust ones with noise too"
    held, _ = tables(range(1000, 1400), 36_000, noise)
    fewest, most = bounds(400)
    assert all(fewest <= hits <= most for name, hits in held.items() if not noise or name in ROBUST), held


def test_volatility_that_cannot_be_told() -> None:
    with pytest.raises(ValueError, match=r'4,999 returns of 0\.1 s are less than a hundred coarse ones of 50'):
        volatility_table(np.arange(5000) * (SECOND // 10), np.ones(5000))
    with pytest.raises(ValueError, match='interval_ns must be positive, not 0'): volatility_table(np.arange(10), np.ones(10), 0)
    with pytest.raises(ValueError, match='a time for each value, not 10 times and 9 values'): volatility_table(np.arange(10), np.ones(9))
    assert math.isnan(bipower(np.ones(1))) and math.isnan(two_scale(np.ones(3))) and math.isnan(realised_kernel(np.ones(1)))
    still = volatility_table(np.arange(5001) * (SECOND // 10), np.ones(5001))
    assert (still == 0).all(axis=None)


# The bootstrap by itself

def test_the_bootstrap() -> None:
    "The width for a mean is that of theory; few blocks give none; the same seed gives the same; a wider share is a wider band"
    random = np.random.default_rng(1)
    blocks = [np.array([value]) for value in random.normal(0, 1, 400)]
    def mean(chosen: list[np.ndarray]) -> float: return float(np.mean(chosen))
    low, high = block_bootstrap(blocks, mean, draws=2000)
    assert high - low == pytest.approx(2 * 1.96 * float(np.std(blocks)) / 20, rel=0.08)
    assert block_bootstrap(blocks, mean, 100) == block_bootstrap(blocks, mean, 100) != block_bootstrap(blocks, mean, 100, seed=8)
    wide = block_bootstrap(blocks, mean, draws=2000, share=0.99)
    assert wide[0] < low and wide[1] > high
    assert all(math.isnan(end) for end in block_bootstrap(blocks[:7], mean))
    assert all(math.isnan(end) for end in block_bootstrap(blocks, lambda chosen: math.nan))
    with pytest.raises(ValueError, match='share must be between 0 and 1, not 95'): block_bootstrap(blocks, mean, share=95)


# The fill intensity

def obedient(seed: int, intervals: int, intensity: float = INTENSITY, decay: float = DECAY, interval_s: float = 1.0) -> np.ndarray:
    "SYNTHETIC: the reach of each interval where takers come as the law says, simulated taker by taker's largest"
    random = np.random.default_rng(seed)
    counts = random.poisson(intensity * interval_s, (intervals, 2))
    largest = -np.log(-np.expm1(np.log(random.random((intervals, 2))) / np.maximum(counts, 1))) / decay
    return np.where(counts > 0, largest, -np.inf)


def fits(seeds: Iterable[int], intervals: int) -> list[IntensityFit]:
    return [fit_intensity(obedient(seed, intervals)) for seed in seeds]


def held(found: list[IntensityFit]) -> tuple[int, int]:
    "How many bands of A and of k held the truth"
    return (sum(one.intensity_band[0] < INTENSITY < one.intensity_band[1] for one in found),
            sum(one.decay_band[0] < DECAY < one.decay_band[1] for one in found))


def test_the_made_up_market_is_what_it_says() -> None:
    "An independent count: takers drawn one by one give the same shares beyond a distance"
    random = np.random.default_rng(5)
    counts = random.poisson(INTENSITY, 40_000)
    farthest = np.full(counts.size, -np.inf)
    np.maximum.at(farthest, np.repeat(np.arange(counts.size), counts), random.exponential(1 / DECAY, counts.sum()))
    quick = obedient(6, 20_000).ravel()
    for distance in (0.0, 0.5, 1.0, 2.0):
        p = -math.expm1(-INTENSITY * math.exp(-DECAY * distance))
        error = math.sqrt(p * (1 - p) / 40_000)
        assert abs((farthest > distance).mean() - p) < 4 * error and abs((quick > distance).mean() - p) < 4 * error


def test_intensity_bands_hold_the_truth() -> None:
    "Over an hour of obedient takers, 40 times: A and k miss at most seven times; right on the mean; one in a hundred refused, not more"
    found = fits(range(40), 4000)
    fewest, _ = bounds(40)
    assert min(held(found)) >= fewest, held(found)
    for values, truth in (([one.intensity for one in found], INTENSITY), ([one.decay for one in found], DECAY)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(40) and np.std(values) < 0.03 * truth
    assert sum(bool(one.refused) for one in found) <= 4      # each a false alarm: P(5 or more) < 1e-3 where one in fifty is


@pytest.mark.long
def test_intensity_bands_at_length() -> None:
    found = fits(range(2000, 2400), 20_000)
    fewest, most = bounds(400)
    assert all(fewest <= hits <= most for hits in held(found)), held(found)
    assert sum(bool(one.refused) for one in found) <= bounds(400, 0.03)[1]


def test_bands_narrow_as_data_grow() -> None:
    "Sixteen times the intervals: a quarter of the width, on the mean of three"
    def width(intervals: int) -> tuple[float, float]:
        found = [fit_intensity(obedient(seed, intervals), distances=np.linspace(0, 2.5, 9)) for seed in range(3)]
        return tuple(np.mean([np.diff(getattr(one, name)) for one in found]) for name in ('intensity_band', 'decay_band'))  # type: ignore[return-value]
    few, many = width(5000), width(80_000)
    assert 2.8 < few[0] / many[0] < 5.2 and 2.8 < few[1] / many[1] < 5.2, (few, many)


def test_the_interval_does_not_matter() -> None:
    "The same market watched in seconds or in tenths: the same A and k, in fills per second"
    one, tenth = fit_intensity(obedient(3, 20_000)), fit_intensity(obedient(4, 200_000, interval_s=0.1), 0.1)
    assert one.intensity == pytest.approx(tenth.intensity, rel=0.03) and one.decay == pytest.approx(tenth.decay, rel=0.05)
    assert one.parameters() == dict(intensity=one.intensity, decay=one.decay)
    assert (one.curve['count'].diff().dropna() <= 0).all() and one.curve.index[0] == 0.0


REFUSED = {
    'a power law': (lambda random: random.pareto(1.5, (20_000, 2)), None, 'should explain 90%'),
    'a mild power law': (lambda random: random.pareto(4.0, (20_000, 2)), None, 'bends upwards'),
    'takers who hardly go far': (lambda random: np.where(random.random((20_000, 2)) < .3, abs(random.normal(0, 1, (20_000, 2))), -np.inf),
                                       np.linspace(0, 2, 9), 'bends downwards'),
    'silence': (lambda random: np.where(random.random((20_000, 2)) < .0005, 1., -np.inf), None, 'only 0 distances were reached 30 times'),
    'too few distances': (lambda random: random.exponential(1, (20_000, 2)), np.array([0.5, 1.0, 1.5, 2.0]), 'only 4 distances'),
    'one distance': (lambda random: np.where(random.random((20_000, 2)) < .5, 1., -np.inf), None, 'no slope'),
    'no trade at all': (lambda random: np.full((200, 2), -np.inf), None, f'fewer than {LEAST_DISTANCES} says nothing'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_market_that_does_not_obey_is_refused(name: str) -> None:
    made, distances, why = REFUSED[name]
    fit = fit_intensity(made(np.random.default_rng(2)), distances=distances)
    assert why in fit.refused
    with pytest.raises(ValueError, match='the fit is refused: '): fit.parameters()
    assert f'refused: {fit.refused}' in fit._repr_html_()


def test_input_that_is_no_data() -> None:
    with pytest.raises(ValueError, match='99 intervals are too few to tell a rate; there should be at least a hundred'):
        fit_intensity(np.zeros((99, 2)))
    good = obedient(1, 200)
    with pytest.raises(ValueError, match='interval_s must be positive, not 0'): fit_intensity(good, 0)
    with pytest.raises(ValueError, match=r'distances must increase, and distance 1 is 0\.5 after 1'):
        fit_intensity(good, distances=np.array([1, .5, 2, 3, 4.]))
    with pytest.raises(ValueError, match=r'shape \(intervals, 2\), not \(200,\)'): fit_intensity(good[:, 0])
    with pytest.raises(ValueError, match='row 7 of the reaches holds NaN'):
        fit_intensity(np.where((np.arange(200) == 7)[:, None], np.nan, good))


# From trades to reaches

def test_reaches_against_a_count_by_hand() -> None:
    "Random trades around a moving mid: the same as going through them one by one, in plain Python"
    random = np.random.default_rng(9)
    clock = np.sort(random.integers(0, 60 * SECOND, 400))
    mid = 10_000 + np.cumsum(random.integers(-3, 4, clock.size)) / 2
    when = np.sort(random.integers(0, 70 * SECOND, 500))
    buys, ticks = random.random(when.size) < 0.5, 10_000 + random.integers(-40, 41, when.size)
    rows = from_rows([(TRADE | LAST | (BUY if buy else 0), int(at), int(at), int(tick), 1, 0)
                      for at, buy, tick in zip(when, buys, ticks, strict=True)])
    found = reaches(clock, mid, rows)
    count = int((clock[-1] - clock[0]) // SECOND)
    wanted = np.full((count, 2), -np.inf)
    for at, buy, tick in zip(when.tolist(), buys.tolist(), ticks.tolist(), strict=True):
        place = (at - int(clock[0])) // SECOND
        if not 0 <= place < count: continue
        start = mid[max(number for number, began in enumerate(clock) if began <= clock[0] + place * SECOND)]
        beyond = ((tick - start) if buy else (start - tick)) / start * 1e4
        wanted[place, 0 if buy else 1] = max(wanted[place, 0 if buy else 1], beyond)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    assert reaches(np.empty(0, np.int64), np.empty(0), rows).shape == (0, 2)
    with pytest.raises(ValueError, match='interval_ns must be positive, not -1'): reaches(clock, mid, rows, -1)


def test_a_market_of_trades_gives_its_parameters_back() -> None:
    "From takers as events, through `reaches`, to A and k within their bands"
    random = np.random.default_rng(12)
    seconds, mid = 20_000, 1_000_000.0                        # a tick is 0.01 bps
    rows = []
    for sign in (1, -1):
        when = np.sort(random.uniform(0, seconds, random.poisson(INTENSITY * seconds)))
        far = random.exponential(1 / DECAY, when.size)
        rows += [(TRADE | LAST | (BUY if sign > 0 else 0), int(at * SECOND), int(at * SECOND), round(mid + sign * one * 100), 1, 0)
                 for at, one in zip(when, far, strict=True)]
    trades = from_rows(sorted(rows, key=lambda row: row[1]))
    clock = np.arange(seconds + 1) * SECOND
    fit = fit_intensity(reaches(clock, np.full(clock.size, mid), trades), distances=np.linspace(0.1, 4.1, 11))
    assert not fit.refused
    assert fit.intensity_band[0] < INTENSITY < fit.intensity_band[1] and fit.decay_band[0] < DECAY < fit.decay_band[1]
