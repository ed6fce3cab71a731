"""How a failure is told, and progress."""

import time

STARTED = time.monotonic()


class Problem(Exception):
    """Something that the user can read and act upon; its text is all that is shown."""


def say(message):
    print(f"cluster: {time.monotonic() - STARTED:5.1f} s  {message}", flush=True)


def wait_for(what, ready, patience, pause=0.05):
    """What `ready` gives once it gives something. It may raise a Problem to end the wait."""
    end = time.monotonic() + patience
    while True:
        found = ready()
        if found:
            return found
        if time.monotonic() > end:
            raise Problem(f"{what} took longer than {patience:.0f} s")
        time.sleep(pause)
