"""What the simulated conversation makes of the times at which audio came."""

from __future__ import annotations

import pytest

from bench.agents import Turn


def test_a_turn_knows_its_first_audio_its_longest_gap_and_what_was_played() -> None:
    turn = Turn(completed=9.0, arrivals=[(10.0, 1.0), (10.5, 1.0), (12.5, 2.0), (13.0, 1.0)])
    assert turn.ttfa == pytest.approx(1.0)
    assert turn.gap == pytest.approx(0.5)  # the player had nothing from 12.0 to 12.5
    assert [turn.played(now) for now in (10.0, 11.5, 12.25, 13.5, 20.0)] == pytest.approx([0.0, 1.5, 2.0, 3.0, 5.0])
    assert Turn().played(5.0) == 0.0
