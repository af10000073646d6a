"""Tables of broken rules, for the long tests: every line stands in the engine as often as its table says, and is broken by its mutant"""
from __future__ import annotations

import importlib

import pytest
from mutants import ROOT


@pytest.mark.parametrize('table', ['test_light', 'test_engine', 'test_by_order', 'test_parity'])
def test_every_line_to_be_broken_is_there(table: str) -> None:
    "A line that was rewritten takes its mutant along; the first of each table is whole, the others differ"
    if table == 'test_parity': pytest.importorskip('hftbacktest')
    whole, *broken = importlib.import_module(table).MUTANTS
    for mutant in (whole, *broken):
        text = (ROOT/'cryptoexp'/'trading'/f'{mutant.module}.py').read_text(encoding='utf-8')
        found = text.count(mutant.line)
        assert found == mutant.places, f'{mutant.rule}: {mutant.module} has {found} × {mutant.line!r}, not {mutant.places}'
    assert whole.line == whole.broken and all(mutant.line != mutant.broken for mutant in broken)
