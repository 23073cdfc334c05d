"""Seconds of every test, and what `make test FAST=1` leaves out."""

import time

import pytest

from tests import checks, kernels

SECONDS = {}  # test -> on the clock, of CPU; with two workers (-n 2), of both


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    "A folder with `det`, a quick detector, `good`, the eight images that it learned from, and what `fit` said."
    from tests.commands import FIT, parts, run  # not before a test needs them

    folder = tmp_path_factory.mktemp("fitted")
    parts(folder / "good", range(8))
    code, said, error = run("fit", folder / "good", "--out", folder / "det", *FIT)
    assert code == 0, (said, error)
    (folder / "said.txt").write_text(said)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _forked_kernels():
    "Kernels of reports that run in this process are forks of one that has imported torch and the like."
    with kernels.forked():
        yield


@pytest.fixture
def fresh_kernels(monkeypatch):
    "Kernels that are started as users start them."
    from jupyter_client import launcher
    from jupyter_client.provisioning import local_provisioner

    monkeypatch.setattr(local_provisioner, "launch_kernel", launcher.launch_kernel)


def pytest_configure(config):
    chosen = not any(str(a).endswith(".py") or "::" in str(a) for a in config.args)  # tests named by hand are run
    config.stash[KEPT] = set(checks.tests_of(checks.changed())) if checks.FAST and chosen else None
    config.stash[BEGUN] = time.perf_counter()


KEPT, BEGUN, CPU = pytest.StashKey(), pytest.StashKey(), pytest.StashKey()


def pytest_ignore_collect(collection_path, config):
    kept = config.stash[KEPT]
    return True if kept is not None and collection_path.is_file() and collection_path not in kept else None


def pytest_collection_modifyitems(config, items):
    known = checks.taken("tests")
    if config.stash[KEPT] is not None:  # the quick ones first: time may end
        items.sort(key=lambda item: known.get(item.nodeid, [0])[0])
    else:  # the longest files first, so that no worker ends long before the other
        files = {}
        for test, (clock, _) in known.items():
            files[test.split("::")[0]] = files.get(test.split("::")[0], 0) + clock
        items.sort(key=lambda item: -files.get(item.nodeid.split("::")[0], 0))


def cpu_seconds():
    "CPU seconds of this process, of the children it has waited for, and of the kernels forked for it."
    return checks.cpu_seconds() + kernels.ORIGIN.cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[CPU] = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown":
        report.user_properties = [*report.user_properties, ("cpu", cpu_seconds() - item.stash[CPU])]
    return report


def pytest_runtest_logreport(report):
    clock, cpu = SECONDS.get(report.nodeid, (0, 0))
    spent = dict(report.user_properties).get("cpu", 0) if report.when == "teardown" else 0
    SECONDS[report.nodeid] = [round(clock + report.duration, 2), round(cpu + spent, 2)]


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
    if not config.option.collectonly and SECONDS:
        checks.keep_taken("tests", SECONDS)
        if "::" not in " ".join(map(str, config.args)):
            if known := checks.taken("notebooks"):
                terminalreporter.write_line("\n" + checks.table("notebooks", known))
            terminalreporter.write_line("\n" + checks.table("tests", SECONDS))
