# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler and linker that recipes use. Their versions are part of every key."""

from lab.errors import HostError
from lab.host import proc
from lab.host.deadline import Deadline

COMPILER = "gcc"
LINKER = "ld"

#: The environment of recipes: the user's environment must not change the result. Kconfig asks any rustc in PATH for its
#: version; a rustup in the user's PATH would then write its settings to HOME.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LC_ALL": "C", "TZ": "UTC"}


def read_versions(compiler: str = COMPILER) -> tuple[str, ...]:
    """Return the first line that each tool prints about itself. Debian's tools print the version of their package.

    :raise HostError: a tool does not run
    """
    versions = []
    for tool in (compiler, LINKER):
        try:
            versions.append(proc.run([tool, "--version"], env=ENVIRONMENT, deadline=Deadline.after(10)).splitlines()[0])
        except (HostError, IndexError) as error:
            raise HostError(f"'{tool}' does not run; mend it with: apt-get install {compiler} binutils") from error
    return tuple(versions)
