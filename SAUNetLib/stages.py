"""The stages of a run, from loading the model to writing the result, and the share of the run that each takes."""

from __future__ import annotations

SHARES = {"load": 0.10, "read": 0.02, "prepare": 0.03, "segment": 0.70, "levels": 0.10, "write": 0.05}
"""Approximate share of a run's time for each stage, in the order of the stages."""


def done(stage: str, fraction: float) -> float:
    """Fraction of the whole run that is done, 0 to 1, given that of a stage; 0 for an unknown stage."""
    before = 0.0
    for name, share in SHARES.items():
        if name == stage:
            return before + share * min(max(float(fraction), 0.0), 1.0)
        before += share
    return 0.0
