"""The first module that the server of multiprocessing imports, and nobody else: Ctrl-C ends it without a word from here
on, however much it has still to import. Afterwards multiprocessing lets it overlook Ctrl-C, as workers do."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
if hasattr(signal, "pthread_sigmask"):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
