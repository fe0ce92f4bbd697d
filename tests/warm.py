"""Starts programs in processes that have imported torch already, which takes seconds of each start.

PYTHON is used as ``sys.executable`` is. The program is a process of its own, with the caller's
arguments, environment, folder, files, signals and exit status, but forked from a server that has
imported torch and nothing of this repository. Not for tests of the start itself, of signals to a
group of processes, or of environment variables that are read while torch is imported.
"""

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

# Slow imports of other packages.
IMPORTED = "torchvision", "torch._dynamo", "torch.distributed.run", "torch.utils.flop_counter"
# Stands for the program: hands everything over, passes signals on, and ends as the program does.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = [sys.argv, dict(os.environ), os.getcwd()]
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
status = int(server.recv(99))
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def __getattr__(name: str) -> str:
    if name == "PYTHON":
        return start_server()
    raise AttributeError(name)


@cache
def start_server() -> str:
    """Returns the program's starter, at first after starting the server, which ends with us."""
    if not hasattr(os, "pidfd_open"):
        return sys.executable
    folder = tempfile.mkdtemp()
    address, client = f"{folder}/socket", Path(folder, "python")
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o700)
    command = [sys.executable, "-P", __file__, address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")
    atexit.register(shutil.rmtree, folder)
    atexit.register(process.kill)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return str(client)


def serve(address: str) -> list[str]:
    """Serves at ``address``; in a program's process, returns the starter and the arguments."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: the process and its client
    while True:
        clients = {client: pid for pid, client in running.values()}
        for ready in select.select([listener, *running, *clients], [], [])[0]:
            if ready is listener:
                client, _ = listener.accept()
                request, files, _, _ = socket.recv_fds(client, 2**20, 3)
                if pid := os.fork():
                    running[os.pidfd_open(pid)] = pid, client
                    for file in files:
                        os.close(file)
                    continue
                for end in (listener, client, *clients):
                    end.close()
                for place, file in enumerate(files):
                    os.dup2(file, place)
                    os.close(file)
                argv, environment, folder = json.loads(request)
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(folder)
                return argv
            if ready in running:
                pid, client = running.pop(ready)
                os.close(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with client, suppress(OSError):  # it was killed
                    client.send(str(status).encode())
            elif ready.fileno() != -1:
                number = ready.recv(1)
                os.kill(clients[ready], number[0] if number else signal.SIGKILL)


if __name__ == "__main__":
    import gc
    import importlib
    import runpy
    import threading

    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # else every collection copies the server's memory
    sys.executable, *words = serve(sys.argv[1])
    options = {words.pop(0) for word in list(words[:2]) if word in ("-u", "-P")}
    for name, file in (("stdout", 1), ("stderr", 2)):
        line = "-u" in options or file == 2 or os.isatty(file)
        setattr(sys, name, os.fdopen(file, "w", 1 if line else -1, closefd=False))
    sys.stdin = os.fdopen(0, closefd=False)
    kind = words.pop(0) if words[0] in ("-c", "-m") else ""
    sys.argv = [kind or words[0], *words[1:]]
    paths = [os.path.dirname(os.path.abspath(words[0])) if not kind else os.getcwd()]
    paths = [] if "-P" in options else paths
    sys.path[:0] = [*paths, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    status: object = 0
    try:
        if kind == "-c":
            exec(words[0], {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    if not isinstance(status, int):
        sys.exit(status)  # prints it
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status & 255)  # Python would delete torch's modules one by one, for seconds
