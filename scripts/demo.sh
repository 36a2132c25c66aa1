#!/usr/bin/env bash
# The demo on synthetic data: pack synthetic landmarks, search demo.yaml, test the best model, write the report.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/demo}
# The demo deletes only a folder that an earlier demo created.
mark="$folder/.landmark-demo"
if [ -e "$folder" ] && [ ! -e "$mark" ] && { [ ! -d "$folder" ] || [ -n "$(ls -A "$folder")" ]; }; then
    echo "scripts/demo.sh: error: $folder exists but was not created by the demo; give another folder, or delete it" >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$folder"
touch "$mark"
start=$(date +%s)
landmark prepare --source synthetic -o "$folder/dataset" --packing.short-side 96
landmark tune "$folder/dataset" --space demo --output "$folder" --name study
landmark report "$folder/study"
echo "demo took $(($(date +%s) - start)) s"
python - "$folder/study" <<'PY'
import json, pathlib, sys
study = json.loads(pathlib.Path(sys.argv[1], "study.json").read_text())
best = study["best"]
print(json.dumps({
    "top1": round(best["test"]["1"], 4),
    "majority_top1": round(study["baselines"]["majority"]["1"], 4),
    "trials": study["trials"],
    "epochs_run": study["epochs_run"],
    "epochs_grid": study["epochs_grid"],
    "report": str(pathlib.Path(sys.argv[1], "report", "index.html")),
}))
PY
