"Limits on how often and how large, in the engine"
from __future__ import annotations

from pathlib import Path

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


def test_a_price_far_from_the_market() -> None:
    "Half a per cent from the mid, a band of a tenth of a per cent: refused, each with its price; a wider band changes nothing"
    wide = run(spread_percentage=0.01)
    assert len(wide.orders) > 10 and wide.session.refusals['price out of range'] == 0
    narrow = run(spread_percentage=0.01, price_band=0.001)
    assert not len(narrow.orders) and narrow.session.refusals['price out of range'] > 100
    assert run(spread_percentage=0.01, price_band=0.02).orders.equals(wide.orders)
    mid = (narrow.samples.bid_tick + narrow.samples.ask_tick).median()/2
    assert (abs(narrow.session.refused.tick/mid - 1) > 0.004).all() and set(narrow.session.refused.side) == {1, -1}


def test_every_refusal_is_in_a_row(tmp_path: Path) -> None:
    "With its reason; the counts are those of the summary, and no side and reason has two rows in one minute"
    result = run(max_orders_per_10s=6, max_inventory_exposure=0.02)
    table, told = result.session.refused, {name: count for name, count in result.session.refusals.items() if count}
    assert table['count'].groupby(table.reason).sum().to_dict() == told and len(told) >= 2
    assert not (table.first_ns//60_000_000_000).to_frame().assign(side=table.side, reason=table.reason).duplicated().any()
    assert (table.first_ns <= table.last_ns).all() and (table.first_ns.diff().dropna() >= 0).all()
    assert (table.last_ns <= result.session.end_ns).all()
    written = result.write(tmp_path)['refusals.csv'].read_text().splitlines()
    assert len(written) == 1 + len(table) and written[0].startswith('first_time,last_time,count,side,price,amount,reason')
    assert sum(int(line.split(',')[2]) for line in written[1:]) == sum(told.values())


def test_limits_that_make_no_sense() -> None:
    wrong = (dict(max_orders_per_10s=0), dict(max_orders_per_10s=2.5), dict(max_order_notional=-1.0), dict(max_orders_per_day='many'),
             dict(price_band=0), dict(price_band=2))
    for changes in wrong:
        with pytest.raises(ConfigError): load_config(overrides=changes)
