"""What hypothesis makes outputs of for placements: all that a Footprint must be given."""

from __future__ import annotations

from hypothesis import strategies as st

SIZES = {
    "inputs": st.integers(0, 400),
    "output": st.sampled_from([1, 2, 4, 8]),
    "smallest_output": st.sampled_from([1, 2, 4, 8]),
    "registers": st.integers(0, 200),
    "largest_wide": st.integers(0, 1 << 28),
    "bytes_written": st.integers(0, 1 << 36),
}
