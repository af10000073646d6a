"""Fused tapes against the truth of an invented venue, replayed by plain dictionaries on both clocks; files of hftbacktest, both ways"""
from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.market import tape
from cryptoexp.market.book import OrderBook, touch_path
from cryptoexp.market.events import (
    BEST_QUOTE,
    BUY,
    CLEAR,
    CONTROL,
    DEPTH,
    EXCHANGE_ONLY,
    LAST,
    LOCAL_ONLY,
    RESUME,
    SELL,
    SNAPSHOT,
    STALE,
    TRADE,
    Events,
    from_rows,
)
from cryptoexp.market.instrument import Instrument

TOY = Instrument('binance', 'BTCUSDT', 'BTC', 'USDT', '0.01', '0.001')
MS = 10 ** 6
START = 1_723_161_255_000 * MS


# ---- an invented venue

class Venue:
    "Every state of a small book by update id, and what three streams tell of it, each with delays of its own"
    def __init__(self, seed: int, steps: int = 60, lose: int | None = None, futures: bool = False):
        draw = random.Random(seed)
        self.truth: dict[int, tuple[dict[int, int], dict[int, int]]] = {}
        self.quotes: dict[int, tuple[int, int, int, int]] = {}
        self.exact: dict[int, int] = {}  # exchange time of a quote, as the venue knows it
        bids, asks = {100 - n: draw.randint(1, 9) for n in range(4)}, {101 + n: draw.randint(1, 9) for n in range(4)}
        update, messages, ready = 10, list[tuple[int, int, list[tuple[int, ...]]]](), dict.fromkeys(('diff', 'quote', 'trade'), 0)
        def send(stream: str, sent: int, rows: list[tuple[int, ...]], slow: int = 0) -> None:
            ready[stream] = max(ready[stream], sent + draw.choice([1, 2, 3, slow or 3]) * MS + draw.randrange(MS))
            messages.append((ready[stream], len(messages), rows))
        def whole(now: int) -> list[tuple[int, ...]]:
            levels = [(SNAPSHOT | side, now, 0, tick, lots, update) for side, book in ((BUY, bids), (SELL, asks))
                      for tick, lots in book.items()]
            levels[-1] = (levels[-1][0] | LAST, *levels[-1][1:])
            return [(CLEAR | BUY | SELL, now, 0, 0, 0, update), *levels, (CONTROL | LAST, now, 0, RESUME, 0, 0)]
        self.truth[update] = dict(bids), dict(asks)
        send('diff', START, whole(START))
        shown, broken, diffed = (100, bids[100], 101, asks[101]), False, update
        for step in range(steps):
            end, changed = START + 100 * MS * (step + 1), (set[int](), set[int]())
            moments = sorted(draw.sample(range(1, 100), draw.randint(0, 12)))
            for moment in moments:
                now, update = end - (100 - moment) * MS, update + draw.choice([1, 1, 2])
                side = draw.randint(0, 1)
                mine = bids if side == 0 else asks
                best = max(bids) if side == 0 else min(asks)
                inward = 1 if side == 0 else -1
                tick = best + inward * draw.choice([-3, -2, -1, 0, 0, 0, 1, 2])
                if (tick >= min(asks)) if side == 0 else (tick <= max(bids)): tick = best
                lots = 0 if len(mine) > 2 and draw.random() < .45 else draw.randint(1, 9)
                if lots: mine[tick] = lots
                else: mine.pop(tick, None)
                changed[side].add(tick)
                self.truth[update] = dict(bids), dict(asks)
                top = max(bids), bids[max(bids)], min(asks), asks[min(asks)]
                if top != shown:
                    shown, self.quotes[update], self.exact[update] = top, top, now
                    stamp = now if futures else 0
                    both = [(BEST_QUOTE | BUY, stamp, 0, *top[:2], update), (BEST_QUOTE | SELL | LAST, stamp, 0, *top[2:], update)]
                    send('quote', now, both, slow=draw.choice([0, 0, 40, 130]))
                if draw.random() < .2: send('trade', now, [(TRADE | BUY | LAST, now, 0, top[2], 1, update)])
            if not moments: continue
            # a level that is again as the last diff left it is in no diff, as at Binance
            rows = [(DEPTH | name, end, 0, tick, book.get(tick, 0), update)
                    for name, book, ticks, before in zip((BUY, SELL), (bids, asks), changed, self.truth[diffed])
                    for tick in sorted(ticks, key=lambda one: draw.random()) if book.get(tick, 0) != before.get(tick, 0)]
            if not rows: continue
            diffed = update
            if lose is not None and step == lose: broken = True
            elif broken and step == lose + 1: send('diff', end, [(CONTROL | LAST, end, 0, STALE, 0, 0)])
            elif broken and step == lose + 5: broken = bool(send('diff', end, whole(end), slow=90))
            elif not broken: send('diff', end, [*rows[:-1], (rows[-1][0] | LAST, *rows[-1][1:])], slow=draw.choice([0, 60, 150]))
        messages.sort()
        table = [(flags, exchange, local, *rest) for local, _, rows in messages for flags, exchange, _, *rest in rows]
        instrument = replace(TOY, kind='usdm') if futures else TOY
        made = from_rows(table)
        if not futures: made = tape.fill_times(made, tape.Clock(base_latency_ns=MS))
        self.tape = tape.Tape(made, instrument, tape.Clock())  # the recorder's clock is right; the fastest message took 1 ms


def overlay(truth: tuple[dict[int, int], dict[int, int]], quotes: list[tuple[int, int, int, int]]) -> tuple[dict[int, int], dict[int, int]]:
    "What can be known: the state that a diff told, and what newer quotes say of their level and of all better ones"
    bids, asks = dict(truth[0]), dict(truth[1])
    for bid, bid_lots, ask, ask_lots in quotes:
        bids = {tick: lots for tick, lots in bids.items() if tick < bid} | {bid: bid_lots}
        asks = {tick: lots for tick, lots in asks.items() if tick > ask} | {ask: ask_lots}
    return bids, asks


def check_view(venue: Venue, rows: Events) -> Counter[str]:
    "Replay by dictionaries; after each message of the view the book must be what can be known"
    bids: dict[int, int] = {}
    asks: dict[int, int] = {}
    seen, told, stale, heard, arrived, chunk = Counter[str](), 0, True, list[int](), list[int](), set()
    for flags, _, _, tick, lots, update in zip(*(column.tolist() for column in rows.columns)):
        kind, book = flags & 7, bids if flags & BUY else asks
        chunk.add((kind if kind not in (CLEAR, SNAPSHOT) else SNAPSHOT, update))
        if kind == CLEAR: bids.clear(), asks.clear()
        elif kind in (DEPTH, SNAPSHOT): book[tick] = lots
        elif kind == BEST_QUOTE:
            for better in [one for one in book if (one > tick if flags & BUY else one < tick)]: del book[better]
            book[tick] = lots
        elif kind == CONTROL: stale = tick == STALE
        if not flags & LAST: continue
        assert len(chunk) == 1, f'a message does not end on this clock: {chunk}'
        chunk.clear()
        if kind in (DEPTH, SNAPSHOT): told = update
        if kind == SNAPSHOT: heard = []
        if kind == BEST_QUOTE:
            assert not stale or not heard  # while the book is stale no quote drives it (but for that of the resync)
            heard.append(update)
            arrived.append(update)
        state = {one: lots for one, lots in bids.items() if lots}, {one: lots for one, lots in asks.items() if lots}
        newer = sorted({one for one in heard if one > told})
        assert state == overlay(venue.truth[told], [venue.quotes[one] for one in newer]), (kind, told, newer)
        seen['newer quotes' if newer else 'as told'] += 1
    return seen


@pytest.mark.parametrize('futures', [False, True])
@pytest.mark.parametrize('seed', range(25))
def test_the_book_is_right_on_both_clocks(seed, futures):
    venue = Venue(seed, lose=20 if seed % 3 == 0 else None, futures=futures)
    fused = tape.fuse(venue.tape)
    assert fused.fused and not venue.tape.fused
    ours, theirs = check_view(venue, fused.events.local_rows()), check_view(venue, fused.events.exchange_rows())
    assert ours['newer quotes'] > 50 and ours['as told'] > 5 and theirs['newer quotes'] > 50
    rows = fused.timeline()
    assert ((rows.local_ns > rows.exchange_ns) | (rows.kind == CONTROL)).all() and (np.diff(rows.local_ns) >= 0).all()
    streams = rows.exchange_rows()
    streams = streams[np.isin(streams.kind, (DEPTH, SNAPSHOT, BEST_QUOTE))]
    assert (np.diff(streams.id) >= 0).all()  # the exchange's clock knows no conflict
    path = touch_path(fused.events, True)
    assert (path.bid_tick < path.ask_tick).all()


def test_the_cases_are_not_vacuous():
    made = [tape.fuse(Venue(seed, lose=20 if seed % 3 == 0 else None).tape) for seed in range(25)]
    struck = sum(int(((one.events.kind == DEPTH) & (one.events.flags & EXCHANGE_ONLY != 0)).sum()) for one in made)
    late = sum(int(((one.events.kind == BEST_QUOTE) & (one.events.flags & EXCHANGE_ONLY != 0)).sum()) for one in made)
    mixed = 0  # messages of which one row concerns one clock, and another both
    for one in made:
        diff = one.events[one.events.kind == DEPTH]
        mixed += int((pd.Series(diff.flags & EXCHANGE_ONLY != 0).groupby([diff.id, diff.local_ns]).nunique() > 1).sum())
    assert struck > 100 and late > 100 and sum(one.notes['levels restored'] for one in made) > 20
    assert sum(int((one.events.flags & LOCAL_ONLY != 0).sum()) for one in made) >= 2
    assert mixed > 100


def test_a_message_ends_on_each_clock():
    both, theirs, ours = DEPTH | BUY, DEPTH | BUY | EXCHANGE_ONLY, DEPTH | BUY | LOCAL_ONLY
    cases = [((theirs | LAST, both | LAST), (theirs, both | LAST)), ((both, theirs | LAST), (both | LAST, theirs | LAST)),
             ((ours, theirs, theirs | LAST), (ours | LAST, theirs, theirs | LAST)), ((theirs, theirs), (theirs, theirs | LAST))]
    for given_rows, wanted in cases:
        marked = tape._mark_ends(np.array(given_rows, np.uint8), np.zeros(len(given_rows), np.int64), np.ones(len(given_rows), bool))
        assert marked.tolist() == list(wanted)
    open_end = tape._mark_ends(np.array([both, ours], np.uint8), np.array([0, 1]), np.array([True, False]))
    assert open_end.tolist() == [both | LAST, ours]


def test_the_newest_quote_is_put_on_a_new_book():
    "Quotes that came while the book was stale drive nothing; at the resync the newest counts, if it is newer than the snapshot"
    put = 0
    for seed in range(60):
        venue = Venue(seed, 30, lose=20)
        rows, fused = venue.tape.events, tape.fuse(venue.tape).events.local_rows()
        for resume, place in zip(*(np.flatnonzero((one.kind == CONTROL) & (one.tick == RESUME)) for one in (rows, fused))):
            heard = rows.id[:resume][rows.kind[:resume] == BEST_QUOTE].max(initial=0)
            if heard <= rows.id[:resume][rows.kind[:resume] == SNAPSHOT][-1]:
                assert fused.kind[place - 1] == SNAPSHOT
                continue
            put += 1
            pair = fused[place - 2:place]
            assert (pair.id == heard).all() and (pair.kind == BEST_QUOTE).all() and ((pair.flags & LOCAL_ONLY) != 0).all()
            assert (pair.local_ns == fused.local_ns[place]).all() and (pair.exchange_ns < pair.local_ns).all()
            state = tuple(touch_path(fused[:place + 1], True).iloc[-1][['bid_tick', 'bid_lots', 'ask_tick', 'ask_lots']])
            assert state == venue.quotes[heard]
    assert put > 5


@pytest.mark.parametrize('seed', range(8))
def test_times_of_quotes(seed):
    venue = Venue(seed)
    events, (settled, typical) = venue.tape.events, tape.quote_times(venue.tape)
    quotes, ends = np.flatnonzero(events.kind == BEST_QUOTE), np.flatnonzero((events.kind == DEPTH) & (events.flags >= LAST))
    covering = np.searchsorted(events.id[ends], events.id[quotes])
    inside = (covering > 0) & (covering < len(ends))
    assert (settled[quotes][inside] > events.exchange_ns[ends][covering[inside] - 1]).all()
    assert (settled[quotes][inside] < events.exchange_ns[ends][covering[inside]]).all()
    assert (np.diff(settled[quotes]) >= 0).all() and (settled[quotes] < events.local_ns[quotes]).all()
    others = events.kind != BEST_QUOTE
    assert np.array_equal(settled[others], events.exchange_ns[others])
    def out(latency: int) -> int:  # how far the quotes stick out of their windows
        guess = (events.local_ns[quotes] - latency)[inside]
        after, until = events.exchange_ns[ends][covering[inside] - 1], events.exchange_ns[ends][covering[inside]]
        return int((np.maximum(0, after - guess) + np.maximum(0, guess - until)).sum())
    assert out(typical) <= min(out(latency) for latency in range(MS, 200 * MS, MS))


def test_quotes_with_times_keep_them_but_for_ties():
    venue = Venue(3, futures=True)
    settled, typical = tape.quote_times(venue.tape)
    assert typical == 0 and np.abs(settled - venue.tape.events.exchange_ns).max() <= 1


def test_what_cannot_be_fused():
    whole = Venue(1).tape
    events = whole.events
    for rows, says in ((events[events.kind != BEST_QUOTE], 'no best quote rows'), (events[events.kind != DEPTH], 'no depth rows'),
                       (Events(events.flags, *events.columns[1:5], -events.id), 'rising update ids')):
        with pytest.raises(ValueError, match=says): tape.fuse(replace(whole, events=rows))
    with pytest.raises(ValueError, match='fused already'): tape.fuse(tape.fuse(whole))
    one_sided = Events(events.flags | np.uint8(EXCHANGE_ONLY), *events.columns[1:])
    with pytest.raises(ValueError, match='one clock only'): tape.fuse(replace(whole, events=one_sided))


def test_fused_on_disk_and_in_words(tmp_path):
    fused = tape.fuse(Venue(4).tape)
    back = tape.load(fused.save(tmp_path/'a.parquet'))
    assert back.fused and back.events.equals(fused.events) and back.notes == fused.notes and 'fused' in repr(back)
    facts = dict(back.describe().itertuples(index=False))
    assert facts['fused'] == 'True' and int(facts['rows for the exchange only']) > 0
    book = OrderBook(TOY, use_best_quotes=back.fused).apply(back.events)
    assert book.crossed == 0 and not book.stale


def test_spot_recording_fused(data_folder):
    made = tape.read_recording([data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')], streams='diff-only')
    before = made.timeline()
    fused = tape.fuse(made)
    for exchange in (False, True):
        common = tape.agreement(fused, exchange)
        assert (len(common), int(common.agrees.sum())) == (6_493, 6_491)
        assert common.id[~common.agrees].tolist() == [50093478174, 50093480542]
    assert tape.crossings(fused) == 0 and made.timeline().equals(before) and not made.fused
    assert fused.notes['rows for the exchange only'] == 787 and fused.notes['levels restored'] == 3
    rows = fused.timeline()
    assert (rows.local_ns > rows.exchange_ns)[rows.kind != CONTROL].all()
    quotes = rows.local_rows()
    path, ends = touch_path(quotes, True), np.flatnonzero((quotes.kind == BEST_QUOTE) & (quotes.flags >= LAST))
    state = path.iloc[np.searchsorted(path.row, ends, 'right') - 1]
    for name, place in (('bid', ends - 1), ('ask', ends)):
        assert (state[f'{name}_tick'].values == quotes.tick[place]).all() and (state[f'{name}_lots'].values == quotes.lots[place]).all()
    trades = [one[one.kind == TRADE] for one in (made.events, fused.events)]
    assert trades[0].equals(trades[1])


def test_futures_recording_fused(data_folder):
    fused = tape.read_recording(data_folder/'binance_usdm/btcusdt_20240808.gz')
    assert fused.fused
    assert all(tape.agreement(fused, exchange).agrees.all() for exchange in (False, True)) and tape.crossings(fused) == 0
    fused.timeline()


# ---- which streams make the book

PATHS = {'spot': ['binance_spot/btcusdt_20240808.gz', 'binance_spot/btcusdt_20240809.gz'], 'usdm': ['binance_usdm/btcusdt_20240808.gz']}


@pytest.mark.parametrize('name', PATHS)
def test_fused_is_the_default_of_a_recording(data_folder, name):
    paths = [data_folder/path for path in PATHS[name]]
    made, alone = tape.load(paths), tape.load(paths, streams='diff-only')
    assert made.fused and 'diff-only' not in made.notes and made.problems == []
    assert not alone.fused and alone.notes['diff-only'] == 'as asked' and alone.problems == []
    again = tape.fuse(alone)
    assert made.events.equals(again.events) and made.notes == again.notes


def test_a_saved_tape_stays_as_it_was_saved(tmp_path):
    alone = Venue(5).tape
    fused = tape.fuse(alone)
    paths = [one.save(tmp_path/f'{one.fused}.parquet') for one in (alone, fused)]
    assert [tape.load(path).fused for path in paths] == [tape.load([path]).fused for path in paths] == [False, True]
    assert tape.load(paths[0], streams='fused').events.equals(fused.events) and not tape.load(paths[0], streams='diff-only').fused
    with pytest.raises(ValueError, match='can\'t be taken apart'): tape.load(paths[1], streams='diff-only')
    with pytest.raises(ValueError, match='one of fused, diff-only'): tape.load(paths[0], streams='both')


# ---- files of hftbacktest

KINDS = (DEPTH, TRADE, SNAPSHOT)


@st.composite
def batches(draw, one_clock: bool = False) -> Events:
    "Rows in the order of arrival with crossing exchange times, ties in both"
    rows, local = [], START
    for number in range(draw(st.integers(0, 25))):
        local += draw(st.sampled_from([0, 1, 5])) * MS
        exchange = local - draw(st.sampled_from([1, 2, 3, 9])) * MS
        kind, side = draw(st.sampled_from(KINDS)), draw(st.sampled_from([BUY, SELL]))
        only = draw(st.sampled_from([0, 0, EXCHANGE_ONLY, LOCAL_ONLY])) if one_clock else 0
        rows.append((kind | side | only | draw(st.sampled_from([0, LAST])), exchange, local, draw(st.integers(1, 10 ** 9)),
                     draw(st.integers(1, 10 ** 9)), number + 1))
    return from_rows(rows)


@settings(max_examples=150, deadline=None)
@given(events=batches())
def test_round_trip(events):
    data = tape.to_hftbacktest(events, TOY)
    back = tape.from_hftbacktest(data, TOY)
    if not (events.flags >= LAST).any(): back = Events(back.flags & np.uint8(255 - LAST), *back.columns[1:])
    assert back.equals(events)
    assert data.tobytes() == tape.to_hftbacktest(events, TOY).tobytes()
    for bit, name in ((31, 'exch_ts'), (30, 'local_ts')):
        seen = data[(data['ev'] >> bit) & 1 == 1]
        assert len(seen) == len(events) and (np.diff(seen[name]) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(events=batches(one_clock=True))
def test_round_trip_of_one_clock_rows(events):
    back = tape.from_hftbacktest(tape.to_hftbacktest(events, TOY), TOY)
    mask = np.uint8(255 - EXCHANGE_ONLY - LOCAL_ONLY - (0 if (events.flags >= LAST).any() else LAST))
    for view, own in (('local_rows', [1, 2, 3, 4, 5]), ('exchange_rows', [1, 3, 4, 5])):  # what one clock sees, in its order
        was, now = getattr(events, view)(), getattr(back, view)()
        assert np.array_equal(was.flags & mask, now.flags & mask)
        assert all(np.array_equal(was.columns[place], now.columns[place]) for place in own)
    assert (np.diff(back.local_ns) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(events=batches(), seed=st.integers(0, 10 ** 6))
def test_foreign_files_are_right_on_both_clocks(events, seed):
    "An order of ties that is not that of arrival, no ids, no ends of messages: what each clock sees is what the file says"
    if not len(events): return
    oracle = pytest.importorskip('hftbacktest.data')
    raw = plain(events)[np.random.default_rng(seed).permutation(len(events))]
    data = in_their_order(oracle, raw)
    rows = tape.from_hftbacktest(data, TOY)
    assert (np.diff(rows.local_ns) >= 0).all()
    for bit, name, view in ((31, 'exch_ts', rows.exchange_rows()), (30, 'local_ts', rows.local_rows())):
        file = data[(data['ev'] >> bit) & 1 == 1]
        times = view.exchange_ns if name == 'exch_ts' else view.local_ns
        assert np.array_equal(file[name], times) and np.array_equal(file['ev'] & 7, view.kind)
        assert np.array_equal(file['px'], tape.to_hftbacktest(rows_at_once(view), TOY)['px'])
        runs = np.flatnonzero(view.flags >= LAST)
        assert runs.size and runs[-1] == len(view) - 1  # the end is an end on each clock
    again = tape.to_hftbacktest(rows, TOY)
    for bit, names in ((31, ('exch_ts', 'px', 'qty')), (30, ('exch_ts', 'local_ts', 'px', 'qty'))):
        was, now = (one[(one['ev'] >> bit) & 1 == 1] for one in (data, again))
        assert all(np.array_equal(was[name], now[name]) for name in names)


def in_their_order(oracle, raw: np.ndarray) -> np.ndarray:
    "Their correct_event_order reads one place beyond its indices: they get one more"
    return oracle.correct_event_order(raw, *(np.append(np.argsort(raw[name], kind='mergesort'), 0) for name in ('exch_ts', 'local_ts')))


def rows_at_once(view: Events) -> Events:
    "The same prices in the same order, whatever the clocks say"
    place = START + np.arange(len(view))
    return Events(view.flags & np.uint8(255 - EXCHANGE_ONLY - LOCAL_ONLY), place, place + 1, view.tick, view.lots, view.id)


def plain(events: Events) -> np.ndarray:
    "Rows of a converter before any order is corrected: no clock bits, no ids"
    side = np.where(events.flags & BUY, 1 << 29, 0) + np.where(events.flags & SELL, 1 << 28, 0)
    data = np.zeros(len(events), tape.EVENT_DTYPE)
    data['ev'], data['exch_ts'], data['local_ts'] = events.kind + side, events.exchange_ns, events.local_ns
    data['px'] = [float(f'{tick / 100:.2f}') for tick in events.tick.tolist()]
    data['qty'] = [float(str(TOY.amount(lots))) for lots in events.lots.tolist()]
    return data


@settings(max_examples=100, deadline=None)
@given(events=batches())
def test_the_order_is_that_of_hftbacktest(events):
    if not len(events): return
    oracle = pytest.importorskip('hftbacktest.data')
    raw, ours = plain(events), tape.to_hftbacktest(events, TOY)
    wanted = in_their_order(oracle, raw)
    assert len(ours) == len(wanted) and all(np.array_equal(ours[name], wanted[name]) for name in ('ev', 'exch_ts', 'local_ts', 'px', 'qty'))
    oracle.validate_event_order(ours)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(-10 ** 17, 10 ** 17), step=st.sampled_from(['0.01', '0.1', '0.00001', '5', '0.5', '0.00000001', '2.5']))
def test_floats_are_what_a_parser_makes(count, step):
    assert tape._as_floats(np.array([count]), Decimal(step))[0] == float(format(count * Decimal(step), 'f'))


def test_instrument_of_foreign_data():
    rows = from_rows([(TRADE | BUY | LAST, START, START + 1, *rest, 1) for rest in ((6_150_015, 3), (6_150_020, 15), (6_140_015, 6))])
    shown = tape.instrument_of(tape.to_hftbacktest(rows, Instrument('x', 'AB', 'A', 'B', '0.01', '0.002')), 'btc-usdt', 'usdm', 'x')
    assert (shown.tick_size, shown.lot_size, shown.symbol, shown.kind) == (Decimal('0.05'), Decimal('0.006'), 'BTCUSDT', 'usdm')
    assert shown.inferred
    odd = tape.to_hftbacktest(rows, TOY)
    odd['px'][0] = np.pi
    with pytest.raises(ValueError, match='more than 12 decimals'): tape.instrument_of(odd, 'BTCUSDT')


def test_a_clear_of_one_side():
    rows = from_rows([(flags, START, START + 1, *rest) for flags, *rest in (
        (CLEAR | BUY, 0, 0, 1), (CLEAR | SELL, 0, 0, 1), (SNAPSHOT | BUY | LAST, 5, 1, 1))])
    data = tape.to_hftbacktest(rows, TOY)
    assert data['px'][0] == 0 and np.isnan(data['px'][1]) and tape.from_hftbacktest(data, TOY).equals(rows)
    data['px'][1] = 0  # of an ask this would clear nothing there
    with pytest.raises(ValueError, match=r'row 1.*not above zero'): tape.from_hftbacktest(data, TOY)


@pytest.mark.parametrize('name', ['spot', 'usdm'])
def test_recordings_as_files(data_folder, tmp_path, name):
    paths = {'spot': [data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')],
             'usdm': [data_folder/'binance_usdm/btcusdt_20240808.gz']}[name]
    made = tape.read_recording(paths, streams='diff-only')
    path = tape.save_hftbacktest(tape.to_hftbacktest(made), tmp_path/'a.npz')
    rows = made.timeline()
    back = tape.from_hftbacktest(tape.load_hftbacktest(path), made.instrument)
    assert back.equals(rows[np.isin(rows.kind, (DEPTH, TRADE, SNAPSHOT, CLEAR))])
    tape.Tape(back, made.instrument).timeline()


def test_a_file_of_their_converter(data_folder):
    converter = pytest.importorskip('hftbacktest.data.utils.binancefutures')
    data = converter.convert(str(data_folder/'binance_usdm/btcusdt_20240808.gz'), buffer_size=2_000_000)
    rows = tape.from_hftbacktest(data, tape.instrument_of(data, 'BTC/USDT', 'usdm'))
    assert not (rows.flags & (EXCHANGE_ONLY | LOCAL_ONLY)).any() and len(data) - len(rows) == 25_137
    again = tape.to_hftbacktest(rows, tape.instrument_of(data, 'BTC/USDT', 'usdm'))
    assert all(np.array_equal(data[name], again[name]) for name in ('ev', 'exch_ts', 'local_ts', 'px', 'qty', 'fval'))
    ours = tape.read_recording(data_folder/'binance_usdm/btcusdt_20240808.gz', streams='diff-only').events
    assert Counter(ours.kind[ours.kind == TRADE].tolist()) == Counter(rows.kind[rows.kind == TRADE].tolist())
