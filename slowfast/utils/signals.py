"""Who may end a helper process: its parent, and not a signal that a scheduler sends to the whole group."""

import os
import signal
import threading


def heed_only_parent() -> None:
    """Ignore SIGTERM and SIGUSR1 in this process, except a SIGTERM that its parent sends.

    Schedulers signal every process of a job at once. The main process then finishes its step and saves, for which it
    needs its loader workers a moment longer; it ends them itself.
    """
    if not hasattr(signal, "sigwaitinfo"):  # not on every system
        return
    parent = os.getppid()
    numbers = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen() -> None:
        while True:
            received = signal.sigwaitinfo(numbers)
            if received.si_signo == signal.SIGTERM and received.si_pid == parent:
                os._exit(0)

    threading.Thread(target=listen, name="signals", daemon=True).start()
