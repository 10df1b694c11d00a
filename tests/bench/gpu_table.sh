#!/usr/bin/env bash
# Makes the tables of a GPU step by step, on a machine that has python3 with torch, triton, einops, safetensors and
# pytest, and no network. One call takes at most 9 minutes, all calls together 20. What is measured stays measured:
# call it again until it says that all is done. README.md beside it says what the steps are.
set -euo pipefail

usage="usage: gpu_table.sh [-o FOLDER] [-r FOLDER] [-s 'STEP ...'] [-q] [capture.safetensors ...]
  -o  where results go (default: \$OUT, else gpu_table)
  -r  results of an earlier call to go on from
  -s  some of: tests attention planning growth short head64 linear (default: all)
  -q  tiny inputs and single runs, to try the script itself without a GPU"
call_seconds=540
all_seconds=1200
declare -A most_seconds=([tests]=280 [attention]=400 [planning]=110 [growth]=180 [short]=70 [head64]=100 [linear]=60)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
out=${OUT:-gpu_table}
steps="tests attention planning growth short head64 linear"
earlier=
quick=()
only=
while getopts "o:r:s:q1:" option; do
    case $option in
        o) out=$OPTARG ;;
        r) earlier=$OPTARG ;;
        s) steps=$OPTARG ;;
        q) quick=(--repeats 1 --heads 1 --density 0.5 --pattern window) ;;
        1) only=$OPTARG ;;
        *) echo "$usage" >&2; exit 2 ;;
    esac
done
arguments=("${@:1:OPTIND-1}")
shift $((OPTIND - 1))
captures=()
for capture in "$@"; do
    captures+=("$(realpath -e "$capture")")
done
for step in $steps; do
    if [ -z "${most_seconds[$step]:-}" ]; then
        echo "gpu_table.sh: -s: expected some of ${!most_seconds[*]}, found $step" >&2
        exit 2
    fi
done
mkdir -p "$out"
out=$(cd "$out" && pwd)

bench() { python3 -m dit_accel.accel.cli.main bench "$@"; }

# The table NAME of SUBJECT; one that was stopped goes on where it was.
table() {
    local name=$1 subject=$2
    shift 2
    bench "$subject" "$@" --json "$out/$name.json" --resume
}

# The options for a drawn clip of such grids.
drawn() {
    if [ ${#quick[@]} -gt 0 ]; then
        set -- 2x8x8
    fi
    echo --drawn "$@"
}

run_step() {
    local inputs file failed=0
    case $1 in
        tests)
            for file in "$root"/tests/gpu/test_*.py; do
                grep -qsx "passed $(basename "$file")" "$out/tests.log" && continue
                if python3 -m pytest -q -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml" -m gpu "$file" \
                    2>&1 | tee -a "$out/tests.log"; then
                    echo "passed $(basename "$file")" >> "$out/tests.log"
                else
                    failed=1
                fi
            done
            return $failed
            ;;
        attention)
            if [ ${#captures[@]} -gt 0 ]; then
                inputs="--capture"
            else
                inputs="$(drawn 21x30x52 21x45x80) --heads 12"
            fi
            # shellcheck disable=SC2086
            table attention attention --density 0.15 0.3 --precision 16-bit 8-bit $inputs "${captures[@]}" "${quick[@]}"
            ;;
        planning)
            # shellcheck disable=SC2046
            table planning planning --heads 12 --density 0.3 $(drawn 21x30x52 21x45x80) "${quick[@]}"
            ;;
        growth)
            # Powers of two: here the blocks of a window are of one size, so FlexAttention can take the same mask.
            # shellcheck disable=SC2046
            table growth attention --heads 8 --density 0.25 --pattern svg2 window pooled \
                $(drawn 8x32x32 16x32x32 16x32x64 32x32x64 32x64x64) "${quick[@]}"
            ;;
        short)
            # shellcheck disable=SC2046
            table short attention --heads 12 --density 0.3 --precision 16-bit 8-bit $(drawn 3x30x52 5x30x52) \
                "${quick[@]}"
            ;;
        head64)
            # shellcheck disable=SC2046
            table head64 attention --heads 24 --head-dim 64 --density 0.3 --precision 16-bit 8-bit \
                --pattern svg2 svg_ear window pooled $(drawn 21x30x52) "${quick[@]}"
            ;;
        linear)
            table linear linear ${quick[0]:+--repeats 1}
            ;;
    esac
}

# The package is the repository under another name. Its root must not be on sys.path, where nodes/ would shadow
# ComfyUI's; python -m puts the working folder there, so that is the folder of the link.
if [ -n "$only" ]; then
    cd "$GPU_TABLE_SITE"
    run_step "$only"
    exit
fi
if [ -n "$earlier" ]; then
    for file in "$earlier"/*; do
        [ -e "$out/$(basename "$file")" ] || cp "$file" "$out"
    done
fi
GPU_TABLE_SITE=$(mktemp -d)
trap 'rm -rf "$GPU_TABLE_SITE"; rm -f "$out"/.*.partial' EXIT
ln -s "$root" "$GPU_TABLE_SITE/dit_accel"
export GPU_TABLE_SITE PYTHONPATH=$GPU_TABLE_SITE${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

log=$out/steps.txt
touch "$log"
open=()
for step in $steps; do
    grep -q "^$step done" "$log" && continue
    left=$((call_seconds - SECONDS))
    left_of_all=$((all_seconds - $(awk '{ sum += $3 } END { print sum + 0 }' "$log")))
    for limit in "${most_seconds[$step]}" "$left_of_all"; do
        [ "$left" -le "$limit" ] || left=$limit
    done
    if [ "$left" -lt 15 ]; then
        open+=("$step")
        continue
    fi
    echo "== $step, $left seconds at most"
    began=$SECONDS
    if timeout "$left" "$root/tests/bench/gpu_table.sh" "${arguments[@]}" -o "$out" -1 "$step" "${captures[@]}"; then
        status="done"
    else
        status="stopped"
        open+=("$step")
    fi
    echo "$step $status $((SECONDS - began))" >> "$log"
done

cd "$GPU_TABLE_SITE"
tables=()
for file in "$out"/*.json; do
    [ ! -e "$file" ] || tables+=("$file")
done
if [ ${#tables[@]} -gt 0 ]; then
    bench show "${tables[@]}" | tee "$out/table.txt"
fi
if [ ${#open[@]} -gt 0 ]; then
    echo "not done: ${open[*]}; $((all_seconds - $(awk '{ sum += $3 } END { print sum + 0 }' "$log"))) seconds left"
    exit 1
fi
echo "all done: $steps"
