"""Networks to measure on, images they are evaluated on, and images made of them."""
