#!/usr/bin/env bash
# Build an image and see that it works confined: docker/verify.sh [cpu|gpu]
#
# Takes the engine that is there: Docker, else Podman, else Buildah. Buildah has no engine to run services with, so
# what it built is started in a root of its own that is mounted read-only, as the image's user, without
# capabilities; that needs root. Limits of memory and processes are only tried with the other two.
#
#   ENGINE=docker|podman|buildah   instead of the first that works
#   ENGINE_OPTIONS="..."           options of the engine itself, such as --root and --storage-driver
#   BUILD_OPTIONS="..."            more options for the build, such as --network host
#   PYTHON_IMAGE=NAME              another base image;  BASE_TARBALL=FILE: a root file system to import under that name
#   PIP_CONF=FILE CA_BUNDLE=FILE   how the build reaches the package index; secrets of the build, in no layer
#   IMAGE=NAME                     an image that is there already; nothing is built then
#
# Everything that it made but the image is gone afterwards. Ends with status 1 at the first thing that is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-cpu}
base=${PYTHON_IMAGE:-$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)}
image=${IMAGE:-localhost/xclip-search-verify:$target}
name=xclip-verify-$$
work=$(mktemp -d)
read -ra engine_options <<<"${ENGINE_OPTIONS:-}"
read -ra build_options <<<"${BUILD_OPTIONS:-}"
declare -A pids=()

say() { printf '%s\n' "$*"; }
fail() {
    say "WRONG: $*" >&2
    for log in "$work"/*.log; do
        [ -s "$log" ] && say "--- ${log##*/}" && tail -n 40 "$log"
    done >&2
    exit 1
}

find_engine() {
    if docker info >/dev/null 2>&1; then
        echo docker
    elif command -v podman >/dev/null; then
        echo podman
    elif command -v buildah >/dev/null; then
        echo buildah
    else
        fail "none of docker, podman, buildah works here"
    fi
}
engine=${ENGINE:-$(find_engine)}
cli() { "$engine" ${engine_options[@]+"${engine_options[@]}"} "$@"; }

clean_up() {
    local part
    if [ "$engine" = buildah ]; then
        for part in "${!pids[@]}"; do kill -KILL "${pids[$part]}" 2>/dev/null || true; done
        wait || true
        [ -z "${container:-}" ] || cli rm "$container" >/dev/null || true
    else
        for part in api worker; do cli rm --force "$name-$part" >/dev/null 2>&1 || true; done
        for part in index models keys; do cli volume rm "$name-$part" >/dev/null 2>&1 || true; done
    fi
    rm -rf "$work"
}
trap clean_up EXIT

# ---- Building
build() {
    local -a options=(--file docker/Dockerfile --target "$target" --tag "$image" --build-arg "PYTHON_IMAGE=$base")
    [ -z "${PIP_CONF:-}" ] || options+=(--secret "id=pip-conf,src=$PIP_CONF")
    [ -z "${CA_BUNDLE:-}" ] || options+=(--secret "id=ca-bundle,src=$CA_BUNDLE")
    [ "$engine" != buildah ] || options+=(--isolation chroot)
    if [ -n "${BASE_TARBALL:-}" ]; then
        case $engine in
        buildah)
            local root
            root=$(cli from scratch)
            cli add --quiet "$root" "$BASE_TARBALL" / >/dev/null
            cli commit --quiet --rm "$root" "$base" >/dev/null
            ;;
        *) cli import "$BASE_TARBALL" "$base" >/dev/null ;;
        esac
    fi
    cli build ${build_options[@]+"${build_options[@]}"} "${options[@]}" . >"$work/build.log" 2>&1 || fail "the build failed"
}
if [ -z "${IMAGE:-}" ]; then
    started=$SECONDS
    build
    say "built $image with $engine in $((SECONDS - started)) s"
fi

# ---- Running: `start PART ARGUMENT...` a service; `job FLAGS COMMAND...` and `inside PART COMMAND...` wait.
volumes=("$name-index:/index" "$name-models:/models" "$name-keys:/keys")
settings=(XCLIP_NEW_INDEX_MODEL=demo XCLIP_DEVICE=cpu XCLIP_START_WORKER=false OMP_NUM_THREADS=2)
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges --init --memory 6g --pids-limit 512
    --tmpfs "/tmp:size=256m,mode=1777,noexec,nosuid,nodev")

if [ "$engine" = buildah ]; then
    # Buildah's `run --isolation chroot` leaves the root file system writable, so we enter it ourselves.
    container=$(cli from --pull-never "$image")
    root=$(cli mount "$container")
    user=$(cli inspect --type image --format '{{.OCIv1.Config.User}}' "$image")
    mapfile -t environment < <(cli inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | sed '/^$/d')
    settings+=("XCLIP_PORT=${PORT:-18431}" XCLIP_HOST=127.0.0.1)
    for part in index models keys; do
        cp -a "$root/$part" "$work/$part" # As a new named volume takes the owner of the image's folder.
    done
    enter=$(
        cat <<'ENTER'
root=$1 work=$2 user=$3; shift 3
mount --bind "$root" "$root"
for part in index models keys; do mount --bind "$work/$part" "$root/$part"; done
mount -t tmpfs -o size=256m,mode=1777,noexec,nosuid,nodev tmpfs "$root/tmp"
mount --bind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec env -i "$@"
ENTER
    )
    confined=(unshare --mount --propagation private bash -euc "$enter" - "$root" "$work" "$user"
        "${environment[@]}" "${settings[@]}" /usr/sbin/chroot "$root" setpriv
        --reuid "${user%:*}" --regid "${user#*:}" --clear-groups --no-new-privs
        --inh-caps=-all --bounding-set=-all --)
else
    flags=("${hardened[@]}")
    for volume in "${volumes[@]}"; do flags+=(--volume "$volume"); done
    for setting in "${settings[@]}"; do flags+=(--env "$setting"); done
fi

job() {
    case $engine in
    buildah) "${confined[@]}" "$@" ;;
    *) cli run --rm --interactive "${flags[@]}" --entrypoint "$1" "$image" "${@:2}" ;;
    esac
}
start() {
    local part=$1
    shift
    case $engine in
    buildah)
        # No function: the process in the background must be the service itself, to get the signal.
        "${confined[@]}" "$@" >"$work/$part.log" 2>&1 &
        pids[$part]=$!
        ;;
    *) cli run --detach --name "$name-$part" "${flags[@]}" --entrypoint "$1" "$image" "${@:2}" >/dev/null ;;
    esac
}
inside() {
    case $engine in
    buildah) "${confined[@]}" "${@:2}" ;;
    *) cli exec --interactive "$name-$1" "${@:2}" ;;
    esac
}
logs() { [ "$engine" = buildah ] || cli logs "$name-$1" >"$work/$1.log" 2>&1; }
runs() {
    case $engine in
    buildah) kill -0 "${pids[$1]}" 2>/dev/null ;;
    *) [ "$(cli inspect --format '{{.State.Running}}' "$name-$1")" = true ] ;;
    esac
}
stop() { # by SIGTERM; leaves its exit status in `status`
    local part=$1
    case $engine in
    buildah)
        kill -TERM "${pids[$part]}"
        status=0
        wait "${pids[$part]}" || status=$?
        unset "pids[$part]"
        ;;
    *)
        cli stop --time 60 "$name-$part" >/dev/null
        status=$(cli inspect --format '{{.State.ExitCode}}' "$name-$part")
        logs "$part"
        cli rm "$name-$part" >/dev/null
        ;;
    esac
}
is_ready() {
    inside api python -c 'import http.client, os, sys
connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("XCLIP_PORT", "8000")), timeout=4)
connection.request("GET", "/readyz")
sys.exit(connection.getresponse().status != 200)' >/dev/null 2>&1
}
wait_until_ready() {
    local waited=0
    until is_ready; do
        logs api
        runs api || fail "the api has ended"
        [ $((waited += 1)) -lt 120 ] || fail "the api does not become ready"
        sleep 1
    done
}

# ---- What is in the image
facts=$(job python - <<'PYTHON'
import os, shutil
from importlib.metadata import distributions
status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
assert os.getuid() != 0 and os.getgid() != 0, "it runs as root"
assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0, "capabilities are left"
assert status["NoNewPrivs"].strip() == "1", "new privileges could be had"
compilers = [name for name in ("gcc", "cc", "g++", "clang", "make", "ld") if shutil.which(name)]
assert not compilers, compilers
names = {package.metadata["Name"].lower() for package in distributions()}
assert not names & {"pip", "pytest", "mypy", "ruff", "hypothesis"}, names
for folder in ("/", "/etc", "/opt/xclip-search", "/usr", "/var", "/home"):
    try:
        open(os.path.join(folder, "probe"), "w")
    except OSError:
        continue
    raise AssertionError(f"{folder} can be written to")
for folder in ("/index", "/models", "/keys", "/tmp"):
    path = os.path.join(folder, "probe")
    open(path, "w").close()
    os.unlink(path)
print(f"user {os.getuid()}:{os.getgid()}, no capability, no compiler, {len(names)} packages; only /index, /models, /keys and /tmp take a file")
PYTHON
) || fail "the image is not as it should be: $facts"
say "$facts"
version=$(job xclip-search --version) || fail "it does not know its version"
say "$version"
libraries=$(job python - "$target" <<'PYTHON'
import sys
import faiss, torch
has_gpu_code = hasattr(faiss, "StandardGpuResources")
assert has_gpu_code == (sys.argv[1] == "gpu"), f"FAISS {faiss.__version__} is not the one of the target {sys.argv[1]}"
print(f"torch {torch.__version__}, FAISS {faiss.__version__} {'with' if has_gpu_code else 'without'} code for GPUs, {torch.cuda.device_count()} GPUs seen")
PYTHON
) || fail "a library is not as it should be"
say "$libraries"
job python - <<'PYTHON' || fail "a command is missing"
import importlib, subprocess
from xclip_search import COMMANDS
shown = subprocess.run(["xclip-search", "--help"], capture_output=True, text=True, check=True).stdout
names = {line.split()[1] for line in shown.splitlines() if len(line.split()) > 2}
assert set(COMMANDS) <= names, set(COMMANDS) - names
for module in set(COMMANDS.values()):
    importlib.import_module(module)
print(f"--help lists all {len(COMMANDS)} commands")
PYTHON

# ---- What users do with it
job timeout 60 xclip-search serve --host 0.0.0.0 >"$work/serve.log" 2>&1 || true
grep -q 'keys add' "$work/serve.log" || fail "it serves others without any key"
key=$(job xclip-search keys add --name verify --scope write 2>/dev/null)
job xclip-search demo --no-serve --num-videos 10 --directory /models/corpus >"$work/demo.log" 2>&1 || fail "the demo failed"
grep 'find their own video' "$work/demo.log" || fail "the demo does not say what it found"
clip=$(job python -c 'from pathlib import Path; print(min(p for p in Path("/models/corpus").rglob("*") if p.suffix in (".mp4", ".webm")))')
foreign=/models/corpus/foreign.avi # Browsers play no AVI: they get an H.264 preview of it.
job python - "$clip" "$foreign" <<'PYTHON' || fail "no AVI could be made"
import sys
from fractions import Fraction
import av
with av.open(sys.argv[1]) as source, av.open(sys.argv[2], "w") as target:
    into = target.add_stream("mpeg4", rate=12)
    into.width, into.height, into.pix_fmt = source.streams.video[0].width, source.streams.video[0].height, "yuv420p"
    for number, frame in enumerate(source.decode(video=0)):
        picture = frame.reformat(format="yuv420p")
        picture.pts, picture.time_base = number, Fraction(1, 12)
        target.mux(into.encode(picture))
    target.mux(into.encode())
PYTHON

use() {
    start api xclip-search serve
    wait_until_ready
    say "ready after $1"
    start worker xclip-search worker
    inside api python - "$key" "$clip" "$foreign" <docker/smoke.py || { logs api; logs worker; fail "a request went wrong"; }
    for part in worker api; do
        stop "$part"
        [ "$status" -eq 0 ] || fail "the $part ended with $status after SIGTERM"
        if grep -E 'Read-only file system|Permission denied|Traceback|does not filter' "$work/$part.log"; then
            fail "the $part complained"
        fi
    done
    say "both ended with 0 after SIGTERM, and none complained: no write elsewhere, decoders confined"
}
use "a first start on empty volumes"
job xclip-search reindex --index /index --max-segment-seconds 1 >"$work/reindex.log" 2>&1 || fail "reindex failed"
grep current "$work/reindex.log" || fail "reindex does not say what is current"
use "a second start on the same volumes, encoded again"
job xclip-search keys list | grep -q verify || fail "the key is not listed"
job xclip-search keys remove --name verify >/dev/null 2>&1 || fail "the key cannot be removed"
job xclip-search backup /models/backup --index /index || fail "no backup could be made"
job find /index -mindepth 1 -delete
job xclip-search restore /models/backup --index /index || fail "the backup does not come back into an empty volume"
job xclip-search verify --index /index
[ "$target" = cpu ] || say "not checked: anything on a GPU; all of this ran on the CPU"
say "all is well with $image ($engine)"
