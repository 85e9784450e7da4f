"""Scripts, run as `python -m bench.tables.zoo`: most measure rows and write a page of them."""
