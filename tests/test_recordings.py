"From raw lines to a tape: cut files, garbage, gaps, any batch size, and the counts of the real recordings"
from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptoexp.market import binance, tape
from cryptoexp.market.book import OrderBook
from cryptoexp.market.events import BEST_QUOTE, BUY, CONTROL, DEPTH, LAST, RESUME, SNAPSHOT, STALE, TRADE, Events, concat
from cryptoexp.market.instrument import Instrument, find_instrument

TOY = Instrument('binance', 'BTCUSDT', 'BTC', 'USDT', '0.01', '0.001', inferred=True)
START_MS = 1_723_161_255_000


def market(seed: int = 1, steps: int = 300, futures: bool = False, snapshot_at: int = 6) -> list[bytes]:
    "Lines of a small market whose diffs and best quotes agree; the snapshot comes late, and the clock is 1.27 s behind"
    draw, jitter = random.Random(seed), random.Random(seed)
    bids, asks = {10_000 - n: draw.randint(1, 900) for n in range(20)}, {10_001 + n: draw.randint(1, 900) for n in range(20)}
    lines, update, trade_id, quote, previous = [], 5_000, 70, None, 4_990
    def text(price: int, lots: int) -> list[str]: return [f'{price / 100:.8f}', f'{lots / 1000:.8f}']
    def add(local_ms: float, message: dict, name: str) -> None:
        body = message if name == 'snapshot' else {'stream': f'btcusdt@{name}', 'data': message}
        stamp = int((START_MS + local_ms - 1270) * 1_000_000) + jitter.randint(0, 900_000)
        if lines: stamp = max(stamp, int(lines[-1].split(b' ', 1)[0]))
        lines.append(b'%d %s' % (stamp, json.dumps(body).encode()))
    for step in range(steps):
        now, first, sides = 100 * (step + 1), update + 1, ({}, {})
        for _ in range(draw.randint(1, 6)):
            update += 1
            which = draw.randint(0, 1)
            book = (bids, asks)[which]
            price = draw.choice([*book, min(book) - 1 if which == 0 else max(book) + 1])
            lots = 0 if len(book) > 5 and draw.random() < .3 else draw.randint(1, 900)
            if lots: book[price] = lots
            else: book.pop(price, None)
            sides[which][price] = lots
            top = max(bids), bids[max(bids)], min(asks), asks[min(asks)]
            if top != quote:
                quote = top
                names = dict(zip('bBaA', text(*top[:2]) + text(*top[2:])))
                times = {'e': 'bookTicker', 'T': START_MS + now - 50, 'E': START_MS + now - 50} if futures else {}
                add(now - 49, {'u': update, 's': 'BTCUSDT', **names, **times}, 'bookTicker')
        trade_id += 1
        add(now - 45, {'e': 'trade', 'E': START_MS + now - 46, 's': 'BTCUSDT', 't': trade_id, 'p': text(max(bids), 1)[0], 'q': '0.00300000',
                       'T': START_MS + now - 47, 'm': bool(trade_id % 2)}, 'trade')
        levels = {name: [text(price, lots) for price, lots in side.items()] for name, side in zip('ba', sides)}
        extra = {'T': START_MS + now - 1, 'pu': previous} if futures else {}
        add(now + 2, {'e': 'depthUpdate', 'E': START_MS + now, 's': 'BTCUSDT', 'U': first, 'u': update, **levels, **extra}, 'depth@100ms')
        previous = update
        if step == snapshot_at:
            add(now + 30, {'lastUpdateId': update, 'bids': [text(*one) for one in sorted(bids.items(), reverse=True)],
                           'asks': [text(*one) for one in sorted(asks.items())]}, 'snapshot')
        if futures: update += draw.randint(0, 3)  # ids of a future have holes
    return lines


def rows_of(lines: list[bytes], cuts: list[int] | None = None) -> tuple[Events, binance.DepthSync, binance.Decoder]:
    "Decode and sync in the batches that `cuts` makes"
    decoder, sync, parts = binance.Decoder(), binance.DepthSync(TOY), []
    edges = [0, *sorted(cuts or []), len(lines)]
    for begin, end in pairwise(edges): parts.append(sync.push(decoder.decode_lines(lines[begin:end])))
    return concat(parts), sync, decoder


def is_diff(line: bytes) -> bool: return b'depthUpdate' in line


def written(folder: Path, lines: list[bytes], name: str = 'recording.gz') -> Path:
    path = folder/name
    path.write_bytes(gzip.compress(b'\n'.join(lines) + b'\n'))
    return path


LINES = market()


def test_whole():
    rows, sync, decoder = rows_of(LINES)
    assert not decoder.problems.counts and not sync.needs_snapshot and sync.counts['gaps'] == 0
    assert sync.counts['stale diffs'] == 7 and sync.counts['diffs'] == 293
    assert OrderBook(TOY).apply(rows).crossed == 0
    assert rows.tick[rows.kind == CONTROL].tolist() == [RESUME]


def test_agreement_and_times(tmp_path):
    made = tape.read_recording(written(tmp_path, LINES), streams='diff-only')
    common = tape.agreement(made)
    assert len(common) == 293 and common.agrees.all() and tape.crossings(made) == 0
    rows = made.timeline()
    assert (np.diff(rows.local_ns) >= 0).all()
    latency = (rows.local_ns - rows.exchange_ns)[rows.kind != CONTROL]
    assert latency.min() > 0 and abs(made.clock.offset_ns + 1_268e6) < 3e6
    quotes, diffs = rows[rows.kind == BEST_QUOTE], rows[(rows.kind == DEPTH) & (rows.flags >= LAST)]
    covering = np.searchsorted(diffs.id, quotes.id)
    inside = covering < len(diffs)
    assert (quotes.exchange_ns[inside] <= diffs.exchange_ns[covering[inside]]).all()
    later = inside & (covering > 0)
    assert (quotes.exchange_ns[later] > diffs.exchange_ns[covering[later] - 1]).all()


@pytest.mark.parametrize('futures', [False, True])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 1200), max_size=12), drop=st.sets(st.integers(0, 1200), max_size=4), swap=st.integers(0, 1200))
def test_any_batch_gives_the_same_rows(futures, cuts, drop, swap):
    lines = [line for number, line in enumerate(market(2, 150, futures)) if number not in drop]
    if swap < len(lines): lines[swap] = b'<html>'
    whole, sync, decoder = rows_of(lines)
    parts, sync_parts, decoder_parts = rows_of(lines, [min(cut, len(lines)) for cut in cuts])
    assert whole.equals(parts) and sync.counts == sync_parts.counts
    assert decoder.problems.examples == decoder_parts.problems.examples
    assert (sync.needs_snapshot, sync.book_id) == (sync_parts.needs_snapshot, sync_parts.book_id)


def test_one_by_one():
    assert rows_of(LINES, list(range(1, len(LINES))))[0].equals(rows_of(LINES)[0])


@pytest.mark.parametrize('futures', [False, True])
def test_a_lost_diff_makes_the_book_stale(futures):
    lines = market(3, 200, futures)
    diffs = [number for number, line in enumerate(lines) if is_diff(line)]
    rows, sync, _ = rows_of(lines[:diffs[100]] + lines[diffs[100] + 1:])
    stale = np.flatnonzero((rows.kind == CONTROL) & (rows.tick == STALE))
    assert len(stale) == 1 and sync.needs_snapshot
    assert not np.isin(rows.kind[stale[0]:], (DEPTH, SNAPSHOT)).any()
    assert {TRADE, BEST_QUOTE} <= set(rows.kind[stale[0]:].tolist())  # the other streams go on
    assert OrderBook(TOY).apply(rows).stale


def test_a_new_snapshot_heals():
    lines = market(3, 200)
    late = [line for line in market(3, 200, snapshot_at=150) if b'lastUpdateId' in line]
    diffs = [number for number, line in enumerate(lines) if is_diff(line)]
    broken = lines[:diffs[100]] + lines[diffs[100] + 1:diffs[155]] + late + lines[diffs[155]:]
    rows, sync, _ = rows_of(broken)
    assert not sync.needs_snapshot and rows.tick[rows.kind == CONTROL].tolist() == [RESUME, STALE, RESUME]
    healed, whole = OrderBook(TOY).apply(rows), OrderBook(TOY).apply(rows_of(lines)[0])
    assert not healed.stale and healed.levels(100).equals(whole.levels(100))
    own = rows[np.isin(rows.kind, (DEPTH, SNAPSHOT, CONTROL))]
    assert (np.diff(own.exchange_ns) >= 0).all() and (np.diff(own.local_ns) >= 0).all()


def test_duplicates_change_nothing():
    rows, _, _ = rows_of(LINES)
    twice, sync, _ = rows_of([line for line in LINES for _ in range(2)])
    assert twice.equals(rows)
    assert sync.counts['repeated trades'] == 300 and sync.counts['repeated best quotes'] > 0 and sync.counts['gaps'] == 0


def test_overlapping_files(tmp_path):
    parts = [written(tmp_path, LINES[:700], 'first.gz'), written(tmp_path, LINES[500:], 'second.gz')]
    made = tape.read_recording(parts[::-1])
    assert made.source == ('first.gz', 'second.gz')
    kinds = (DEPTH, TRADE, BEST_QUOTE)
    whole = tape.read_recording(written(tmp_path, LINES)).events
    assert all(np.array_equal(made.events.id[made.events.kind == kind], whole.id[whole.kind == kind]) for kind in kinds)
    assert any('repeated trades' in one for one in made.problems) and any('backwards' in one for one in made.problems)
    assert (np.diff(made.timeline().local_ns) >= 0).all()


@pytest.mark.parametrize('seed', range(12))
def test_truncated_gzip(tmp_path, seed):
    draw = random.Random(seed)
    packed = gzip.compress(b'\n'.join(LINES) + b'\n')
    path = tmp_path/'cut.gz'
    path.write_bytes(packed[:draw.randrange(len(packed) // 4, len(packed))])
    made = tape.read_recording(path)
    assert len(made.problems) >= 1 and 'cut or damaged after line' in made.problems[0] and 'cut.gz' in made.problems[0]
    kept = int(made.problems[0].split('after line ')[1].split(' ')[0])
    whole = tape.read_recording(written(tmp_path, LINES[:kept]))
    assert made.events.equals(whole.events)


@pytest.mark.parametrize('seed', range(6))
def test_damaged_gzip(tmp_path, seed):
    packed = bytearray(gzip.compress(b'\n'.join(LINES) + b'\n'))
    packed[random.Random(seed).randrange(len(packed) // 2, len(packed))] ^= 0x55
    path = tmp_path/'damaged.gz'
    path.write_bytes(packed)
    made = tape.read_recording(path)  # whatever is readable; never silent
    assert 'damaged' in made.problems[0]


def test_plain_text_and_missing_last_line_feed(tmp_path):
    path = tmp_path/'recording.txt'
    path.write_bytes(b'\n'.join(LINES))
    assert tape.load(path).events.equals(tape.load(written(tmp_path, LINES)).events)


def mutations(line: bytes) -> list[bytes]:
    "The ways in which a line of ours is broken"
    stamp, text = line.split(b' ', 1)
    message = json.loads(text)
    data = message.get('data', message)
    result = [text, b'', stamp, line[:-3], stamp + b' []', stamp + b' null', stamp + b' {}', stamp + b' 7', b'-5 ' + text, b'x ' + text,
              b'\xff\xfe\x00', stamp + b' "data"', stamp + b' {"data":[]}', stamp + b' {"e":[]}',
              stamp + b' {"e":"kline"}', b'9' * 30 + b' ' + text]
    for name in list(data):
        for value in (None, 'x', -1, 1.5, True, [], {}, [['1', '2', '3']], [[1, 2]], ['12'], [['1', '1\n2']], 10 ** 30, '1e9', '9' * 30):
            changed = {**data, name: value}
            result.append(stamp + b' ' + json.dumps({**message, 'data': changed} if 'data' in message else changed).encode())
        without = {key: value for key, value in data.items() if key != name}
        result.append(stamp + b' ' + json.dumps({**message, 'data': without} if 'data' in message else without).encode())
    return result


@pytest.mark.parametrize('futures', [False, True])
def test_garbage_never_raises_and_is_the_same_alone_or_in_company(futures):
    lines = market(4, 12, futures)
    samples = {}
    for line in lines: samples.setdefault(line.split(b'@')[1][:5] if b'@' in line else b'snapshot', line)
    good = lines[0]
    for line in samples.values():
        for broken in mutations(line):
            alone, together = binance.Decoder('BTCUSDT'), binance.Decoder('BTCUSDT')
            by_itself = alone.decode_lines([broken])
            in_company = together.decode_lines([good, broken, b'not a line'])
            assert len(in_company) == len(by_itself) + 1, broken
            if len(by_itself):
                assert np.array_equal(by_itself.compact().price, in_company[1:].compact().price)
            elif broken.strip(): assert len(alone.problems) == 1, broken
            sync = binance.DepthSync(TOY)
            sync.push(in_company)


def test_problems_are_reported_and_the_rest_is_kept(tmp_path):
    lines = list(LINES)
    lines[200:200] = [b'<html>502</html>', b'1723161253937085768 {"e":"trade","s":"BTCUSDT"}', b'1723161253937085768 {"cut']
    made = tape.read_recording(written(tmp_path, lines))
    assert made.events.equals(tape.read_recording(written(tmp_path, LINES)).events)
    assert len(made.problems) == 3
    assert all('recording.gz: 1 lines skipped' in one and f'(line {number})' in one for number, one in zip((201, 202, 203), made.problems))


def test_problem_list_is_capped():
    decoder = binance.Decoder()
    decoder.decode_lines([b'rubbish'] * 5000)
    assert len(decoder.problems.examples) == 100 and len(decoder.problems) == 5000


def test_no_snapshot_and_old_snapshot(tmp_path):
    with pytest.raises(ValueError, match=r'holds no snapshot.*give the earlier file'):
        tape.read_recording(written(tmp_path, [line for line in LINES if b'lastUpdateId' not in line]))
    snapshot = next(number for number, line in enumerate(LINES) if b'lastUpdateId' in line)
    behind = [number for number, line in enumerate(LINES) if is_diff(line) and number > snapshot][1]
    moved = [LINES[behind], LINES[snapshot], *LINES[behind + 1:]]
    with pytest.raises(ValueError, match='no snapshot of the recording fits'): tape.read_recording(written(tmp_path, moved))


@pytest.mark.parametrize('content, looks', [
    (b'PK\x03\x04rest', 'zip'), (b'\x28\xb5\x2f\xfd..', 'zstd'), (b'', 'empty'), (b'<html>', 'web page'),
    (b'a,b\n1,2\n', "begins 'a,b"), (b'\0\1\2', 'binary'), (gzip.compress(b'hello\n', mtime=0), "begins 'hello'")])
def test_not_a_recording(tmp_path, content, looks):
    path = tmp_path/'thing'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='is not a recording') as caught: tape.load(path)
    assert looks in str(caught.value) and 'thing' in str(caught.value)


def test_another_symbol(tmp_path):
    other = [line.replace(b'BTCUSDT', b'ETHUSDT').replace(b'btcusdt', b'ethusdt') for line in LINES]
    with pytest.raises(ValueError, match='message of ETHUSDT in a stream of BTCUSDT'):
        tape.read_recording(written(tmp_path, [line for line in other if b'lastUpdateId' not in line]), TOY)


def test_wrong_grid_is_told(tmp_path):
    coarse = Instrument('binance', 'BTCUSDT', 'BTC', 'USDT', '0.5', '0.001')
    made = tape.read_recording(written(tmp_path, LINES), coarse)
    assert any('levels off the grid' in one for one in made.problems)


def test_microseconds():
    fine = [line.replace(b'"E": 1723161', b'"E": 1723161').replace(b', "s"', b'000, "s"', 1) if is_diff(line) else line for line in LINES]
    rows, plain = rows_of(fine)[0], rows_of(LINES)[0]
    assert np.array_equal(rows.exchange_ns[rows.kind == DEPTH], plain.exchange_ns[plain.kind == DEPTH])


def test_sides():
    rows = rows_of(LINES)[0]
    trades = rows[rows.kind == TRADE]
    assert ((trades.flags & BUY) != 0).tolist() == [number % 2 == 0 for number in trades.id.tolist()]  # m true: the taker sold
    quotes = rows[rows.kind == BEST_QUOTE]
    assert ((quotes.flags[::2] & BUY) != 0).all() and (quotes.flags[1::2] >= LAST).all() and (quotes.tick[::2] < quotes.tick[1::2]).all()


@pytest.mark.parametrize('futures', [False, True])
def test_what_is_not_of_one_book_stays_diff_only_and_says_so(tmp_path, futures):
    lines = market(6, 200, futures)
    def of(change: Callable[[bytes], bytes | None]) -> tape.Tape:
        kept = [line for line in (change(line) if b'"A"' in line else line for line in lines) if line]
        return tape.read_recording(written(tmp_path, kept))
    def renumbered(line, by):
        stamp, text = line.split(b' ', 1)
        message = json.loads(text)
        message['data']['u'] += by
        return stamp + b' ' + json.dumps(message).encode()
    whole = of(lambda line: line)
    assert whole.fused and whole.problems == []
    silent = of(lambda line: None)
    assert not silent.fused and silent.notes['diff-only'] == 'it holds no best quotes' and silent.problems == []
    for by in (-40, 40, 10 ** 6):
        moved = of(lambda line, by=by: renumbered(line, by))
        assert not moved.fused and len(moved.problems) == 1 and moved.problems[0].startswith('diff-only, best quotes and diffs can\'t')
    later = set(lines[len(lines) // 2:])
    stopped = of(lambda line: None if line in later else line)
    assert not stopped.fused and 'one of them stopped' in stopped.problems[0]


def test_parquet_round_trip(tmp_path):
    made = tape.read_recording(written(tmp_path, LINES))
    back = tape.load(made.save(tmp_path/'a.parquet'))
    assert back.events.equals(made.events)
    for name in ('instrument', 'clock', 'source', 'synthetic', 'problems', 'notes'): assert getattr(back, name) == getattr(made, name)
    assert back.timeline().equals(made.timeline())
    empty = tape.Tape(made.events[:0], made.instrument, synthetic=True)
    assert tape.Tape.load(empty.save(tmp_path/'b.parquet')).events.equals(empty.events)
    extreme = Events(np.array([255, 0], np.uint8), *(np.array([-2 ** 63, 2 ** 63 - 1]) for _ in range(5)))
    assert tape.Tape.load(tape.Tape(extreme, TOY).save(tmp_path/'c.parquet')).events.equals(extreme)


@pytest.mark.parametrize('seed', range(10))
def test_damaged_parquet(tmp_path, seed):
    path = tape.read_recording(written(tmp_path, LINES)).save(tmp_path/'a.parquet')
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(40, len(data) - 4000)
    path.write_bytes(data[:place] if seed % 2 else data[:place] + bytes([data[place] ^ 255]) + data[place + 1:])
    if seed % 2:
        with pytest.raises(ValueError, match='is damaged'): tape.load(path)
    else:
        try: back = tape.load(path)
        except ValueError as error: assert 'is damaged' in str(error)
        else: assert back.events.equals(tape.read_recording(written(tmp_path, LINES)).events)  # a byte that says nothing (statistics)


def test_unwritable(tmp_path):
    made = tape.read_recording(written(tmp_path, LINES))
    with pytest.raises(OSError, match='cannot write'): made.save(tmp_path/'nowhere'/'a.parquet')


def test_clock_against_brute_force():
    draw = np.random.default_rng(5)
    for _ in range(20):
        time = np.sort(draw.integers(0, 60 * 10 ** 9, 150))
        height = draw.integers(0, 10 ** 7, 150) + (time * draw.uniform(-1e-5, 1e-5)).astype(np.int64)
        clock = tape.fit_clock(time, time - height)
        first, second = np.triu_indices(150, 1)
        distinct = time[first] != time[second]
        slope = (height[second] - height[first])[distinct] / (time[second] - time[first])[distinct]
        line = height[first][distinct][:, None] + slope[:, None] * (time[None, :] - time[first][distinct][:, None])
        below = (line <= height[None, :] + 1e-3).all(axis=1)
        best = (height[None, :] - line[below]).sum(axis=1).min()
        assert abs((height - clock.envelope(time)).sum() - best) <= 300 and (height - clock.envelope(time)).min() == 0


def test_spot_recording(data_folder):
    made = tape.read_recording([data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')], streams='diff-only')
    assert {name: made.notes.get(name, 0) for name in ('diffs', 'stale diffs', 'gaps', 'best quotes', 'trades', 'trade id jumps')} == {
        'diffs': 6_493, 'stale diffs': 2, 'gaps': 0, 'best quotes': 73_174, 'trades': 19_904, 'trade id jumps': 0}
    assert made.problems == [] and tape.crossings(made) == 0
    common = tape.agreement(made)
    assert (len(common), int(common.agrees.sum())) == (6_493, 6_491)
    assert common.id[~common.agrees].tolist() == [50093478174, 50093480542]
    assert (str(made.instrument.tick_size), str(made.instrument.lot_size)) == ('0.01', '0.00001')
    assert -1_280e6 < made.clock.offset_ns < -1_265e6 and 2e6 < -made.clock.drift * 650 / 1000 < 4e6  # 3 ms in 650 s
    made.timeline()


def test_spot_first_file_and_second_alone(data_folder):
    assert tape.load(data_folder/'binance_spot/btcusdt_20240808.gz').problems == []
    with pytest.raises(ValueError, match='give the earlier file'): tape.load(data_folder/'binance_spot/btcusdt_20240809.gz')


def test_futures_recording(data_folder):
    made = tape.load(data_folder/'binance_usdm/btcusdt_20240808.gz')
    assert made.instrument.kind == 'usdm' and made.notes.get('gaps', 0) == 0 and tape.crossings(made) == 0
    assert (made.notes['diffs'] + made.notes['stale diffs'], made.notes['best quotes'], made.notes['trades']) == (6_551, 66_089, 21_313)
    made.timeline()


def test_listing(data_folder):
    with gzip.open(data_folder/'exchanges/BINANCE.0.gz', 'rt') as lines:
        known = binance.instruments(json.loads(next(line for line in lines if line.startswith('http')).split(': ', 1)[1]))
    assert len(known) == 1_695 and all(one.min_lots >= 1 and one.max_lots > 0 for one in known.values())
    with pytest.raises(LookupError, match='BTCUSDT'): find_instrument(known, binance.symbol_of('BTC/USDTT'))


def test_recording_with_its_listing(data_folder):
    with gzip.open(data_folder/'exchanges/BINANCE.0.gz', 'rt') as lines:
        known = binance.instruments(json.loads(next(line for line in lines if line.startswith('http')).split(': ', 1)[1]))
    paths = [data_folder/f'binance_spot/btcusdt_{day}.gz' for day in ('20240808', '20240809')]
    listed = tape.read_recording(paths, known['BTCUSDT'])
    assert listed.events.equals(tape.read_recording(paths).events) and not listed.instrument.inferred


@pytest.mark.parametrize('seed', range(8))
def test_the_short_way_and_the_long_way_agree(seed, monkeypatch):
    "Levels read by the compiled pass, or by orjson: the same messages and the same problems, whatever happens to the bytes"
    draw = random.Random(seed)
    inserted = [b'"b":[', b'"a":[', b']', b'[', b'["1","2"],', b'0', b'"', b' ', b'[]', b'[[]]']
    long = [line for line in LINES if is_diff(line)][:40]
    lines = []
    for line in long * 5:
        changed = bytearray(line.replace(b', ', b',').replace(b': ', b':'))
        for _ in range(draw.choice([0, 1, 1, 2])):
            place, what = draw.randrange(20, max(21, len(changed))), draw.randrange(4)
            if place >= len(changed): continue
            if what == 0: changed[place] = draw.choice(b'0123456789."[]{},: eE-\\n\x00\xff')
            elif what == 1: del changed[place:place + draw.randint(1, 20)]
            elif what == 2: changed[place:place] = draw.choice(inserted)
            else: del changed[place:]
        lines.append(bytes(changed))
    found = []
    for length in (0, 10 ** 9):
        monkeypatch.setattr(binance, 'LONG', length)
        decoder = binance.Decoder('BTCUSDT')
        found.append((decoder.decode_lines(lines).compact(), decoder.problems.examples, dict(decoder.problems.counts)))
    assert found[0][1:] == found[1][1:]
    for name in vars(found[0][0]): assert np.array_equal(getattr(found[0][0], name), getattr(found[1][0], name)), name
    assert 0 < len(found[0][0]) < len(lines)
    assert binance.levels_apart([])[1] is None
