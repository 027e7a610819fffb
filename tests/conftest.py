"""What all tests have in common."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a shell's background ignores it, and the programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
