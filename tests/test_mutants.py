"""The tables of broken rules that the long tests try out: every line of theirs stands in the engine, and is broken by its mutant"""
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
        assert mutant.line in text, f'{mutant.rule}: {mutant.module} has no {mutant.line!r}'   # where it stands twice, both are broken
    assert whole.line == whole.broken and all(mutant.line != mutant.broken for mutant in broken)
