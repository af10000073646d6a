"The numbers of the studies: computed here by the calls that the pages make, and held to the errors that the pages state"
from __future__ import annotations

import numpy as np
import pytest

from cryptoexp.trading.optimal import glft_closed_form, glft_eigenvector, glft_exact

GLFT = {   # σ, A, k, γ -> inventory -> distance of the bid: exact with 600 s to go, eigenvector, closed form; computed by another program
    (.3, .9, .3, .01): {0: (3.313045410, 3.313045419, 3.312915199), 1: (3.381168074, 3.381168101, 3.380781031),
                        5: (3.653479443, 3.653479541, 3.652244361)},
    (1., .2, .3, .01): {0: (3.525651107, 3.525651107, 3.518924234), 5: (5.918516917, 5.918516917, 5.918343754),
                        10: (8.022747424, 8.022747424, 8.317763274)}}


@pytest.mark.parametrize('market', GLFT)
def test_glft_to_nine_decimals(market: tuple[float, float, float, float]) -> None:
    sigma, intensity, decay, gamma = market
    exact = glft_exact(np.array([600.]), gamma, sigma, decay, intensity)
    late = glft_eigenvector(gamma, sigma, decay, intensity)
    for q, wanted in GLFT[market].items():
        line = glft_closed_form(q, gamma, sigma, decay, intensity)
        np.testing.assert_allclose((exact.at(q)[0], late.at(q)[0], line[0]), wanted, rtol=0, atol=5.1e-10)
        mirrored = exact.at(-q)[1], late.at(-q)[1], glft_closed_form(-q, gamma, sigma, decay, intensity)[1]
        np.testing.assert_allclose(mirrored, wanted, rtol=0, atol=5.1e-10)
