"""Settings that single routing methods have of their own: rows of `mhr.methods` name them."""
