"""How far float32 results may lie apart by rounding alone, whatever the processor and its order of sums."""

from __future__ import annotations

UNIT_ROUNDOFF = 2.0**-24
"""Half of float32's epsilon: the relative error of one operation."""


def inner_product_error(num_terms: int, length: float = 1.0) -> float:
    """Largest error of an inner product, its terms added in any order.

    num_terms: of the product, and one more for each operation before it, in series. length: product of the
    lengths of the two vectors. (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.)
    """
    return num_terms * UNIT_ROUNDOFF * length
