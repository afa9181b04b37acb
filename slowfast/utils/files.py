"""One path manager for every list, label map and checkpoint (local paths, or any scheme iopath knows)."""

from iopath.common.file_io import PathManagerFactory

pathmgr = PathManagerFactory.get(key="slowfast")
