#!/usr/bin/env bash
# Build the image without Docker, serve from it as its user on a read-only root, and transcribe a sample. As root on
# Debian 12, with the packages buildah, curl, debootstrap, jq and procps, and a package index:
#
#     docker/rehearse.sh
#
# The base is a minimal Debian 12 with its own Python 3.11, instead of the official image with Python 3.12. There is
# no network of its own and no limit on memory: what Docker itself would do is not rehearsed.
set -euo pipefail
cd "$(dirname "$0")/.."
port=${PORT:-8970}
work=$(mktemp -d)
buildah() { command buildah --root "$work/images" --runroot "$work/run" "$@"; }
configured() { jq --raw-output ".Docker.config | $1" "$work/config"; }
finish() {
    [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true
    [ -z "${container:-}" ] || { buildah umount "$container"; buildah rm "$container"; } >/dev/null
    rm -rf "$work"
}
trap finish EXIT

echo "== The base: Debian 12 with its Python"
debootstrap --variant=minbase --include=ca-certificates,python-is-python3,python3-pip,python3-venv bookworm \
    "$work/base" >"$work/log"
rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/*
base=$(buildah from scratch)
buildah add --quiet "$base" "$work/base" / >/dev/null
buildah commit --quiet "$base" canary-base >/dev/null
buildah rm "$base" >/dev/null
rm -rf "$work/base"

echo "== docker/Dockerfile"
# The host's certificates: a proxy in the company may have its own.
buildah build --isolation chroot --format docker --volume /etc/ssl/certs:/etc/ssl/certs:ro \
    --build-arg PYTHON=localhost/canary-base --file docker/Dockerfile --tag canary-server .
container=$(buildah from canary-server)
root=$(buildah mount "$container")
buildah inspect "$container" >"$work/config"
echo "$(du -sm "$root" | cut -f 1) MB, of which $(du -sm "$root/venv" | cut -f 1) in /venv"
for absent in usr/bin/gcc usr/bin/cc venv/bin/pip venv/lib/python3*/site-packages/torch; do
    # shellcheck disable=SC2086
    ! ls -d "$root"/$absent 2>/dev/null || { echo "$absent should not be in the image"; exit 1; }
done

echo "== Serving the toy on port $port"
mapfile -t variables < <(configured '.Env[]')
mapfile -t command < <(configured '(.Entrypoint + .Cmd)[]')
inside=(chroot --userspec="$(configured .User)" "$root" env --ignore-environment "${variables[@]}" HOME=/home/canary
    CANARY_MODEL=toy CANARY_API_KEYS=rehearsal CANARY_PORT="$port")
mkdir "$work/cache"
chown 10001:10001 "$work/cache"
# As in compose.yaml: the root read-only, /tmp in memory, a volume for models; and the first process of a namespace.
# shellcheck disable=SC2016
unshare --mount --pid --fork --kill-child bash -euo pipefail -c '
    root=$1 cache=$2
    shift 2
    mount --bind "$root" "$root"
    cd "$root"
    mount --bind "$cache" cache
    mount --types tmpfs --options mode=1777 tmpfs tmp
    mount --types proc proc proc
    mount --rbind /dev dev
    mount --options remount,bind,ro "$root"
    exec "$@"
' rehearsal "$root" "$work/cache" "${inside[@]}" "${command[@]}" 2>"$work/log" &
server=$!
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/ready"; do
    kill -0 $server || { cat "$work/log"; exit 1; }
    sleep 0.2
done

echo "== A transcript"
text=$(curl --silent --show-error --fail -H 'Authorization: Bearer rehearsal' -F file=@convert/toy/samples/en.flac \
    "http://127.0.0.1:$port/transcribe?format=text")
echo "$text"
[ "$text" = "The woman sees ten new houses at school every day. The man sleeps." ]

echo "== The health check, and SIGTERM to the first process"
mapfile -t check < <(configured '.Healthcheck.Test[1:][]')
"${inside[@]}" "${check[@]}"
kill -TERM "$(pgrep --parent $server)"
wait $server
server=
echo "healthy, and ended by itself"
