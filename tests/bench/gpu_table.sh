#!/usr/bin/env bash
# Makes the tables of a GPU step by step, on a machine that has python3 with torch, triton, einops, safetensors and
# pytest, and no network. One call takes at most 9 minutes, all calls together 20. What is measured stays measured:
# call it again until it says that all is done. README.md beside it says what the steps are.
set -euo pipefail

all="tests attention planning growth short gate compile head64 linear dcae sanitizer flex"
usage="usage: gpu_table.sh [-o FOLDER] [-r FOLDER] [-s 'STEP ...'] [-q] [-n HEADS] [capture.safetensors ...]
  -o  where results go (default: \$OUT, else gpu_table)
  -r  results of an earlier call to go on from
  -s  some of: $all (default: all)
  -q  tiny inputs and single runs, to try the script itself without a GPU
  -n  so many heads of the captured calls of one size side by side, as one call"
call_seconds=540
all_seconds=1200
declare -A most_seconds=([tests]=220 [attention]=350 [planning]=90 [growth]=130 [short]=50 [gate]=30 [compile]=30
    [head64]=60 [linear]=40 [dcae]=60 [sanitizer]=100 [flex]=40)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
out=${OUT:-gpu_table}
steps=$all
earlier=
quick=()
stacked=()
only=
while getopts "o:r:s:qn:1:" option; do
    case $option in
        o) out=$OPTARG ;;
        r) earlier=$OPTARG ;;
        s) steps=$OPTARG ;;
        q) quick=(--repeats 1 --heads 1 --density 0.5 --pattern window) ;;
        n) stacked=(--stack-heads "$OPTARG") ;;
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

bench() { python3 -m dit_accel.tests.bench "$@"; }

# The table NAME of SUBJECT; one that was stopped goes on where it was.
table() {
    local name=$1 subject=$2
    shift 2
    bench "$subject" "$@" --json "$out/$name.json" --resume
}

# The table SUBJECT, which has no --resume.
plain_table() {
    local subject=$1
    shift
    bench "$subject" "$@" --json "$out/$subject.json"
}

# The options for a drawn clip of such grids.
drawn() {
    if [ ${#quick[@]} -gt 0 ]; then
        set -- 2x8x8
    fi
    echo --drawn "$@"
}

# shellcheck disable=SC2046,SC2207
run_step() {
    # Wan 14B at 720p and 81 frames: the captures, or a drawn clip.
    local inputs=($(drawn 21x45x80) --heads 40)
    [ ${#captures[@]} -eq 0 ] || inputs=(--capture "${captures[@]}" "${stacked[@]}")
    case $1 in
        tests)
            plain_table gpu_tests --log "$out/tests.log"
            ;;
        attention)
            table attention attention --density 0.15 0.25 0.4 --precision 16-bit 8-bit --repeats 7 "${inputs[@]}" \
                "${quick[@]}"
            ;;
        planning)
            table planning planning --density 0.25 --repeats 10 "${inputs[@]}" "${quick[@]}"
            ;;
        growth)
            table growth attention --no-baselines --heads 8 --density 0.25 --repeats 5 --pattern svg2 pooled tree \
                $(drawn 13x30x42 21x30x52 21x45x80 33x45x80 56x45x80) "${quick[@]}"
            ;;
        short)
            table short attention --no-baselines --heads 12 --density 0.3 --precision 16-bit 8-bit \
                $(drawn 3x30x52 5x30x52 9x30x52) "${quick[@]}"
            ;;
        gate)
            python3 -m dit_accel.accel.cli.main bench gate --json "$out/gate.json"
            ;;
        compile)
            plain_table first_calls ${quick[0]:+--grid 2 8 8 --heads 1}
            ;;
        head64)
            table head64 attention --heads 24 --head-dim 64 --density 0.25 --precision 16-bit 8-bit --repeats 10 \
                --pattern svg2 svg_ear pooled window tree $(drawn 21x30x52) "${quick[@]}"
            ;;
        linear)
            table linear linear ${quick[0]:+--repeats 1}
            ;;
        dcae)
            set -- 1024 2048 4096
            [ ${#quick[@]} -eq 0 ] || set -- 64
            table dcae dcae --pixels "$@" --repeats 3
            ;;
        sanitizer)
            plain_table sanitizer --log "$out/sanitizer.log"
            ;;
        flex)
            # Here all blocks are of one size, so FlexAttention can take the same masks.
            table flex attention --heads 8 --density 0.25 --pattern pooled window tree --repeats 5 \
                $(drawn 32x48x48) "${quick[@]}"
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

# The files of $out with such names that are there.
found() {
    local name
    for name in "$@"; do
        [ ! -e "$out/$name.json" ] || echo "$out/$name.json"
    done
}

cd "$GPU_TABLE_SITE"
mapfile -t tables < <(found attention planning growth short head64 linear dcae flex)
mapfile -t judged < <(found attention planning growth short head64 linear dcae gate gpu_tests sanitizer first_calls)
: > "$out/table.txt"
[ ${#tables[@]} -eq 0 ] || bench show "${tables[@]}" | tee -a "$out/table.txt"
[ ${#judged[@]} -eq 0 ] || bench bars "${judged[@]}" --json "$out/bars.json" | tee -a "$out/table.txt"
if [ ${#open[@]} -gt 0 ]; then
    echo "not done: ${open[*]}; $((all_seconds - $(awk '{ sum += $3 } END { print sum + 0 }' "$log"))) seconds left"
    exit 1
fi
echo "all done: $steps"
