"""Published methods to stand beside, put together from this package's parts."""
