"""Benchmarks. `python -m bench` runs those of `bench.__main__.MODULES`, each with `run(small) -> list of rows`, and
writes figures/bench.json and bench.png; `memory` has the same shape and is called by its test.

`auto`, `choice`, `logical`, `promise` and `small_benchmark` are studies that take hours: each is a command of its own,
such as `python -m bench.auto`, and writes its own file in figures/.
"""
