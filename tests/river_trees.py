"""What river's half-space trees count and score on made-up points, written down for `test_unusual.py`.

river is no dependency of this project: in an environment of its own, `pip install river==0.26.1 && python tests/river_trees.py` writes
tests/river_trees.json anew: the trees as river drew them, the points, the masses of every node at the end, and every score."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent/'river_trees.json'
TREES, DEPTH, WINDOW, FEATURES, POINTS = 4, 5, 60, 3, 210


def points(seed: int = 11) -> list[list[float]]:
    "Made up: two clouds, and now and then a point anywhere"
    draw = random.Random(seed)
    def one() -> list[float]:
        middle = draw.choice((0.25, 0.7))
        return [draw.random() if draw.random() < 0.04 else min(1.0, max(0.0, draw.gauss(middle, 0.08))) for _ in range(FEATURES)]
    return [one() for _ in range(POINTS)]


def drawn(node: Any, depth: int) -> Any:
    "A tree as nested lists: feature, cut, below, above"
    if not depth: return None
    return [int(node.feature), node.threshold, *(drawn(child, depth - 1) for child in node.children)]


def masses(node: Any, depth: int) -> list[list[int]]:
    "Reference mass and running mass of every node, parents first, level by level"
    rows, level = list[list[int]](), [node]
    for left in range(depth, -1, -1):
        rows += [[one.r_mass, one.l_mass] for one in level]
        level = [child for one in level for child in one.children] if left else []
    return rows


def main() -> None:
    import river
    from river.anomaly import HalfSpaceTrees
    model = HalfSpaceTrees(n_trees=TREES, height=DEPTH, window_size=WINDOW, seed=7)
    scores = []
    for point in points():
        named = dict(enumerate(point))
        scores.append(model.score_one(named))
        model.learn_one(named)
    told = dict(river=river.__version__, trees=[drawn(tree, DEPTH) for tree in model.trees], scores=scores,
                masses=[masses(tree, DEPTH) for tree in model.trees])
    PATH.write_text(json.dumps(told) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
