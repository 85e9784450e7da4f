"""What the project claims of real networks is measured here; README.md has one line a script."""
