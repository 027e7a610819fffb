"""What all tests have in common."""

import signal

import hypothesis

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a shell's background ignores it, and the programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair, and what else runs on it.
hypothesis.settings.register_profile("durably", deadline=None)
hypothesis.settings.load_profile("durably")
