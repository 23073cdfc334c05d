"""Benchmarks: each module has `run(small) -> list of rows`; `python -m bench` runs them and writes figures/bench.json
and bench.png.
"""
