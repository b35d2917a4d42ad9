#!/usr/bin/env bash
# An environment for one extra of mua, laid over one that has mua and its tests' packages:
#   tests/overlay.sh PYTHON DIR EXTRA
# What the extra pins is installed in DIR and found first; everything else is PYTHON's, not installed again.
set -euo pipefail
python=$1 made=$2 extra=$3
cd "$(dirname "$0")/.."

"$python" -m venv --clear "$made"
below=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
above=$("$made/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$below')" >"$above/zz_below.pth"
mapfile -t wanted < <("$python" -c 'import sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print(*extras[sys.argv[1]], sep="\n")' "$extra")
# pip warns that what lies below wants other versions: that is why there are two.
"$made/bin/python" -m pip install --quiet "${wanted[@]}" 2> >(grep -v -E "incompatible|dependency resolver|uninstall" >&2)
