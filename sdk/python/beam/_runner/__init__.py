"""The process that runs user code inside a container.

``python3 -m beam._runner.main`` is started by the container's init with the
user's code as working directory and talks to the node over file descriptor 3
(:mod:`beam._runner.frames`). It imports the handler once, runs ``on_start``
once and then serves calls one after the other until it is told to stop.

It must run on Python 3.8 to 3.13 with nothing installed in the image, so it
imports the standard library only; ``cloudpickle`` lies beside it in the bundle
and is loaded when plain pickle does not suffice.

Parts: :mod:`.frames` the channel, :mod:`.loader` finding the handler,
:mod:`.calls` one call, :mod:`.reports` exceptions as data, :mod:`.main` the loop.
"""
