"""Names for classes: fvcore's registry, with an error that says which names there are."""

import difflib

from fvcore.common.registry import Registry as _Registry


class Registry(_Registry):
    """Maps a name to a class or function; unknown names are answered with the known ones."""

    def get(self, name: str):
        """The object registered as ``name``; ``KeyError`` lists the known names otherwise."""
        if name in self:
            return super().get(name)
        known = sorted(key for key, _ in self)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise KeyError(f"{name!r} is not in the {self._name} registry.{hint} Known: {', '.join(known) or 'none'}")
