"""The home: a folder for this user alone, and files in it that nobody else can read."""

import os
import stat

import structlog

from service.errors import SettingsError
from service.settings import Settings

log = structlog.get_logger(__name__)

PRIVATE = 0o700
OTHERS = 0o007
BEYOND_OWNER = 0o077


def take_home(settings: Settings) -> None:
    """Make the home if it is missing, keep others out of it, and out of all files that this process makes.

    A home that only a group shares with its owner stays so, for roles that run as several users. One that
    every user of the machine can read is made private.

    Raises:
        SettingsError: it cannot be made.
    """
    try:
        settings.root.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        found = settings.root.stat()
    except OSError as error:
        raise SettingsError(
            f"The home {settings.root} cannot be made: {error.strerror}.",
            fix="Set HOLDFAST_HOME to a folder that this user may write.",
        ) from error
    mode = stat.S_IMODE(found.st_mode)
    if mode & OTHERS:
        mode = _close(settings, mode)
    # What the folder keeps out, its files keep out as well, wherever they are copied to.
    os.umask(OTHERS | (~mode & BEYOND_OWNER))


def _close(settings: Settings, mode: int) -> int:
    """Make the home private, unless all users are meant to share the folder; the mode that it has now."""
    home = str(settings.root)
    if not mode & stat.S_ISVTX:
        try:
            settings.root.chmod(PRIVATE)
        except OSError:
            pass
        else:
            log.warning("all users could read the home; it is private now", home=home, mode=f"{mode:04o}")
            return PRIVATE
    log.warning("all users can read the home; take a folder of your own", home=home, mode=f"{mode:04o}")
    return mode
