"""Hypothesis strategies for several tests: orientations of a volume's axes."""

from hypothesis import strategies as st

ORDERS = st.permutations(range(3)).map(tuple)
"""Orders of the axes i, j, k."""
FLIPS = st.tuples(st.booleans(), st.booleans(), st.booleans())
ANGLES = st.tuples(*[st.floats(-20, 20)] * 3)
"""Degrees, for `builders.euler`."""
