"""One file of the student alone, weights at their real width."""
