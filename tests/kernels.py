"""Kernels of reports, forked from one process that has imported what takes seconds.

A report's kernel imports torch, scikit-learn and matplotlib anew, which takes longer than a small report itself. In the
tests, a report that runs in the test's own process has a kernel that is a fork of a process with these already
imported; nothing of `anomaly_nb` is imported before the fork. The fixture `fresh_kernels` gives kernels as users have
them.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time

LAUNCHER = ["-m", "ipykernel_launcher"]
# what a process reads once, at its start or at an import: where it differs, a kernel is started anew
AT_START = ("PYTHONPATH", "PYTHONHASHSEED", "MPLBACKEND", "PATH", "HOME", "LD_LIBRARY_PATH") + tuple(
    f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS")
)


def at_start(env):
    "Those variables of an environment that matter at a start."
    return {name: env[name] for name in AT_START if name in env}


class Forked:
    "As much of `subprocess.Popen` as jupyter_client needs, of a process that another process has begun."

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        import psutil

        if not psutil.pid_exists(self.pid):
            self.returncode = 0
        return self.returncode

    def wait(self, timeout=None):
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(LAUNCHER, timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Origin:
    "The process that kernels are forks of, begun with the first of them."

    def __init__(self):
        self.process, self.env, self.lock = None, {}, threading.Lock()

    def launch(self, command, env, cwd=None, **how):
        "A kernel in the place of jupyter_client's `launch_kernel`."
        from jupyter_client.launcher import launch_kernel

        with self.lock:
            if self.process is None:
                self.env = at_start(env)
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.kernels"],
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                    start_new_session=True,
                )
            if at_start(env) != self.env or command[1:3] != LAUNCHER:
                return launch_kernel(command, env=env, cwd=cwd, **how)
            task = {"words": command[3:], "env": dict(env), "cwd": str(cwd or os.getcwd())}
            self.process.stdin.write(json.dumps(task) + "\n")
            return Forked(int(self.process.stdout.readline()))

    def cpu_seconds(self):
        "CPU seconds of it and of the kernels that have ended."
        import psutil

        return sum(psutil.Process(self.process.pid).cpu_times()[:4]) if self.process else 0

    def end(self):
        "End it, and the kernels that still run."
        if self.process:
            self.process.communicate()
            self.process = None


ORIGIN = Origin()


@contextlib.contextmanager
def forked():
    "Kernels that this process starts are forks."
    from jupyter_client.provisioning import local_provisioner

    before, local_provisioner.launch_kernel = local_provisioner.launch_kernel, ORIGIN.launch
    try:
        yield
    finally:
        local_provisioner.launch_kernel = before
        ORIGIN.end()


def preload():
    "What kernels of reports import beside the library."
    import faiss  # noqa: F401
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.mixture
    import sklearn.model_selection  # noqa: F401
    import torch

    torch._dynamo  # noqa: B018  torchvision imports it, which takes longest


def become(task):
    "Be the kernel of a task until it ends."
    import numpy as np
    from ipykernel import kernelapp

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(task["env"])
    os.chdir(task["cwd"])
    np.random.seed()  # noqa: NPY002  or what forgets its seed would give the same in every fork
    sys.argv = ["ipykernel_launcher.py", *task["words"]]
    kernelapp.launch_new_instance()
    sys.exit()


def main():
    "Fork a kernel for every line of stdin; the kernel answers with its process id."
    preload()
    gc.freeze()  # or every kernel goes through all of it again and again
    kernels = set()

    def gather(*_):
        for pid in list(kernels):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    kernels.discard(pid)

    signal.signal(signal.SIGCHLD, gather)
    for line in sys.stdin:
        if pid := os.fork():
            kernels.add(pid)
            continue
        os.setsid()
        os.write(1, f"{os.getpid()}\n".encode())
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        become(json.loads(line))
    for pid in kernels:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
