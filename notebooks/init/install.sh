#!/usr/bin/env bash
# Cluster-scoped init script: installs firesteel into a cluster's Python, from a file on a volume, without a network, and
# changes no other package. README.md beside this file says how to make the wheelhouse and how to attach the script.
#
#   FIRESTEEL_WHEEL    a wheel, or a folder of wheels: firesteel's and those of what the cluster lacks (a wheelhouse)
#   FIRESTEEL_VERSION  which version it must be; needed where the folder has several
#   FIRESTEEL_SHA256   what the wheel's sha256 must be
#   FIRESTEEL_PYTHON   whose packages; default /databricks/python/bin/python, else python3
#   FIRESTEEL_LOG      default /tmp/firesteel-init.log; the same lines go to standard output
#   FIRESTEEL_INDEX    1: what is missing may come from the package index that pip is set up for; default 0: no network
#
# Run again it sees that every file is as the wheel has it, and ends. A failure is one sentence on standard error and in
# the log, and exit code 1, with which a cluster does not start.
set -Eeuo pipefail

python=${FIRESTEEL_PYTHON:-}
log=${FIRESTEEL_LOG:-/tmp/firesteel-init.log}
given=${FIRESTEEL_WHEEL:-}
index=${FIRESTEEL_INDEX:-0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) firesteel: $*" | tee -a "$log"; }
fail() {
    trap - ERR
    say "$*" >&2
    exit 1
}
trap 'fail "line $LINENO of the init script ended with exit code $?: $BASH_COMMAND"' ERR

(: >>"$log") 2>/dev/null || { log=/dev/null; fail "FIRESTEEL_LOG is ${FIRESTEEL_LOG:-}, which cannot be written; name another file"; }
[ -n "$given" ] || fail "FIRESTEEL_WHEEL is not set; name a wheel of firesteel, or a folder of wheels"
[ -e "$given" ] || fail "FIRESTEEL_WHEEL is $given, and there is no such file or folder; is the volume mounted where init scripts run?"
case $index in 0 | 1) ;; *) fail "FIRESTEEL_INDEX is $index; 0 (no network) or 1 (pip's package index) belongs there" ;; esac
if [ -z "$python" ]; then
    python=/databricks/python/bin/python
    [ -x "$python" ] || python=python3
fi
command -v "$python" >/dev/null || fail "FIRESTEEL_PYTHON is $python, and there is no such program"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is older than Python 3.10, the oldest that firesteel runs on"

# What needs to look into wheels and installed packages: `look COMMAND ...` prints what it found, or fails with a sentence.
cat >"$work/look.py" <<'LOOK'
import base64, csv, hashlib, importlib.metadata, io, os, sys, zipfile, zlib
from email.parser import BytesParser

try:
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.tags import sys_tags
    from pip._vendor.packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
    from pip._vendor.packaging.version import InvalidVersion, Version
except ImportError as error:
    sys.exit(f"{sys.executable} has no pip, or one before 21.1 ({error}); install one")


def installed():
    """name -> distribution; of two with one name, the one that is imported."""
    found = {}
    for one in importlib.metadata.distributions():
        if one.metadata["Name"]:
            found.setdefault(canonicalize_name(one.metadata["Name"]), one)
    return found


def parsed(path):
    try:
        return parse_wheel_filename(os.path.basename(path))
    except (InvalidWheelFilename, InvalidVersion) as error:
        sys.exit(f"{path} is not named as a wheel is: {error}")


def choose(given, version, sha256):
    """The wheel to install, once it is known to be whole and for this Python."""
    path = given
    if os.path.isdir(given):
        wheels = [os.path.join(given, n) for n in sorted(os.listdir(given)) if n.startswith("firesteel-") and n.endswith(".whl")]
        fitting = [w for w in wheels if not version or str(parsed(w)[1]) == version]
        fitting = [w for w in fitting if parsed(w)[3] & set(sys_tags())] or fitting
        names = ", ".join(map(os.path.basename, wheels)) or "no wheel of firesteel"
        if not fitting:
            sys.exit(f"{given} holds {names}; firesteel {version or 'of any version'} is wanted from there")
        if len(fitting) > 1:
            sys.exit(f"{given} holds {names}; set FIRESTEEL_VERSION to say which, or leave one there")
        path = fitting[0]
    name, found, _, tags = parsed(path)
    if name != "firesteel":
        sys.exit(f"{path} is a wheel of {name}; a wheel of firesteel belongs there")
    if version and str(found) != version:
        sys.exit(f"{path} is version {found}, and FIRESTEEL_VERSION is {version}")
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if sha256 and digest != sha256.lower():
        sys.exit(f"the sha256 of {path} is {digest}, and FIRESTEEL_SHA256 is {sha256}; copy the wheel again, or mend the setting")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        record(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"{path} is no whole wheel: {error}; copy it again")
    mine = next(iter(sys_tags()))
    if not tags & set(sys_tags()):
        theirs = ", ".join(sorted(map(str, tags)))
        sys.exit(f"{path} is for {theirs}, and this Python is {mine}; build or fetch the wheel for this platform")
    print(path, found, digest, sep="\n")


def inside(archive, name):
    (member,) = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith(f".dist-info/{name}")]
    return archive.read(member)


def record(path):
    """[(file, sha256 as RECORD writes it)]"""
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.reader(io.StringIO(inside(archive, "RECORD").decode())))
    return [(row[0], row[1]) for row in rows if row and row[1]]


def same(path):
    """Exit code 0: every file of the wheel is installed as it is there."""
    here = installed().get("firesteel")
    if here is None or here.version != str(parsed(path)[1]):
        sys.exit(1)
    for name, wanted in record(path):
        try:
            with open(here.locate_file(name), "rb") as file:
                digest = hashlib.sha256(file.read()).digest()
        except OSError:
            sys.exit(1)
        if wanted != "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
            sys.exit(1)


def needs(path):
    """Prints what the wheel asks for and this Python lacks; what is there and too old is a failure."""
    with zipfile.ZipFile(path) as archive:
        asked = BytesParser().parsebytes(inside(archive, "METADATA")).get_all("Requires-Dist") or []
    have, old = installed(), []
    for wanted in map(Requirement, asked):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        there = have.get(canonicalize_name(wanted.name))
        if there is None:
            print(wanted)
        elif not wanted.specifier.contains(there.version, prereleases=True):
            old.append(f"{wanted.name} {there.version} is installed and firesteel needs {wanted}")
    if old:
        sys.exit(f"{'; '.join(old)}: this script changes no installed package, and has changed nothing; use a newer runtime")


def frozen():
    """name==version of all there is, as pip takes it for constraints: versions that are none (Debian's) are left out."""
    for name, one in sorted(installed().items()):
        try:
            if name != "firesteel":
                print(f"{name}=={Version(one.version)}")
        except InvalidVersion:
            pass


def changed(before):
    """Prints what of the lines in the file `before` is no longer so."""
    with open(before) as file:
        was = dict(line.strip().split("==") for line in file)
    have = installed()
    for name, version in was.items():
        if name not in have:
            print(f"{name} {version} is gone")
        elif str(Version(have[name].version)) != version:
            print(f"{name} {version} became {have[name].version}")


{"choose": choose, "same": same, "needs": needs, "frozen": frozen, "changed": changed}[sys.argv[1]](*sys.argv[2:])
LOOK

# Isolated from the folder it runs in, PYTHONPATH and user packages; without the settings above, which are no knobs.
isolated() {
    env -u FIRESTEEL_WHEEL -u FIRESTEEL_VERSION -u FIRESTEEL_SHA256 -u FIRESTEEL_PYTHON -u FIRESTEEL_LOG -u FIRESTEEL_INDEX \
        "$python" -I "$@"
}
look() { isolated "$work/look.py" "$@" 2>"$work/said" || fail "$(tail -n 1 "$work/said")"; }
log_of() { while IFS= read -r line; do say "$1: $line"; done <"$2"; }

# pip, with every index and every setting of this machine's out of reach unless FIRESTEEL_INDEX=1.
pip_install() {
    local offline=()
    [ "$index" = 1 ] || offline=(--isolated --no-index)
    [ ! -d "$given" ] || offline+=(--find-links "$given")
    local config=()
    [ "$index" = 1 ] || config=(PIP_CONFIG_FILE=/dev/null)
    env "${config[@]}" "$python" -I -m pip --disable-pip-version-check --no-input install --no-user --no-cache-dir \
        --only-binary=:all: "${offline[@]}" "$@" >"$work/pip" 2>&1 && log_of pip "$work/pip" && return
    log_of pip "$work/pip"
    local after said
    after=$(look changed "$work/frozen")
    said=$(grep '^ERROR' "$work/pip" | tail -n 1 || true)
    fail "pip cannot install $installing: ${said#ERROR: }; ${after:-no installed package was changed}; the log, $log, has all that pip said"
}

look choose "$given" "${FIRESTEEL_VERSION:-}" "${FIRESTEEL_SHA256:-}" >"$work/chosen"
{ read -r wheel && read -r version && read -r digest; } <"$work/chosen"
say "firesteel $version for $("$python" -I -c 'import sys; print(sys.executable, "Python", sys.version.split()[0])'), from $wheel, sha256 $digest"

look frozen >"$work/frozen"
look needs "$wheel" >"$work/missing"
mapfile -t missing <"$work/missing"
if [ "${#missing[@]}" = 0 ] && isolated "$work/look.py" same "$wheel" 2>/dev/null; then
    say "every file of it is installed already: nothing to do"
    exit 0
fi

"$python" -I -m pip --disable-pip-version-check check >"$work/check" 2>/dev/null || true
if [ "${#missing[@]}" != 0 ]; then
    if [ ! -d "$given" ] && [ "$index" = 0 ]; then
        fail "this Python lacks ${missing[*]}, and FIRESTEEL_WHEEL is a single wheel: give a wheelhouse, a folder with their wheels too; nothing was changed"
    fi
    installing="what is missing (${missing[*]}) beside what is installed"
    pip_install --constraint "$work/frozen" "${missing[@]}"
fi
installing=$wheel
pip_install --no-deps --force-reinstall "$wheel"

after=$(look changed "$work/frozen" | paste -sd ';' -)
[ -z "$after" ] || fail "installing changed other packages: $after; this cluster must not be used as it is"
"$python" -I -m pip --disable-pip-version-check check >"$work/checked" 2>/dev/null || true
worse=$(grep -vxFf "$work/check" "$work/checked" | grep -v '^No broken requirements' | paste -sd ';' - || true)
[ -z "$worse" ] || fail "what is installed no longer fits together: $worse"

cd /
isolated -c 'import firesteel; firesteel.Engine, firesteel.plan' >"$work/smoke" 2>&1 || {
    log_of import "$work/smoke"
    fail "firesteel $version is installed and cannot be imported: $(tail -n 1 "$work/smoke")"
}
isolated -m firesteel doctor >"$work/smoke" 2>&1 || {
    log_of doctor "$work/smoke"
    fail "firesteel $version is installed and cannot compute here: \`python -m firesteel doctor\` in the log, $log, says why"
}
log_of doctor "$work/smoke"
look frozen >"$work/now"
added=$(comm -13 <(sort "$work/frozen") <(sort "$work/now") | paste -sd ' ' -)
say "installed firesteel $version; ${added:+added $added; }changed no other package"
