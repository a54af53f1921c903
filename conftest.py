"""For the tests and for nbval: kernels started here talk over Unix sockets (tools/kernels.py says why)."""

import kernels

kernels.use_sockets()
