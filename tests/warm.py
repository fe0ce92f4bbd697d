"""Starts programs in processes that have imported torch already, which takes seconds of each start.

PYTHON is used as ``sys.executable`` is. The program is a process of its own, with the caller's
arguments, environment, folder, files, signals and exit status, but forked from a server that has
imported torch and nothing of this repository. Not for tests of the start itself, of signals to a
group of processes, or of environment variables that are read while torch is imported.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Slow imports of other packages.
IMPORTED = "torchvision", "torch._dynamo", "torch.distributed.run", "torch.utils.flop_counter"
PYTHON = sys.executable  # until the server is started
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


@contextmanager
def server() -> Iterator[None]:
    """Sets PYTHON to the program's starter while it lasts, where the system can do that."""
    global PYTHON
    if not hasattr(os, "pidfd_open"):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        address, client = f"{folder}/socket", Path(folder, "python")
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o700)
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, address], stdout=subprocess.PIPE, cwd="/"
        )
        assert process.stdout and process.stdout.readline() == b"ready\n"
        PYTHON = str(client)
        try:
            yield
        finally:
            PYTHON = sys.executable
            process.kill()
            process.communicate()


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
    import importlib
    import runpy

    for name in IMPORTED:
        importlib.import_module(name)
    sys.executable, *words = serve(sys.argv[1])
    unbuffered = words[0] == "-u"
    words = words[unbuffered:]
    for name, file in (("stdout", 1), ("stderr", 2)):
        line = unbuffered or file == 2 or os.isatty(file)
        setattr(sys, name, os.fdopen(file, "w", 1 if line else -1, closefd=False))
    sys.stdin = os.fdopen(0, closefd=False)
    kind = words.pop(0) if words[0] in ("-c", "-m") else ""
    sys.argv = [kind or words[0], *words[1:]]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.dirname(os.path.abspath(words[0])) if not kind else os.getcwd()]
    sys.path[1:1] = filter(None, paths)
    if kind == "-c":
        exec(words[0], {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
