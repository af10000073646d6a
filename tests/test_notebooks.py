"""Each notebook is one test, run against the shipped module: its export cells are skipped, the module's names are there instead.

That it goes from top to bottom as well where a reader runs every cell, those too, is what `test_reading_order` looks at."""
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from loguru import logger
from pages import body
from reading_order import Cell, complaints
from run_notebooks import EXPORTS, CellError, all_notebooks, directives, run, shown


@pytest.mark.parametrize('path', all_notebooks(), ids=shown)
def test_notebook(path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    logger.enable('cryptoexp')   # another notebook of this process may have silenced it
    try: outcome = run(path, long=request.config.getoption('--long'), store=False)
    except CellError as error: pytest.fail(str(error), pytrace=False)
    for reason, count in outcome.skipped.items(): record_property('cells not run', f'{shown(path)}: {count} cells: {reason}')


@pytest.mark.parametrize('path', all_notebooks(), ids=shown)
def test_reading_order(path: Path) -> None:
    "A kernel that runs all cells from top to bottom has each name by the time it is needed, and no example hides an exported one"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    found = list(complaints([Cell(number, bool(directives(cell).keys() & EXPORTS), body(cell)) for number, cell in enumerate(cells)
                             if cell['cell_type'] == 'code' and not body(cell).lstrip().startswith(('%', '!'))]))
    assert not found, '\n'.join(found)


def order_of(*cells: str) -> list[str]:
    "What is found in a notebook of these cells; `EXPORT` begins an exported one"
    return list(complaints([Cell(number, code.startswith('EXPORT'), code.removeprefix('EXPORT').strip())
                            for number, code in enumerate(cells)]))


FACE = '''EXPORT
class Face:
    def __init__(self): self.size = 1
    def show(self): return shown(self)
    def turn(self): return 1'''
SHOWN = 'EXPORT def shown(face): return 1'


@pytest.mark.parametrize('says, cells', [
    ('cell 1 needs `two`, asked for by `one`, before cell 2', ('EXPORT def one(): return two()', 'one()', 'EXPORT def two(): return 1')),
    ('`two`, asked for by `one`', ('EXPORT async def one(): return [two() for _ in ()]', 'await one()', 'EXPORT def two(): return 1')),
    ('`TWO`, asked for by `one`', ('EXPORT def one(): return lambda: TWO', 'print(one()())', 'EXPORT TWO = 2')),
    ('`two`, asked for by `mark`', ('EXPORT def mark(one): return two(one)', '@mark\ndef kept(): pass', 'EXPORT def two(one): return one')),
    ('cell 1 needs `two`', ('EXPORT def one(): return two', 'EXPORT class Kept:\n    size = one()', 'EXPORT two = 2')),
    ('cell 2 needs `shown`, asked for by `Face.show`', (FACE, 'face = Face()', 'face.show()', SHOWN)),
    ('`Face.show`, asked for by `Big`', (FACE, 'EXPORT class Big(Face): pass', 'Big().show()', SHOWN)),
    ('cell 1 needs `Kept`, before', ('one = 1', 'EXPORT def two(kept: Kept): return one', 'EXPORT class Kept: pass')),
    ('cell 0 needs `np`, and nothing', ('print(np.zeros(3))', 'import numpy as np')),
    ('cell 2 needs `one`, and nothing', ('one = 1', 'del one', 'print(one)')),
    ('the example in cell 1 has put its own in its place', ('EXPORT def two(): return 1\ndef one(): return two()', 'two = 3', 'one()')),
    ('the example in cell 2 has put its own', ('EXPORT import math', 'EXPORT def one(): return math.pi', 'math = 3', 'one()')),
    ('cell 2 needs `two`, and the example in cell 1', ('EXPORT def two(): return 1', 'two = 3', 'EXPORT one = two()')),
    ('cell 2 needs `two` of the example in cell 0, and cell 1', ('two = 3', 'EXPORT def two(): return 1', 'print(two)')),
])
def test_a_wrong_order_is_seen(says: str, cells: tuple[str, ...]) -> None:
    found = order_of(*cells)
    assert len(found) == 1 and says in found[0], found


@pytest.mark.parametrize('cells', [
    ('EXPORT def one(): return two()', 'EXPORT def two(): return 1', 'one()'),
    ('EXPORT def one(): return two()', 'def later(): return one()', 'EXPORT def two(): return 1', 'later()'),    # not called before
    (FACE, 'face = Face()\nface.turn()', SHOWN, 'face.show()'),                                                  # another method
    (FACE, 'EXPORT def turned(face: Face) -> Face: return face.show()', SHOWN),                                  # an annotation
    ('EXPORT import json', FACE, 'face = Face()\nprint(face, json.show)', SHOWN),                                # an attribute of a module
    ('EXPORT import math', 'import math', 'EXPORT def one(): return math.pi', 'one()'),                          # the same import
    ('from cryptoexp.market.book import Book', 'EXPORT class Book: pass', 'Book()'),                             # seen in advance
    ('two = 3\nprint(two)', 'EXPORT def two(): return 1'),
    ('EXPORT def two(): return 1\ndef one(): return two()', 'one()\ntwo = 3\nprint(two)'),                       # hidden when it is done
    ('try: print(1 / 0)\nexcept ZeroDivisionError as error: told = str(error)', 'print(told)'),
    ('found = [last for one in range(3) if (last := one)]', 'print(last, found)'),
    ('with open("x") as file:\n    other = file.read()\n    del file', 'print(other)'),
    ('async def one(): yield 1', 'print([x async for x in one()])'),
])
def test_a_right_order_passes(cells: tuple[str, ...]) -> None: assert not order_of(*cells)
