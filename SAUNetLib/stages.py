"""The stages of a run, from loading the model to writing the result, and how far each of them brings it."""

from __future__ import annotations

SHARES = {"load": 0.10, "read": 0.02, "prepare": 0.03, "segment": 0.70, "levels": 0.10, "write": 0.05}
"""How much of a run's time each stage takes, roughly; in their order."""


def done(stage: str, fraction: float) -> float:
    """How much of the whole run is done, 0 to 1, in a fraction of a stage; 0 for a stage that there is not."""
    before = 0.0
    for name, share in SHARES.items():
        if name == stage:
            return before + share * min(max(float(fraction), 0.0), 1.0)
        before += share
    return 0.0
