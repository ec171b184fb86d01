#!/usr/bin/env bash
# Rebuilds every shipped artefact from a folder of pairs and chats; a killed run goes on where it stopped.
# usage: models/rebuild.sh FOLDER
#   FOLDER holds corpus_chat.jsonl.gz and {truthfulqa,safety,redteam,helpful}_{train,test}.jsonl
set -euo pipefail
data=$(cd "${1:?usage: models/rebuild.sh FOLDER_OF_PAIRS_AND_CHATS}" && pwd)
cd "$(dirname "$0")/.."
sparserm=.venv/bin/sparserm
sae=models/sae/smollm2-135m-instruct-l18

"$sparserm" sae train "$data/corpus_chat.jsonl.gz" "$data"/{truthfulqa,safety,redteam,helpful}_train.jsonl \
    --out "$sae" --layer 18 --width 4608 --k 48 --rows 1000000 --samples 3500000

make_model() { # task, file stem, stem of pairs unlike them, license, further options
    local task=$1 stem=$2 unlike=$3 license=$4 other elsewhere=()
    shift 4
    for other in truthfulqa safety redteam helpful; do
        [[ $other == "$stem" ]] || elsewhere+=(--elsewhere "$data/${other}_test.jsonl")
    done
    "$sparserm" train "$data/${stem}_train.jsonl" --task "$task" --test "$data/${stem}_test.jsonl" \
        --sae "$sae" --license "$license" --limit 0 "$@"
    "$sparserm" ablate "$task" "$data/${stem}_train.jsonl" "$data/${stem}_test.jsonl" --sae "$sae" \
        "${layers[@]}" "${elsewhere[@]}"
    "$sparserm" verify "models/$task" "$data/${stem}_test.jsonl" --shifted "$data/${unlike}_test.jsonl"
    "$sparserm" stress "models/$task" "$data/${stem}_test.jsonl"
}

layers=(--layers 12 --layers 15 --layers 21 --layers 24)
make_model truthfulness truthfulqa helpful "Apache-2.0" --k 256 --slice kind=reference --slice kind=generated
make_model safety safety redteam "CC BY-NC 4.0" --heads 16 --slice "support>=2"
layers=() # other depths are not asked where texts are long
make_model redteam redteam safety "MIT" --heads 16
make_model helpfulness helpful truthfulqa "CC BY-NC 4.0 and Apache-2.0" --heads 16

beside_standard() { # task, file stem, further options
    "$sparserm" duel "$1" "$data/$2_train.jsonl" "$data/$2_test.jsonl" --sae "$sae" "${@:3}"
}

# last, as they take hours: a fine-tuned StandardRM on the same pairs
beside_standard safety safety
beside_standard redteam redteam
beside_standard helpfulness helpful
beside_standard truthfulness truthfulqa --sizes 100 --sizes 300 --sizes 1000 --sizes 3000
