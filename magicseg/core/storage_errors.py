"""Describe storage errors of the operating system, and the remedy for each."""

import errno
import os

# The file system does not support an operation: hard links, locks, directory fsync, rename with flags.
UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EMLINK}
)

_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_PERMISSION = "ask its owner for permission (ls -ld shows who that is)"
_SERVER = "the file server or disk is failing: try again, else ask your administrator"
_REMEDIES = {
    errno.ENOSPC: "free some space or inodes on that disk (see df -h and df -i)",
    errno.EDQUOT: "your quota is used up: delete some of your files there, or ask for more quota",
    errno.EFBIG: "free some space, or raise the limit on a file's size (ulimit -f)",
    errno.EROFS: "that disk is read-only: use one that you can write to",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: "choose shorter names of folders and files",
    errno.ENOLCK: "that disk has no file locks: use another one, or ask your administrator",
    errno.EMFILE: "too many files are open: raise the limit with ulimit -n",
    errno.ENFILE: "too many files are open on this machine: try again later",
    errno.ENOMEM: "this machine has no memory left: use fewer workers, or another machine",
    errno.EISDIR: "that path is a folder, but a file is expected: move it away",
    errno.ENOTDIR: "a file is used as a folder in that path: move it away",
    errno.EEXIST: "that path already exists: move it away",
    errno.ENOTEMPTY: "that folder is not empty: move it away",
    errno.ELOOP: "symlinks in that path form a loop: remove one",
    errno.ENOENT: "a folder of that path was deleted: check with ls",
    errno.EIO: _SERVER,
    errno.ESTALE: _SERVER,
    errno.ETIMEDOUT: _SERVER,
    errno.ENODEV: _SERVER,
    errno.ENOTCONN: _SERVER,
    errno.ENXIO: "that path is a pipe or a device, but a file is expected: move it away",
    errno.ETXTBSY: "that file is in use: try again later",
    errno.EBUSY: "that file is in use: try again later",
}


def remedy(error: OSError) -> str | None:
    """Return what a user can do about ``error``, as one phrase; None for unknown error numbers."""
    if error.errno is None:
        return "choose a shorter TMPDIR: export TMPDIR=/tmp" if "AF_UNIX path too long" in str(error) else None
    return _REMEDIES.get(error.errno)


def complaint(error: OSError) -> str:
    """Return what failed, in the operating system's words: ``cannot be written: No space left on device``."""
    return f"cannot be {'written' if error.errno in _WRITING else 'used'}: {reason(error)}"


def reason(error: OSError) -> str:
    """Return what went wrong in the operating system's words."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    # h5py and other libraries put their own long text into `strerror`.
    return os.strerror(error.errno) if error.errno and error.errno in errno.errorcode else error.strerror
