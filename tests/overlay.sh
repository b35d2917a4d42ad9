#!/usr/bin/env bash
# An environment for one extra of mua, laid over one that has mua and its tests' packages:
#   tests/overlay.sh PYTHON DIR EXTRA
# What the extra pins is installed in DIR and found first; everything else is PYTHON's, not installed again.
# DIR/.installed is there when it is whole. Exit code 3 and one line where its packages cannot be had: no index in
# reach, no build for this machine.
set -euo pipefail
python=$1 made=$2 extra=$3
cd "$(dirname "$0")/.."

echo "installing mua[$extra] into $made"
"$python" -m venv --clear "$made"
below=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
above=$("$made/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$below')" >"$above/zz_below.pth"
"$python" -c 'import sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print(*extras[sys.argv[1]], sep="\n")' "$extra" >"$made/wanted.txt"
# Not compiled: most of what comes along is never imported. Quiet where it succeeds: pip warns that what lies below
# wants other versions, which is why there are two.
if ! "$made/bin/python" -m pip install --quiet --no-compile --timeout 30 --retries 2 -r "$made/wanted.txt" 2>"$made/pip.log"
then
  if grep -q ResolutionImpossible "$made/pip.log"; then # not the index: what we ask for cannot hold together
    cat "$made/pip.log" >&2
    exit 1
  fi
  why=$(sed -n 's/^ERROR: //p' "$made/pip.log" | tail -1 | cut -c1-200)
  echo "mua[$extra] cannot be installed here, so its tests do not run: ${why:-see $made/pip.log}" >&2
  exit 3
fi
touch "$made/.installed"
