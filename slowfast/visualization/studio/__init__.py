"""A local page: what runs have left, and what their networks see in a video.

``server`` speaks HTTP and refuses what it must; ``app`` is what the addresses mean; ``library`` and ``describe`` read
runs, ``store`` holds uploads; ``lanes`` runs ``work`` in processes of their own. The page itself lies in ``static``.

The one idea: the server's process never opens a video or a network, so neither can take it down.
"""
