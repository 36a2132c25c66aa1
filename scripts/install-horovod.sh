#!/usr/bin/env bash
# Builds Horovod against a Python's torch (default: .venv/bin/python), caches the wheel and installs it. See docs/how-to/horovod.md.
#   bash scripts/install-horovod.sh [PYTHON]      LANDMARK_WHEELS: folder of cached wheels (default: ~/.cache/landmark/wheels)
#   HOROVOD_GPU_OPERATIONS=NCCL: for GPUs; requires nvcc and NCCL's headers (HOROVOD_NCCL_HOME)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$root/.venv/bin/python}
wheels=${LANDMARK_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/landmark/wheels}
gpu=${HOROVOD_GPU_OPERATIONS:-}
# The last release on PyPI. The hash protects the code that runs in every worker.
version=0.28.1
sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0

fail() {
    echo "scripts/install-horovod.sh: error: $1" >&2
    exit 1
}

wheel_in() {
    find "$1" -maxdepth 1 -name "horovod-$version-*.whl" 2> /dev/null | head -n 1
}

# The build tools: a compiler, make and Python's headers, installed from Debian if missing.
compilers() {
    local missing=() sudo=()
    command -v g++ > /dev/null && command -v make > /dev/null || missing+=(g++ make)
    [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing+=(python3-dev)
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
    local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}")
    "${install[@]}" >> "$log" 2>&1 || { "${sudo[@]}" apt-get update && "${install[@]}"; } >> "$log" 2>&1 \
        || fail "the build needs ${missing[*]}, which could not be installed (needs apt-get as root or with sudo); log: $log"
}

# Checks each edit, so that a changed source is not built with only some of the patches.
edit() {
    sed --in-place --expression "$2" "$work/horovod-$version/$1"
    grep --quiet --fixed-strings --regexp "$3" "$work/horovod-$version/$1" || fail "$1 of horovod $version differs from the expected source"
}

patched() {
    echo "horovod==$version --hash=sha256:$sha256" > "$work/requirement.txt"
    "$python" -m pip download --quiet --no-deps --no-binary horovod --no-build-isolation --dest "$work" \
        --require-hashes --requirement "$work/requirement.txt"
    tar --extract --file "$work/horovod-$version.tar.gz" --directory "$work"
    # torch's headers need C++20; its CMakeLists.txt strips -std from CXXFLAGS.
    edit CMakeLists.txt 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 20)/' 'set(CMAKE_CXX_STANDARD 20)'
    edit horovod/torch/CMakeLists.txt 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 20)/' 'set(CMAKE_CXX_STANDARD 20)'
    edit third_party/gloo/CMakeLists.txt 's/-std=c++11/-std=c++20/' '-std=c++20'
    # Python 3.12 removed distutils.
    edit horovod/torch/CMakeLists.txt 's/from distutils.sysconfig import get_python_inc; print(get_python_inc())/import sysconfig; print(sysconfig.get_path(\x27include\x27))/' 'sysconfig.get_path'
    # Without debug symbols, the wheel has a twentieth of the size and compiles faster.
    edit setup.py "s/config = 'Debug' if self.debug .*/config = 'Release'/" "config = 'Release'"
    if [ -z "$gpu" ]; then
        # Otherwise, a CUDA build of torch and any installed nvcc would enable CUDA.
        edit cmake/Modules/FindPytorch.cmake 's/print(True if ((torch.version.cuda.*else False)"/print(False)"/' 'CUDA_HOME; print(False)"'
    else
        edit horovod/common/ops/cuda/CMakeLists.txt 's/set(CMAKE_CUDA_STANDARD 11)/set(CMAKE_CUDA_STANDARD 17)/' 'set(CMAKE_CUDA_STANDARD 17)'
    fi
}

build() {
    # Outside the environment: the build needs an older setuptools than the environment may have.
    "$python" -m pip install --quiet --target "$work/tools" 'setuptools>=70,<81' wheel packaging 'cmake>=3.25,<5'
    export PYTHONPATH="$work/tools" PATH="$work/tools/bin:$PATH"
    patched
    [ -z "$gpu" ] || export HOROVOD_GPU=CUDA
    # CMake 4 rejects projects that require less than 3.5, such as the bundled gloo.
    CMAKE_POLICY_VERSION_MINIMUM=3.5 HOROVOD_CMAKE="$work/tools/bin/cmake" MAKEFLAGS="-j$(nproc)" \
        HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITHOUT_MPI=1 \
        HOROVOD_WITH_GLOO=1 HOROVOD_CPU_OPERATIONS=GLOO \
        "$python" -m pip wheel --verbose --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$work/built" "$work/horovod-$version"
}

torch=$("$python" -c 'from importlib.metadata import version; print(version("torch"))' 2> /dev/null) \
    || fail "$python has no torch to build against; run make setup first, or name another Python"
abi=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
key=horovod-$version-torch-$torch-$abi${gpu:+-$gpu}-$(sha256sum "$root/scripts/install-horovod.sh" | cut -c1-12)
kept=$wheels/$key
if [ -z "$(wheel_in "$kept")" ]; then
    mkdir -p "$wheels"
    log=$wheels/$key.log
    work=$(mktemp --directory)
    trap 'rm -rf "$work"' EXIT
    echo "building Horovod $version for torch $torch (about 7 CPU minutes); log: $log"
    : > "$log"
    compilers
    # Not as a condition: bash would then continue after a failed line.
    set +e
    (set -e; build) >> "$log" 2>&1
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        fail "Horovod could not be built: $(grep -m 1 -i -E '(^|[^-_[:alnum:]])error[: ]' "$log" || tail -n 1 "$log"); log: $log"
    fi
    # One atomic move: concurrent or interrupted builds leave no partial wheel.
    mkdir -p "$kept"
    mv "$(wheel_in "$work/built")" "$kept/"
fi
wheel=$(wheel_in "$kept")
# Install the requirements, then reinstall the wheel: the installed one may have the same version but another torch.
install=("$python" -m pip install --quiet --disable-pip-version-check)
if ! { "${install[@]}" --constraint "$root/constraints.txt" "$wheel" && "${install[@]}" --no-deps --force-reinstall "$wheel"; }; then
    fail "$wheel could not be installed into $python"
fi
"$python" -c 'import horovod.torch; horovod.torch.allreduce' 2> /dev/null \
    || fail "$wheel does not load; delete $kept and run this script again"
echo "installed Horovod $version for torch $torch into $python"
