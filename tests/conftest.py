"""Seconds of every test, and what `make test FAST=1` leaves out."""
import multiprocessing
import time

import pytest

from tests import checks

SECONDS = {}  # test -> on the clock, of CPU


def pytest_configure(config):
    chosen = not any(str(a).endswith(".py") or "::" in str(a) for a in config.args)  # tests named by hand are run
    config.stash[KEPT] = set(checks.tests_of(checks.changed())) if checks.FAST and chosen else None
    config.stash[BEGUN] = time.perf_counter()


KEPT, BEGUN = pytest.StashKey(), pytest.StashKey()


def pytest_ignore_collect(collection_path, config):
    kept = config.stash[KEPT]
    return True if kept is not None and collection_path.is_file() and collection_path not in kept else None


def pytest_collection_modifyitems(config, items):
    if config.stash[KEPT] is not None:  # the quick ones first: time may end
        known = checks.taken("tests")
        items.sort(key=lambda item: known.get(item.nodeid, [0])[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    start, cpu = time.perf_counter(), checks.cpu_seconds()
    result = yield
    SECONDS[item.nodeid] = [round(time.perf_counter() - start, 2), round(checks.cpu_seconds() - cpu, 2)]
    return result


def pytest_runtest_setup(item):
    since = time.perf_counter() - item.config.stash[BEGUN]
    if item.config.stash[KEPT] is not None and since > checks.LONGEST["tests"]:
        pytest.skip("the time of FAST=1 was up")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash[KEPT] is not None:
        session.exitstatus = pytest.ExitCode.OK
        print("no test imports a module that changed")
    return (yield)


def pytest_terminal_summary(terminalreporter, config):  # before pytest's closing line
    if not config.option.collectonly and SECONDS and not multiprocessing.parent_process():  # else `tests/checks.py` keeps them
        checks.keep_taken("tests", SECONDS)
        if "::" not in " ".join(map(str, config.args)):
            if known := checks.taken("notebooks"):
                terminalreporter.write_line("\n" + checks.table("notebooks", known))
            terminalreporter.write_line("\n" + checks.table("tests", SECONDS))
