"""What hypothesis draws for several tests: how a volume's axes may lie."""

from hypothesis import strategies as st

ORDERS = st.permutations(range(3)).map(tuple)
"""Of the axes i, j, k."""
FLIPS = st.tuples(st.booleans(), st.booleans(), st.booleans())
ANGLES = st.tuples(*[st.floats(-20, 20)] * 3)
"""Degrees, for `builders.euler`."""
