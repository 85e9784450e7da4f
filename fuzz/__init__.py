"""Coverage-guided fuzzing of everything that is read from a file: one file a kind, `make fuzz MINUTES=10` runs all."""
