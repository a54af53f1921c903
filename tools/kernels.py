"""papermill, its kernels reached over Unix sockets instead of TCP ports.

Usage: as papermill itself: python tools/kernels.py IN.ipynb OUT.ipynb -p NAME VALUE ...

Ports are picked by the parent and opened by the kernel a second later: two notebooks that start together can pick
the same one, and ipykernel 7 warns of plain TCP each time. jupyter_client's own name for the sockets, `kernel-ipc-1`
in the working directory, is shared by all kernels that start there, so every kernel gets a name of its own.
"""

import itertools
import tempfile

from jupyter_client.manager import KernelManager

LONGEST_SOCKET = 100  # bytes of a path: 104 on macOS, 108 on Linux, less the channel's number


def use_sockets():
    """Give every kernel this process starts sockets of its own; stays with TCP where their path would be too long."""
    folder = tempfile.TemporaryDirectory(prefix="kernels-")  # 0700; removed when this process ends
    if len(folder.name) + len("/1000-5") > LONGEST_SOCKET:
        return
    initialise, numbers = KernelManager.__init__, itertools.count()

    def over_sockets(self, *args, **kwargs):
        initialise(self, *args, **{"transport": "ipc", "ip": f"{folder.name}/{next(numbers)}"} | kwargs)

    KernelManager.__init__ = over_sockets


if __name__ == "__main__":
    from papermill.__main__ import papermill

    use_sockets()
    papermill()
