"""Set-up that must come before torch is imported: one thread per test process, since tests run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
