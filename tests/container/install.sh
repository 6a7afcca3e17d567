#!/bin/sh
# What the tests in this folder need, on Debian 12, as root: Apptainer, mmdebstrap, a registry. Where they are not to be
# had, it says so and the tests skip; in CI they fail. For test machines only: users install Apptainer as its
# documentation says.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# A build as root in a user namespace wants ids to give away there.
for file in /etc/subuid /etc/subgid; do
  grep -qs '^root:' "$file" || echo root:100000:65536 >>"$file"
done

# As udev has it: ordinary users mount images by it.
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

# Debian 12 has no Apptainer. The package of Debian's development release runs there once its three references to the
# C library's newest strto* functions are turned to the old ones.
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
