#!/usr/bin/env bash
# Run on the GPU machine, from the repository's root; needs bash, Python 3.12 and what gpu_pack.py made.
#
#   bash tests/bench/gpu_run.sh install    unpacks every pack that is in .gpu-pack/ (call it once for each that is sent)
#   bash tests/bench/gpu_run.sh smoke      the same, then every piece once, a line each: what is broken, in half a minute
#   bash tests/bench/gpu_run.sh            the same, then the quick tests marked gpu, the benchmark, its table last
#
# OUT: where the JSON goes (default runs/gpu). SITE: where packages go (default /tmp/gpu-site). SECONDS_MOST: of the
# benchmark (default 440). PYTHON: default python3. Exit status: that of the tests, or of the benchmark.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SITE=${SITE:-/tmp/gpu-site}; OUT=${OUT:-runs/gpu}; PYTHON=${PYTHON:-python3}; SECONDS_MOST=${SECONDS_MOST:-440}
mkdir -p "$SITE" "$OUT"

for pack in .gpu-pack/*/; do
  [ -d "$pack" ] || continue
  "$PYTHON" - "$pack" "$SITE" <<'P'
import pathlib, shutil, sys, tarfile, zipfile
pack, site = map(pathlib.Path, sys.argv[1:])
for wheel in sorted(pack.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
for archive in pack.glob("*.tar.xz"):
    with tarfile.open(archive, "r:xz") as packed:
        packed.extractall(site, filter="data")
kept = site / "sent"
kept.mkdir(exist_ok=True)
for path in (*pack.glob("*.npz"), *pack.glob("*.pt")):
    shutil.copy(path, kept / path.name)
print(f"unpacked {pack}")
P
  [ $? = 0 ] || { echo "gpu_run.sh: $pack does not unpack" >&2; exit 1; }
done
[ "${1:-}" != install ] || exit 0

export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
photos=(); [ ! -f "$SITE/sent/photos.npz" ] || photos=(--photos "$SITE/sent/photos.npz" --weights "$SITE/sent")

if [ "${1:-}" = smoke ]; then
  exec timeout 120 "$PYTHON" -m tests.bench.gpu --only smoke --seconds 110 --out "$OUT/smoke.json" "${photos[@]}" ${BENCH_WORDS:-}
fi

REQUIRE_GPU=${REQUIRE_GPU:-1} timeout 110 "$PYTHON" -m pytest -q -m "(gpu or tensorrt) and not slow" -W default -p no:cacheprovider \
  tests/engine/test_gpu_image_ops.py tests/engine/test_gpu_batch_pipeline.py tests/engine/test_gpu_explainer.py tests/engine/test_gpu_plan_timing.py \
  tests/engine/test_tensorrt.py 2>&1 | tail -40 | tee "$OUT/tests.txt"
tests=${PIPESTATUS[0]}
echo "tests marked gpu: exit $tests"

"$PYTHON" -m tests.bench.gpu --out "$OUT/gpu.json" --seconds "$SECONDS_MOST" "${photos[@]}" ${BENCH_WORDS:-} \
  2> >(tee "$OUT/gpu.log" >&2) | tee "$OUT/table.txt"
bench=${PIPESTATUS[0]}
[ "$tests" = 0 ] || exit "$tests"
exit "$bench"
