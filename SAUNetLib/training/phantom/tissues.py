"""Tissues and their signal in each contrast."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Tissue(IntEnum):
    """Tissue of a sample. NUCLEUS_0 to NUCLEUS_4 range from a young disc to a black one."""

    AIR = 0
    FAT = 1
    SKIN = 2
    MUSCLE = 3
    MARROW = 4
    CORTEX = 5
    CARTILAGE = 6
    ANNULUS = 7
    ANNULUS_OUTER = 8
    LIGAMENT = 9
    CSF = 10
    CORD = 11
    ROOT = 12
    EPIDURAL_FAT = 13
    VESSEL = 14
    VEIN = 15
    KIDNEY = 16
    BOWEL = 17
    GAS = 18
    FLUID = 19
    LIVER = 20
    FATTY_SPOT = 21
    OEDEMA = 22
    NUCLEUS_0 = 23
    NUCLEUS_1 = 24
    NUCLEUS_2 = 25
    NUCLEUS_3 = 26
    NUCLEUS_4 = 27
    FASCIA = 28
    MESENTERY = 29
    SPONGY_FAT = 30
    INTERSPINOUS = 31
    FATTY_MUSCLE = 32
    NUCLEUS_RIM = 33


# Per tissue: signal on T1, T2 and STIR (turbo spin echo, CSF on T2 = 1); fine, medium and coarse texture (fractions).
_SIGNAL: dict[Tissue, tuple[float, float, float, float, float, float]] = {
    Tissue.AIR: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    Tissue.FAT: (0.95, 0.72, 0.06, 0.04, 0.06, 0.07),
    Tissue.SKIN: (0.42, 0.34, 0.25, 0.05, 0.10, 0.05),
    Tissue.MUSCLE: (0.27, 0.15, 0.24, 0.10, 0.10, 0.08),
    Tissue.MARROW: (0.50, 0.40, 0.15, 0.10, 0.10, 0.08),
    Tissue.CORTEX: (0.07, 0.05, 0.03, 0.10, 0.10, 0.0),
    Tissue.CARTILAGE: (0.30, 0.42, 0.40, 0.05, 0.05, 0.0),
    Tissue.ANNULUS: (0.25, 0.16, 0.12, 0.08, 0.10, 0.05),
    Tissue.ANNULUS_OUTER: (0.14, 0.07, 0.05, 0.08, 0.08, 0.0),
    Tissue.LIGAMENT: (0.13, 0.08, 0.06, 0.10, 0.15, 0.0),
    Tissue.CSF: (0.15, 1.00, 0.95, 0.01, 0.03, 0.04),
    Tissue.CORD: (0.40, 0.42, 0.42, 0.03, 0.03, 0.03),
    Tissue.ROOT: (0.33, 0.38, 0.45, 0.04, 0.04, 0.03),
    Tissue.EPIDURAL_FAT: (0.92, 0.70, 0.06, 0.05, 0.08, 0.05),
    Tissue.VESSEL: (0.08, 0.06, 0.10, 0.10, 0.30, 0.20),
    Tissue.VEIN: (0.28, 0.50, 0.34, 0.06, 0.10, 0.0),
    Tissue.KIDNEY: (0.36, 0.44, 0.62, 0.05, 0.14, 0.08),
    Tissue.BOWEL: (0.34, 0.30, 0.42, 0.10, 0.25, 0.20),
    Tissue.GAS: (0.02, 0.02, 0.02, 0.10, 0.10, 0.0),
    Tissue.FLUID: (0.15, 0.92, 0.95, 0.02, 0.08, 0.05),
    Tissue.LIVER: (0.44, 0.19, 0.26, 0.05, 0.06, 0.06),
    Tissue.FATTY_SPOT: (0.74, 0.60, 0.09, 0.05, 0.10, 0.05),
    Tissue.OEDEMA: (0.33, 0.55, 0.50, 0.08, 0.12, 0.05),
    Tissue.NUCLEUS_0: (0.31, 0.66, 0.58, 0.05, 0.08, 0.05),
    Tissue.NUCLEUS_1: (0.30, 0.50, 0.44, 0.06, 0.10, 0.05),
    Tissue.NUCLEUS_2: (0.29, 0.33, 0.29, 0.08, 0.12, 0.06),
    Tissue.NUCLEUS_3: (0.27, 0.20, 0.17, 0.10, 0.15, 0.08),
    Tissue.NUCLEUS_4: (0.25, 0.12, 0.10, 0.12, 0.20, 0.08),
    Tissue.FASCIA: (0.16, 0.10, 0.08, 0.05, 0.10, 0.0),
    Tissue.MESENTERY: (0.85, 0.60, 0.10, 0.06, 0.16, 0.12),
    Tissue.SPONGY_FAT: (0.62, 0.46, 0.14, 0.08, 0.15, 0.08),
    Tissue.INTERSPINOUS: (0.30, 0.20, 0.16, 0.10, 0.25, 0.0),
    Tissue.FATTY_MUSCLE: (0.42, 0.27, 0.19, 0.10, 0.15, 0.08),
    Tissue.NUCLEUS_RIM: (0.27, 0.24, 0.21, 0.10, 0.15, 0.08),
}

# Variation of tissues between patients (standard deviation of the logarithm).
_VARIES = {
    Tissue.FAT: 0.08,
    Tissue.EPIDURAL_FAT: 0.08,
    Tissue.MARROW: 0.16,
    Tissue.MUSCLE: 0.12,
    Tissue.CORD: 0.06,
    Tissue.VESSEL: 0.5,
    Tissue.BOWEL: 0.2,
    Tissue.LIVER: 0.15,
    Tissue.KIDNEY: 0.12,
    Tissue.FLUID: 0.05,
}


# Tissues whose signals change together between pulse sequences.
_GROUPS = (
    (Tissue.FAT, Tissue.EPIDURAL_FAT, Tissue.MESENTERY),
    (Tissue.MUSCLE, Tissue.FATTY_MUSCLE),
    (Tissue.MARROW, Tissue.SPONGY_FAT, Tissue.FATTY_SPOT),
    (Tissue.CSF, Tissue.FLUID),
    (Tissue.ANNULUS, Tissue.ANNULUS_OUTER, *(tissue for tissue in Tissue if tissue.name.startswith("NUCLEUS"))),
)
_STRANGENESS = 0.7
"""How far sequences of contrast ``random`` deviate from a blend of T1, T2 and STIR (deviation of the logarithm)."""


def signals(contrast: str, rng: np.random.Generator) -> np.ndarray:
    """(4, 256) float32: signal, and its fine, medium and coarse texture in units of signal, by tissue."""
    table = np.zeros((4, 256), np.float32)
    sequence = _sequence(contrast, rng)
    for tissue, row in _SIGNAL.items():
        draw = np.exp(_VARIES.get(tissue, 0.0) * rng.standard_normal())
        table[0, tissue] = sequence[tissue] * draw
        table[1:, tissue] = np.array(row[3:]) * table[0, tissue]
    return table


def _sequence(contrast: str, rng: np.random.Generator) -> dict[Tissue, float]:
    """Mean signal by tissue; ``random`` is an invented pulse sequence: a blend with each group of tissues scaled."""
    if contrast != "random":
        column = ("t1", "t2", "stir").index(contrast)
        return {tissue: row[column] for tissue, row in _SIGNAL.items()}
    blend = rng.dirichlet((0.6, 0.6, 0.6))
    factors = {tissue: factor for group in _GROUPS for factor in [_stray(rng)] for tissue in group}
    return {
        tissue: min(1.2, float(blend @ row[:3]) * (factors[tissue] if tissue in factors else _stray(rng) ** 0.5))
        for tissue, row in _SIGNAL.items()
    }


def _stray(rng: np.random.Generator) -> float:
    return float(np.exp(_STRANGENESS * rng.standard_normal()))
