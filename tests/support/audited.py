"""
Run in a process of its own: runs a script or module, which ends in an error where it starts a process, uses the network
or unpickles an object.

    python audited.py SCRIPT.py|MODULE ARGUMENTS
"""

import runpy
import sys

# what these do when they are imported is not what is watched
import torch  # noqa: F401
import transformers.trainer  # noqa: F401

REFUSED = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pickle.find_class", "subprocess.Popen")
REFUSED += ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")


def refuse(event: str, arguments: tuple) -> None:
    if event in REFUSED:
        raise PermissionError(f"audit: {event} {arguments}")


sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
