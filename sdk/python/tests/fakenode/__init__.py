"""A test fixture: a node in miniature.

``worker`` runs the real runner as a subprocess with a socket pair as its
descriptor 3, the way init does in a container. ``server`` answers the RPCs that
the SDK needs over Connect/JSON and runs functions by such workers. Nothing
here is part of the product.
"""
