"Limits on how often and how large, in the engine"
from __future__ import annotations

import numpy as np
import pytest

from cryptoexp.config import ConfigError, load_config
from cryptoexp.market.events import concat
from cryptoexp.market.synthetic import SyntheticMarket
from cryptoexp.market.tape import Clock, Tape
from cryptoexp.trading.backtest import Result, backtest
from cryptoexp.trading.limits import DAY_NS, TEN_SECONDS_NS


def run(**changes: object) -> Result:
    market = SyntheticMarket(7)
    tape = Tape(concat(list(market.batches(120_000_000_000))), market.instrument, Clock(), ('embedded',), True)
    return backtest(tape, config=load_config(preset='zero-fee-tier', overrides=changes))


def test_orders_in_a_window() -> None:
    "Never more than the limit from one multiple of ten seconds to the next; what is refused is counted with its reason"
    free, strict = run(), run(max_orders_per_10s=6)
    def most(result: Result, length: int) -> int:
        return int(np.bincount(result.orders.placed_ns // length - result.orders.placed_ns.min() // length).max())
    assert most(free, TEN_SECONDS_NS) > 6 and free.session.refusals['order rate'] == 0
    assert most(strict, TEN_SECONDS_NS) == 6 and strict.session.refusals['order rate'] > 0
    daily = run(max_orders_per_day=11)
    assert len(daily.orders) == most(daily, DAY_NS) == 11 and daily.session.refusals['order rate'] > 0


def test_an_order_that_is_too_large() -> None:
    result = run(max_order_notional=1.0)
    assert not len(result.orders) and result.session.refusals['above the largest order'] > 0
    assert len(run(max_order_notional=1e6).orders) == len(run().orders)


def test_limits_that_make_no_sense() -> None:
    wrong = dict(max_orders_per_10s=0), dict(max_orders_per_10s=2.5), dict(max_order_notional=-1.0), dict(max_orders_per_day='many')
    for changes in wrong:
        with pytest.raises(ConfigError): load_config(overrides=changes)
