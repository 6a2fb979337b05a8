"""Packages of Debian's, for another architecture too, without root and with nothing installed.

apt works on a state of its own in a temporary folder (lists, "installed" packages, cache), by
the host's own sources and keys; dpkg-deb unpacks. Nothing of the host's is written.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mobilenet_tvm.errors import DeviceError

TOOLS = ("apt-get", "dpkg", "dpkg-deb")
_TIMEOUT_S = 600.0

# The hooks are cleared for they touch the host: Docker images of Debian empty the host's apt
# cache after each update. As root apt would download as a user who may not enter our folder.
_CONFIGURATION = """
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{native}";
APT::Architectures {{ "{native}"; "{foreign}"; }};
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


def missing_tools() -> tuple[str, ...]:
    """Of ``TOOLS``, those that are not on PATH."""
    return tuple(tool for tool in TOOLS if shutil.which(tool) is None)


def release() -> str:
    """This machine's system and release, as a name for a file: ``debian-bookworm``."""
    try:
        about = platform.freedesktop_os_release()
    except (OSError, AttributeError):
        return f"{platform.system()}-{platform.release()}".lower()
    return f"{about['ID']}-{about.get('VERSION_CODENAME') or about.get('VERSION_ID', 'rolling')}"


def fetch(
    packages: Sequence[str], foreign: str, folder: Path, say: Callable[[str], None]
) -> list[Path]:
    """Download ``packages`` (``libstdc++6:arm64``) and all that they depend on.

    Args:
        packages: names as apt takes them.
        foreign: Debian's name of the other architecture.
        folder: an empty folder, for apt's state; the archives stay there.
        say: gets progress lines.

    Raises:
        DeviceError: no apt, no network, or sources without these packages.
    """
    missing = missing_tools()
    if missing:
        raise DeviceError(f"{' and '.join(missing)} not found: {NO_APT}")
    native = _run(["dpkg", "--print-architecture"]).strip()
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "state/status").touch()
    configuration = folder / "apt.conf"
    configuration.write_text(
        _CONFIGURATION.format(native=native, foreign=foreign, folder=folder), encoding="utf-8"
    )
    apt = ["apt-get", "-q", "-c", str(configuration)]
    say(f"apt: package lists for {foreign}")
    trouble = ""
    try:
        _run([*apt, "update", "--error-on=any"])
    except DeviceError as error:  # a third party's source without this architecture, say
        trouble = str(error)
    say(f"apt: {', '.join(packages)}, and what they depend on")
    try:
        _run([*apt, "install", "--download-only", "--yes", "--no-install-recommends", *packages])
    except DeviceError as error:
        raise DeviceError(
            f"{trouble or error}; the emulated board needs the network once, and apt sources "
            f"that have {foreign} packages (Debian's have)"
        ) from None
    return sorted((folder / "cache/archives").glob("*.deb"))


NO_APT = (
    "the emulated board is made from Debian packages; set it up on Debian (a container is enough)"
)


def unpack(archive: Path, root: Path) -> None:
    """Unpack a package's files into ``root``; none of its scripts runs."""
    _run(["dpkg-deb", "--extract", str(archive), str(root)])


def unpack_files(archive: Path, wanted: Mapping[str, Path]) -> set[str]:
    """Unpack only the named regular files (``usr/bin/qemu-arm``), each to its path.

    Returns:
        The names that the package has.
    """
    found = set()
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=_environment()) as tar,
        tarfile.open(fileobj=tar.stdout, mode="r|") as members,
    ):
        for member in members:
            name = member.name.removeprefix("./")
            content = members.extractfile(member) if name in wanted and member.isreg() else None
            if content is not None:
                with wanted[name].open("wb") as file:
                    shutil.copyfileobj(content, file)
                wanted[name].chmod(member.mode)
                found.add(name)
    return found


def versions(archives: Iterable[Path]) -> dict[str, str]:
    """Package names and versions, from the names that apt gives its files."""
    found = {}
    for archive in archives:
        name, version, architecture = archive.stem.split("_")
        found[f"{name}:{architecture}"] = version.replace("%3a", ":")
    return found


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=_environment(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{command[0]} took more than {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:]
        raise DeviceError(f"{command[0]} failed ({errors[0].removeprefix('E: ')})")
    return done.stdout


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return environment | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
