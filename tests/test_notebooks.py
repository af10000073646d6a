"Each notebook is one test, run against the shipped module: its export cells are skipped, the module's names are there instead"
from collections.abc import Callable
from pathlib import Path

import pytest
from loguru import logger
from run_notebooks import CellError, all_notebooks, run, shown


@pytest.mark.parametrize('path', all_notebooks(), ids=shown)
def test_notebook(path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    logger.enable('cryptoexp')   # another notebook of this process may have silenced it
    try: outcome = run(path, long=request.config.getoption('--long'), store=False)
    except CellError as error: pytest.fail(str(error), pytrace=False)
    for reason, count in outcome.skipped.items(): record_property('cells not run', f'{shown(path)}: {count} cells: {reason}')
