"""Files of a student: for other programs to run, and for this one to read back."""
