#!/bin/sh
# Install the requirements of the tests in this folder, on Debian 12, as root: Apptainer, mmdebstrap, a registry. If they
# cannot be installed, this prints a message and the tests skip; in CI they fail. Only for test machines: users install
# Apptainer according to its documentation.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# A build as root in a user namespace needs subordinate ids.
for file in /etc/subuid /etc/subgid; do
  grep -qs '^root:' "$file" || echo root:100000:65536 >>"$file"
done

# The same permissions as by udev: ordinary users need this device to mount images.
[ ! -e /dev/fuse ] || chmod 666 /dev/fuse

missing=
for command in mmdebstrap docker-registry; do
  command -v "$command" >/dev/null || missing="$missing $command"
done
if [ -n "$missing" ]; then
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi
if command -v apptainer >/dev/null; then
  exit 0
fi

# Debian 12 has no Apptainer. The package of Debian's development release runs on it after its three references to the
# C library's newest strto* functions are changed to the older versions.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -n 1)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/package"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sid.list"
sid() {
  apt-get -qq -o Dir::Etc::SourceList="$work/sid.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" \
    -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}
sid update
(cd "$work/package" && sid download apptainer)
dpkg-deb --raw-extract "$work"/package/apptainer_*.deb "$work/tree"
python3 "$here/older_libc.py" "$work/tree/usr/bin/apptainer" "$work"/tree/usr/lib/*/apptainer/bin/starter
sed -i -E 's/libc6 \(>= [^)]*\)/libc6/; s/^Version: .*/&~older.libc/' "$work/tree/DEBIAN/control"
rm -f "$work/tree/DEBIAN/md5sums"
dpkg-deb -Znone --root-owner-group --build "$work/tree" "$work/apptainer.deb" >/dev/null
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$work/apptainer.deb" \
  squashfs-tools squashfuse fuse-overlayfs fuse3 fakeroot uidmap >/dev/null
apptainer --version
