"Half-space trees, levels and amounts by form: beside what river counted, by properties, and with their state put away and taken up"
from __future__ import annotations

import json
import math
import random
from typing import Any

import msgspec
import pytest
import river_trees
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptoexp.chain.signal import Window
from cryptoexp.chain.unusual import KEPT, ByForm, HalfSpaceTrees, Level, Masses, Usual, densities, rank_of, walks_of


def taken_over(tree: Any, number: int = 0) -> Any:
    "A tree of river as one of ours"
    if tree is None: return number
    feature, cut, below, above = tree
    return (feature, cut, taken_over(below, 2 * number), taken_over(above, 2 * number + 1))


def levels_of(leaves: list[int]) -> list[int]:
    "The masses of all nodes, parents first"
    rows = [leaves]
    while len(rows[0]) > 1: rows.insert(0, [one + other for one, other in zip(rows[0][::2], rows[0][1::2], strict=True)])
    return [mass for row in rows for mass in row]


def path_sum(leaves: list[int], leaf: int, depth: int, size: int) -> int:
    "The score by river's formula: the masses of all nodes of the path, up to the first under a tenth of the window"
    masses, total = levels_of(leaves), 0
    for level in range(depth + 1):
        mass = masses[2 ** level - 1 + (leaf >> (depth - level))]
        total += mass * 2 ** level
        if mass < 0.1 * size: break
    return total


def leaf_of(node: Any, point: list[float]) -> int:
    while isinstance(node, tuple): node = node[3] if point[node[0]] >= node[1] else node[2]
    return int(node)


def test_the_expression_walks_as_a_loop_over_the_nodes() -> None:
    draw = random.Random(5)
    for features, depth in ((1, 1), (2, 3), (8, 8)):
        trees = HalfSpaceTrees(features, trees=4, depth=depth)
        for _ in range(300):
            point = [draw.choice((draw.random(), 0.0, 0.5, 1.0)) for _ in range(features)]
            assert trees.walks(*point) == tuple(leaf_of(root, point) for root in trees.roots)


def test_counts_and_scores_are_those_of_river() -> None:
    "On river's own trees: the mass of every node, and by river's formula every score"
    told = json.loads(river_trees.PATH.read_text(encoding='utf-8'))
    depth, size = river_trees.DEPTH, river_trees.WINDOW
    ours = HalfSpaceTrees(river_trees.FEATURES, river_trees.TREES, depth, size, size)
    ours.roots = [taken_over(tree) for tree in told['trees']]
    ours.walks = walks_of(ours.roots, river_trees.FEATURES)
    most = river_trees.TREES * size * (2 ** (depth + 1) - 1)
    for point, theirs in zip(river_trees.points(), told['scores'], strict=True):
        before = ours.masses.before
        total = sum(path_sum(leaves, leaf_of(node, point), depth, size) for node, leaves in zip(ours.roots, before, strict=False))
        assert math.isclose(theirs, 1 - total / most if before else 0, abs_tol=1e-12)
        density = ours.look(point)
        assert (density is None) == (not before)
    assert len(told['scores']) == river_trees.POINTS > 3 * size
    for now, before, theirs in zip(ours.masses.now, ours.masses.before, told['masses'], strict=True):
        assert [list(pair) for pair in zip(levels_of(before), levels_of(now), strict=True)] == theirs


def test_a_river_that_is_installed_says_what_was_recorded() -> None:
    river = pytest.importorskip('river', reason='river is not installed; its recording is compared in any case')
    told = json.loads(river_trees.PATH.read_text(encoding='utf-8'))
    model = river.anomaly.HalfSpaceTrees(n_trees=river_trees.TREES, height=river_trees.DEPTH, window_size=river_trees.WINDOW, seed=7)
    for point, score in zip(river_trees.points(), told['scores'], strict=True):
        assert math.isclose(model.score_one(dict(enumerate(point))), score, abs_tol=1e-12)
        model.learn_one(dict(enumerate(point)))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5), st.data())
def test_a_density_by_its_definition(depth: int, data: st.DataObject) -> None:
    "Each leaf's score is that of the node at which its path ends, worked out node by node"
    counts = data.draw(st.lists(st.integers(0, 40), min_size=2 ** depth, max_size=2 ** depth))
    size = sum(counts) + (sum(counts) == 0)
    masses, (scores,) = levels_of(counts), densities([counts], size, 10)
    for leaf, score in enumerate(scores):
        for level in range(depth + 1):
            mass = masses[2 ** level - 1 + (leaf >> (depth - level))]
            if 10 * mass < size or level == depth: break
        assert math.isclose(score, mass * 2 ** level / size)


def test_masses_add_up_and_are_bounded() -> None:
    "However many points: each tree holds one window, and the state does not grow"
    trees, draw = HalfSpaceTrees(8, trees=3, depth=6, period=50, first=10), random.Random(1)
    sizes, largest = [], 0
    for number in range(1_000):
        trees.look([draw.random() for _ in range(8)])
        masses = trees.masses
        assert all(sum(row) == masses.seen < masses.size for row in masses.now)
        assert all(sum(row) == masses.past for row in masses.before)
        if not masses.seen: sizes.append(masses.past)
        if number >= 900: largest = max(largest, len(msgspec.msgpack.encode(masses)))
    assert sizes[:4] == [10, 20, 40, 50] and set(sizes[4:]) == {50} and largest < 2 * 3 * 64 * 2 + 100


@pytest.mark.parametrize('point', [[-5.0] * 3, [7.0] * 3, [0.0] * 3, [1.0] * 3])
def test_a_point_outside_falls_into_a_leaf_too(point: list[float]) -> None:
    trees = HalfSpaceTrees(3, first=4, period=4)
    assert [trees.look(point) for _ in range(4)] == [None] * 4
    assert (trees.look(point) or 0) > 1


def test_an_odd_combination_has_a_low_rank_though_no_number_is_extreme() -> None:
    "Two features that always rise together, and one that says nothing; then a point where they do not"
    draw, trees, scores = random.Random(3), HalfSpaceTrees(3, seed=1), Window(1_000)
    def look(first: float, second: float) -> float | None:
        score = trees.look([first, second, draw.random()])
        rank = None if score is None else rank_of(scores, score)
        if score is not None: scores.add(score)
        return rank
    for _ in range(4_000):
        both = draw.choice((0.2, 0.8))
        look(draw.gauss(both, 0.03), draw.gauss(both, 0.03))
    usual, odd = [look(0.2, 0.2) for _ in range(20)], look(0.2, 0.8)
    assert odd is not None and odd < 0.01
    assert sum(rank or 0 for rank in usual) / 20 > 0.2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 600), st.integers(0, 10**6))
def test_what_is_put_away_is_taken_up(cut: int, seed: int) -> None:
    "The same answers, whether or not the state went through bytes in between"
    draw = random.Random(seed)
    points = [[draw.random() if draw.random() > 0.1 else None for _ in range(8)] for _ in range(700)]
    straight, first, second = Usual(300), Usual(300), Usual(300)
    expected = [straight.look(point) for point in points]
    begun = [first.look(point) for point in points[:cut]]
    second.trees.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.trees.masses), type=Masses))
    second.scores = Window(300, list(first.scores.order))
    second.levels = msgspec.msgpack.decode(msgspec.msgpack.encode(first.levels), type=list[Level])
    assert begun + [second.look(point) for point in points[cut:]] == expected
    assert any(expected)


def test_amounts_by_form_have_a_bound() -> None:
    draw, kinds = random.Random(2), ByForm()
    for number in range(30_000): kinds.look(draw.choice(('p2pkh', 'p2tr')), number % 3, draw.gauss(6, 1))
    assert len(kinds.cells) == 6 and all(len(cell.window) == KEPT < cell.count for cell in kinds.cells.values())
    assert 0.9 < kinds.cells['p2tr', 0].window.deviation() / 0.6745 < 1.1
